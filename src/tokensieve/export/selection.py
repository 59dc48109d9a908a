"""A selection that stands before training: the weight of every token of a corpus, by the code that the trainer weighs with.

static      the rule needs columns, ids and places only                 the same weights in every epoch
checkpoint  the rule needs the student's nll: that of a checkpoint,     what the trainer would choose at that checkpoint
            out of a score column
refused     what else comes with the student's forward, ranks a training batch, or moves with the steps
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..core import Objective
from ..core.kth import Threshold
from ..core.stats import HEAD_STATISTICS, TokenStats, score_columns
from ..data.rows import ON_REQUEST, Rows, collate, next_token
from ..runs.errors import UserError
from ..training.feeding import weighted
from ..training.step import known_stats, weights
from ..training.thresholds import find_thresholds

_BLOCK_TOKENS = 1 << 17
"""Tokens that are held at once, with some columns beside each."""
OTHER_STEPS = (1, 7, 1_000, 1_000_000)
"""Steps later, at which the weights of a rule that stands before training are what they were."""

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RowBlock:
    """Some rows of a corpus with what is trained of them."""

    shard: int
    """The shard of the corpus that they lie in."""
    ids_BT: IntArray
    """As in the corpus, its padding too."""
    weight_BT: npt.NDArray[np.float32]
    """What each token weighs *as a target*: entry t speaks of ``ids_BT[t]``, 0 where it is no target or not trained."""
    num_tokens_B: IntArray
    """Tokens before the padding of each row."""
    pieces: list[IntArray]
    """Where in each row the piece of a document begins; the first is 0."""
    isolated: bool
    """Whether each piece is a context of its own; else a row is one."""

    def samples(self) -> Iterator[tuple[IntArray, npt.NDArray[np.float32]]]:
        """(ids, weights) of each context by itself, without padding; those in which nothing is trained are left out.

        A step of such samples only would be 0 / 0 for a trainer that counts labels.
        """
        for ids_T, weight_T, count, pieces in zip(
            self.ids_BT, self.weight_BT, self.num_tokens_B, self.pieces, strict=True
        ):
            starts = pieces.tolist() if self.isolated else [0]
            for start, stop in pairwise([*starts, int(count)]):
                if weight_T[start:stop].any():
                    yield ids_T[start:stop], weight_T[start:stop]


class StaticSelection:
    """``weight[t]`` of ``input_ids[t]`` as a target, for every row of a corpus: ``dataset`` is of ``load_scored``.

    ``student``: statistic of the head -> score column that stands for it, a checkpoint's: ``{"nll": "base_nll"}``. ``step``:
    of a rule that moves with the steps, those at this one. ``thresholds`` of scope corpus, if they are known; else they are
    found. UserError for an objective whose weights do not stand before training, in one sentence.
    """

    def __init__(
        self,
        objective: Objective,
        dataset: Any,
        sources: Sequence[str] = (),
        *,
        student: Mapping[str, str] | None = None,
        step: int | None = None,
        thresholds: Mapping[str, Threshold] | None = None,
    ) -> None:
        self.objective = weighted(objective, dataset, ())
        self.student = dict(student or {})
        check_stands(self.objective, self.student, step)
        needs = self.objective.needs | set(self.student.values())
        self.rows = Rows(dataset, score_columns(needs), [n for n in ON_REQUEST if n in self.objective.needs])
        self.layout, self.isolated = dataset, "isolated" in dataset.column_names
        self.sources, self.step = tuple(sources), step
        self.thresholds = dict(thresholds or {})

    def find_thresholds(self, objective: Objective) -> None:
        """Those of scope corpus that are not there yet: reads the data set twice."""
        if not objective.corpus_scores.keys() <= self.thresholds.keys():
            self.thresholds = find_thresholds(objective, self.rows)

    def check_steps(self) -> None:
        """Raise UserError where the first rows weigh something else at a later step, and no step was named."""
        if self.step is not None or not len(self.rows):
            return
        stats, _ = self._stats(0, min(len(self.rows), 64))
        first = weights(self.objective, stats)
        if any(not torch.equal(first, weights(self.objective, _at(stats, step))) for step in OTHER_STEPS):
            raise UserError(_moving(self.objective))

    def blocks(self, shards: Sequence[int]) -> Iterator[RowBlock]:
        """All rows in order; ``shards``: how many rows each shard has. No block lies in two of them."""
        each = max(1, _BLOCK_TOKENS // max(1, len(self.rows[0]["input_ids"]))) if len(self.rows) else 1
        start = 0
        for shard, rows in enumerate(shards):
            stop = start + rows
            for begin in range(start, stop, each):
                yield self._block(shard, begin, min(stop, begin + each))
            start = stop

    def _block(self, shard: int, start: int, stop: int) -> RowBlock:
        stats, batch = self._stats(start, stop)
        weight_BT = np.zeros(stats.valid.shape, np.float32)
        # What is predicted at t is token t + 1: readers want it at the token itself, as labels are.
        weight_BT[:, 1:] = weights(self.objective, stats).float()[:, :-1].numpy()
        if not np.isfinite(weight_BT).all():
            row, at = (int(i[0]) for i in np.nonzero(~np.isfinite(weight_BT)))
            raise UserError(f"row {start + row}: the weight of the token at position {at} is no finite number")
        table = self.layout.select_columns(["num_tokens", "doc_starts"]).with_format("numpy")[start:stop]
        pieces = [np.asarray(starts, np.int64) for starts in table["doc_starts"]]
        count_B = np.asarray(table["num_tokens"], np.int64)
        return RowBlock(shard, batch["input_ids"].numpy(), weight_BT, count_B, pieces, self.isolated)

    def _stats(self, start: int, stop: int) -> tuple[TokenStats, Mapping[str, Tensor]]:
        batch = collate(self.rows.__getitems__(range(start, stop)))
        values = {name: found.value for name, found in self.thresholds.items()}
        told: dict[str, Any] = {"step": self.step or 0, "sources": self.sources, "thresholds": values}
        stats = known_stats(self.objective.needs, batch, **told)
        return stats.with_values({name: next_token(batch[column]) for name, column in self.student.items()}), batch


def check_stands(objective: Objective, student: Mapping[str, str], step: int | None) -> None:
    """Raise UserError, in one sentence, for an objective whose weights are not known before training.

    ``student`` and ``step`` as in :class:`StaticSelection`.
    """
    if wrong := sorted(set(student) - HEAD_STATISTICS):
        raise UserError(
            f"student: {wrong[0]!r} is no statistic of the student's forward: one of {', '.join(sorted(HEAD_STATISTICS))}"
        )
    if unread := sorted(set(student) - objective.needs):
        raise UserError(f"student: {objective.name!r} does not need {unread[0]!r}")
    if objective.second is not None:
        raise UserError(f"objective: {objective.name!r} has a second target, which no format has a place for")
    if late := sorted((HEAD_STATISTICS & objective.needs) - set(student)):
        raise UserError(
            f"objective: {objective.name!r} needs {late[0]!r} of the student's forward, which no file knows: name a column "
            f"of a checkpoint's for it (--student.{late[0]} COLUMN), or take a rule that stands before training"
        )
    if objective.scope in ("batch", "step"):
        ways = "sequence or corpus" if objective.static else "sequence"
        raise UserError(
            f"objective: {objective.name!r} ranks the tokens of a training {objective.scope}, which nobody knows "
            f"beforehand: give it scope: {ways}"
        )
    if "tokens_seen" in objective.needs or (step is None and "schedule" in _names(objective)):
        raise UserError(_moving(objective))


def _moving(objective: Objective) -> str:
    ways = "take another rule" if "tokens_seen" in objective.needs else "--at_step 0 takes those of one step for all"
    return (
        f"objective: the weights of {objective.name!r} move with the steps, and a file has one for each token: {ways}"
    )


def _names(objective: Objective) -> set[str]:
    """Of the objective and of all that it is made of."""

    def inside(value: Any) -> Iterator[str]:
        if isinstance(value, Mapping):
            yield from [str(value["name"])] if "name" in value else []
            for part in value.values():
                yield from inside(part)
        elif isinstance(value, list):
            for part in value:
                yield from inside(part)

    return {objective.name, *inside(dict(objective.options))}


def _at(stats: TokenStats, step: int) -> TokenStats:
    return replace(stats, step=step)
