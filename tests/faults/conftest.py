from __future__ import annotations

from collections.abc import Iterator

import pytest
import trials


@pytest.fixture(scope="session")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[trials.Stand]:
    """Tests take copies of what is in it."""
    made = trials.make_stand(tmp_path_factory.mktemp("stand"))
    yield made
    made.zygote.close()
