"""One optimizer step's selection: statistics of its tokens, their scope across micro-batches and ranks, its denominator.

    scope      ranked together                                known before the forward
    sequence   one row                                        count, summed over ranks
    batch      one micro-batch of all ranks                   count of the gathered micro-batch
    step       all micro-batches of all ranks                 count, and the weights themselves (a first no-grad pass)
    corpus     nothing: a threshold of the whole data set     count

Rank r of W holds rows r*B .. (r+1)*B of the global micro-batch, so gathering in rank order gives the rows in the order one
process would have had them in: W ranks with B rows choose the tokens that one rank with W*B rows would.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..core import IGNORE_INDEX, Objective, TokenStats
from ..core.objective import sum_dtype
from ..core.stats import ROW_STATISTICS, score_columns
from ..data.rows import next_token
from ..runs.errors import UserError
from .guards import Watch

Gather = Callable[[Tensor], Tensor]


def known_stats(
    needs: Collection[str],
    batch: Mapping[str, Tensor],
    *,
    step: int = 0,
    tokens_seen: Tensor | int = 0,
    sources: Sequence[str] = (),
    thresholds: Mapping[str, float] | None = None,
) -> TokenStats:
    """What is known of a batch's tokens before the forward, as far as it is needed; entry t speaks of the target at t + 1."""
    valid = batch["targets"] != IGNORE_INDEX
    there = [name for name in sorted(needs) if name in ROW_STATISTICS or name in score_columns(needs)]
    run: dict[str, Any] = {"step": step, "tokens_seen": tokens_seen, "thresholds": thresholds or {}}
    stats = TokenStats(valid, sources=tuple(sources), **run)
    return stats.with_values({name: _of_rows(name, batch, valid) for name in there})


def _of_rows(name: str, batch: Mapping[str, Tensor], valid: Tensor) -> Tensor:
    """One statistic or score column of a batch, by predicting position. [B, T]"""
    if (
        name == "input_ids"
    ):  # the target's, which labels of one's own may have changed; without a target, what stands there
        return torch.where(valid, batch["targets"], next_token(batch["input_ids"]))
    if name == "context_ids":
        return batch["input_ids"]
    if name == "row_id":
        return batch["row_id"][:, None].expand_as(valid)
    if name == "position":
        return torch.arange(1, valid.shape[1] + 1, device=valid.device).expand_as(valid)
    return next_token(batch[name])


def joined(parts: Sequence[TokenStats]) -> TokenStats:
    """Statistics of several micro-batches as those of one, rows after rows; shorter ones are widened by invalid places."""
    if len(parts) == 1:
        return parts[0]
    width = max(p.valid.shape[1] for p in parts)
    columns = [p.map(lambda t: widened(t, width)).per_token() for p in parts]
    return parts[0].with_values({name: torch.cat([c[name] for c in columns]) for name in columns[0]})


def widened(values: Tensor, width: int) -> Tensor:
    """Filled up with zeros (not valid) on the right. [B, T] -> [B, width]"""
    return torch.nn.functional.pad(values, (0, width - values.shape[1]))


def _alone(values: Tensor) -> Tensor:
    return values


@dataclass
class RankScope:
    """The scope of an objective over the ranks of a run. ``gather`` concatenates [B, T] over ranks, in rank order."""

    objective: Objective
    num_ranks: int = 1
    rank: int = 0
    gather: Gather = _alone

    @property
    def spans_ranks(self) -> bool:
        return self.num_ranks > 1 and self.objective.scope not in ("sequence", "corpus")

    def known(self, stats: TokenStats) -> TokenStats:
        """Statistics of a micro-batch of this rank, as those of all that is ranked with it."""
        return stats.map(self._all)

    def weigh(self, known: TokenStats, head: Mapping[str, Tensor], length: int) -> tuple[Tensor, Tensor]:
        """(weight [B, T] of this rank's tokens, lowest score kept in the scope: +inf if it ranks nothing).

        ``known`` of :meth:`known`, ``head`` the forward's statistics of this rank's rows, which are ``length`` long.
        """
        weight, lowest = self.weigh_step([(known, head, length)])
        return weight[0], lowest

    def weigh_step(self, parts: Sequence[tuple[TokenStats, Mapping[str, Tensor], int]]) -> tuple[list[Tensor], Tensor]:
        """(weight of each of this rank's micro-batches, lowest score kept), all of them ranked together."""
        whole = [known.with_values({n: self._all(v) for n, v in head.items()}) for known, head, _ in parts]
        together = joined(whole)
        weight = weights(self.objective, together)
        per_batch = weight.split([len(p.valid) for p in whole])
        mine = [self._mine(w)[:, :length] for w, (_, _, length) in zip(per_batch, parts, strict=True)]
        return mine, lowest_kept(self.objective, together, weight)

    def _all(self, values: Tensor) -> Tensor:
        """[B, T] of all ranks whose tokens are ranked together."""
        return self.gather(values) if self.spans_ranks else values

    def _mine(self, weight: Tensor) -> Tensor:
        """This rank's rows of those of all ranks."""
        if not self.spans_ranks:
            return weight
        rows = len(weight) // self.num_ranks
        return weight[self.rank * rows : (self.rank + 1) * rows]

    def most_rows(self, ranked: Sequence[int], own: Sequence[int]) -> int | None:
        """The most tokens of one micro-batch of this rank, of shape ``own``, that can get a weight; None if it is not known.

        ``ranked`` is the shape of all that is ranked together: of several ranks as wide as the longest row of any. Found on
        the host from shapes alone, so nobody waits for the device. A rank's share of a ranking over several ranks can be all
        of the kept tokens: there the bound is loose, and the rows beyond the share cost their time.
        """
        if self.objective.most_rows is None or self.objective.scope == "step":
            return None
        return min(self.objective.most_rows(*ranked), math.prod(own))

    def denominator(self, known: Sequence[TokenStats], reduce: Callable[[Tensor], Tensor]) -> Tensor | None:
        """The step's denominator over all micro-batches and ranks, float64 scalar on the device; None if not known yet.

        ``known`` of :meth:`known`, by micro-batch. ``reduce`` sums a tensor over ranks.
        """
        # Counted together, as they are ranked: k of the union is not the sum of the parts' k.
        counted = [joined(known)] if self.objective.scope == "step" else known
        counts = [c for c in (self.objective.count(k) for k in counted) if c is not None]
        if len(counts) < len(counted):
            return None
        # float64: sums of weights that are no whole numbers are not rounded before the ranks' are added.
        total = torch.stack([_scalar(c, known[0].valid) for c in counts]).sum()
        return total if self.spans_ranks else reduce(total)


def _scalar(count: Tensor | float, like: Tensor) -> Tensor:
    """A float64 scalar on ``like``'s device. A user's count may be a Python number: filled in there, not copied to it."""
    if isinstance(count, Tensor):
        return count.to(device=like.device, dtype=sum_dtype(like))
    return torch.full((), count, dtype=sum_dtype(like), device=like.device)


def no_zero(denominator: Tensor) -> Tensor:
    """A step in which nothing is kept gives 0, not NaN; any other sum is divided by as it is, below 1 too."""
    return torch.where(denominator == 0, torch.ones_like(denominator), denominator)


def weights(objective: Objective, stats: TokenStats) -> Tensor:
    """The objective's weights, 0 where there is no target: whatever it says there (0 / 0) must reach no sum."""
    weight = objective.weigh(stats)
    return torch.where(stats.valid, weight, torch.zeros_like(weight))


def lowest_kept(objective: Objective, stats: TokenStats, weight: Tensor) -> Tensor:
    """The threshold a ranking came to: the lowest score among tokens of non-zero weight, float32 scalar."""
    infinity = torch.full((), float("inf"), device=weight.device)
    if objective.score is None or not weight.numel():
        return infinity
    return torch.where(weight != 0, objective.score(stats).float(), infinity).min()


# --- sums ----------------------------------------------------------------------------------------------------------------

Totals = dict[str, Tensor]


def selection_totals(
    objective: Objective,
    weight: Tensor,
    valid: Tensor,
    nll: Tensor,
    source: Tensor | None = None,
    num_sources: int = 0,
    *,
    minimised: Tensor | None = None,
) -> Totals:
    """Sums over the tokens of a batch by name, float64 scalars that add over parts:

    ``valid``, ``kept`` (weight other than 0), ``kept_nll``, ``dropped_nll``, ``weighted_nll`` (sum of weight * nll, or of
    weight * ``minimised``: what stands in its place beside second targets), ``denominator`` (what the objective divides by).
    Where weights are not just 0 or 1 also ``abs``, ``square`` (sums of |weight| and weight^2) and ``negative`` (tokens with
    such a weight). With ``source`` [B, T], the source of each token's target, ``valid_by_source`` and ``kept_by_source``
    [num_sources]. A token that is in no sum adds 0 to it, whatever its nll.
    """
    keep = (weight != 0) & valid
    wide = sum_dtype(weight)
    totals = {
        "valid": valid.sum(dtype=wide),
        "kept": keep.sum(dtype=wide),
        # Not products with a mask: 0 * inf is NaN, and a dropped token of nll inf made the loss NaN.
        "kept_nll": torch.where(keep, nll, 0).sum(dtype=wide),
        "dropped_nll": torch.where(valid & ~keep, nll, 0).sum(dtype=wide),
        "weighted_nll": torch.where(keep, nll * weight, 0).sum(dtype=wide),
        "denominator": objective.denominator_of(weight, valid),
    }
    if minimised is not None:
        totals["weighted_nll"] = torch.where(keep, minimised * weight, 0).sum(dtype=wide)
    if not objective.selects:
        weight_T = torch.where(valid, weight, 0).to(wide)
        totals |= {
            "abs": weight_T.abs().sum(),
            "square": weight_T.square().sum(),
            "negative": (weight_T < 0).sum(dtype=wide),
        }
    if source is not None and num_sources:
        for name, tokens in (("valid_by_source", valid), ("kept_by_source", keep)):
            zeros = torch.zeros(num_sources, dtype=wide, device=weight.device)
            totals[name] = zeros.index_add_(0, source.reshape(-1), tokens.reshape(-1).to(wide))
    return totals


def added(parts: Sequence[Totals]) -> Totals:
    """The totals of several parts, name by name."""
    return {name: torch.stack([p[name] for p in parts]).sum(0) for name in parts[0]}


def all_numbers(totals: Totals) -> Tensor:
    """Whether all sums are finite, bool scalar on their device. ``dropped_nll`` may be inf: a token whose probability
    is 0 (of a masked vocabulary) and that is left out harms nothing. NaN is a broken model wherever it is."""
    dropped = totals["dropped_nll"]
    return packed({**totals, "dropped_nll": torch.where(dropped == math.inf, 0, dropped)}).isfinite().all()


def packed(totals: Totals) -> Tensor:
    """All sums in one vector, to go through one exchange between ranks; :func:`unpacked` gives them their names back."""
    return torch.cat([value.reshape(-1) for value in totals.values()])


def unpacked(values: Sequence[float], like: Totals) -> dict[str, Any]:
    """name -> float, or a list of floats of those by source, from the numbers of :func:`packed`."""
    found, start = {}, 0
    for name, value in like.items():
        part = list(values[start : start + value.numel()])
        found[name], start = part if value.dim() else part[0], start + value.numel()
    return found


# --- the state of a step ---------------------------------------------------------------------------------------------------


@dataclass
class StepState:
    """All that is remembered from a step's first micro-batch to its last; a new step begins with a new one."""

    known: list[TokenStats] = field(default_factory=list)
    """Of each micro-batch, what is known before its forward, over all that is ranked with it."""
    denominator: Tensor | None = None
    """Known before the forward, as it was counted; None: divided by after the last backward."""
    weights: list[Tensor] | None = None
    """Of the micro-batches, where a first pass chose them; then also the lowest score kept, and rows with a weight."""
    lowest: Tensor | None = None
    rows_with_weight: list[int] | None = None
    parts: list[tuple[Totals, Tensor]] = field(default_factory=list)
    """(totals, lowest score kept) of the micro-batches that are through."""
    broken_claims: list[Tensor] = field(default_factory=list)
    """Of each micro-batch of a run's first step, see :func:`broken_claims`."""
    positions: int = 0
    sample: list[dict[str, Any]] = field(default_factory=list)
    """Rows that are logged token by token."""
    watch: Watch = field(default_factory=Watch)
    loss_before: Tensor | None = None
    """The Trainer's running loss as it was."""
    totals: Totals | None = None
    """Of the whole step on this rank, once its last micro-batch is through."""

    @property
    def index(self) -> int:
        """Which micro-batch is being worked on, from 0."""
        return len(self.parts)

    def finish(self) -> tuple[Totals, Tensor]:
        """(totals, lowest score kept) of the whole step on this rank."""
        self.totals = added([totals for totals, _ in self.parts])
        return self.totals, torch.stack([lowest for _, lowest in self.parts]).min()


# --- what an objective says of itself --------------------------------------------------------------------------------------

CLAIMS = (
    "its weights are 0 or 1 (selects), but others came",
    "no more tokens than most_rows can get a weight, but more did",
    "its weights are not negative (signed), but some were",
)


def broken_claims(objective: Objective, weight: Tensor, most_rows: int | None) -> Tensor:
    """Whether each of CLAIMS is broken by a micro-batch's weights [B, T], bool [3], on their device.

    Weights that are no numbers break none: they have a sentence of their own.
    """
    weight = weight.nan_to_num(0.0, 0.0, 0.0)
    not_a_choice = ((weight != 0) & (weight != 1)).any() & objective.selects
    too_many = (weight != 0).sum() > (weight.numel() if most_rows is None else most_rows)
    return torch.stack([not_a_choice, too_many, (weight < 0).any() & (not objective.signed)])


def check_claims(objective: Objective, broken: Sequence[bool], counted: float | None, came: float) -> None:
    """Refuse an objective whose words and weights differ: a denominator of twice the weights halves every update, silently.

    ``broken`` of :func:`broken_claims`, over all ranks; ``counted`` the denominator known beforehand (None: not known),
    ``came`` the one that the weights come to. These are summed in float64: a ten-thousandth is far beyond rounding.
    """
    for claim, is_broken in zip(CLAIMS, broken, strict=True):
        if is_broken:
            raise UserError(f"objective {objective.name!r} says that {claim}")
    if counted is not None and not abs(counted - came) <= 1e-4 * abs(came) and math.isfinite(came):
        raise UserError(
            f"objective {objective.name!r} counts {counted:g} as its denominator ({objective.denominator}) before the forward, "
            f"its weights come to {came:g}: its known_count is wrong"
        )
