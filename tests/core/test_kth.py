"""The threshold of a whole data set against Python's sort, however the numbers come in parts."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch

from tokensieve.core.kth import Threshold, holding, lower_counts, threshold, upper_counts
from tokensieve.core.select import kept_count


def found(parts: list[list[float]], ratio: float) -> Threshold:
    tensors = [torch.tensor(part, dtype=torch.float32) for part in parts]
    upper = torch.stack([upper_counts(t) for t in tensors]).sum(0)
    half = holding(upper, kept_count(int(upper.sum()), ratio))[0] if upper.sum() else 0
    return threshold(ratio, upper, torch.stack([lower_counts(t, half) for t in tensors]).sum(0))


@pytest.mark.parametrize("ratio", [1e-4, 0.1, 0.5, 0.6, 1.0])
@pytest.mark.parametrize("kind", ["spread", "near", "tied"])
def test_the_kth_of_a_sort(kind: str, ratio: float) -> None:
    """Numbers that differ in their last bits only, of both signs, and many that are equal."""
    rng = random.Random(3)
    make = {
        "spread": lambda: rng.choice([-1, 1]) * 10 ** rng.uniform(-30, 30),
        "near": lambda: 1.0 + rng.randrange(2000) * 2.0**-23,
        "tied": lambda: rng.choice([-2.0, -0.0, 0.0, 0.5, math.inf]),
    }[kind]
    values = torch.tensor([make() for _ in range(3001)]).tolist()
    k = max(1, int(ratio * 3001 + 0.5))
    wanted = sorted(values, reverse=True)[k - 1]
    cuts = [0, 1, 700, 700, 3001]
    made = found([values[a:b] for a, b in itertools.pairwise(cuts)], ratio)
    assert (made.value, made.tokens, made.wanted) == (wanted, 3001, k)
    assert made.kept == sum(v >= wanted for v in values)
    assert made.ties == sum(v == wanted for v in values)
    assert made == found([values[::-1]], ratio)


def test_nothing_to_rank_and_no_number() -> None:
    assert found([[]], 0.5) == Threshold(math.inf, 0, 0, 0, 0)
    assert found([[-math.inf, 2.0]], 1.0).value == -math.inf
    with pytest.raises(ValueError, match="NaN"):
        upper_counts(torch.tensor([1.0, math.nan]))
