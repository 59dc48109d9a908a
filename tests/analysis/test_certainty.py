"""How sure a difference is: a bootstrap over documents, and how many seeds it would take, held against simulation by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tokensieve.analysis.certainty import (
    MOST_SEEDS,
    detectable,
    over_documents,
    power_of,
    sd_interval,
    seeds_needed,
)


def test_bootstrap_of_a_constant_difference_is_that_difference() -> None:
    tokens = np.array([3.0, 7.0, 11.0])
    assert over_documents([(-0.25 * tokens, tokens)]) == pytest.approx((-0.25, -0.25))


def test_bootstrap_draws_documents_and_not_tokens() -> None:
    """One long document that differs: taken token by token the interval would be a hundred times too narrow."""
    rng = np.random.default_rng(0)
    tokens = np.full(40, 500.0)
    gaps = rng.normal(0.1, 0.05, 40)
    low, high = over_documents([(gaps * tokens, tokens)]) or (0.0, 0.0)
    error = gaps.std(ddof=1) / 40**0.5
    assert (low + high) / 2 == pytest.approx(gaps.mean(), abs=error / 4)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.15)


def test_a_document_counts_by_its_tokens() -> None:
    """Ninety-nine titles of one token and a book: the nll of the set is the book's."""
    tokens = np.array([*[1.0] * 99, 10_000.0])
    gaps = np.array([*[5.0] * 99, 0.1])
    low, high = over_documents([(gaps * tokens, tokens)]) or (0.0, 0.0)
    assert low < 0.15  # whenever the book is drawn
    assert high == pytest.approx(5.0)  # and when it is not


def test_mean_over_sets_counts_each_set_once() -> None:
    small, large = np.full(3, 10.0), np.full(30, 1000.0)
    assert over_documents([(small * 1.0, small), (large * 3.0, large)]) == pytest.approx((2.0, 2.0))


def test_too_few_documents_say_nothing() -> None:
    assert over_documents([(np.array([1.0]), np.array([5.0]))]) is None
    assert over_documents([(np.array([1.0, 0.0]), np.array([5.0, 0.0]))]) is None
    assert over_documents([]) is None


def test_power_is_what_a_simulation_finds() -> None:
    rng = np.random.default_rng(1)
    n, effect, sd = 5, 0.1, 0.07
    draws = rng.normal(effect, sd, (20_000, n))
    t = draws.mean(1) / (draws.std(1, ddof=1) / n**0.5)
    assert power_of(n, effect, sd) == pytest.approx((np.abs(t) > 2.7764451052).mean(), abs=0.015)
    assert power_of(n, 0.0, sd) == pytest.approx(0.05)
    assert (power_of(1, 1.0, 1.0), power_of(3, 1.0, 0.0), power_of(50, 100.0, 0.1)) == (0.0, 1.0, 1.0)


def test_seeds_needed_is_the_first_number_with_that_power() -> None:
    needed = seeds_needed(-0.1, 0.07)
    assert needed is not None
    assert power_of(needed, 0.1, 0.07) >= 0.8 > power_of(needed - 1, 0.1, 0.07)
    assert seeds_needed(0.0, 0.1) is None
    assert seeds_needed(1e-6, 1.0) is None
    assert (seeds_needed(0.01, 0.1) or 0) <= MOST_SEEDS


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_detectable_is_where_power_is_reached(n: int) -> None:
    """At 2 seeds it is 12 standard deviations: scipy's other tail is no number there, and with it the power was none."""
    least = detectable(n, 0.02)
    assert least is not None
    assert power_of(n, least, 0.02) == pytest.approx(0.8, abs=1e-6)
    assert seeds_needed(least * 1.0001, 0.02) == n
    assert detectable(n, 0.04) == pytest.approx(2 * least)
    assert (detectable(1, 0.02), detectable(n, float("nan")), detectable(n, 0.0)) == (None, None, 0.0)


def test_interval_of_a_standard_deviation_covers_the_true_one() -> None:
    rng = np.random.default_rng(2)
    low, high = sd_interval(1.0, 5) or (9.0, 9.0)
    sd = rng.normal(0.0, 0.3, (20_000, 5)).std(1, ddof=1)
    assert ((low * sd <= 0.3) & (high * sd >= 0.3)).mean() == pytest.approx(0.95, abs=0.005)
    assert sd_interval(0.3, 5) == pytest.approx((0.3 * low, 0.3 * high))
    assert sd_interval(0.3, 1) is None
