"""Token dynamics: planted trajectories come out as what they are, and sums do not depend on how tokens lie in blocks."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokensieve.analysis.token_classes import CLASSES
from tokensieve.dynamics import classes as d

H_H, L_H, H_L, L_L = range(4)


def planted(num_checkpoints: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(nll [C, N], delta [N], class [N]): lines plus noise that a least-squares line does not see. mean_last is 4."""
    rng = np.random.default_rng(0)
    size = 400
    class_N = rng.integers(0, 4, size)
    delta_N = np.select(
        [class_N == L_H, class_N == H_L],
        [rng.uniform(0.201, 3, size), -rng.uniform(0.201, 3, size)],
        rng.uniform(-0.199, 0.199, size),
    )
    last_N = np.where(class_N == H_H, rng.uniform(4.5, 7, size), rng.uniform(1.5, 3.5, size))
    x = np.arange(num_checkpoints)
    noise_CN = rng.uniform(-1, 1, (num_checkpoints, size))
    basis = np.stack([np.ones(num_checkpoints), x], axis=1)
    noise_CN -= basis @ np.linalg.lstsq(basis, noise_CN, rcond=None)[0]
    noise_CN *= 0.4 / max(1e-9, np.abs(noise_CN).max())  # the last nll stays on its side of the mean
    line_CN = last_N + delta_N * ((x - x[-1]) / x[-1])[:, None]
    return line_CN + noise_CN, delta_N, class_N


@pytest.mark.parametrize("num_checkpoints", [3, 6, 16, 41])
def test_planted_trajectories_are_recovered(num_checkpoints: int) -> None:
    nll_CN, delta_N, class_N = planted(num_checkpoints)
    lines = d.classify(nll_CN, 4.0)
    np.testing.assert_array_equal(lines.class_N, class_N)
    np.testing.assert_allclose(lines.delta_N, delta_N, atol=1e-12)


def test_the_line_is_the_least_squares_line() -> None:
    """The first and last nll alone give another change: a token that ends on a spike would change its class."""
    nll_CN = np.random.default_rng(1).gamma(2.0, 2.0, (9, 50))
    slope_N, start_N = np.polyfit(np.arange(9), nll_CN, 1)
    residual_CN = nll_CN - (np.arange(9)[:, None] * slope_N + start_N)
    lines = d.classify(nll_CN, 4.0)
    np.testing.assert_allclose(lines.delta_N, 8 * slope_N, atol=1e-12)
    np.testing.assert_allclose(lines.fluctuation_N, np.abs(residual_CN).mean(0), atol=1e-12)
    assert np.abs(lines.delta_N - (nll_CN[-1] - nll_CN[0])).max() > 1


def test_a_change_of_exactly_the_threshold_is_flat() -> None:
    """|delta| <= 0.2: with five checkpoints a bump of 0.5 at the fourth is a delta of 1/5, and the next float16 is more."""
    bump = np.array([0.5, np.nextafter(np.float16(0.5), np.float16(1))], np.float16)
    up_CN = np.zeros((5, 2), np.float16)
    up_CN[3] = bump
    for nll_CN, changed in ((up_CN, L_H), (up_CN[::-1], H_L)):
        lines = d.classify(nll_CN, 4.0)
        assert abs(lines.delta_N[0]) == 0.2
        assert lines.class_N.tolist() == [L_L, changed]
    high_CN = up_CN[:, :1] + np.float16(8)
    assert d.classify(high_CN, 4.0).class_N.tolist() == [H_H]


def test_a_last_nll_of_exactly_the_mean_is_low() -> None:
    """l_n <= mean. The mean is over tokens at the last checkpoint, not over the token's own nll."""
    last = np.array([3.0, np.nextafter(3.0, 4), 2.999], np.float64)
    assert d.classify(np.tile(last, (4, 1)), 3.0).class_N.tolist() == [L_L, H_H, L_L]


def test_two_checkpoints_are_a_line_and_one_is_none() -> None:
    lines = d.classify(np.array([[1.0, 5.0, 2.0], [2.5, 4.0, 2.125]]), 3.0)
    assert lines.delta_N.tolist() == [1.5, -1.0, 0.125]
    assert lines.class_N.tolist() == [L_H, H_L, L_L]
    assert lines.fluctuation_N.tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="at least two checkpoints"):
        d.deltas(np.ones((1, 3)))


def test_a_token_that_is_no_target_has_no_class() -> None:
    """NaN is neither above nor below anything: it came out as flat and high."""
    with pytest.raises(ValueError, match="NaN at some checkpoint"):
        d.classify(np.array([[1.0, np.nan], [1.0, 2.0]]), 1.0)


def test_float16_changes_few_classes() -> None:
    """Stored nll are off by at most 2^-9 nats below 8: only tokens that close to a border change, under 1 % of them."""
    rng = np.random.default_rng(2)
    nll_CN = np.abs(rng.gamma(1.5, 2.0, 20000) + np.cumsum(rng.normal(0, 0.15, (11, 20000)), axis=0))
    exact = d.classify(nll_CN, nll_CN[-1].mean())
    stored = d.classify(nll_CN.astype(np.float16), nll_CN[-1].astype(np.float16).mean(dtype=np.float64))
    assert set(exact.class_N.tolist()) == {0, 1, 2, 3}
    assert 0 < (exact.class_N != stored.class_N).mean() < 0.01


@given(st.lists(st.integers(0, 60), max_size=4), st.integers(2, 6))
def test_blocks_do_not_count(cuts: list[int], num_checkpoints: int) -> None:
    """Every table is the same however the tokens lie in blocks, an empty block included."""
    rng = np.random.default_rng(3)
    nll_CN = rng.gamma(2.0, 2.0, (num_checkpoints, 60)).astype(np.float16)
    order_N, group_N, keep_SN = rng.random(60), rng.integers(-1, 3, 60), rng.random((2, 60)) < 0.5

    def tables(bounds: list[int]) -> Any:
        sums, samples = d.ClassSums(num_checkpoints), d.Samples(3)
        groups, selection = d.Breakdown("source", [d.Group(c) for c in "abc"]), d.Selection([0.0, 0.0], num_checkpoints)
        for start, stop in pairwise(bounds):
            here = slice(start, stop)
            lines = d.classify(nll_CN[:, here], 4.0)
            sums.add(nll_CN[:, here], lines)
            samples.add(order_N[here], np.arange(start, stop), nll_CN[:, here], lines)
            groups.add(group_N[here], lines.class_N)
            selection.add(nll_CN[:, here], keep_SN[:, here], lines.class_N)
        return [sums.classes(), sums.curves(), samples.records(), groups.records(), selection.records()]

    assert rounded(tables([0, 60])) == rounded(tables([0, *sorted(cuts), 60]))


def rounded(value: Any) -> Any:
    """Sums of floats depend on their order in the last digits."""
    return json.loads(json.dumps(value), parse_float=lambda text: float(f"{float(text):.9g}"))


def test_tables_are_means_over_tokens() -> None:
    nll_CN, _, class_N = planted(5)
    sums = d.ClassSums(5)
    sums.add(nll_CN, d.classify(nll_CN, 4.0))
    rows = {r["class"]: r for r in sums.classes()}
    assert sum(rows[c]["tokens"] for c in CLASSES) == rows["all"]["tokens"] == nll_CN.shape[1]
    assert [rows[c]["paper"] for c in CLASSES] == [0.11, 0.12, 0.26, 0.51]
    for k, name in enumerate(CLASSES):
        mine_CN = nll_CN[:, class_N == k]
        assert rows[name]["share"] == pytest.approx((class_N == k).mean())
        assert rows[name]["up_share"] == pytest.approx((np.diff(mine_CN, axis=0) > 0).mean())
        curve = [r for r in sums.curves() if r["class"] == name]
        np.testing.assert_allclose([r["nll"] for r in curve], mine_CN.mean(1))
        spread = mine_CN.std(1, ddof=1) / np.sqrt(mine_CN.shape[1])
        np.testing.assert_allclose([r["standard_error"] for r in curve], spread)


def test_a_class_without_tokens_has_no_mean() -> None:
    sums = d.ClassSums(2)
    sums.add(np.array([[1.0], [3.0]]), d.classify(np.array([[1.0], [3.0]]), 3.0))
    rows = {r["class"]: r for r in sums.classes()}
    assert (rows["H->H"]["tokens"], rows["H->H"]["share"], rows["H->H"]["nll_last"]) == (0, 0.0, None)
    assert {r["standard_error"] for r in sums.curves()} == {None}


def test_frequency_groups_hold_equal_shares_and_do_not_overlap() -> None:
    rng = np.random.default_rng(4)
    count_V = rng.zipf(1.5, 500).clip(max=2000) - 1
    targets_V = rng.poisson(count_V / 3 + 0.2)
    groups, group_V = d.frequency_groups(count_V, targets_V)
    assert (group_V >= 0).tolist() == (targets_V > 0).tolist()
    there = targets_V > 0
    for i, group in enumerate(groups):
        assert (group.low, group.high) == (count_V[group_V == i].min(), count_V[group_V == i].max())
        assert i == 0 or group.low > groups[i - 1].high  # type: ignore[operator]
    mass = np.bincount(group_V[there], weights=targets_V[there]) / targets_V.sum()
    largest_count = max(targets_V[count_V == c].sum() for c in np.unique(count_V)) / targets_V.sum()
    assert 5 <= len(groups) <= 10
    assert mass.max() <= 0.1 + largest_count + 1e-9


def test_position_groups_are_powers_of_two() -> None:
    groups = d.position_groups(20)
    assert [g.label for g in groups] == ["1", "2-3", "4-7", "8-15", "16-19"]
    where = d.position_group(np.arange(20)).tolist()
    assert where[0] == -1
    for position in range(1, 20):
        assert groups[where[position]].low <= position <= groups[where[position]].high  # type: ignore[operator]
    assert [g.label for g in d.position_groups(2)] == ["1"]


def test_samples_are_the_lowest_of_each_class() -> None:
    nll_CN, _, class_N = planted(3)
    order_N = np.random.default_rng(5).random(nll_CN.shape[1])
    samples = d.Samples(4)
    samples.add(order_N, np.arange(len(order_N)) * 7, nll_CN, d.classify(nll_CN, 4.0))
    for k, name in enumerate(CLASSES):
        best = sorted(np.flatnonzero(class_N == k), key=lambda i: order_N[i])[:4]
        mine = [r for r in samples.records() if r["class"] == name]
        assert [r["place"] for r in mine] == sorted(7 * i for i in best)
        assert mine[0]["nll"] == nll_CN[:, mine[0]["place"] // 7].tolist()
