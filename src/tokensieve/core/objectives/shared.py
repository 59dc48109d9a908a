"""What rules share: keeping the top share of a scope, soft weights, and sums and order within a scope."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

import torch
from torch import Tensor

from ..objective import CorpusScore, Denominator, Objective, sum_dtype
from ..select import Scope, above_threshold, check_ratio, kept_count, places, top_fraction
from ..stats import STATISTICS, TokenStats

Weigh = Callable[[TokenStats], Tensor]


def top(name: str, score: Weigh, needs: frozenset[str], options: Mapping[str, Any], **fields: Any) -> Objective:
    """Keep the top fraction by ``score``; ``options`` hold ratio and scope. Scope corpus is for a score that is ``static``."""
    ratio, scope = options["ratio"], options["scope"]
    check_ratio(ratio)
    check_scope(scope, corpus=fields.get("static", False))
    if scope == "corpus":
        keep, ranked = above(name, score, options)
        return Objective(
            name, keep, needs, scope, selects=True, score=score, options=options, corpus_scores=ranked, **fields
        )
    return Objective(
        name,
        weigh=lambda stats: top_fraction(score(stats), stats.valid, ratio, scope, group=rows_of(stats, scope)).float(),
        needs=needs,
        scope=scope,
        known_count=lambda known: kept_count(valid_by_group(known, scope), ratio).sum(),
        most_rows=lambda rows, length: most_kept(rows, length, ratio, scope),
        selects=True,
        score=score,
        options=options,
        **fields,
    )


def above(name: str, score: Weigh, options: Mapping[str, Any]) -> tuple[Weigh, dict[str, CorpusScore]]:
    """(weight 1 from the threshold of the whole data set on, what is to be ranked for that)."""
    called = f"{name} of {', '.join(f'{k}: {v}' for k, v in options.items() if k != 'scope')}"

    def weigh(stats: TokenStats) -> Tensor:
        return above_threshold(score(stats), stats.valid, stats.threshold(called)).float()

    return weigh, {called: CorpusScore(options["ratio"], score)}


def soft(
    name: str,
    weight: Weigh,
    needs: frozenset[str],
    options: Mapping[str, Any],
    *,
    scope: Scope = "sequence",
    denominator: Denominator = "valid",
    **fields: Any,
) -> Objective:
    """A weight for each token, float32, 0 where there is no target whatever the rule says there.

    The default scope gathers nothing: it is for rules in which a token's weight depends on no other row.
    """
    check_scope(scope, corpus="corpus_scores" in fields)

    def weigh(stats: TokenStats) -> Tensor:
        weight_T = weight(stats).float()
        return torch.where(stats.valid, weight_T, torch.zeros_like(weight_T))

    return Objective(name, weigh, needs, scope, denominator, options=options, **fields)


# --- within a scope --------------------------------------------------------------------------------------------------------


def rows_of(stats: TokenStats, scope: Scope) -> Tensor | None:
    """The rows of a flat batch, where each is ranked on its own. [T]; None where the shape says it, or rows do not count."""
    if scope != "sequence" or stats.valid.dim() > 1:
        return None
    if stats.row_id is None:
        raise ValueError(
            "scope 'sequence': a flat batch has no rows but those that 'row_id' names, which was not given"
        )
    return stats.row_id


def valid_by_group(known: TokenStats, scope: Scope) -> Tensor:
    """Valid tokens of each set that is ranked on its own: rows, or all there are. [groups] or scalar"""
    if (row_T := rows_of(known, scope)) is not None:
        _, row_T = row_T.unique(return_inverse=True)
        return torch.bincount(row_T, weights=known.valid.double()).long()
    return known.valid.sum(-1) if scope == "sequence" else known.valid.sum()


def total_within(values: Tensor, stats: TokenStats, scope: Scope) -> Tensor:
    """The sum of ``values`` over the valid tokens of each token's scope, in a shape that broadcasts over them; float64."""
    values = torch.where(stats.valid, values, torch.zeros_like(values)).to(sum_dtype(values))
    if (row_T := rows_of(stats, scope)) is not None:
        ids, row_T = row_T.unique(return_inverse=True)
        return torch.zeros(len(ids), dtype=values.dtype, device=values.device).index_add_(0, row_T, values)[row_T]
    return values.sum(-1, keepdim=True) if scope == "sequence" else values.sum()


def mean_within(values: Tensor, stats: TokenStats, scope: Scope) -> Tensor:
    """:func:`total_within` over the number of valid tokens; of none: 0."""
    count = total_within(torch.ones_like(values), stats, scope)
    return total_within(values, stats, scope) / count.clamp(min=1)


def at_place(place: Callable[[Tensor], Tensor], values: Tensor, stats: TokenStats, scope: Scope) -> Tensor:
    """The value at a place of each token's scope, ordered from the highest; ``place`` makes it of the number of valid ones.

    Broadcasts over the tokens; float64. Scopes without a valid token: 0.
    """
    ordered = places(values, stats.valid, scope, group=rows_of(stats, scope))
    wanted = place(total_within(torch.ones_like(values), stats, scope)).long()
    return total_within(torch.where(ordered == wanted, values, torch.zeros_like(values)), stats, scope)


def normalised(values: Tensor, stats: TokenStats, scope: Scope) -> Tensor:
    """``values`` over their mean in the scope, so that weights have mean 1; all 0 stay 0."""
    mean = mean_within(values, stats, scope)
    return values / torch.where(mean == 0, torch.ones_like(mean), mean)


# --- checks ----------------------------------------------------------------------------------------------------------------


def check_scope(scope: str, *, corpus: bool = False) -> None:
    """Refuse a scope that does not exist, and ``corpus`` where a rule has no score that stands before training."""
    if scope not in get_args(Scope):
        raise ValueError(f"unknown scope {scope!r}: sequence, batch, step or corpus")
    if scope == "corpus" and not corpus:
        raise ValueError(
            "scope 'corpus' is one threshold over the whole data set, which scores that change with the student, or from step "
            "to step, do not have: it is for rho1_low_ref, rho1_low_entropy, rho1_intersection, rho1_union and token_cleaning"
        )


def check_range(name: str, value: float, low: float, high: float = float("inf")) -> None:
    """Refuse an option outside [low, high]; NaN is."""
    if not low <= value <= high:
        where = f"in [{low:g}, {high:g}]" if high < float("inf") else f"at least {low:g}"
        raise ValueError(f"{name} is {value}, it must be {where}")


def check_column(option: str, name: str) -> None:
    """Refuse the student's own statistics where the column of a frozen model is meant."""
    if name in STATISTICS and STATISTICS[name].origin != "column":
        raise ValueError(f"{option}: {name!r} is a statistic of the student's, not a score column")


def most_kept(rows: int, length: int, ratio: float, scope: Scope) -> int:
    """The most tokens that a top fraction of a batch of this shape can keep."""
    return rows * kept_count(length, ratio) if scope == "sequence" else kept_count(rows * length, ratio)
