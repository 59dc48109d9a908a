"""The k-th largest of float32 numbers that come in parts, exactly: two readings and a megabyte, however many they are.

    a number's bits, put in order     uuuuuuuuuuuuuuuu llllllllllllllll
    reading 1                         how many have each upper half        -> the half that the k-th has
    reading 2                         of these, how many have each lower   -> the k-th

Counts add up over parts, shards and ranks. Which parts, and in what order, changes nothing: there is no rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .select import kept_count

HALF = 1 << 16


@dataclass(frozen=True)
class Threshold:
    """What a ranking of a whole data set comes to: tokens of ``score >= value`` are kept."""

    value: float
    """The k-th largest score; +inf where there is no token."""
    tokens: int
    """Tokens with a target."""
    wanted: int
    """k = floor(ratio * tokens + 0.5), at least 1 of any."""
    kept: int
    """Tokens that are kept: ``wanted``, and all that tie with the last of them."""
    ties: int
    """Tokens whose score is the threshold."""


def upper_counts(values: Tensor) -> Tensor:
    """How many values have each upper half, int64 [65536]. Float32; NaN raises ValueError, -0 is 0."""
    return torch.bincount(_ordered(values) >> 16, minlength=HALF)


def lower_counts(values: Tensor, upper: int) -> Tensor:
    """Of the values with this upper half, how many have each lower one, int64 [65536]."""
    ordered_N = _ordered(values)
    return torch.bincount(ordered_N[ordered_N >> 16 == upper] & (HALF - 1), minlength=HALF)


def holding(counts: Tensor, k: int) -> tuple[int, int]:
    """(the half that the k-th largest has, how many are larger than all of that half). 1 <= k <= counts.sum()."""
    above = counts.flip(0).cumsum(0).flip(0)  # of each half: as large or larger
    half = int((above >= k).sum()) - 1
    return half, int(above[half] - counts[half])


def threshold(ratio: float, upper: Tensor, lower: Tensor) -> Threshold:
    """From the counts of both readings; ``lower`` those within :func:`holding` of ``upper`` at the wanted number."""
    tokens = int(upper.sum())
    wanted = kept_count(tokens, ratio)
    if not wanted:
        return Threshold(float("inf"), 0, 0, 0, 0)
    half, larger = holding(upper, wanted)
    low, larger_within = holding(lower, wanted - larger)
    ties = int(lower[low])
    return Threshold(_value(half * HALF + low), tokens, wanted, larger + larger_within + ties, ties)


def _ordered(values: Tensor) -> Tensor:
    """Bits as int64 from 0 to 2^32 - 1, in the order of the numbers."""
    flat_N = values.detach().reshape(-1).float() + 0.0
    if bool(flat_N.isnan().any()):
        raise ValueError("a score is NaN: it has no place among the others")
    bits_N = flat_N.view(torch.int32).long()
    return torch.where(bits_N < 0, ~bits_N & 0xFFFFFFFF, bits_N + (1 << 31))


def _value(ordered: int) -> float:
    bits = ordered - (1 << 31) if ordered >= 1 << 31 else ~ordered
    return float(torch.tensor(bits, dtype=torch.int64).to(torch.int32).view(torch.float32))
