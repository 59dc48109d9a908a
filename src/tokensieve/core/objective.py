"""An objective: a rule from token statistics to token weights, with what it needs declared beforehand."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from .scores import SCORES, random_uniform
from .select import Scope, check_ratio, kept_count, top_fraction

Denominator = Literal["weight", "valid"]
# What a statistic is: everything an objective may ask for besides named score columns.
STATISTICS = ("nll", "entropy", "ref_nll", "ref_entropy", "input_ids", "row_id", "position")


@dataclass(frozen=True)
class TokenStats:
    """What is known of each token of a scope. Tensors share one shape, [T] or [B, T], and are aligned by *predicting*
    position: entry t speaks of the token that hidden state t predicts, and ``valid`` says whether there is one."""

    valid: Tensor
    nll: Tensor | None = None
    entropy: Tensor | None = None
    ref_nll: Tensor | None = None
    ref_entropy: Tensor | None = None
    input_ids: Tensor | None = None
    """The target token's id."""
    row_id: Tensor | None = None
    """The corpus row a token stands in."""
    position: Tensor | None = None
    """Its place in that row."""
    step: int = 0
    """Optimizer steps done before this one."""
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    """Further score columns by name."""


@dataclass(frozen=True)
class Objective:
    """``loss = sum(weight * nll) / denominator``, with ``weight = weigh(stats)`` float32 >= 0, 0 where not valid.

    The denominator is summed over all micro-batches and ranks of the step: of the weights (Rho-1 Eq. 4), or of the valid
    tokens for objectives whose paper says so.
    """

    name: str
    weigh: Callable[[TokenStats], Tensor]
    needs: frozenset[str] = frozenset()
    """Statistics and score columns that ``weigh`` reads; a run without them is refused before it starts."""
    scope: Scope = "batch"
    """The tokens that ``weigh`` must be given together."""
    denominator: Denominator = "weight"
    known_count: Callable[[Tensor], Tensor] | None = None
    """valid -> weight sum, where that is known before the forward."""
    counts_rows: bool = False
    """Whether weights are 0 or 1, so that ``known_count`` bounds how many tokens get one: spares a wait for the device."""
    score: Callable[[TokenStats], Tensor] | None = None
    """What ``weigh`` ranks by, if it ranks: logged as the threshold."""
    options: Mapping[str, Any] = field(default_factory=dict)

    def count(self, valid: Tensor) -> Tensor | None:
        """The denominator of these tokens if it is known before the forward, int64 or float scalar; else None."""
        if self.denominator == "valid":
            return valid.sum()
        return None if self.known_count is None else self.known_count(valid)


def objective(name: str, **options: Any) -> Objective:
    """The built-in objective ``name``, or ``package.module:factory`` called with the options.

    Raises ValueError for an unknown name (listing those that exist) and for options the objective does not take.
    """
    make = OBJECTIVES[name] if name in OBJECTIVES else _imported(name)
    try:
        made = make(**options)
    except TypeError as e:
        raise ValueError(f"objective {name!r}: {e}") from None
    if not isinstance(made, Objective):
        raise ValueError(f"objective {name!r} gave {type(made).__name__}, not an Objective")
    return made


def clm() -> Objective:
    """``weight = 1``: plain causal language modeling."""
    return Objective(
        "clm",
        weigh=lambda stats: stats.valid.float(),
        scope="sequence",  # weights do not depend on other tokens: nothing to gather
        known_count=lambda valid: valid.sum(),
        counts_rows=True,
    )


def random(ratio: float = 0.6, scope: Scope = "batch", seed: int = 0) -> Objective:
    """Keep a random ``ratio`` of the valid tokens of each scope: the control every selection must beat."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed is {seed}, it must be in [0, 2^63)")
    return _top(
        "random",
        lambda stats: random_uniform(seed, stats.step, _given(stats.row_id), _given(stats.position)),
        frozenset({"row_id", "position"}),
        {"ratio": ratio, "scope": scope, "seed": seed},
    )


def rho1(ratio: float = 0.6, scope: Scope = "batch") -> Objective:
    """Keep the top ``ratio`` by excess, ``nll - ref_nll``: Rho-1's Selective Language Modeling (Eq. 3-5)."""
    return _top("rho1", SCORES["excess"], frozenset({"nll", "ref_nll"}), {"ratio": ratio, "scope": scope})


# name -> factory. A user's own is named by "package.module:factory".
OBJECTIVES: dict[str, Callable[..., Objective]] = {"clm": clm, "random": random, "rho1": rho1}


def _top(
    name: str, score: Callable[[TokenStats], Tensor], needs: frozenset[str], options: Mapping[str, Any]
) -> Objective:
    """Top fraction by score, with ``options`` ratio and scope."""
    ratio, scope = options["ratio"], options["scope"]
    check_ratio(ratio)
    if scope not in ("sequence", "batch", "step"):
        raise ValueError(f"unknown scope {scope!r}: sequence, batch or step")

    def count(valid: Tensor) -> Tensor:
        per_group = valid.sum(-1) if scope == "sequence" else valid.sum()
        return kept_count(per_group, ratio).sum()

    return Objective(
        name,
        weigh=lambda stats: top_fraction(score(stats), stats.valid, ratio, scope).float(),
        needs=needs,
        scope=scope,
        known_count=count,
        counts_rows=True,
        score=score,
        options=options,
    )


def _given(value: Tensor | None) -> Tensor:
    if value is None:
        raise ValueError("this objective needs row_id and position, which were not given")
    return value


def _imported(name: str) -> Callable[..., Objective]:
    module, _, attribute = name.partition(":")
    if not attribute:
        known = ", ".join(sorted(OBJECTIVES))
        raise ValueError(f"unknown objective {name!r}: one of {known}, or package.module:factory")
    try:
        return getattr(importlib.import_module(module), attribute)  # type: ignore[no-any-return]
    except (ImportError, AttributeError) as e:
        raise ValueError(f"objective {name!r} cannot be imported: {e}") from None
