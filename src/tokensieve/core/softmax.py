"""The softmax of each row over a vocabulary that comes in slices: what nll and entropy need of it, in a few [T] sums.

With m the largest logit so far:    total = sum_v exp(l_v - m)    weighted = sum_v exp(l_v - m) * (l_v - m)

    nll = log total + (m - l_target)      p_v = exp(l_v - m) / total      entropy = log total - weighted / total
"""

from __future__ import annotations

import torch
from torch import Tensor


class OnlineSoftmax:
    """``add`` every slice once, then ask. Sums are float32 (float64 for float64), whatever dtype the logits have.

    targets_T are indices into the whole vocabulary; one that no slice covers has no target logit, and its nll no meaning.
    """

    def __init__(self, targets_T: Tensor, dtype: torch.dtype, *, entropy: bool = False) -> None:
        self.targets_T = targets_T
        zeros_T = torch.zeros(targets_T.shape, dtype=dtype, device=targets_T.device)
        self.largest_T, self.total_T, self.target_T = zeros_T, zeros_T.clone(), zeros_T.clone()
        self.weighted_T = zeros_T.clone() if entropy else None
        self._empty = True

    def add(self, logits_TC: Tensor, start: int, work_TC: Tensor) -> None:
        """Take in the logits of vocabulary entries from ``start`` on. ``work_TC``, which may be the logits, is overwritten."""
        if logits_TC.dtype != work_TC.dtype:
            logits_TC = work_TC.copy_(logits_TC)  # once, for all that follows: a maximum of bfloat16 is slow
        index_T1, here_T = in_slice(self.targets_T, start, logits_TC.shape[-1])
        target_T = logits_TC.gather(-1, index_T1).squeeze(-1).to(self.target_T.dtype)
        self.target_T = torch.where(here_T, target_T, self.target_T)
        self._shift_to(logits_TC.amax(-1).to(self.largest_T.dtype))
        torch.sub(logits_TC, self.largest_T.unsqueeze(-1), out=work_TC)
        if self.weighted_T is not None:
            # 0 * -inf would be NaN; a logit of -inf adds nothing to either sum.
            shifted_TC = work_TC.clamp(min=torch.finfo(work_TC.dtype).min)
            self.weighted_T += shifted_TC.mul_(work_TC.exp_()).sum(-1)
        else:
            work_TC.exp_()
        self.total_T += work_TC.sum(-1)

    def _shift_to(self, largest_T: Tensor) -> None:
        """Refer the sums to a larger maximum: they are multiplied by exp(old - new)."""
        if not self._empty:
            largest_T = torch.maximum(self.largest_T, largest_T)
            step_T = self.largest_T - largest_T
            factor_T = step_T.exp()
            if self.weighted_T is not None:
                self.weighted_T = factor_T * (
                    self.weighted_T + step_T.clamp(min=torch.finfo(step_T.dtype).min) * self.total_T
                )
            self.total_T = factor_T * self.total_T
        self.largest_T, self._empty = largest_T, False

    def nll(self) -> Tensor:
        """``-log p(target)``. [T]; the difference of two large logits is taken first: it is exact where they are close."""
        return self.total_T.log() + (self.largest_T - self.target_T)

    def entropy(self) -> Tensor:
        """``-sum_v p_v log p_v`` in nats. [T]"""
        if self.weighted_T is None:
            raise ValueError("entropy was not asked for")
        return self.total_T.log() - self.weighted_T / self.total_T


def in_slice(targets_T: Tensor, start: int, width: int) -> tuple[Tensor, Tensor]:
    """(column of each target within a slice of the vocabulary, clamped into it [T, 1]; whether it lies there [T])."""
    index_T = targets_T - start
    return index_T.clamp(0, width - 1).unsqueeze(-1), (index_T >= 0) & (index_T < width)
