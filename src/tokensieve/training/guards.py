"""What a run watches for: a signal to stop, and numbers that are no numbers.

Both are looked at once an optimizer step, after the backward and before the update, in one exchange between the ranks and one
wait for the device: all ranks stop at the same step, and no update is made from a NaN.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..runs.errors import UserError
from ..runs.files import write_json

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
ECHO_SECONDS = 1.0  # torchrun passes a Ctrl-C on to workers that have had it from the terminal already


class NonFinite(UserError):
    """NaN or infinity in nll, weight, gradient or model: training stopped before it reached the model or a checkpoint."""

    code = 3


@dataclass(frozen=True)
class GuardConfig:
    """What training does when something is wrong."""

    on_nonfinite: Literal["stop", "skip"] = "stop"
    """NaN or infinity in a step: stop before the update, or leave the update out and go on with the next rows."""
    max_skipped_steps: int = 10
    """skip: at most so many steps of a run; then stop."""
    allow_changed: bool = False
    """Go on from a checkpoint of another split of the step: rows may be repeated or left out."""
    dry_step: bool = False
    """Before training, one forward and backward of a full micro-batch, thrown away: does it fit into memory?"""
    self_test: bool = False
    """Instead of training: hold properties of the loss against its gradients, see self_test.py, and leave by what it raises."""
    documents: Callable[[int, int | None], Sequence[str]] | None = None
    """(row, position) -> names of the documents there, of the whole row without a position; for reports."""


class StopSignals:
    """``with StopSignals() as stop``: SIGTERM, SIGINT and SIGUSR1 are noted in ``stop.received`` instead of ending the process.

    A second SIGINT ends it at once (KeyboardInterrupt). Outside the main thread signals are left as they are.
    """

    def __init__(self) -> None:
        self.received = 0
        self._at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and self.received and time.monotonic() - self._at > ECHO_SECONDS:
            raise KeyboardInterrupt
        if not self.received:
            self.received, self._at = number, time.monotonic()
            if os.environ.get("RANK", "0") == "0":
                more = "; once more to quit at once" if number == signal.SIGINT else ""
                told = f"\n{signal.Signals(number).name}: a checkpoint after this step, then the end{more}\n"
                os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, told.encode())  # print is not reentrant


@dataclass
class Watch:
    """The micro-batches of a step by reference: nothing is computed of them unless the step turns out not to be finite."""

    seen: list[tuple[Tensor, Tensor, Tensor, Tensor]] = field(default_factory=list)

    def note(self, row_id: Tensor, nll: Tensor, weight: Tensor, valid: Tensor) -> None:
        self.seen.append((row_id, nll, weight, valid))

    def rows(self, what: str) -> list[dict[str, int]]:
        """Rows with a target whose ``nll`` (or ``weight``) is not finite: row, position of the first such target, how many.

        An nll of inf, a token of probability 0, counts only where the token has a weight.
        """
        found = []
        for row_id, nll, weight, valid in self.seen:
            broken = ~(nll if what == "nll" else weight).isfinite() & valid
            if what == "nll":
                broken &= (weight != 0) | (nll != math.inf)
            for i in broken.any(1).nonzero().flatten().tolist():
                first = int(broken[i].nonzero()[0])
                found.append({"row": int(row_id[i]), "position": first + 1, "tokens": int(broken[i].sum())})
        return found

    def all_rows(self) -> list[dict[str, int]]:
        """Every row of the step, where nothing says which of them it was."""
        return [{"row": int(r)} for row_id, *_ in self.seen for r in row_id.tolist() if r >= 0]


def broken_names(named: Iterable[tuple[str, Tensor | None]], most: int = 10) -> list[str]:
    """Names of the first tensors that are not finite everywhere; of sharded ones this rank's part counts."""
    names: list[str] = []
    for name, tensor in named:
        if tensor is not None and len(names) < most and not bool(_finite(tensor)):
            names.append(name)
    return names


def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Bool scalar on the tensors' device, without waiting for it."""
    checks = [_finite(t) for t in tensors]
    return torch.stack(checks).all() if checks else torch.tensor(True)


def _finite(tensor: Tensor) -> Tensor:
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    # The largest magnitude is NaN or infinite if anything is; isfinite would first write a mask of the tensor's size.
    largest: Tensor = torch.linalg.vector_norm(local.detach(), float("inf"))
    return largest.isfinite()


def describe_nonfinite(
    step: int,
    cause: str,
    rows: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    at: Mapping[str, Any] | None,
    objective: str = "the objective",
) -> str:
    """The finding as the beginning of a sentence. ``cause``: nll, weight, gradient or model."""
    documents = f" (document {', '.join(at['documents'])})" if at and at.get("documents") else ""
    where = f"row {at['row']} at position {at['position']}{documents}" if at and "position" in at else ""
    if cause == "nll":
        return f"step {step}: the nll of {len(rows)} rows is not finite, first of {where}"
    if cause == "weight":
        return f"step {step}: {objective} gives {len(rows)} rows weights that are not finite, first {where}"
    if cause == "gradient":
        return f"step {step}: every nll is finite, the gradient of {names[0] if names else 'the model'} is not"
    return f"step {step}: the model is not finite after the update, {names[0] if names else 'on another rank'} for one"


def write_record(
    folder: Path,
    step: int,
    cause: str,
    rows: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    documents: Callable[[int, int | None], Sequence[str]] | None,
) -> tuple[Path, list[dict[str, Any]]]:
    """``nonfinite-00000007.json``: what was not finite, and in which rows of which documents; (its path, the rows)."""
    told: list[dict[str, Any]] = sorted((dict(r) for r in rows), key=lambda r: r["row"])
    for row in told if documents is not None else ():
        row["documents"] = list(documents(row["row"], row.get("position")))  # type: ignore[misc]
    path = folder / f"nonfinite-{step:08d}.json"
    write_json(path, {"step": step, "cause": cause, "parameters": list(names), "rows": told})
    return path, told
