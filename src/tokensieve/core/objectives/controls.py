"""What every selection is held against: all tokens, and as many of them at random."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..objective import Objective
from ..scores import random_uniform
from ..select import Scope, places
from ..stats import TokenStats
from .ranked import rho1
from .shared import rows_of, top


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
    _check_seed(seed)
    return top(
        "random",
        lambda stats: _uniform(seed, stats),
        frozenset({"row_id", "position"}),
        {"ratio": ratio, "scope": scope, "seed": seed},
    )


def random_like(of: Objective | None = None, seed: int = 0) -> Objective:
    """Keep of every token id as many as the rule ``of`` keeps, at random: a control for which *kinds* of token a rule prefers.

    A rule that beats ``random`` but not this one chose frequent or rare ids, and not the right places. ``of`` must keep or drop
    tokens, in its own scope; rho1 if not given. The same number is kept, so it is counted as ``of`` is; what ``of`` needs is
    needed. Waits for the device once a micro-batch, to find which ids occur.
    """
    _check_seed(seed)
    of = of or rho1()
    if not of.selects or of.second is not None:
        raise ValueError(f"random_like: {of.name!r} does not keep or drop tokens, so there is no set to be like")

    def weigh(stats: TokenStats) -> Tensor:
        kept = (of.weigh(stats) != 0) & stats.valid
        group = _kinds(stats, of.scope)
        drawn = places(_uniform(seed, stats).flatten(), stats.valid.flatten(), "sequence", group=group)
        wanted_G = torch.bincount(group, weights=kept.flatten().double())
        return ((drawn < wanted_G[group]) & stats.valid.flatten()).view(kept.shape).float()

    needs = of.needs | {"row_id", "position", "input_ids"}
    options = {"of": {"name": of.name, **of.options}, "seed": seed}
    return replace(of, name="random_like", weigh=weigh, needs=needs, score=None, options=options)


def _kinds(stats: TokenStats, scope: Scope) -> Tensor:
    """Whose tokens are drawn from together: those of one id, and for ``sequence`` of one row. Counted from 0, flat. [T]"""
    ids = stats.need("input_ids").flatten()
    if scope == "sequence":
        places_T = torch.arange(len(ids), device=ids.device)
        row_T = rows_of(stats, scope)  # of a flat batch; else the shape says it
        ids = torch.stack([ids, places_T // stats.valid.shape[-1] if row_T is None else row_T])
    group: Tensor = torch.unique(ids, dim=-1, return_inverse=True)[1]
    return group


def _uniform(seed: int, stats: TokenStats) -> Tensor:
    return random_uniform(seed, stats.step, stats.need("row_id"), stats.need("position"))


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed is {seed}, it must be in [0, 2^63)")
