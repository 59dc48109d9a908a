"""Who reached whose end with how many tokens, and what is said of several seeds."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokensieve.analysis.comparison import curve, end, kept_by_source, mean_and_spread, tokens_to_reach

CURVE = [(100, 6.0), (200, 5.0), (400, 4.0)]


@pytest.mark.parametrize(
    ("goal", "tokens"),
    [
        (5.5, 150),
        (5.0, 200),
        (4.25, 350),
        (4.0, 400),
        (6.0, 100),  # the first point is there already
        (9.0, 100),
        (3.999, None),
    ],
)
def test_a_straight_line_between_points(goal: float, tokens: float | None) -> None:
    assert tokens_to_reach(CURVE, goal) == pytest.approx(tokens)
    assert tokens_to_reach(CURVE[::-1], goal) == pytest.approx(tokens)


def test_the_first_crossing_counts() -> None:
    """A curve that came down, rose again and came down once more had been there the first time."""
    assert tokens_to_reach([(0, 5.0), (10, 3.0), (20, 5.0), (30, 3.0)], 4.0) == 5
    assert tokens_to_reach([(10, 3.0), (20, 5.0), (30, 3.0)], 4.0) == 10


def test_no_curve() -> None:
    assert tokens_to_reach([], 1.0) is None
    assert tokens_to_reach([(10, 3.0)], 2.0) is None
    assert tokens_to_reach([(10, float("nan")), (20, float("nan"))], 2.0) is None


@given(st.lists(st.floats(0, 10), min_size=2, max_size=8), st.floats(0, 10))
def test_the_curve_is_at_the_goal_there_and_above_it_before(heights: list[float], goal: float) -> None:
    points = [(10.0 * i, y) for i, y in enumerate(heights)]
    found = tokens_to_reach(points, goal)
    if found is None:
        assert min(heights) > goal
        return
    before = [y for x, y in points if x < found - 1e-9]
    assert all(y >= goal for y in before)
    left, right = int(found // 10), min(math.ceil(found / 10), len(points) - 1)
    share = found / 10 - left
    at = heights[left] + share * (heights[right] - heights[left])
    assert at == pytest.approx(goal, abs=1e-6) or (found == 0 and heights[0] <= goal)


RESULTS = [
    {"model": "a", "set": "s", "on": "all", "step": None, "tokens_seen": None, "nll": 9.0},
    {"model": "b", "set": "s", "on": "all", "step": 20, "tokens_seen": 200, "nll": 5.0},
    {"model": "b", "set": "s", "on": "all", "step": 10, "tokens_seen": 100, "nll": 6.0},
    {"model": "b", "set": "s", "on": "solution", "step": 20, "tokens_seen": 200, "nll": 1.0},
    {"model": "b", "set": "t", "on": "all", "step": 20, "tokens_seen": 200, "nll": None},
]


def test_curve_and_end_take_one_model_on_one_set() -> None:
    assert sorted(curve(RESULTS, "b", "s")) == [(100, 6.0), (200, 5.0)]
    assert curve(RESULTS, "b", "s", "solution") == [(200, 1.0)]
    assert curve(RESULTS, "a", "s") == []
    assert curve(RESULTS, "b", "t") == []
    assert (end(RESULTS, "b", "s")["nll"], end(RESULTS, "a", "s")["nll"]) == (5.0, 9.0)
    with pytest.raises(KeyError, match="no result of 'a' on 't'"):
        end(RESULTS, "a", "t")


def test_shares_of_sources_are_those_of_selective_arms() -> None:
    rows = [
        {"arm": "unigram"},
        {"arm": "clm", "kept_share": 1.0, "kept_share_by_source": {"x": 1.0, "y": 1.0}},
        {"arm": "rho1", "kept_share": 0.6, "kept_share_by_source": {"y": 0.5, "x": 0.7}},
        {"arm": "mixed", "kept_share": 0.6, "kept_share_by_source": {"x": 0.6, "z": 0.6}},
    ]
    assert kept_by_source(rows) == [
        {"source": "x", "rho1": 0.7, "mixed": 0.6},
        {"source": "y", "rho1": 0.5, "mixed": None},
        {"source": "z", "rho1": None, "mixed": 0.6},
    ]
    assert kept_by_source([{"arm": "a", "kept_share": 0.6, "kept_share_by_source": {"x": 0.6}}]) == []
    assert kept_by_source(rows[:2]) == []


def test_spread_is_that_of_a_sample() -> None:
    values = [1.0, 2.0, 4.0]
    assert mean_and_spread(values) == pytest.approx((statistics.mean(values), statistics.stdev(values)))
    mean, spread = mean_and_spread([3.0])
    assert (mean, math.isnan(spread)) == (3.0, True)  # 0 would say: certain
