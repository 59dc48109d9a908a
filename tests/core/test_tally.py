"""Tally: parts add up to the whole."""

from __future__ import annotations

import functools
import operator

import numpy as np
import pytest
import torch
from torch import Tensor

from tokensieve.core import Tally
from tokensieve.core.tally import HIGH, LOW, NUM_BINS

WIDTH = (HIGH - LOW) / NUM_BINS


def make(num: int = 5000) -> Tensor:
    """Values as an excess has them: most near 0, some far off."""
    g = torch.Generator().manual_seed(0)
    return (torch.randn(num, generator=g, dtype=torch.float64).exp() - 1.5).clamp(max=HIGH - WIDTH)


@pytest.mark.parametrize("sizes", [(1, 4999), (2500, 2500), (0, 5000), (1000, 3, 3997)])
def test_parts_add_up_to_the_whole(sizes: tuple[int, ...]) -> None:
    """A mean of the parts' means weighs a micro-batch with one token like one with a thousand."""
    values_T = make()
    whole = Tally.of(values_T)
    parts = functools.reduce(operator.add, (Tally.of(v) for v in values_T.split(sizes)))
    assert float(parts.count) == 5000
    assert parts.mean == pytest.approx(whole.mean, abs=1e-12)
    assert torch.equal(parts.histogram, whole.histogram)
    assert parts.quantile(0.3) == whole.quantile(0.3)
    assert whole.mean == pytest.approx(values_T.mean().item(), abs=1e-12)


def test_unequal_parts() -> None:
    """The toy of the mean of means: 90 tokens at 0.5 and 20 at 1.5 have a mean of 0.68, not 1."""
    both = Tally.of(torch.full((90,), 0.5)) + Tally.of(torch.full((20,), 1.5))
    assert both.mean == pytest.approx(75 / 110)


def test_mask() -> None:
    values_T = make()
    mask_T = torch.rand(5000, generator=torch.Generator().manual_seed(1)) < 0.3
    masked, picked = Tally.of(values_T, mask_T), Tally.of(values_T[mask_T])
    assert float(masked.count) == float(mask_T.sum())
    assert masked.mean == pytest.approx(picked.mean, abs=1e-12)
    assert torch.equal(masked.histogram, picked.histogram)
    assert Tally.of(values_T.view(50, 100), mask_T.view(50, 100)).mean == pytest.approx(masked.mean, abs=1e-12)


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), float("-inf")])
def test_masked_junk_stays_out(junk: float) -> None:
    """A reference column is NaN where there is no target, and NaN * 0 is NaN."""
    tally = Tally.of(torch.tensor([1.0, junk, 3.0]), torch.tensor([True, False, True]))
    assert tally.mean == 2
    assert float(tally.count) == float(tally.histogram.sum()) == 2


@pytest.mark.parametrize("q", [0.0, 0.05, 0.25, 0.5, 0.9, 0.99, 1.0])
def test_quantile_to_a_bin(q: float) -> None:
    values_T = make()
    truth = float(np.quantile(values_T.numpy(), q, method="inverted_cdf"))
    assert abs(Tally.of(values_T).quantile(q) - truth) <= WIDTH + 1e-9


def test_quantiles_of_few() -> None:
    tally = Tally.of(torch.tensor([1.0, 2.0, 3.0]))
    for q, value in ((0.0, 1.0), (0.2, 1.0), (0.5, 2.0), (1.0, 3.0)):
        assert abs(tally.quantile(q) - value) <= WIDTH + 1e-9, q


def test_empty_is_nan() -> None:
    """0 would be taken for a perfect model."""
    for empty in (Tally.of(torch.zeros(0)), Tally.of(torch.ones(3), torch.zeros(3, dtype=torch.bool))):
        assert np.isnan(empty.mean)
        assert np.isnan(empty.quantile(0.5))
        assert (empty + Tally.of(torch.tensor([2.0]))).mean == 2


def test_values_beyond_the_histogram() -> None:
    """An integer overflow on the way to the bin turned 1e30 nats into the smallest value there is."""
    high, low = (
        Tally.of(torch.tensor([100.0, 1e30, float("inf")])),
        Tally.of(torch.tensor([-100.0, -1e30, float("-inf")])),
    )
    assert high.quantile(0.0) == pytest.approx(HIGH)
    assert low.quantile(1.0) == pytest.approx(LOW + WIDTH)
    assert Tally.of(torch.tensor([100.0, 50.0])).mean == 75  # the mean is exact all the same


def test_is_float64_and_detached() -> None:
    """A float32 sum over a corpus stops growing: 2^24 ones are where it ends."""
    tally = Tally.of(torch.full((3,), 0.1, requires_grad=True)) + Tally.of(torch.full((3,), 2.0**30))
    assert tally.sum.dtype == tally.count.dtype == tally.histogram.dtype == torch.float64
    assert not tally.sum.requires_grad
    assert tally.mean == pytest.approx((3 * 2**30 + 0.3) / 6, rel=1e-12)
