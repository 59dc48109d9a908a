"""Per-token statistics of a corpus under a model: a plain forward over packed rows, a chunked head, no logits kept."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..core import IGNORE_INDEX, LinearHead, LinearNLL
from ..data.rows import Rows, collate
from ..modeling.probe import broken_property
from ..modeling.properties import nonfinite
from ..modeling.seam import MODEL_INPUTS, HeadSeam
from ..runs.errors import UserError

Item = TypeVar("Item")

# Tokens of one forward. On a CPU more does not run faster; a GPU is full with a few thousand of a 1B model's.
BATCH_TOKENS = 8192


@dataclass(frozen=True)
class RowStatistics:
    """Statistics of consecutive rows, aligned with ``input_ids``: entry t belongs to token t, NaN where it is no target."""

    start: int
    """Index of the first row."""
    nll: np.ndarray
    """float32 [B, T], nats."""
    entropy: np.ndarray | None
    """float32 [B, T], nats: of the prediction that token t was drawn from."""


class Scorer:
    """``Scorer(model).run(rows)`` yields the statistics of all rows, in order, ``batch_rows`` at a time.

    The model is put into eval mode on ``device``. What the method relies on is proved for each set of rows, on a batch as it
    will be fed: raises UserError where :func:`broken_property` finds something.
    """

    def __init__(self, model: Any, *, device: str | None = None, batch_rows: int = 0, entropy: bool = False) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.to(self.device).eval()
        self.seam = HeadSeam(self.model)
        self.batch_rows, self.entropy = batch_rows, entropy
        self._proved: list[Rows] = []

    def run(self, rows: Rows, *, start: int = 0, stop: int | None = None) -> Iterator[RowStatistics]:
        """Statistics of rows ``start`` to ``stop``. Batches are counted from ``start``: the same call gives the same bytes."""
        stop = len(rows) if stop is None else stop
        if start >= stop:
            return
        step = self.batch_rows or max(1, BATCH_TOKENS // max(1, len(rows[start]["input_ids"])))
        self._prove(rows, min(step, stop - start))
        spans = (range(first, min(first + step, stop)) for first in range(start, stop, step))
        queued: _Queued | None = None
        for first, batch in ahead((span.start, self._read(rows, span)) for span in spans):
            # A GPU starts on this batch before the numbers of the one before it are waited for.
            before, queued = queued, self._forward(first, batch)
            if before is not None:
                yield before.statistics()
        if queued is not None:
            yield queued.statistics()

    def _read(self, rows: Rows, span: range) -> dict[str, Tensor]:
        batch = collate(rows.__getitems__(span))
        return {k: v.pin_memory() for k, v in batch.items()} if self.device.type == "cuda" else batch

    @torch.inference_mode()
    def _forward(self, first: int, batch: dict[str, Tensor]) -> _Queued:
        made: list[LinearNLL] = []
        there = {k: batch[k].to(self.device, non_blocking=True) for k in (*MODEL_INPUTS, "targets") if k in batch}
        targets = there["targets"]

        def compute(hidden: Tensor, head: LinearHead) -> None:
            made.append(LinearNLL(hidden, head, targets, entropy=self.entropy))

        with self.seam.run(compute):
            self.model(**self.seam.inputs(there))
        entropy = made[0].entropy if self.entropy else None
        return _Queued(first, batch["targets"], made[0].nll, entropy, self.model)

    def _prove(self, rows: Rows, count: int) -> None:
        if not any(rows is proved for proved in self._proved):
            if told := broken_property(self.seam, rows, count, self.model, self.device, labels=False):
                raise UserError(told)
            self._proved.append(rows)


class _Queued:
    """A batch whose numbers are under way to the CPU: from a GPU into pinned memory, without waiting for them."""

    def __init__(self, first: int, targets: Tensor, nll: Tensor, entropy: Tensor | None, model: Any) -> None:
        self.first, self.targets, self.model = first, targets, model
        self.nll = nll.to("cpu", non_blocking=True)
        self.entropy = None if entropy is None else entropy.to("cpu", non_blocking=True)
        self.copied = torch.cuda.current_stream(nll.device).record_event() if nll.is_cuda else None

    def statistics(self) -> RowStatistics:
        """Waits. Raises UserError for an nll or an entropy that is not finite."""
        if self.copied is not None:
            self.copied.synchronize()
        _check_finite("nll", self.nll, self.targets, self.first, self.model)
        if self.entropy is not None:
            _check_finite("entropy", self.entropy, self.targets, self.first, self.model)
        entropy = None if self.entropy is None else _aligned(self.entropy, self.targets)
        return RowStatistics(self.first, _aligned(self.nll, self.targets), entropy)


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The items in order, each made by a thread while the one before is worked on; an error comes out where its item would."""
    end: Any = object()
    with ThreadPoolExecutor(1, "ahead") as thread:
        waiting = thread.submit(next, items, end)
        while (item := waiting.result()) is not end:
            waiting = thread.submit(next, items, end)
            yield item


def _check_finite(what: str, values: Tensor, targets: Tensor, first: int, model: Any) -> None:
    """A broken model must not come out better by the targets on which it gave no number."""
    broken = ~values.isfinite() & (targets != IGNORE_INDEX)
    if broken.any():
        row, position = broken.nonzero()[0].tolist()
        raise UserError(
            f"the model's {what} is not finite at row {first + row}, position {position + 1}: {nonfinite(model, model.dtype)}"
        )


def _aligned(values: Tensor, targets: Tensor) -> np.ndarray:
    """From predicting position to the token's own: entry t moves to t + 1; NaN where there is no target. [B, T]"""
    values = values.float().masked_fill(targets == IGNORE_INDEX, float("nan"))
    return torch.nn.functional.pad(values[:, :-1], (1, 0), value=float("nan")).numpy()
