"""Weights that a user has: as the rule itself, and beside any other rule."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..objective import Objective
from ..stats import HEAD_STATISTICS, TokenStats
from .shared import check_column, soft

WEIGHT = "weight"
"""The column that multiplies, whatever the rule."""


def column(weight: str = WEIGHT) -> Objective:
    """``w`` is the column ``weight`` of the data set, which may be negative; ``loss = sum(w * nll) / sum(|w|)``.

    A negative weight teaches the model away from a token, 0 leaves it out. Where none is negative, the default denominator
    ``abs`` is the sum of the weights. How a corpus comes by the column: docs/weights.md.
    """
    check_column("weight", weight)
    return soft(
        "column",
        lambda stats: stats.need(weight),
        frozenset({weight}),
        {"weight": weight},
        denominator="abs",
        static=True,
        signed=True,
    )


def times(rule: Objective) -> Objective:
    """``w = weight * rule``: the column ``weight`` (float, any sign) times what the rule gives the tokens where it is not 0.

    The rule is shown tokens of weight 0 as tokens without a target: it neither ranks them nor counts them in its k, and means
    over a scope leave them out. They stay targets for everyone else: the denominator ``valid`` and the log count them. The
    denominator ``weight`` becomes ``abs``, which is the same sum where no weight is negative. A rule that reads the column
    itself is left as it is.
    """
    if WEIGHT in rule.needs:
        return rule

    def weigh(stats: TokenStats) -> Tensor:
        weight = stats.need(WEIGHT)
        shown = stats.valid & (weight != 0)
        found = rule.weigh(replace(stats, valid=shown))
        # Not a product with a mask: what a rule says where it was shown no target may be NaN.
        return torch.where(shown, found * weight, torch.zeros_like(weight))

    return replace(
        rule,
        weigh=weigh,
        needs=rule.needs | {WEIGHT},
        denominator="abs" if rule.denominator == "weight" else rule.denominator,
        known_count=None,
        selects=False,
        multiplied=True,
        signed=True,
        static=not HEAD_STATISTICS & rule.needs,  # k of a ranking is known beforehand, but not which weights it adds up
    )
