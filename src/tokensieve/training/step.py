"""One optimizer step's selection: statistics of its tokens, their scope across micro-batches and ranks, its denominator.

    scope      ranked together                                known before the forward
    sequence   one row                                        count, summed over ranks
    batch      one micro-batch of all ranks                   count of the gathered valid mask
    step       all micro-batches of all ranks                 count, and the weights themselves (a first no-grad pass)

Rank r of W holds rows r*B .. (r+1)*B of the global micro-batch, so gathering in rank order gives the rows in the order one
process would have had them in: W ranks with B rows choose the tokens that one rank with W*B rows would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core import IGNORE_INDEX, Objective, TokenStats
from ..modeling.seam import shift_targets

# Statistics that come from the forward or from the row itself; what else an objective needs is a score column.
COMPUTED = frozenset({"nll", "entropy", "input_ids", "row_id", "position"})
Gather = Callable[[Tensor], Tensor]


def score_columns(objective: Objective) -> tuple[str, ...]:
    """Columns that the data set must have for this objective."""
    return tuple(sorted(objective.needs - COMPUTED))


def valid_of(batch: Mapping[str, Tensor]) -> Tensor:
    """Whether the hidden state at t has a target, bool [B, T]: false at the last position of a row."""
    return shift_targets(batch["labels"]) != IGNORE_INDEX


def token_stats(
    objective: Objective, batch: Mapping[str, Tensor], *, step: int, nll: Tensor, entropy: Tensor | None
) -> TokenStats:
    """What the objective asked for, aligned by predicting position: entry t speaks of the target at t + 1."""
    labels = batch["labels"]
    valid = valid_of(batch)
    columns = {name: next_token(batch[name]) for name in score_columns(objective)}
    stats = TokenStats(valid=valid, step=step, columns=columns, ref_nll=columns.get("ref_nll"))
    if "ref_entropy" in columns:
        stats = replace(stats, ref_entropy=columns["ref_entropy"])
    if "nll" in objective.needs:
        stats = replace(stats, nll=nll)
    if "entropy" in objective.needs:
        stats = replace(stats, entropy=entropy)
    if "input_ids" in objective.needs:
        stats = replace(stats, input_ids=next_token(batch["input_ids"]))
    if "row_id" in objective.needs:
        stats = replace(stats, row_id=batch["row_id"][:, None].expand_as(labels))
    if "position" in objective.needs:
        place = torch.arange(1, labels.shape[1] + 1, device=labels.device)
        stats = replace(stats, position=place.expand_as(labels))
    return stats


def next_token(values: Tensor) -> Tensor:
    """``values[:, t + 1]`` at t; the last entry has no target and is 0."""
    return torch.nn.functional.pad(values[:, 1:], (0, 1))


def map_stats(stats: TokenStats, change: Callable[[Tensor], Tensor]) -> TokenStats:
    """The statistics with ``change`` applied to each tensor that is there."""
    named = {
        n: getattr(stats, n) for n in ("nll", "entropy", "ref_nll", "ref_entropy", "input_ids", "row_id", "position")
    }
    changed: Any = {k: None if v is None else change(v) for k, v in named.items()}
    columns = {k: change(v) for k, v in stats.columns.items()}
    return replace(stats, valid=change(stats.valid), columns=columns, **changed)


def joined(parts: Sequence[TokenStats]) -> TokenStats:
    """Statistics of several micro-batches as those of one, rows after rows; shorter ones are widened by invalid places."""
    first, width = parts[0], max(p.valid.shape[1] for p in parts)
    tensors = [_tensors(map_stats(p, lambda t: widened(t, width))) for p in parts]
    stacked = iter([torch.cat(column) for column in zip(*tensors, strict=True)])
    return map_stats(first, lambda _: next(stacked))


def widened(values: Tensor, width: int) -> Tensor:
    """Filled up with zeros (not valid) on the right. [B, T] -> [B, width]"""
    return torch.nn.functional.pad(values, (0, width - values.shape[1]))


def _tensors(stats: TokenStats) -> list[Tensor]:
    """The statistics' tensors, in the order in which :func:`map_stats` visits them."""
    seen: list[Tensor] = []

    def note(values: Tensor) -> Tensor:
        seen.append(values)
        return values

    map_stats(stats, note)
    return seen


def _alone(values: Tensor) -> Tensor:
    return values


@dataclass
class Scope:
    """The scope of an objective over the ranks of a run. ``gather`` concatenates [B, T] over ranks, in rank order."""

    objective: Objective
    num_ranks: int = 1
    rank: int = 0
    gather: Gather = _alone

    @property
    def spans_ranks(self) -> bool:
        return self.num_ranks > 1 and self.objective.scope != "sequence"

    def weigh(self, stats: TokenStats) -> tuple[Tensor, Tensor]:
        """(weight [B, T] of this rank's tokens, lowest score kept in the scope: +inf if it ranks nothing)."""
        whole = map_stats(stats, self.gather) if self.spans_ranks else stats
        weight = weights(self.objective, whole)
        lowest = lowest_kept(self.objective, whole, weight)
        if self.spans_ranks:
            weight = weight[self.rank * len(stats.valid) : (self.rank + 1) * len(stats.valid)]
        return weight[:, : stats.valid.shape[1]], lowest

    def weigh_step(self, parts: Sequence[TokenStats]) -> tuple[list[Tensor], Tensor]:
        """(weight of each of this rank's micro-batches, lowest score kept), all of the step ranked together."""
        widths = [p.valid.shape[1] for p in parts]
        if self.spans_ranks:
            parts = [map_stats(p, self.gather) for p in parts]
        whole = joined(parts)
        weight = weights(self.objective, whole)
        lowest = lowest_kept(self.objective, whole, weight)
        per_batch = list(weight.split([len(p.valid) for p in parts]))
        if self.spans_ranks:
            rows = [len(w) // self.num_ranks for w in per_batch]
            per_batch = [w[self.rank * b : (self.rank + 1) * b] for w, b in zip(per_batch, rows, strict=True)]
        return [w[:, :width] for w, width in zip(per_batch, widths, strict=True)], lowest

    def most_rows(self, rows: int, length: int) -> int | None:
        """The most tokens of one micro-batch [rows, length] on this rank that can get a weight; None if it is not known.

        Found on the host from the shape alone, so nobody waits for the device. A rank's share of a ranking over several
        ranks can be all of the kept tokens: there the bound is loose, and the rows beyond the share cost their time.
        """
        if not self.objective.counts_rows or self.objective.scope == "step":
            return None
        valid = torch.ones(rows * (self.num_ranks if self.spans_ranks else 1), length, dtype=torch.bool)
        count = self.objective.count(valid)
        return None if count is None else min(int(count), rows * length)

    def denominator(self, valids: Iterable[Tensor], reduce: Callable[[Tensor], Tensor]) -> Tensor | None:
        """The step's denominator over all micro-batches and ranks, float32 scalar on the device; None if not known yet.

        ``reduce`` sums a tensor over ranks. At least 1, so that a step without a valid token gives 0, not NaN.
        """
        whole = [self.gather(v) for v in valids] if self.spans_ranks else list(valids)
        if self.objective.scope == "step":
            # Counted together, as they are ranked: k of the union is not the sum of the parts' k.
            width = max(v.shape[1] for v in whole)
            whole = [torch.cat([widened(v, width) for v in whole])]
        total = _sum([self.objective.count(v) for v in whole])
        if total is None:
            return None
        return (total if self.spans_ranks else reduce(total)).clamp(min=1)


def _sum(counts: list[Tensor | None]) -> Tensor | None:
    known = [c for c in counts if c is not None]
    return torch.stack(known).sum().float() if known and len(known) == len(counts) else None


def weights(objective: Objective, stats: TokenStats) -> Tensor:
    """The objective's weights, 0 where there is no target: whatever it says there (0 / 0) must reach no sum."""
    weight = objective.weigh(stats)
    return torch.where(stats.valid, weight, torch.zeros_like(weight))


def lowest_kept(objective: Objective, stats: TokenStats, weight: Tensor) -> Tensor:
    """The threshold a ranking came to: the lowest score among tokens of non-zero weight, float32 scalar."""
    infinity = torch.full((), float("inf"), device=weight.device)
    if objective.score is None or not weight.numel():
        return infinity
    return torch.where(weight > 0, objective.score(stats).float(), infinity).min()


def sum_dtype(like: Tensor) -> torch.dtype:
    """What sums over many batches are kept in: float32 stops counting at 16.7 million. MPS has nothing wider."""
    return torch.float64 if like.device.type != "mps" else torch.float32


def selection_totals(
    weight: Tensor, valid: Tensor, nll: Tensor, source: Tensor | None = None, num_sources: int = 0
) -> Tensor:
    """[valid, kept, weight sum, nll sum of kept, of dropped, sum of weight * nll], then valid and kept of each source.

    float64 sums [6 + 2 * num_sources] that add over parts. ``source`` [B, T] is the source of each token's target.
    """
    keep = (weight > 0) & valid
    drop = valid & ~keep
    wide = sum_dtype(weight)
    sums = torch.stack(
        [
            valid.sum(dtype=wide),
            keep.sum(dtype=wide),
            (weight * valid).sum(dtype=wide),
            (nll * keep).sum(dtype=wide),
            (nll * drop).sum(dtype=wide),
            (nll * weight * valid).sum(dtype=wide),
        ]
    )
    if source is None or not num_sources:
        return sums
    by_source = torch.zeros(2, num_sources, dtype=wide, device=sums.device)
    by_source[0].index_add_(0, source.reshape(-1), valid.reshape(-1).to(wide))
    by_source[1].index_add_(0, source.reshape(-1), keep.reshape(-1).to(wide))
    return torch.cat([sums, by_source.reshape(-1)])
