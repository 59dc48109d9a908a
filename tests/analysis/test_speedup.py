"""What the baseline would have needed, by its own runs whose schedules end: planted curves come back."""

from __future__ import annotations

import math

import pytest

from tokensieve.analysis.speedup import Speedup, effective, fit

COMPUTE = (0.25, 0.5, 1.0, 2.0)


def planted(alpha: float, floor: float = 3.0, scale: float = 1.5, shift: float = 0.0) -> list[tuple[float, float]]:
    return [(c * 1e12, floor + scale * c**-alpha + shift) for c in COMPUTE]


@pytest.mark.parametrize("alpha", [0.05, 0.3, 1.0])
def test_a_planted_power_law_comes_back(alpha: float) -> None:
    curve = fit(planted(alpha))
    assert curve is not None
    for c in (0.3, 0.7, 1.7):
        nll = 3.0 + 1.5 * c**-alpha
        assert curve.compute(nll) == pytest.approx(c * 1e12, rel=2e-3)
        assert curve.at(c * 1e12) == pytest.approx(nll, rel=1e-3)


def test_no_curve_through_two_points_or_a_rising_one() -> None:
    assert fit(planted(0.3)[:2]) is None
    assert fit([(1.0, 5.0), (1.0, 5.1), (2.0, 4.0)]) is None
    assert fit([(1.0, 4.0), (2.0, 5.0), (3.0, 6.0)]) is None
    assert fit([(1.0, 4.0), (2.0, math.nan), (3.0, 3.0)]) is None


def test_the_factor_is_compute_over_compute() -> None:
    """At 1e12 FLOPs the arm is where the baseline is after 1.5e12; seeds shift both alike, and pairing takes that out."""
    shifts = (0.0, 0.3, -0.2)
    curves = [planted(0.3, shift=s) for s in shifts]
    there = [(1e12, 3.0 + 1.5 * 1.5**-0.3 + s) for s in shifts]
    found = effective(curves, there)
    assert found.factor == pytest.approx(1.5, rel=2e-3)
    assert found.interval == pytest.approx((1.5, 1.5), rel=2e-3)
    assert (found.seeds, found.beyond) == (3, "")
    dearer = effective(curves, [(3e12, nll) for _, nll in there])
    assert dearer.factor == pytest.approx(0.5, rel=2e-3)


def test_seeds_that_differ_widen_the_interval() -> None:
    found = effective([planted(0.3)] * 2, [(1e12, 3.0 + 1.5 * c**-0.3) for c in (1.2, 1.8)])
    assert found.factor == pytest.approx(math.sqrt(1.2 * 1.8), rel=2e-3)
    assert found.interval is not None
    assert found.interval[0] < 1 < found.interval[1]
    assert found.told() == f"{found.factor:.2f} ({found.interval[0]:.2f} to {found.interval[1]:.2f})"


def test_nothing_is_extrapolated() -> None:
    """A fitted curve at ten times its longest run says whatever its floor happens to be."""
    below = effective([planted(0.3)], [(1e12, 3.2)])
    assert (below.factor, below.beyond, below.told()) == (pytest.approx(2.0), "above", ">= 2.00")
    above = effective([planted(0.3)], [(1e12, 9.0)])
    assert (above.factor, above.beyond, above.told()) == (pytest.approx(0.25), "below", "<= 0.25")
    assert effective([planted(0.3)] * 2, [(1e12, 3.2), (1e12, 9.0)]) == Speedup()


def test_seeds_without_a_value_are_left_out() -> None:
    found = effective([planted(0.3), planted(0.3)[:2], planted(0.3)], [(1e12, 4.4), (1e12, 4.4), (None, 4.4)])
    assert (found.seeds, found.of) == (1, 3)
    assert found.told().endswith(
        ", 1 of 3 seeds"
    )  # the seeds in which longer runs were no better were gone without a word
    assert found.interval is None
    assert effective([], []) == Speedup()
