"""What workers share is made once a run of the tests, and never taken from an earlier run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from shared import once


def test_a_pytest_within_a_test_shares_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a worker's variables, but its folder stands among those of earlier runs: it took what one of them had made."""
    made: list[str] = []
    for folder in ("run-1", "run-2", "run-3/popen-gw0", "run-3/popen-gw1"):
        (tmp_path / folder).mkdir(parents=True)
        monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw1" if folder.endswith("gw1") else "gw0")
        factory: Any = SimpleNamespace(getbasetemp=lambda folder=folder: tmp_path / folder)
        once(factory, "x", lambda there, folder=folder: made.append(folder))  # type: ignore[misc]
    assert made == ["run-1", "run-2", "run-3/popen-gw0"]
