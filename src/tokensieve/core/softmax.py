"""The softmax of each row over a vocabulary that comes in slices: what nll and other statistics need of it, in a few [T] sums.

With m the largest logit so far:    total = sum_v exp(l_v - m)    p_v = exp(l_v - m) / total    nll = log total + (m - l_target)

A logit may be -inf, as those of a masked vocabulary are: it adds nothing, and a target there has an nll of inf. A row of
nothing but -inf is no distribution: its nll and statistics are NaN (target_rank 0), as log_softmax has it.

A further statistic is a class below, in EXTRAS: it sees every slice once and gives a value a row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

TOP = 20  # vocabulary entries that top_entropy looks at


class OnlineSoftmax:
    """``add`` every slice once, then ask. Sums are float32 (float64 for float64), whatever dtype the logits have.

    targets_T are indices into the whole vocabulary; one that no slice covers has no target logit, and its nll no meaning.
    ``extras`` are names of EXTRAS. ``target_logit_T``, needed for ``target_rank`` only: the targets' logits, known beforehand.
    ``last`` makes one that sees each slice after all others.
    """

    def __init__(
        self,
        targets_T: Tensor,
        dtype: torch.dtype,
        *,
        extras: Collection[str] = (),
        target_logit_T: Tensor | None = None,
        top_k: int = 0,
        last: Callable[[OnlineSoftmax], Extra] | None = None,
    ) -> None:
        self.targets_T = targets_T
        zeros_T = torch.zeros(targets_T.shape, dtype=dtype, device=targets_T.device)
        self.largest_T, self.total_T, self.target_T = zeros_T, zeros_T.clone(), zeros_T.clone()
        self.target_logit_T = target_logit_T
        self.extras: dict[str, Extra] = {name: EXTRAS[name](self) for name in extras}
        self.start = 0
        """The vocabulary entry that the slice at hand begins with."""
        self.top = TopK(self, top_k) if top_k else None
        self.last = last(self) if last is not None else None
        self._seen_by = [*self.extras.values(), *([self.top] if self.top else []), *([self.last] if self.last else [])]
        self._empty = True

    def add(self, logits_TC: Tensor, start: int, work_TC: Tensor) -> None:
        """Take in the logits of vocabulary entries from ``start`` on. ``work_TC``, which may be the logits, is overwritten."""
        if logits_TC.dtype != work_TC.dtype:
            logits_TC = work_TC.copy_(logits_TC)  # once, for all that follows: a maximum of bfloat16 is slow
        self.start = start
        index_T1, here_T = in_slice(self.targets_T, start, logits_TC.shape[-1])
        target_T = logits_TC.gather(-1, index_T1).squeeze(-1).to(self.target_T.dtype)
        self.target_T = torch.where(here_T, target_T, self.target_T)
        for extra in self._seen_by:
            extra.see_logits(logits_TC, index_T1, here_T)
        # -inf - -inf is NaN: of a slice that is all -inf the largest counts as the lowest number there is.
        lowest = torch.finfo(self.largest_T.dtype).min
        self._shift_to(logits_TC.amax(-1).to(self.largest_T.dtype).clamp(min=lowest))
        torch.sub(logits_TC, self.largest_T.unsqueeze(-1), out=work_TC)
        for extra in self._seen_by:
            extra.see_shifted(work_TC)
        work_TC.exp_()
        for extra in self._seen_by:
            extra.see_exp(work_TC)
        self.total_T += work_TC.sum(-1)
        if self.last is not None:
            self.last.see_last(work_TC)

    def _shift_to(self, largest_T: Tensor) -> None:
        """Refer the sums to a larger maximum: they are multiplied by exp(old - new)."""
        if not self._empty:
            largest_T = torch.maximum(self.largest_T, largest_T)
            step_T = self.largest_T - largest_T
            factor_T = step_T.exp()
            for extra in self._seen_by:
                extra.shift(step_T, factor_T)
            self.total_T = factor_T * self.total_T
        self.largest_T, self._empty = largest_T, False

    def nll(self) -> Tensor:
        """``-log p(target)``, inf for a target of logit -inf. [T]

        The difference of two large logits is taken first: it is exact where they are close.
        """
        return self.total_T.log() + (self.largest_T - self.target_T)

    def extra(self, name: str) -> Tensor:
        """The value of one of ``extras`` for each row. [T]"""
        return self.extras[name].value()


class Extra:
    """A statistic of each row's softmax. Of every slice it sees the logits, these less the largest so far, and their exp.

    Nothing is to be written into what is seen, but by the softmax's ``last`` at the very end.
    """

    def __init__(self, softmax: OnlineSoftmax) -> None:
        self.softmax = softmax
        self.sum_T = torch.zeros_like(softmax.total_T)

    def see_logits(self, logits_TC: Tensor, index_T1: Tensor, here_T: Tensor) -> None:
        """Before anything else; ``index_T1`` and ``here_T`` are :func:`in_slice` of the targets."""

    def shift(self, step_T: Tensor, factor_T: Tensor) -> None:
        """The largest logit has grown by ``-step``: sums of exp shrink by ``factor = exp(step)``."""

    def see_shifted(self, shifted_TC: Tensor) -> None:
        """``logit - largest``."""

    def see_exp(self, exp_TC: Tensor) -> None:
        """``exp(logit - largest)``, before it is added to the total."""

    def see_last(self, exp_TC: Tensor) -> None:
        """The same once more, after it was added to the total. Of ``last`` only, which may write over it."""

    def value(self) -> Tensor:
        raise NotImplementedError


class Entropy(Extra):
    """``-sum_v p_v log p_v = log total - weighted / total`` with ``weighted = sum_v exp(l_v - m) * (l_v - m)``; nats."""

    def shift(self, step_T: Tensor, factor_T: Tensor) -> None:
        # After a slice that was masked with the lowest number the sum in brackets is -inf, and 0 * -inf is NaN.
        moved_T = factor_T * (self.sum_T + step_T * self.softmax.total_T)
        self.sum_T = torch.where(factor_T == 0, 0, moved_T)

    def see_shifted(self, shifted_TC: Tensor) -> None:
        # 0 * -inf would be NaN; a logit of -inf adds nothing to either sum.
        self.shifted_TC = shifted_TC.clamp(min=torch.finfo(shifted_TC.dtype).min)

    def see_exp(self, exp_TC: Tensor) -> None:
        self.sum_T += self.shifted_TC.mul_(exp_TC).sum(-1)
        del self.shifted_TC

    def value(self) -> Tensor:
        return self.softmax.total_T.log() - self.sum_T / self.softmax.total_T


class SumP2(Extra):
    """``sum_v p_v^2``, in (0, 1]: 1 where the student is sure, 1 / V where it knows nothing."""

    def shift(self, step_T: Tensor, factor_T: Tensor) -> None:
        self.sum_T = self.sum_T * factor_T.square()

    def see_exp(self, exp_TC: Tensor) -> None:
        self.sum_T += torch.linalg.vecdot(exp_TC, exp_TC)

    def value(self) -> Tensor:
        return self.sum_T / self.softmax.total_T.square()


class TargetRank(Extra):
    """``#{v != target: l_v > l_target}``, int64, from 0; equal logits do not count against the target.

    The target's logit must be known before its slice comes, and is the same number to the last bit only where the dot product
    is rounded as the slice's product is: entries that differ from it by less may count on either side.
    """

    def __init__(self, softmax: OnlineSoftmax) -> None:
        super().__init__(softmax)
        self.sum_T = torch.zeros_like(softmax.targets_T)

    def see_logits(self, logits_TC: Tensor, index_T1: Tensor, here_T: Tensor) -> None:
        assert self.softmax.target_logit_T is not None
        above_TC = logits_TC > self.softmax.target_logit_T.unsqueeze(-1)
        itself_T = above_TC.gather(-1, index_T1).squeeze(-1) & here_T
        self.sum_T += above_TC.sum(-1) - itself_T.long()

    def value(self) -> Tensor:
        return self.sum_T


class TopEntropy(Extra):
    """``-sum_v q_v log q_v`` over the TOP largest probabilities, renormalised to add up to 1; nats, at most log 20."""

    def __init__(self, softmax: OnlineSoftmax) -> None:
        super().__init__(softmax)
        self.top_TK: Tensor | None = None

    def see_logits(self, logits_TC: Tensor, index_T1: Tensor, here_T: Tensor) -> None:
        top_TK = logits_TC.topk(min(TOP, logits_TC.shape[-1])).values
        if self.top_TK is not None:
            both_TK = torch.cat([self.top_TK, top_TK], -1)
            top_TK = both_TK.topk(min(TOP, both_TK.shape[-1])).values
        self.top_TK = top_TK

    def value(self) -> Tensor:
        if self.top_TK is None:
            return self.sum_T
        log_q_TK = self.top_TK.log_softmax(-1)
        # A masked vocabulary has fewer than TOP entries: 0 * -inf would be NaN.
        return -(log_q_TK.exp() * log_q_TK.clamp(min=torch.finfo(log_q_TK.dtype).min)).sum(-1)


class TopK(Extra):
    """The ``k`` likeliest entries, falling, and ``log p`` of each under the whole softmax; of equal logits any may come first.

    Holds 2 k numbers a row. An entry of logit -inf (a masked vocabulary of fewer than k) has a log p of -inf.
    """

    def __init__(self, softmax: OnlineSoftmax, k: int) -> None:
        super().__init__(softmax)
        self.k, like = k, softmax.total_T
        self.logits_TK, self.ids_TK = like.new_empty(len(like), 0), softmax.targets_T.new_empty(len(like), 0)

    def see_logits(self, logits_TC: Tensor, index_T1: Tensor, here_T: Tensor) -> None:
        found = logits_TC.topk(min(self.k, logits_TC.shape[-1]))
        logits_TM = torch.cat([self.logits_TK, found.values.to(self.logits_TK.dtype)], -1)
        ids_TM = torch.cat([self.ids_TK, found.indices + self.softmax.start], -1)
        self.logits_TK, place_TK = logits_TM.topk(min(self.k, logits_TM.shape[-1]))
        self.ids_TK = ids_TM.gather(-1, place_TK)

    def value(self) -> Tensor:
        shifted_TK = self.logits_TK - self.softmax.largest_T.unsqueeze(-1)
        return shifted_TK - self.softmax.total_T.log().unsqueeze(-1)


# name -> what computes it, see core/stats.py for what it is.
EXTRAS: dict[str, type[Extra]] = {
    "entropy": Entropy,
    "sum_p2": SumP2,
    "target_rank": TargetRank,
    "top_entropy": TopEntropy,
}


def in_slice(targets_T: Tensor, start: int, width: int) -> tuple[Tensor, Tensor]:
    """(column of each target within a slice of the vocabulary, clamped into it [T, 1]; whether it lies there [T])."""
    index_T = targets_T - start
    return index_T.clamp(0, width - 1).unsqueeze(-1), (index_T >= 0) & (index_T < width)
