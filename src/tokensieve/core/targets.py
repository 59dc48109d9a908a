"""A second target of each token: a distribution over a few vocabulary entries, beside the one token that stands there.

    loss_t = (1 - share) nll_t + share CE_t        CE_t = -sum_k q_k log p(id_k) - r log R        r = 1 - sum_k q_k

q are the probabilities given for K entries, r what they lack to 1, R the student's probability of all other entries together.
So the rest is one bucket, in which the student keeps its own proportions: at a student that agrees, the gradient is 0, which
it is not where r is left out. Its gradient to the logit of entry v, with [A] 1 where A holds and 0 elsewhere:

    p_v - (1 - share) [v = target] - share (q_v if v is listed, r p_v / R if not)

Nothing here is [tokens, vocab]: of the logits K are kept a token, and R is summed beside the softmax's own total.
Shape letters as in ``nll.py``, and K entries a token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .softmax import Extra, OnlineSoftmax


@dataclass(frozen=True)
class SparseTargets:
    """Second targets, in the leading shape of ``targets``; whatever stands where a token has no target counts for nothing."""

    ids: Tensor
    """[..., K] vocabulary entries, those of a token different from each other; below 0: no entry."""
    probs: Tensor
    """[..., K] their probabilities, at least 0, their sum at most 1."""
    share: float = 1.0
    """Of the loss, in [0, 1]: the rest is the nll of the token itself."""
    rest: bool = True
    """Whether what ``probs`` lack to 1 is one bucket of all other entries; false: left out, ``CE = -sum_k q_k log p(id_k)``."""
    divergence: bool = False
    """Whether the entropy of the second target is taken off the loss, which leaves KL(target || student); no gradient
    differs."""

    def __post_init__(self) -> None:
        if self.ids.shape != self.probs.shape or not self.ids.dim():
            raise ValueError(f"ids have shape {tuple(self.ids.shape)}, probs {tuple(self.probs.shape)}")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share is {self.share}, it must be in [0, 1]")


class ListedLogits(Extra):
    """Of the softmax, the logits of the listed entries [T, K], -inf where there is none, and the sum of all others' exp [T].

    The others are summed by themselves: as the difference of two sums they would be lost beside a student that is sure.
    """

    def __init__(self, softmax: OnlineSoftmax, ids_TK: Tensor, *, rest: bool) -> None:
        super().__init__(softmax)
        self.ids_TK, self.rest = ids_TK, rest
        self.logits_TK = self.sum_T.new_full(ids_TK.shape, -torch.inf)

    def see_logits(self, logits_TC: Tensor, index_T1: Tensor, here_T: Tensor) -> None:
        self.place_TK, self.here_TK = places_in_slice(self.ids_TK, self.softmax.start, logits_TC.shape[-1])
        self.logits_TK = torch.where(self.here_TK, logits_TC.gather(-1, self.place_TK), self.logits_TK)

    def shift(self, step_T: Tensor, factor_T: Tensor) -> None:
        self.sum_T = self.sum_T * factor_T

    def see_last(self, exp_TC: Tensor) -> None:
        if self.rest:
            keep_or_zero_TK = torch.where(self.here_TK, 0.0, torch.inf).to(exp_TC.dtype)
            exp_TC.scatter_reduce_(-1, self.place_TK, keep_or_zero_TK, "amin")
            self.sum_T += exp_TC.sum(-1)


def listed_logits(second: SparseTargets | None) -> Callable[[OnlineSoftmax], ListedLogits] | None:
    """What the first pass is to note for second targets, if there are any."""
    if second is None:
        return None
    ids_TK, rest = second.ids.reshape(-1, second.ids.shape[-1]).long(), second.rest
    return lambda softmax: ListedLogits(softmax, ids_TK, rest=rest)


class Second:
    """The second targets of one pass: the cross-entropy of each token, and what the backward puts at the listed entries."""

    def __init__(self, given: SparseTargets, listed: ListedLogits) -> None:
        softmax = listed.softmax
        dtype = softmax.total_T.dtype
        self.given, self.ids_TK, self.targets_T = given, listed.ids_TK, softmax.targets_T
        self.probs_TK = given.probs.detach().reshape(self.ids_TK.shape).to(dtype).masked_fill(self.ids_TK < 0, 0)
        # log p, by the difference of two logits first: exact where they are close.
        self.log_p_TK = (listed.logits_TK - softmax.largest_T.unsqueeze(-1)) - softmax.total_T.log().unsqueeze(-1)
        lacking_T = (1 - self.probs_TK.sum(-1)).clamp(min=0)
        self.rest_T = lacking_T if given.rest else torch.zeros_like(lacking_T)
        self.student_rest_T = (listed.sum_T / softmax.total_T).clamp(min=torch.finfo(dtype).tiny)

    def cross_entropy(self) -> Tensor:
        """CE, or KL, of each token; nats, [T]."""
        return self.kl() if self.given.divergence else self._ce()

    def kl(self) -> Tensor:
        """``KL(target || student)`` of each token, with its rest as one bucket; nats, [T]."""
        return self._ce() + torch.xlogy(self.probs_TK, self.probs_TK).sum(-1) + torch.xlogy(self.rest_T, self.rest_T)

    def _ce(self) -> Tensor:
        parts_TK = torch.where(self.probs_TK > 0, self.probs_TK * -self.log_p_TK, 0)
        return parts_TK.sum(-1) - torch.where(self.rest_T > 0, self.rest_T * self.student_rest_T.log(), 0)

    def mixed(self, nll_T: Tensor) -> Tensor:
        """``(1 - share) nll + share CE``; of a share of 0 or 1 one of them alone, whatever the other is."""
        if self.given.share in (0, 1):
            return self.cross_entropy() if self.given.share else nll_T
        return (1 - self.given.share) * nll_T + self.given.share * self.cross_entropy()

    def rows(self, index_R: Tensor, nll_T: Tensor, scale_R: Tensor) -> SecondRows:
        """What the backward needs of the rows ``index_R``, whose weights are ``scale_R`` (at least 0)."""
        share, ids_RK, probs_RK = self.given.share, self.ids_TK[index_R], self.probs_TK[index_R]
        of_rest_R = share * self.rest_T[index_R] / self.student_rest_T[index_R]
        # What p counts times at listed entries: 1, as far as the second target adds up to 1.
        of_p_R = 1 + share * (probs_RK.sum(-1) + self.rest_T[index_R] - 1 if not self.given.rest else 0 * of_rest_R)
        p_RK, nll_R = self.log_p_TK[index_R].exp(), nll_T[index_R]
        # p - (1 - share) at the target, from nll by expm1: the difference of p and 1 loses all digits of a token known well.
        at_target_R = torch.expm1(-nll_R) + share + (of_p_R - 1) * (-nll_R).exp()
        is_target_RK = ids_RK == self.targets_T[index_R].unsqueeze(-1)
        plain_RK = torch.where(is_target_RK, at_target_R.unsqueeze(-1), of_p_R.unsqueeze(-1) * p_RK)
        return SecondRows(
            ids_RK,
            scale_R.unsqueeze(-1) * (plain_RK - share * probs_RK),
            of_p_R - of_rest_R,
            at_target_R - of_rest_R * (-nll_R).exp(),
        )


@dataclass(frozen=True)
class SecondRows:
    """Of the rows that a backward visits, their second targets' part in the gradient to the logits."""

    ids_RK: Tensor
    at_ids_RK: Tensor
    """The whole gradient at the listed entries."""
    factor_R: Tensor
    """What p counts times elsewhere: ``1 - share r / R``."""
    at_target_R: Tensor
    """The gradient at the target of a row of weight 1, if it is not listed."""

    def put(self, grad_RC: Tensor, start: int) -> None:
        """The gradient at listed entries of this slice, in place of what stands there.

        By a product with 0 and a sum: an entry of another slice points at some column as well, and changes nothing there.
        """
        place_RK, here_RK = places_in_slice(self.ids_RK, start, grad_RC.shape[-1])
        grad_RC.scatter_reduce_(-1, place_RK, (~here_RK).to(grad_RC.dtype), "prod")
        grad_RC.scatter_add_(-1, place_RK, torch.where(here_RK, self.at_ids_RK, 0).to(grad_RC.dtype))


def places_in_slice(ids_TK: Tensor, start: int, width: int) -> tuple[Tensor, Tensor]:
    """(column of each entry within a slice of the vocabulary, clamped into it; whether it lies there). Both [T, K]"""
    place_TK = ids_TK - start
    return place_TK.clamp(0, width - 1), (place_TK >= 0) & (place_TK < width)


def similar_entries(embeddings_VD: Tensor, k: int, temperature: float) -> SparseTargets:
    """Of each vocabulary entry y the k nearest, itself among them: ``q_v = exp(cos(v, y) / temperature) / sum``, [V, k].

    By the cosine of their embeddings, float32. Costs V * V * D products once; no more than 2^24 similarities exist at a time.
    Entries whose embedding is 0 are like nothing but themselves.
    """
    wide_VD = torch.nn.functional.normalize(embeddings_VD.detach().float(), dim=-1)
    count, parts = len(wide_VD), []
    for rows_BD in wide_VD.split(max(1, (1 << 24) // max(1, count))):
        parts.append((rows_BD @ wide_VD.T).topk(min(k, count)))
    near_VK, ids_VK = (torch.cat([p[i] for p in parts]) for i in (0, 1))
    zero_V1 = (wide_VD == 0).all(-1, keepdim=True)
    alone_VK = torch.zeros_like(near_VK)
    alone_VK[:, 0] = 1
    itself_V1 = torch.arange(count, device=ids_VK.device).unsqueeze(-1)
    ids_VK = torch.where(zero_V1, torch.where(alone_VK > 0, itself_V1, -1), ids_VK)
    probs_VK = torch.where(zero_V1, alone_VK, (near_VK / temperature).softmax(-1))
    return SparseTargets(ids_VK, probs_VK, rest=False)
