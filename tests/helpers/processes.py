"""Processes of our own: several ranks of one program, with the package that this test imported."""

from __future__ import annotations

import os
import socket
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


def run_ranks(command: Sequence[str], num_ranks: int, timeout: float = 240, code: int = 0) -> list[str]:
    """Run ``python *command`` as ranks 0 .. num_ranks - 1, with what torchrun sets; the output of each.

    Another exit code than ``code`` shows the output of all.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    running = [
        subprocess.Popen(
            [sys.executable, *command],
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), **common),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(num_ranks)
    ]
    try:
        output = [process.communicate(timeout=timeout)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    wrong = [process.returncode for process in running if process.returncode != code]
    assert not wrong, "\n\n".join(
        f"rank {i}, {running[i].returncode}:\n{text[-3000:]}" for i, text in enumerate(output)
    )
    return output


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
