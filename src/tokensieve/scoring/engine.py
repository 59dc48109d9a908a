"""Per-token statistics of a corpus under a model: a plain forward over packed rows, a chunked head, no logits kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..core import IGNORE_INDEX, LinearHead, LinearNLL
from ..core.targets import SparseTargets
from ..data.images import map_tensors
from ..data.rows import Rows, collate, is_target
from ..modeling.probe import broken_property
from ..modeling.properties import nonfinite
from ..modeling.seam import MODEL_INPUTS, HeadSeam, likeliest_entries
from ..runs.errors import UserError

T = TypeVar("T")

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
    more: Mapping[str, np.ndarray] = field(default_factory=dict)
    """``target_rank`` float32 [B, T]; ``topk_ids`` int32 [B, T, K], -1 where there is no target; ``topk_logp`` float32."""

    def of(self, name: str) -> np.ndarray:
        """A statistic by its name. KeyError for one that was not asked for."""
        found = {"nll": self.nll, "entropy": self.entropy, **self.more}[name]
        if found is None:
            raise KeyError(name)
        return found


class Scorer:
    """``Scorer(model).run(rows)`` yields the statistics of all rows, in order, ``batch_rows`` at a time.

    The model is put into eval mode on ``device``. What the method relies on is proved for each set of rows, on a batch as it
    will be fed: raises UserError where :func:`broken_property` finds something. ``rank``: target_rank as well; ``top_k``: the
    so many likeliest entries of each prediction. ``teacher``, another model of the same vocabulary: also ``divergence``,
    KL(teacher || model), over the ``teacher_top_k`` entries that it finds likeliest and one bucket of all others.
    """

    def __init__(
        self,
        model: Any,
        *,
        device: str | None = None,
        batch_rows: int = 0,
        entropy: bool = False,
        rank: bool = False,
        top_k: int = 0,
        teacher: Any = None,
        teacher_top_k: int = 64,
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.to(self.device).eval()
        self.seam = HeadSeam(self.model)
        self.batch_rows, self.entropy, self.top_k = batch_rows, entropy, top_k
        self.statistics = [*(["entropy"] if entropy else []), *(["target_rank"] if rank else [])]
        self.teacher: Any = teacher
        self.teacher_seam: HeadSeam | None = None
        if teacher is not None:
            self.teacher = teacher.to(self.device).eval()
            self.teacher_seam = HeadSeam(self.teacher)
        self.teacher_top_k = teacher_top_k
        self._proved: list[Rows] = []

    def run(self, rows: Rows, *, start: int = 0, stop: int | None = None) -> Iterator[RowStatistics]:
        """Statistics of rows ``start`` to ``stop``. Batches are counted from ``start``: the same call gives the same bytes."""
        spans = self.spans(rows, start, stop)
        if not spans:
            return
        self.prove(rows, len(spans[0]))
        queued: _Queued | None = None
        for first, batch in prefetch((span.start, self._read(rows, span)) for span in spans):
            # A GPU starts on this batch before the numbers of the one before it are waited for.
            before, queued = queued, self._forward(first, batch)
            if before is not None:
                yield before.statistics()
        if queued is not None:
            yield queued.statistics()

    def spans(self, rows: Rows, start: int = 0, stop: int | None = None) -> list[range]:
        """The rows of each forward, counted from ``start``."""
        stop = len(rows) if stop is None else stop
        if start >= stop:
            return []
        step = self.batch_rows or max(1, BATCH_TOKENS // max(1, len(rows[start]["input_ids"])))
        return [range(first, min(first + step, stop)) for first in range(start, stop, step)]

    def fed(self, batch: dict[str, Tensor]) -> dict[str, np.ndarray]:
        """The statistics of one collated batch by name, aligned with its ``input_ids``; not looked at for NaN."""
        return self._forward(0, batch).values()

    def _read(self, rows: Rows, span: range) -> dict[str, Tensor]:
        batch = collate(rows.__getitems__(span))
        return map_tensors(batch, Tensor.pin_memory) if self.device.type == "cuda" else batch

    @torch.inference_mode()
    def _forward(self, first: int, batch: dict[str, Tensor]) -> _Queued:
        made: list[LinearNLL] = []
        fed = {k: batch[k] for k in (*MODEL_INPUTS, "targets") if k in batch}
        there = map_tensors(fed, lambda values: values.to(self.device, non_blocking=True))
        targets, second = there["targets"], self._second(there)

        def compute(hidden: Tensor, head: LinearHead) -> None:
            made.append(LinearNLL(hidden, head, targets, statistics=self.statistics, top_k=self.top_k, second=second))

        with self.seam.run(compute):
            self.model(**self.seam.inputs(there))
        values = {name: made[0].statistic(name) for name in ("nll", *self.statistics)}
        if second is not None:
            values["divergence"] = made[0].statistic("divergence")
        if self.top_k:
            values["topk_ids"], values["topk_logp"] = made[0].topk
        return _Queued(first, batch["targets"], values, self.model)

    def _second(self, inputs: Mapping[str, Tensor]) -> SparseTargets | None:
        """What the teacher says of a batch."""
        if self.teacher is None or self.teacher_seam is None:
            return None
        ids, log_probs = likeliest_entries(self.teacher, self.teacher_seam, inputs, self.teacher_top_k)
        return SparseTargets(ids, log_probs.exp(), divergence=True)

    def prove(self, rows: Rows, count: int) -> None:
        """Raise UserError where the method cannot rely on the model fed ``count`` of these rows. Once a set of rows."""
        if not any(rows is proved for proved in self._proved):
            if told := broken_property(self.seam, rows, count, self.model, self.device, labels=False):
                raise UserError(told)
            seam = self.teacher_seam
            if seam and (told := broken_property(seam, rows, count, self.teacher, self.device, labels=False)):
                raise UserError(f"the teacher: {told}")
            self._proved.append(rows)


class _Queued:
    """A batch whose numbers are under way to the CPU: from a GPU into pinned memory, without waiting for them."""

    def __init__(self, first: int, targets: Tensor, values: Mapping[str, Tensor], model: Any) -> None:
        self.first, self.targets, self.model = first, targets, model
        on_gpu = next((v.device for v in values.values() if v.is_cuda), None)
        self._values = {name: v.to("cpu", non_blocking=True) for name, v in values.items()}
        self.copied = None if on_gpu is None else torch.cuda.current_stream(on_gpu).record_event()

    def values(self) -> dict[str, np.ndarray]:
        """By name, aligned with ``input_ids``. Waits."""
        if self.copied is not None:
            self.copied.synchronize()
        return {name: _aligned(name, v, self.targets) for name, v in self._values.items()}

    def statistics(self) -> RowStatistics:
        """Waits. Raises UserError for an nll or an entropy that is not finite."""
        return statistics(self.first, self.values(), self.targets, self.model)


def statistics(first: int, values: Mapping[str, np.ndarray], targets: Tensor, model: Any) -> RowStatistics:
    """Values by name as those of rows from ``first`` on, whose ``targets`` [B, T] stand at the predicting positions.

    UserError for an nll or an entropy that is not finite: a broken model must not come out better by the targets on which it
    gave no number.
    """
    target_BT = is_target(targets)
    for name in ("nll", "entropy"):
        broken_BT = target_BT & ~np.isfinite(values[name]) if name in values else np.zeros(0, bool)
        if broken_BT.any():
            row, position = (int(i[0]) for i in broken_BT.nonzero())
            raise UserError(
                f"the model's {name} is not finite at row {first + row}, position {position}: {nonfinite(model, model.dtype)}"
            )
    more = {name: v for name, v in values.items() if name not in ("nll", "entropy")}
    return RowStatistics(first, values["nll"], values.get("entropy"), more)


def prefetch(items: Iterator[T]) -> Iterator[T]:
    """The items in order, each made by a thread while the one before is worked on; an error comes out where its item would."""
    end: Any = object()
    with ThreadPoolExecutor(1, "prefetch") as thread:
        waiting = thread.submit(next, items, end)
        while (item := waiting.result()) is not end:
            waiting = thread.submit(next, items, end)
            yield item


def fill_of(name: str) -> float:
    """What stands where there is no target."""
    return -1 if name == "topk_ids" else float("nan")


def _aligned(name: str, values: Tensor, targets: Tensor) -> np.ndarray:
    """From predicting position to the token's own: entry t moves to t + 1. [B, T] or [B, T, K], float32 (topk_ids: int32)"""
    values = values.to(torch.int32) if name == "topk_ids" else values.float()
    ignored = (targets == IGNORE_INDEX).view(*targets.shape, *[1] * (values.dim() - 2))
    values = values.masked_fill(ignored, fill_of(name))
    first = values.new_full((len(values), 1, *values.shape[2:]), fill_of(name))
    return torch.cat([first, values[:, :-1]], 1).numpy()
