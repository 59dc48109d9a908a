"""What every selection is held against: all tokens, and as many of them at random."""

from __future__ import annotations

from ..objective import Objective
from ..scores import random_uniform
from ..select import Scope
from .shared import top


def clm() -> Objective:
    """``weight = 1``: plain causal language modeling."""
    return Objective(
        "clm",
        weigh=lambda stats: stats.valid.float(),
        scope="sequence",  # weights do not depend on other tokens: nothing to gather
        known_count=lambda known: known.valid.sum(),
        most_rows=lambda rows, length: rows * length,
        selects=True,
    )


def random(ratio: float = 0.6, scope: Scope = "batch", seed: int = 0) -> Objective:
    """Keep a random ``ratio`` of the valid tokens of each scope: the control every selection must beat."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed is {seed}, it must be in [0, 2^63)")
    return top(
        "random",
        lambda stats: random_uniform(seed, stats.step, stats.need("row_id"), stats.need("position")),
        frozenset({"row_id", "position"}),
        {"ratio": ratio, "scope": scope, "seed": seed},
    )
