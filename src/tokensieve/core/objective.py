"""An objective: a rule from token statistics to token weights, with what it needs declared beforehand."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .scores import excess, random_uniform
from .select import Scope, check_ratio, kept_count, top_fraction
from .stats import STATISTICS, TokenStats

Denominator = Literal["weight", "valid", "nonzero", "abs"]


@dataclass(frozen=True)
class Objective:
    """``loss = sum(weight * nll) / denominator``, with ``weight = weigh(stats)`` float32, 0 where not valid.

    The denominator is summed over all micro-batches and ranks of the step and divided by once:

        weight    sum(weight)         Rho-1 Eq. 4; refused for weights that may be negative
        valid     tokens with a target
        nonzero   tokens with a weight other than 0
        abs       sum(|weight|)

    Raises ValueError for a denominator that does not exist, or one that the weights do not go with.
    """

    name: str
    weigh: Callable[[TokenStats], Tensor]
    needs: frozenset[str] = frozenset()
    """Statistics (see STATISTICS) and score columns that are read; a run without them is refused before it starts."""
    scope: Scope = "batch"
    """The tokens that ``weigh`` must be given together."""
    denominator: Denominator = "weight"
    known_count: Callable[[TokenStats], Tensor] | None = None
    """What is known before the forward -> weight sum, where it can be told from that: see :meth:`count`."""
    most_rows: Callable[[int, int], int] | None = None
    """(rows, length) -> the most tokens of such a batch that can get a weight: spares a wait for the device."""
    selects: bool = False
    """Whether weights are 0 or 1 and nothing else."""
    signed: bool = False
    """Whether weights may be negative."""
    score: Callable[[TokenStats], Tensor] | None = None
    """What ``weigh`` ranks by, if it ranks: logged as the threshold."""
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.denominator not in get_args(Denominator):
            raise ValueError(f"unknown denominator {self.denominator!r}: one of {', '.join(get_args(Denominator))}")
        if self.signed and self.denominator == "weight":
            raise ValueError(
                f"denominator 'weight': the weights of {self.name!r} may be negative, their sum may be 0 or change the sign "
                "of the loss: take abs, nonzero or valid"
            )

    def count(self, known: TokenStats) -> Tensor | None:
        """The denominator of these tokens if it is known before the forward, a scalar on their device; else None.

        ``known`` has ``valid``, ``step``, ``tokens_seen`` and, of what ``needs`` names, all that does not come from the
        forward. What it says is held against the weights that came at a run's first step.
        """
        if self.denominator == "valid":
            return known.valid.sum()
        if self.known_count is None or not self.counts_ahead:
            return None
        return self.known_count(known)

    @property
    def counts_ahead(self) -> bool:
        """Whether :meth:`count` knows; else a step's gradients are divided after its last backward."""
        same_as_sum = {"weight": True, "abs": not self.signed, "nonzero": self.selects}
        return self.denominator == "valid" or (self.known_count is not None and same_as_sum[self.denominator])

    def denominator_of(self, weight: Tensor, valid: Tensor) -> Tensor:
        """The denominator of weights that are there, a float64 scalar: what :meth:`count` must have said."""
        if self.denominator == "valid":
            return valid.sum(dtype=sum_dtype(weight))
        weight = torch.where(valid, weight, 0)
        parts = {"weight": weight, "abs": weight.abs(), "nonzero": weight != 0}
        return parts[self.denominator].sum(dtype=sum_dtype(weight))


def objective(name: str, **options: Any) -> Objective:
    """The built-in objective ``name``, or ``package.module:factory`` called with the options.

    ``denominator`` is an option of every objective: weight, valid, nonzero or abs, see :class:`Objective`; the rule's own if
    not given. Raises ValueError for an unknown name (listing those that exist) and for options the objective does not take.
    """
    make = OBJECTIVES[name] if name in OBJECTIVES else _imported(name)
    denominator = options.pop("denominator", None)
    try:
        made = make(**options)
    except TypeError as e:
        raise ValueError(f"objective {name!r}: {e}") from None
    if not isinstance(made, Objective):
        raise ValueError(f"objective {name!r} gave {type(made).__name__}, not an Objective")
    return with_denominator(made, denominator)


def with_denominator(made: Objective, denominator: Any) -> Objective:
    """The objective divided by another denominator; None: as it is. ValueError for one that does not exist or fit."""
    if denominator is None:
        return made
    return replace(made, denominator=denominator, options={**made.options, "denominator": denominator})


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
    return _top(
        "random",
        lambda stats: random_uniform(seed, stats.step, stats.need("row_id"), stats.need("position")),
        frozenset({"row_id", "position"}),
        {"ratio": ratio, "scope": scope, "seed": seed},
    )


def rho1(ratio: float = 0.6, scope: Scope = "batch", reference: str = "ref_nll") -> Objective:
    """Keep the top ``ratio`` by excess, ``nll - ref_nll``: Rho-1's Selective Language Modeling (Eq. 3-5).

    ``reference`` names the score column with the reference model's nll, where there are several.
    """
    if reference in STATISTICS and STATISTICS[reference].origin != "column":
        raise ValueError(f"reference: {reference!r} is a statistic of the student's, not a score column")
    return _top(
        "rho1",
        lambda stats: excess(stats.need("nll"), stats.need(reference)),
        frozenset({"nll", reference}),
        {"ratio": ratio, "scope": scope, "reference": reference},
    )


# name -> factory. A user's own is named by "package.module:factory".
OBJECTIVES: dict[str, Callable[..., Objective]] = {"clm": clm, "random": random, "rho1": rho1}


def _top(
    name: str, score: Callable[[TokenStats], Tensor], needs: frozenset[str], options: Mapping[str, Any]
) -> Objective:
    """Top fraction by score, with ``options`` ratio and scope."""
    ratio, scope = options["ratio"], options["scope"]
    check_ratio(ratio)
    if scope not in get_args(Scope):
        raise ValueError(f"unknown scope {scope!r}: sequence, batch or step")

    def most_rows(rows: int, length: int) -> int:
        return rows * kept_count(length, ratio) if scope == "sequence" else kept_count(rows * length, ratio)

    return Objective(
        name,
        weigh=lambda stats: top_fraction(score(stats), stats.valid, ratio, scope, group=_rows_of(stats, scope)).float(),
        needs=needs,
        scope=scope,
        known_count=lambda known: kept_count(_valid_by_group(known, scope), ratio).sum(),
        most_rows=most_rows,
        selects=True,
        score=score,
        options=options,
    )


def _rows_of(stats: TokenStats, scope: Scope) -> Tensor | None:
    """The rows of a flat batch, where each is ranked on its own. [T]; None where the shape says it, or rows do not count."""
    if scope != "sequence" or stats.valid.dim() > 1:
        return None
    if stats.row_id is None:
        raise ValueError(
            "scope 'sequence': a flat batch has no rows but those that 'row_id' names, which was not given"
        )
    return stats.row_id


def _valid_by_group(known: TokenStats, scope: Scope) -> Tensor:
    """Valid tokens of each set that is ranked on its own: rows, or all there are. [groups] or scalar"""
    if (row_T := _rows_of(known, scope)) is not None:
        _, row_T = row_T.unique(return_inverse=True)
        return torch.bincount(row_T, weights=known.valid.double()).long()
    return known.valid.sum(-1) if scope == "sequence" else known.valid.sum()


def sum_dtype(like: Tensor) -> torch.dtype:
    """What sums over many batches are kept in: float32 stops counting at 16.7 million. MPS has nothing wider."""
    return torch.float64 if like.device.type != "mps" else torch.float32


def _imported(name: str) -> Callable[..., Objective]:
    module, _, attribute = name.partition(":")
    if not attribute:
        known = ", ".join(sorted(OBJECTIVES))
        raise ValueError(f"unknown objective {name!r}: one of {known}, or package.module:factory")
    try:
        return getattr(importlib.import_module(module), attribute)  # type: ignore[no-any-return]
    except (ImportError, AttributeError) as e:
        raise ValueError(f"objective {name!r} cannot be imported: {e}") from None
