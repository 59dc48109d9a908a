"""How sure a difference is beside what its seeds say: over the set's documents, and with how many more seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
MOST_SEEDS = 1000
"""Beyond so many nobody counts: "more than"."""
SUPPOSED_SD = 0.02
"""Nats: the standard deviation of paired differences where nobody has measured it; that of the demo's three seeds."""
_AT_ONCE = 1 << 22  # numbers of one batch of resamples
FloatArray = npt.NDArray[np.float64]


def over_documents(sets: Sequence[tuple[FloatArray, FloatArray]], seed: int = 0) -> tuple[float, float] | None:
    """95 % percentile interval of a difference in nll, by a bootstrap over documents (2000 resamples).

    ``sets``: for each set ``(difference_D, tokens_D)``, a document's sum of nll differences (mean over seeds) and its number of
    targets. The difference is sum / sum of a set, and the mean over sets where there are several; documents are drawn anew
    within each. It holds seeds fixed: it says how much the choice of texts matters, not that of seeds. None where a set has
    fewer than two documents with a target.
    """
    from scipy.stats import bootstrap  # .4 s

    draws = np.zeros(RESAMPLES)
    for number, (difference_D, tokens_D) in enumerate(sets):
        there = tokens_D > 0
        if there.sum() < 2:
            return None
        found = bootstrap(
            (difference_D[there], tokens_D[there]),
            lambda d, n, axis: d.sum(axis) / n.sum(axis),
            paired=True,
            vectorized=True,
            n_resamples=RESAMPLES,
            batch=max(1, _AT_ONCE // int(there.sum())),
            method="percentile",
            rng=np.random.default_rng([seed, number]),
        )
        draws += found.bootstrap_distribution / len(sets)
    low, high = np.quantile(draws, [0.025, 0.975]).tolist() if sets else (math.nan, math.nan)
    return (low, high) if sets else None


def seeds_needed(mean: float, sd: float, power: float = 0.8) -> int | None:
    """The fewest seeds with which a two-sided paired t test at 5 % finds a true difference of ``mean`` with this power, where
    differences of seeds have the standard deviation ``sd``. None: more than MOST_SEEDS, or none at all for a mean of 0."""
    if mean == 0 or not (math.isfinite(mean) and math.isfinite(sd)):
        return None
    return next((n for n in _numbers() if power_of(n, abs(mean), sd) >= power), None)


def detectable(n: int, sd: float, power: float = 0.8) -> float | None:
    """The smallest true difference that a two-sided paired t test at 5 % over ``n`` seeds finds with this power, in the unit of
    ``sd``, the standard deviation of differences of seeds. None for fewer than two seeds, or an ``sd`` that is no number."""
    from scipy.optimize import brentq

    if n < 2 or not math.isfinite(sd):
        return None
    return sd * float(brentq(lambda effect: power_of(n, effect, 1.0) - power, 1e-6, 60.0))  # at n = 2 it is 11.5


def sd_interval(sd: float, n: int) -> tuple[float, float] | None:
    """95 % interval of a standard deviation that ``n`` differences showed, by chi-squared; None for fewer than two."""
    from scipy.stats import chi2

    if n < 2:
        return None
    low, high = (sd * math.sqrt((n - 1) / float(chi2.ppf(q, n - 1))) for q in (0.975, 0.025))
    return low, high


def power_of(n: int, effect: float, sd: float) -> float:
    """Probability that a two-sided paired t test at 5 % over ``n`` seeds leaves 0 out, for a true difference of ``effect``."""
    from scipy.stats import nct, t

    if n < 2:
        return 0.0
    if sd == 0:
        return 1.0
    critical, shift = float(t.ppf(0.975, n - 1)), effect / sd * math.sqrt(n)
    if shift > 30:  # nct loses itself far out, where nothing is left to say
        return 1.0
    other_way = (
        nct.cdf(-critical, n - 1, shift) if shift < 6 else 0.0
    )  # below 1e-9, and not a number in scipy from 8 on
    return float(nct.sf(critical, n - 1, shift) + other_way)


def _numbers() -> Sequence[int]:
    """2, 3 ... 30, then in steps of about 5 %: beyond that nobody plans to the seed."""
    return sorted({*range(2, 31), *(int(30 * 1.05**i) for i in range(1, 72)), MOST_SEEDS})
