"""What a fitted law says of a budget: how to share it out, how often to pass over text, how much of a domain to mix in, and
what selection must gain."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..certainty import FloatArray
from .forms import FORMS
from .law import Estimate, Law

ALLOCATES = ("chinchilla", "repetition", "data_constrained", "over_training")
"""Forms of nll in parameters and tokens: those that can say how to share out compute."""
_RATIOS = np.geomspace(1e-4, 1e8, 301)  # tokens a parameter among which the optimum is looked for, before it is refined


@dataclass(frozen=True)
class Allocation:
    """The compute-optimal run at C FLOPs."""

    params: Estimate
    tokens: Estimate
    nll: Estimate
    bounded: bool
    """False where the law has no optimum within 1e-4 to 1e8 tokens a parameter: the numbers are an end of that range."""
    nll_draws: FloatArray
    """The lowest nll of each of the law's draws."""


def columns_at(law: Law, params: Any, tokens: Any, flops: Any, unique: float | None) -> dict[str, Any]:
    """The columns that the law reads; unique tokens are all where no limit is given."""
    there = {"params": params, "tokens": tokens, "flops": flops}
    there["unique"] = tokens if unique is None else np.minimum(unique, tokens)
    return {name: there[name] for name in FORMS[law.form].varies}


def allocate(law: Law, flops: float, each: float, unique: float | None = None) -> Allocation:
    """``argmin_N L(N, C / (each N))`` with ``each`` FLOPs a parameter and token (6 for large models); ``unique``: tokens that
    there are, what is seen beyond them is repeated. Intervals: the optimum of every draw."""
    params = np.sqrt(flops / (each * _RATIOS))
    tokens = params * _RATIOS
    x = columns_at(law, params, tokens, np.full_like(params, flops), unique)
    here, spot = _lowest(np.asarray(law.at(x))[None])
    values, spots = _lowest(law.draws_at(x))

    def at(place: FloatArray, of: FloatArray) -> FloatArray:
        return np.exp(np.interp(place, np.arange(len(of)), np.log(of)))

    inside = 0.5 < spot[0] < len(_RATIOS) - 1.5
    return Allocation(
        Estimate.of(float(at(spot, params)[0]), at(spots, params)),
        Estimate.of(float(at(spot, tokens)[0]), at(spots, tokens)),
        Estimate.of(float(here[0]), values),
        bool(inside),
        values,
    )


def _lowest(curves: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(value, place) of the lowest point of each row, by the parabola through the lowest value and its neighbours."""
    curves = np.where(np.isfinite(curves), curves, np.inf)
    middle = np.clip(curves.argmin(1), 1, curves.shape[1] - 2)
    a, b, c = (np.take_along_axis(curves, (middle + k)[:, None], 1)[:, 0] for k in (-1, 0, 1))
    bend = a - 2 * b + c
    shift = np.where(bend > 0, np.clip((a - c) / np.where(bend > 0, 2 * bend, 1.0), -1, 1), np.sign(a - c))
    return np.minimum(b, b - (a - c) * shift / 4), middle + shift


def half_worth(law: Law) -> Estimate:
    """``1 + R_D ln 2``: passes after which a token read once more is worth half of a new one (d D' / d D = exp(-R / R_D))."""
    return Estimate.of(1 + law.constants["R_D"] * math.log(2), 1 + law.draws["R_D"] * math.log(2))


def largest_share(law: Law, most: float) -> Estimate:
    """The share R of domain text at which `mixture` reaches ``most`` nats on general text, within 0 and 1:
    ``((most - level) / slope)^(1 / s)``; 0 where it lies above at every share."""

    def share(c: Mapping[str, Any]) -> Any:
        room = np.maximum(most - c["level"], 0) / c["slope"]
        return np.clip(room ** (1 / c["s"]), 0, 1)

    return Estimate.of(float(share(law.constants)), share(law.draws))


@dataclass(frozen=True)
class Price:
    """What selection costs in FLOPs, and what is left of the tokens of a run that pays for it out of the same budget."""

    reference: float
    scoring: float
    tokens: float
    """Tokens that the student sees, with reference and scoring inside the budget."""


def price_of_selection(
    flops: float, student: float, reference_training: float, scoring: float, students: int = 1
) -> Price | None:
    """``(C - reference / n) / (student + scoring / n)`` tokens for a student that pays for its reference and scores out of C.

    ``student``, ``scoring``: FLOPs a token of training the student and of the reference's forward; ``students`` n share
    reference and scores. None where the reference alone costs all.
    """
    left = flops - reference_training / students
    if left <= 0:
        return None
    tokens = left / (student + scoring / students)
    return Price(reference_training / students, tokens * scoring / students, tokens)


def must_gain(law: Law, params: float, tokens: float, fewer: float, each: float, unique: float | None) -> Estimate:
    """Nats that selection must gain at equal tokens, to end where the plain run of equal compute ends:
    ``L(N, fewer) - L(N, tokens)``."""

    def x(d: float) -> dict[str, Any]:
        return columns_at(law, params, d, each * params * d, unique)

    return Estimate.of(float(law.at(x(fewer)) - law.at(x(tokens))), law.draws_at(x(fewer)) - law.draws_at(x(tokens)))
