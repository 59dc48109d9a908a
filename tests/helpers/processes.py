"""Processes of our own: several ranks of one program, with the package that this test imported."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import warm

import tokensieve

SOURCE = Path(tokensieve.__file__).parents[1]


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(SOURCE), str(Path(__file__).parent)])
    threads = os.environ.get("OMP_NUM_THREADS", "1")  # as many as this process: bytes are compared between the two
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1", **more}


def run_warm(*command: object, folder: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    """``python *command`` in a fork of the warm process, in ``folder`` and with ``more`` of the environment."""
    return subprocess.run(
        [warm.python(), *map(str, command)],
        cwd=folder,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def rank_environments(size: int) -> list[dict[str, str]]:
    """What torchrun sets for each rank of a group on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank), **common} for rank in range(size)]


def start_ranks(commands: Sequence[Sequence[str]], logs: Sequence[Path], **more: str) -> list[subprocess.Popen[bytes]]:
    """``python *command`` as ranks 0, 1 ... of one group, each in a fork of the warm process and with its log."""
    started = []
    for command, log, rank in zip(commands, logs, rank_environments(len(commands)), strict=True):
        with open(log, "ab") as out:
            env = environment(**rank, **more)
            started.append(subprocess.Popen([warm.python(), *command], env=env, stdout=out, stderr=out))
    return started


def fork_ranks(command: Sequence[str], size: int, timeout: float = 400) -> None:
    """Run a script as ranks 0 .. size - 1, with what torchrun sets. An error shows the output."""
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        logs = [Path(folder) / str(rank) for rank in range(size)]
        ranks, until = start_ranks([command] * size, logs), time.monotonic() + timeout
        while None in (codes := [rank.poll() for rank in ranks]) and not any(codes) and time.monotonic() < until:
            time.sleep(0.02)
        for rank in ranks:
            rank.kill()  # they would wait for one that failed
            rank.wait()
        assert codes == [0] * size, "\n".join(log.read_text(errors="replace")[-4000:] for log in logs)
