"""Rules that keep the top share of a scope by a score."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..objective import Objective
from ..scores import excess
from ..select import Scope, check_ratio, kept_count, places, top_fraction
from ..stats import TokenStats
from .shared import (
    Weigh,
    above,
    at_place,
    check_column,
    check_range,
    check_scope,
    most_kept,
    rows_of,
    soft,
    top,
    total_within,
    valid_by_group,
)


def rho1(ratio: float = 0.6, scope: Scope = "batch", reference: str = "ref_nll", reverse: bool = False) -> Objective:
    """Keep the top ``ratio`` by excess, ``nll - ref_nll``: Rho-1's Selective Language Modeling (Eq. 3-5).

    ``reference`` names the score column with the reference model's nll, where there are several. ``reverse`` keeps the lowest
    excess instead: a control, which ought to do worse than chance.
    """
    check_column("reference", reference)
    sign = -1 if reverse else 1
    return top(
        "rho1",
        lambda stats: sign * excess(stats.need("nll"), stats.need(reference)),
        frozenset({"nll", reference}),
        {"ratio": ratio, "scope": scope, "reference": reference, **({"reverse": True} if reverse else {})},
    )


def rho1_low_ref(ratio: float = 0.6, scope: Scope = "batch", reference: str = "ref_nll") -> Objective:
    """Keep the ``ratio`` of lowest ``ref_nll``: Rho-1's selection by the reference alone (arXiv 2404.07965, App. H).

    What the reference finds easy, whatever the student knows: the choice is the same in every epoch.
    """
    return _low("rho1_low_ref", ratio, scope, reference)


def rho1_low_entropy(ratio: float = 0.6, scope: Scope = "batch", reference: str = "ref_entropy") -> Objective:
    """Keep the ``ratio`` of lowest reference entropy ``H_ref`` (arXiv 2404.07965, App. H, Eq. 8)."""
    return _low("rho1_low_entropy", ratio, scope, reference)


def rho1_intersection(
    ratio: float = 0.7, scope: Scope = "batch", nll: str = "ref_nll", entropy: str = "ref_entropy"
) -> Objective:
    """Keep what is among the ``ratio`` of lowest ``ref_nll`` *and* of lowest ``H_ref`` (arXiv 2404.07965, App. H).

    ``ratio`` is that of each part: the share kept is at most that, and the log says what it came to. In the paper two parts of
    .7 that come to .6 are the best.
    """
    return _both("rho1_intersection", ratio, scope, nll, entropy, union=False)


def rho1_union(
    ratio: float = 0.4, scope: Scope = "batch", nll: str = "ref_nll", entropy: str = "ref_entropy"
) -> Objective:
    """Keep what is among the ``ratio`` of lowest ``ref_nll`` *or* of lowest ``H_ref`` (arXiv 2404.07965, App. H).

    ``ratio`` is that of each part: the share kept is at least that. The default is ours.
    """
    return _both("rho1_union", ratio, scope, nll, entropy, union=True)


def token_cleaning(
    ratio: float = 0.6, scope: Scope = "step", base: str = "base_nll", reference: str = "ref_nll"
) -> Objective:
    """Keep the top ``ratio`` by ``base_nll - ref_nll``: what the reference gained over the model it began from.

    Token Cleaning (arXiv 2502.01968; read in the authors' code) ranks the whole data set at once, as ``scope: corpus`` does;
    the default ranks a step, which for a shuffled corpus comes to nearly the same. Both columns are scored beforehand, so with
    ``corpus`` the choice is the same in every epoch.
    """
    for option, name in (("base", base), ("reference", reference)):
        check_column(option, name)
    return top(
        "token_cleaning",
        lambda stats: excess(stats.need(base), stats.need(reference)),
        frozenset({base, reference}),
        {"ratio": ratio, "scope": scope, "base": base, "reference": reference},
        static=True,
    )


def high_loss(ratio: float = 0.6, scope: Scope = "batch") -> Objective:
    """Keep the top ``ratio`` by the student's own ``nll``: a negative control, which trains on noise first."""
    return top("high_loss", _nll, frozenset({"nll"}), {"ratio": ratio, "scope": scope})


def middle_loss(ratio: float = 0.6, scope: Scope = "batch") -> Objective:
    """Keep the middle ``ratio`` by the student's ``nll``: half of what is dropped is the highest, half the lowest.

    Of an odd number to drop the one more goes from the top.
    """
    check_ratio(ratio)
    check_scope(scope)

    def weigh(stats: TokenStats) -> Tensor:
        place = places(_nll(stats), stats.valid, scope, group=rows_of(stats, scope))
        valid = total_within(torch.ones_like(_nll(stats)), stats, scope).long()
        kept = kept_count(valid, ratio)
        first = (valid - kept + 1) // 2
        return ((place >= first) & (place < first + kept)).float()

    return Objective(
        "middle_loss",
        weigh,
        frozenset({"nll"}),
        scope,
        known_count=lambda known: kept_count(valid_by_group(known, scope), ratio).sum(),
        most_rows=lambda rows, length: most_kept(rows, length, ratio, scope),
        selects=True,
        options={"ratio": ratio, "scope": scope},
    )


def eslm(alpha: float = 0.4, by: str = "nll", scope: Scope = "batch") -> Objective:
    """Keep ``S >= VaR_alpha``, the alpha-quantile of S over the scope; S is the student's ``nll`` or ``entropy``.

    ESLM (arXiv 2505.19893, from its abstract): with ``nll`` the loss is the conditional value at risk, the mean of the tail.
    VaR_alpha is the ceil(alpha n)-th smallest of n values, so about ``1 - alpha`` are kept, and ties with it as well.
    ``by: entropy`` asks the head for it.
    """
    check_range("alpha", alpha, 0.0, 1.0)
    check_scope(scope)
    if by not in ("nll", "entropy"):
        raise ValueError(f"by is {by!r}, it must be nll or entropy")

    def weigh(stats: TokenStats) -> Tensor:
        score = stats.need(by).float()
        at_risk = at_place(lambda n: n - torch.ceil(alpha * n).clamp(min=1), score, stats, scope)
        return (score >= at_risk).float()

    return soft(
        "eslm",
        weigh,
        frozenset({by}),
        {"alpha": alpha, "by": by, "scope": scope},
        scope=scope,
        denominator="weight",
        selects=True,
        score=lambda stats: stats.need(by).float(),
    )


def entropy_top(ratio: float = 0.2, scope: Scope = "batch") -> Objective:
    """Keep the ``ratio`` of highest student entropy, divided by all valid tokens: "forking tokens" (arXiv 2506.01939).

    As TRL's GRPO does it (read in its code): the threshold is over all active tokens of the batch, and the loss is divided by
    these, not by the kept ones.
    """
    return top(
        "entropy_top",
        lambda stats: stats.need("entropy").float(),
        frozenset({"entropy"}),
        {"ratio": ratio, "scope": scope},
        denominator="valid",
    )


def _nll(stats: TokenStats) -> Tensor:
    return stats.need("nll").float()


def _lowest(column: str) -> Weigh:
    return lambda stats: -stats.need(column).float()


def _low(name: str, ratio: float, scope: Scope, reference: str) -> Objective:
    check_column("reference", reference)
    options = {"ratio": ratio, "scope": scope, "reference": reference}
    return top(name, _lowest(reference), frozenset({reference}), options, static=True)


def _both(name: str, ratio: float, scope: Scope, nll: str, entropy: str, *, union: bool) -> Objective:
    check_ratio(ratio)
    check_column("nll", nll)
    check_column("entropy", entropy)

    options = {"ratio": ratio, "scope": scope, "nll": nll, "entropy": entropy}
    if scope == "corpus":
        return _both_above(name, options, union=union)

    def weigh(stats: TokenStats) -> Tensor:
        group = rows_of(stats, scope)
        one, other = (top_fraction(_lowest(c)(stats), stats.valid, ratio, scope, group=group) for c in (nll, entropy))
        return (one | other if union else one & other).float()

    def most_rows(rows: int, length: int) -> int:
        each = most_kept(rows, length, ratio, scope)
        return min(rows * length, 2 * each) if union else each

    return soft(
        name,
        weigh,
        frozenset({nll, entropy}),
        options,
        scope=scope,
        denominator="weight",
        selects=True,
        static=True,
        most_rows=most_rows,
    )


def _both_above(name: str, options: dict[str, Any], *, union: bool) -> Objective:
    """Both parts by the thresholds of the whole data set."""
    parts = [
        above("low", _lowest(options[c]), {"ratio": options["ratio"], "column": options[c]}) for c in ("nll", "entropy")
    ]
    (one, first), (other, second) = parts
    join = torch.maximum if union else torch.minimum
    return soft(
        name,
        lambda stats: join(one(stats), other(stats)),
        frozenset({options["nll"], options["entropy"]}),
        options,
        scope="corpus",
        denominator="weight",
        selects=True,
        static=True,
        corpus_scores={**first, **second},
    )
