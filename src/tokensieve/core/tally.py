"""Addable statistics: count, mean and quantiles of values that come in parts (chunks, micro-batches, ranks, shards)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LOW, HIGH, NUM_BINS = -16.0, 32.0, 960  # nats; 0.05 a bin. nll rarely passes 20, excess rarely -16.


@dataclass(frozen=True)
class Tally:
    """``Tally.of(a) + Tally.of(b) == Tally.of(cat(a, b))``: float64 sums and a histogram, on the values' device.

    Values outside [-16, 32) nats fall into the outermost bins: mean exact, quantiles to 0.05 nats between.
    """

    count: Tensor
    sum: Tensor
    histogram: Tensor

    @staticmethod
    def of(values: Tensor, mask: Tensor | None = None) -> Tally:
        """Tally the values where ``mask`` is true (all if None). No host sync: masked values get weight 0."""
        flat = values.detach().reshape(-1).double()
        weight = torch.ones_like(flat) if mask is None else mask.reshape(-1).double()
        flat = torch.where(weight > 0, flat, torch.zeros_like(flat))  # a masked NaN must not reach the sum
        bins = ((flat - LOW) / (HIGH - LOW) * NUM_BINS).clamp(0, NUM_BINS - 1).nan_to_num(0).long()
        histogram = torch.zeros(NUM_BINS, dtype=torch.float64, device=flat.device).index_add_(0, bins, weight)
        return Tally(weight.sum(), (flat * weight).sum(), histogram)

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.count + other.count, self.sum + other.sum, self.histogram + other.histogram)

    @property
    def mean(self) -> float:
        """``sum / count``; NaN for an empty tally."""
        count = float(self.count)
        return float(self.sum) / count if count else float("nan")

    def quantile(self, q: float) -> float:
        """The value below which a share ``q`` in [0, 1] lies, to a bin's width; NaN for an empty tally."""
        if not float(self.count):
            return float("nan")
        below = self.histogram.cumsum(0)
        wanted = (q * self.count).clamp(min=torch.finfo(torch.float64).tiny)  # q = 0: the first bin that holds anything
        index = int((below < wanted).sum().clamp(max=NUM_BINS - 1))
        return LOW + (index + 1) * (HIGH - LOW) / NUM_BINS
