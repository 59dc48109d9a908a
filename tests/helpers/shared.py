"""What takes seconds to make and is only looked at: made once a run of the tests, by whichever worker asks for it first."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder ``name`` of this run of the tests, empty for ``make``; other workers wait until it is made, and share it."""
    mine = factory.getbasetemp()
    # Workers have a folder each, side by side. A pytest that a worker's test starts has its variables too, and is no worker:
    # beside its folder are those of earlier runs, and what they had made would be taken for this one's.
    root = mine.parent if mine.name == f"popen-{os.environ.get('PYTEST_XDIST_WORKER')}" else mine
    folder, made = root / f"once-{name}", root / f"once-{name}.made"
    with open(root / f"once-{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of one that failed: each worker says so itself
            folder.mkdir()
            make(folder)
            made.touch()
    return folder
