"""Scores: what tokens are ranked by. Larger = more worth training on. All take and give any shape, float32 nats."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from .stats import TokenStats


def excess(nll: Tensor, ref_nll: Tensor) -> Tensor:
    """``nll - ref_nll`` in nats: signed, never clipped, never abs (Rho-1, arXiv 2404.07965, Eq. 3).

    High where the student is worse than the reference model: not yet learned, but learnable. Detached. A stored float16
    ``ref_nll`` is widened before the difference is taken.
    """
    return nll.detach().float() - ref_nll.detach().float()


def random_uniform(seed: int, step: int, row_id: Tensor, position: Tensor) -> Tensor:
    """A uniform number in [0, 1) for each (seed, step, corpus row, position), float64; the same on every rank.

    A counter-based hash (splitmix64's finaliser), not a generator's state: masks neither repeat between ranks nor depend
    on how rows are spread over them. row_id and position are int64 and broadcast.
    """
    # The key is a Python number: as a tensor it was a copy to the device, which waits for it, at every micro-batch.
    key = _signed(_mix_int(_mix_int(seed) + step))
    bits = _mix(_mix(row_id.long() + key) + position.long())
    return ((bits >> 11) & ((1 << 53) - 1)).double() * 2.0**-53


def hashed(values: Tensor) -> Tensor:
    """A hash of int64 values, int64 in [0, 2^63): the same on every machine and in every version of torch."""
    return _mix(values.long()) & ((1 << 63) - 1)


def _mix(x: Tensor) -> Tensor:
    """splitmix64 of int64 values read as unsigned: additions and products wrap, shifts bring in zeros."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _mix_int(x: int) -> int:
    """:func:`_mix` of a Python int, from 0 to 2^64 - 1."""
    x = (x + 0x9E3779B97F4A7C15) & _ALL
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _ALL
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _ALL
    return x ^ x >> 31


_ALL = (1 << 64) - 1


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch's ``>>`` would drag the sign bit along."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x


# name -> score of the statistics. An objective names one, or brings its own function.
SCORES: dict[str, Callable[[TokenStats], Tensor]] = {
    "excess": lambda stats: excess(stats.need("nll"), stats.need("ref_nll")),
    "nll": lambda stats: stats.need("nll").float(),
    "low_ref_nll": lambda stats: -stats.need("ref_nll").float(),
    "low_ref_entropy": lambda stats: -stats.need("ref_entropy").float(),
    "entropy": lambda stats: stats.need("entropy").float(),
}
