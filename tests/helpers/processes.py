"""Processes of our own: several ranks of one program, with the package that this test imported."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import tokensieve

SOURCE = Path(tokensieve.__file__).parents[1]


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(SOURCE), str(Path(__file__).parent)])
    threads = os.environ.get("OMP_NUM_THREADS", "1")  # as many as this process: bytes are compared between the two
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1", **more}


def fork_ranks(command: Sequence[str], *sizes: int, timeout: float = 400) -> None:
    """Run a script as ranks 0 .. size - 1, with what torchrun sets; one group after the other. An error shows the output."""
    script = [sys.executable, str(Path(__file__).parent / "forked.py"), ",".join(map(str, sizes)), *command]
    done = subprocess.run(
        script,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
