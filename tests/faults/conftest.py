from __future__ import annotations

import pytest
import trials


@pytest.fixture(scope="session")
def stand(tmp_path_factory: pytest.TempPathFactory) -> trials.Stand:
    """Tests take copies of what is in it."""
    return trials.make_stand(tmp_path_factory.mktemp("stand"))
