"""What a baseline would have to spend to end where an arm ends, by its own runs whose schedules end at several lengths.

    nll(C) = E + A * C^-alpha        fitted through the ends (C, nll) of the baseline's runs of one seed
    speedup = C(nll of the arm) / C of the arm

A ratio read off a curve whose learning rate has not decayed yet says too much: every point here is the end of a schedule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .comparison import OverSeeds, over_seeds

Ends = Sequence[tuple[float, float]]
ALPHAS = np.geomspace(0.005, 3.0, 3000)
"""What alpha is looked for among; the smallest is a straight line in log C to within a thousandth over two decades."""
FEWEST = 3
"""Ends that a curve takes: it has three parameters."""


@dataclass(frozen=True)
class Curve:
    """``E + A * C^-alpha`` with A >= 0, between the smallest and the largest C that it was fitted to."""

    floor: float
    scale: float
    alpha: float
    low: float
    high: float

    def at(self, compute: float) -> float:
        return self.floor + self.scale * math.pow(compute / self.low, -self.alpha)

    def compute(self, nll: float) -> float:
        """The C at which the curve is at ``nll``; infinite where it never is."""
        share = (nll - self.floor) / self.scale if self.scale > 0 else 0.0
        return self.low * math.pow(share, -1 / self.alpha) if share > 0 else math.inf


def fit(ends: Ends) -> Curve | None:
    """The curve of least squares; None for fewer than FEWEST different C, or ends that do not fall."""
    points = sorted((c, y) for c, y in ends if math.isfinite(y) and c > 0)
    if len({c for c, _ in points}) < FEWEST:
        return None
    compute, nll = (np.array(v, np.float64) for v in zip(*points, strict=True))
    x_AN = (compute / compute[0]) ** -ALPHAS[:, None]
    off_AN = x_AN - x_AN.mean(1, keepdims=True)
    scale_A = (off_AN * (nll - nll.mean())).sum(1) / (off_AN**2).sum(1)
    floor_A = nll.mean() - scale_A * x_AN.mean(1)
    error_A = ((floor_A[:, None] + scale_A[:, None] * x_AN - nll) ** 2).sum(1)
    if not (scale_A > 0).any():
        return None
    best = int(np.where(scale_A > 0, error_A, np.inf).argmin())
    return Curve(float(floor_A[best]), float(scale_A[best]), float(ALPHAS[best]), float(compute[0]), float(compute[-1]))


@dataclass(frozen=True)
class Speedup:
    """Over seeds: the geometric mean of the factors, and its 95 % t interval in their logarithms."""

    factor: float | None = None
    interval: tuple[float, float] | None = None
    seeds: int = 0
    of: int = 0
    """Seeds that were given: one is left out that has no curve, since longer runs ended no lower in it, or no end."""
    beyond: str = ""
    """``above`` or ``below``: in some seed the arm ends below (above) all of the baseline's runs, and the factor there is only
    a bound, taken at the last of them: it is at least (at most) so much."""

    def told(self) -> str:
        """For a table: ``1.42 (1.20 to 1.66)``, with >= or <= before a bound, and how many seeds it is over where not all."""
        if self.factor is None:
            return ""
        sign = {"above": ">= ", "below": "<= "}.get(self.beyond, "")
        interval = (
            "" if self.interval is None or self.beyond else f" ({self.interval[0]:.2f} to {self.interval[1]:.2f})"
        )
        return f"{sign}{self.factor:.2f}{interval}" + (
            "" if self.seeds == self.of else f", {self.seeds} of {self.of} seeds"
        )


def effective(curves: Sequence[Ends], arm: Sequence[tuple[float | None, float | None]]) -> Speedup:
    """``curves``: by seed, the ends (C, nll) of the baseline's runs; ``arm``: by seed, (C, nll) of the arm's end.

    Seeds that lack either are left out; both must use the same axis C. Nothing is extrapolated: an arm beyond the baseline's
    shortest or longest run gets that run's C, and the result is a bound. Where one seed is beyond each end it is none at all.
    """
    logs, beyond = list[float](), set[str]()
    for ends, (cost, nll) in zip(curves, arm, strict=True):
        curve = fit(ends)
        if curve is None or cost is None or nll is None or cost <= 0:
            continue
        compute = curve.compute(nll)
        beyond |= {"above"} if compute > curve.high else {"below"} if compute < curve.low else set()
        logs.append(math.log(min(max(compute, curve.low), curve.high) / cost))
    found: OverSeeds = over_seeds(logs)
    if found.mean is None or len(beyond) == 2:
        return Speedup()
    interval = None if found.interval is None else (math.exp(found.interval[0]), math.exp(found.interval[1]))
    return Speedup(math.exp(found.mean), interval, found.n, len(arm), next(iter(beyond), ""))


def as_json(speedup: Speedup) -> dict[str, Any]:
    keys = ("factor", "interval", "seeds", "of", "beyond")
    return {key: getattr(speedup, key) for key in keys}
