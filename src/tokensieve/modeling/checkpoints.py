"""The models of a run in the order of its steps: what evaluate and dynamics go through."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..runs.errors import UserError
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
    is_last: bool = False
    """Where its run, or what there is of it, ends."""
    averaged: tuple[Path, ...] = ()
    """Folders whose weights' mean it stands for; none: those of ``folder`` alone."""


def checkpoints_of(name: str, folder: str, every: bool, average: int = 1) -> Iterator[Checkpoint]:
    """The model of a folder and, with ``every``, the checkpoints of the run it belongs to, in order of steps.

    An unfinished run, which has no model yet, gives its checkpoints alone. ``average``: the last one stands for the mean of so
    many of the run, and a run that kept no other for itself. UserError for a run that kept some, but fewer.
    """
    log = {line["step"]: line for line in _token_lines(Path(folder))}
    last, whole = max(log, default=None), _whole(Path(folder)) if every or average > 1 else []
    found = whole if every else []
    finished = not found or any((Path(folder) / sub / "config.json").is_file() for sub in ("", "model"))
    made = [Checkpoint(name, path, step, *_seen(log, step)) for step, path in found if step != last or not finished]
    if finished:  # the last one is the model itself
        made.append(Checkpoint(name, model_folder(folder), last, *_seen(log, last)))
    paths = (*(path for step, path in whole if step != last), made[-1].folder)[-average:]
    if 1 < len(paths) < average:
        raise UserError(f"{folder} has {len(paths)} checkpoints with its last, {average} are to be averaged: save more")
    averaged = paths if len(paths) > 1 else ()
    yield from made[:-1]
    yield replace(made[-1], is_last=True, averaged=averaged)


def average_into(model: Any, folders: Sequence[Path]) -> None:
    """Give ``model`` the mean of the weights of these folders, added up in float64; shapes must be the same. In place."""
    from .load import load_causal_lm

    sums: dict[str, Any] = {}
    for folder in folders:
        for key, weight in load_causal_lm(folder).state_dict().items():
            sums[key] = sums.get(key, 0) + weight.double()
    state = model.state_dict()
    if any(sums[key].shape != weight.shape for key, weight in state.items()):
        raise UserError(f"{folders[0]} and {folders[-1]} are models of other shapes: they have no mean")
    model.load_state_dict({key: (sums[key] / len(folders)).to(weight.dtype) for key, weight in state.items()})


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
