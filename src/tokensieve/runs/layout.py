"""Where things are in a folder that `train` or `dynamics` wrote, what they are called, and the one reader of run logs.

    run/                                  dynamics/
      tokens.jsonl    times.jsonl           nll-00000.arrow ...   a file a checkpoint
      metrics.jsonl
      tokens/step-00000010.parquet
      checkpoint-30/

docs/formats.md says what the files hold. Nothing else in the package spells these names; a test reads all modules for that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import UserError

TOKEN_LOG = "tokens.jsonl"
TIMES = "times.jsonl"
METRICS = "metrics.jsonl"
TOKENS = "tokens"
"""The folder of what was logged token by token."""
BESIDE = "TOKENSIEVE_BESIDE"
"""Set in the environment of a process that works beside others of its recipe: its times are not what the work takes."""
CHECKPOINT = "checkpoint-"
"""The Trainer's own prefix; the number of optimizer steps done follows."""


def log_lines(path: Path, *, live: bool = False) -> Iterator[dict[str, Any]]:
    """The lines of ``tokens.jsonl``, ``times.jsonl`` or ``metrics.jsonl``, in order; nothing of a file that is not there.

    Every line is a JSON object with a ``step``; the first that is not is a UserError with file and line. ``live``: of a run
    at work, or killed at it: what stands after the last newline is half a line and is left out.
    """
    if not path.exists():
        return
    with open(path, "rb") as f:
        for number, text in enumerate(f, 1):
            if live and not text.endswith(b"\n"):
                return
            yield _line(path, number, text)


def _line(path: Path, number: int, text: bytes) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path} is damaged: line {number} is not JSON: {e}") from None
    if not isinstance(line, dict) or not isinstance(line.get("step"), int):
        raise UserError(f"{path} is damaged: line {number} does not say its step")
    return line


def token_lines(run: Path, *, live: bool = False) -> list[dict[str, Any]]:
    """A run's token log, a line an optimizer step; empty for a folder that `train` did not write. See :func:`log_lines`."""
    return list(log_lines(run / TOKEN_LOG, live=live))


def seconds(run: Path) -> float:
    """Training time over all processes that worked on the run: each one's clock starts at 0."""
    total: float = sum({line["process"]: line["seconds"] for line in log_lines(run / TIMES)}.values())
    return round(total, 3)


def ran_alone(run: Path) -> bool:
    """Whether no process of the run had another stage of its recipe beside it."""
    return not any(line.get("beside") for line in log_lines(run / TIMES))


def token_file(run: Path, step: int) -> Path:
    """Where the rows logged token by token at ``step`` are."""
    return run / TOKENS / f"step-{step:08d}.parquet"


def token_files(run: Path) -> dict[int, Path]:
    """step -> the file of its rows, in order of steps; empty where none were logged."""
    return _numbered(run / TOKENS, "step-", ".parquet")


def checkpoint(run: Path, step: int) -> Path:
    """Where the Trainer saves after ``step`` optimizer steps."""
    return run / f"{CHECKPOINT}{step}"


def checkpoints(run: Path) -> dict[int, Path]:
    """step -> checkpoint folder, in order of steps. Whether one is whole is for training/checkpoints.py to say."""
    return _numbered(run, CHECKPOINT)


def step_of(checkpoint: Path) -> int:
    """The optimizer steps done at a checkpoint, one that was set aside included."""
    return int(checkpoint.name.rpartition("-")[2])


def nll_file(dynamics: Path, index: int) -> Path:
    """Where the nll of checkpoint ``index`` is."""
    return dynamics / f"nll-{index:05d}.arrow"


def nll_files(dynamics: Path) -> list[Path]:
    """The nll files of a dynamics folder, in order of checkpoints."""
    return list(_numbered(dynamics, "nll-", ".arrow").values())


def _numbered(folder: Path, prefix: str, suffix: str = "") -> dict[int, Path]:
    """number -> path of what is called prefix, number, suffix; in order of numbers, not of names: 9 before 10."""
    names = {p.name[len(prefix) : len(p.name) - len(suffix)]: p for p in folder.glob(f"{prefix}*{suffix}")}
    return dict(sorted((int(number), path) for number, path in names.items() if number.isdecimal()))
