"""The models of a run in the order of its steps: what evaluate and dynamics go through."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runs.files import MANIFEST
from ..runs.layout import checkpoints, token_lines
from .folder import model_folder


@dataclass(frozen=True)
class Checkpoint:
    """Weights of a model, and how far its run had come."""

    name: str
    folder: Path
    step: int | None = None
    tokens_seen: int | None = None
    tokens_trained: int | None = None


def checkpoints_of(name: str, folder: str, every: bool) -> Iterator[Checkpoint]:
    """The model of a folder and, with ``every``, the checkpoints of the run it belongs to, in order of steps.

    An unfinished run, which has no model yet, gives its checkpoints alone.
    """
    log = {line["step"]: line for line in _token_lines(Path(folder))}
    last, found = max(log, default=None), _whole(Path(folder)) if every else []
    finished = not found or any((Path(folder) / sub / "config.json").is_file() for sub in ("", "model"))
    for step, path in found:
        if step != last or not finished:  # the last one is the model itself
            yield Checkpoint(name, path, step, *_seen(log, step))
    if finished:
        yield Checkpoint(name, model_folder(folder), last, *_seen(log, last))


def _whole(folder: Path) -> list[tuple[int, Path]]:
    """(step, folder) of a run's checkpoints that hold a whole model. A LoRA run's hold only the adapter: said, left out."""
    found = checkpoints(folder)
    whole = {step: p for step, p in found.items() if (p / "config.json").is_file()}
    if len(whole) < len(found):
        print(f"{folder}: {len(found) - len(whole)} checkpoints hold no whole model and are left out", file=sys.stderr)
    return list(whole.items())


def _seen(log: dict[int, dict[str, Any]], step: int | None) -> tuple[int | None, int | None]:
    line = log.get(step, {}) if step is not None else {}
    return line.get("tokens_seen"), line.get("tokens_trained")


def _token_lines(folder: Path) -> list[dict[str, Any]]:
    """The token log of the run that a model folder belongs to; a run at work may be writing its last line just now."""
    run = folder.parent if folder.name == "model" else folder
    return token_lines(run, live=not (run / MANIFEST).exists())
