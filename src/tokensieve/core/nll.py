"""Per-token negative log-likelihood from hidden states and a vocabulary head, without the [tokens, vocab] logits.

Shape letters: T tokens (any leading shape, flattened), C rows of one chunk, D hidden width, V vocabulary.

    pass 1, no gradient, all rows:      logits_CV -> nll_T, entropy_T               1 unit of head matmul
    choose the weights from nll_T
    pass 2, rows of non-zero weight:    softmax_CV -> d hidden, d head_weight       2 units (logits kept) or 3 (recomputed)

A unit is one [T, D] x [D, V] product. A dense cross-entropy costs 3 units, whatever the weights are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE_INDEX = -100
KeepLogits = Literal["auto"] | bool

# A chunk of float32 logits takes at most 64 MiB: large enough that the matmul runs at full speed, small beside any model.
CHUNK_ELEMENTS = 1 << 24
# `auto` keeps the logits of the first pass while all of them together take no more than this.
KEPT_LOGITS_BYTES = 256 << 20


@dataclass(frozen=True)
class LinearHead:
    """What turns hidden states into logits: ``cap * tanh(scale * (h @ weight.T + bias) / cap)``; no cap, no tanh.

    Takes the place of a plain ``head_weight`` wherever a model has more than that.
    """

    weight: Tensor  # [V, D]
    bias: Tensor | None = None  # [V]
    logit_scale: float = 1.0
    """Factor on the logits (Cohere's ``logit_scale``, one over Granite's ``logits_scaling``)."""
    softcap: float | None = None
    """Gemma's ``final_logit_softcapping``; None for none."""

    @staticmethod
    def of(head: Tensor | LinearHead) -> LinearHead:
        return head if isinstance(head, LinearHead) else LinearHead(head)


def token_nll_from_logits(logits: Tensor, targets: Tensor) -> Tensor:
    """``-log_softmax(logits)[..., target]`` in float32; 0 where the target is -100.

    logits [..., V] of any float dtype, targets [...] already shifted (the logits at t predict ``targets[t]``).
    Differentiable. Adding a constant to all logits of a token changes nothing. float64 logits give float64.
    """
    _check_shapes(logits, targets, "logits")
    flat_TV = logits.reshape(-1, logits.shape[-1])
    nll_T = F.cross_entropy(
        flat_TV.to(_accumulation_dtype(logits.dtype)), targets.reshape(-1), ignore_index=IGNORE_INDEX, reduction="none"
    )
    return nll_T.view(targets.shape)


def token_nll(
    hidden: Tensor, head_weight: Tensor | LinearHead, targets: Tensor, *, chunk_rows: int | None = None
) -> Tensor:
    """``-log_softmax(hidden @ head_weight.T)[..., target]``, detached float32 nats; 0 where the target is -100.

    hidden [..., D], head_weight [V, D] (or a :class:`LinearHead`), targets [...] already shifted: hidden at t predicts
    ``targets[t]``. No more than ``chunk_rows`` rows of logits exist at a time.
    """
    return LinearNLL(hidden, head_weight, targets, keep_logits=False, chunk_rows=chunk_rows).nll


class LinearNLL:
    """nll of every token, then the gradient of only those that get a weight: two steps that share one pass.

        head = LinearNLL(hidden, head_weight, targets)
        head.nll                        # [...] float32, detached; 0 where the target is -100
        head.entropy                    # the same for the entropy in nats, if asked for with entropy=True
        head.weighted_sum(weight)       # (sum(weight * nll), sum(weight)): differentiable, once

    hidden [..., D]; head_weight [V, D] or :class:`LinearHead`; targets [...] already shifted, -100 for none.
    ``keep_logits``: True keeps the first pass's logits for the backward (less time, T * V numbers), False computes them
    again, "auto" keeps them while they take at most 256 MiB. Under autocast the matmuls run in autocast's dtype; nll,
    entropy and the head's gradient sums are float32 (float64 for float64 input).
    """

    def __init__(
        self,
        hidden: Tensor,
        head_weight: Tensor | LinearHead,
        targets: Tensor,
        *,
        keep_logits: KeepLogits = "auto",
        entropy: bool = False,
        chunk_rows: int | None = None,
    ) -> None:
        _check_shapes(hidden, targets, "hidden")
        self.head = LinearHead.of(head_weight)
        if hidden.shape[-1] != self.head.weight.shape[-1]:
            raise ValueError(
                f"hidden has width {hidden.shape[-1]}, the head {self.head.weight.shape[-1]}: they do not fit"
            )
        if chunk_rows is not None and chunk_rows < 1:
            raise ValueError(f"chunk_rows is {chunk_rows}, it must be at least 1")
        self.shape = targets.shape
        self.hidden_TD = hidden.reshape(-1, hidden.shape[-1])
        self.targets_T = targets.reshape(-1)
        self.dtype = _matmul_dtype(self.hidden_TD, self.head.weight)
        self.chunk_rows = chunk_rows or max(1, CHUNK_ELEMENTS // self.head.weight.shape[0])
        self._spent = False
        keep = self._keeps(keep_logits)
        nll_T, self.lse_T, entropy_T, self.kept_logits = self._first_pass(keep, entropy)
        self.nll = nll_T.view(self.shape)
        self._entropy = entropy_T.view(self.shape) if entropy else None

    @property
    def entropy(self) -> Tensor:
        """``-sum_v p_v log p_v`` of the prediction, nats, detached float32; 0 where the target is -100."""
        if self._entropy is None:
            raise ValueError("entropy was not asked for: LinearNLL(..., entropy=True)")
        return self._entropy

    def weighted_sum(self, weight: Tensor, *, max_rows: int | None = None) -> tuple[Tensor, Tensor]:
        """``(sum(weight * nll), sum(weight))`` over the tokens that have a target. See :func:`weighted_nll`.

        Called once: kept logits are freed by its backward. ``max_rows``, a known bound on the number of non-zero weights,
        spares the GPU a synchronisation; exceeding it would drop tokens, so give a true bound.
        """
        from .weighted import weighted_sum  # the two files are two halves of one thing; this is the later half

        if self._spent:
            raise RuntimeError("weighted_sum was called before: make a new LinearNLL")
        self._spent = True
        return weighted_sum(self, weight, max_rows)

    def _keeps(self, keep_logits: KeepLogits) -> bool:
        if not torch.is_grad_enabled():
            return False
        if keep_logits == "auto":
            rows, vocab = self.targets_T.numel(), self.head.weight.shape[0]
            return rows * vocab * self.dtype.itemsize <= KEPT_LOGITS_BYTES
        return keep_logits

    @torch.no_grad()
    def _first_pass(self, keep: bool, entropy: bool) -> tuple[Tensor, Tensor, Tensor, list[Tensor] | None]:
        """(nll_T, logsumexp_T, entropy_T, kept chunks of logits): one pass over the rows, a chunk at a time."""
        num_rows, dtype = self.targets_T.numel(), _accumulation_dtype(self.dtype)
        nll_T, lse_T, entropy_T = (self.hidden_TD.new_zeros(num_rows, dtype=dtype) for _ in range(3))
        kept: list[Tensor] | None = [] if keep else None
        with disabled_autocast(self.hidden_TD):
            for start in range(0, num_rows, self.chunk_rows):
                rows = slice(start, start + self.chunk_rows)
                raw_CV = raw_logits(self.head, self.hidden_TD[rows], self.dtype)
                logits_CV = capped(self.head, raw_CV)
                lse_T[rows] = logits_CV.logsumexp(-1)
                nll_T[rows] = lse_T[rows] - target_logits(logits_CV, self.targets_T[rows])
                if entropy:
                    entropy_T[rows] = lse_T[rows] - ((logits_CV - lse_T[rows, None]).exp_() * logits_CV).sum(-1)
                if kept is not None:
                    kept.append(raw_CV)
        ignored_T = self.targets_T == IGNORE_INDEX
        return nll_T.masked_fill_(ignored_T, 0), lse_T, entropy_T.masked_fill_(ignored_T, 0), kept


def raw_logits(head: LinearHead, hidden_CD: Tensor, dtype: torch.dtype) -> Tensor:
    """``h @ weight.T + bias`` in the matmul's dtype, before scale and cap. [C, V]"""
    bias = None if head.bias is None else head.bias.to(dtype)
    return F.linear(hidden_CD.to(dtype), head.weight.to(dtype), bias)


def capped(head: LinearHead, raw_CV: Tensor) -> Tensor:
    """Scale and soft-cap raw logits, in float32. Never writes into ``raw_CV``."""
    logits_CV = raw_CV.to(_accumulation_dtype(raw_CV.dtype))
    if head.logit_scale != 1.0:
        logits_CV = logits_CV * head.logit_scale
    if head.softcap is not None:
        logits_CV = (logits_CV / head.softcap).tanh() * head.softcap
    return logits_CV


def target_logits(logits_CV: Tensor, targets_C: Tensor) -> Tensor:
    """The logit of each row's target; of entry 0 where there is none (-100 as an index would read another column)."""
    return logits_CV.gather(-1, target_index(targets_C)).squeeze(-1)


def target_index(targets_C: Tensor) -> Tensor:
    """Targets to index with, 0 for -100. Any other negative target is left to fail: it would pass for token 0. [C, 1]"""
    return targets_C.masked_fill(targets_C == IGNORE_INDEX, 0).unsqueeze(-1)


def disabled_autocast(like: Tensor) -> Any:
    """Dtypes here are chosen by hand; autocast would cast the float32 sums down again."""
    return torch.autocast(like.device.type, enabled=False)


def _matmul_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Autocast's dtype where autocast is on, else the head's: what the model's own head would have computed in."""
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind) and weight.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return weight.dtype


def _accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _check_shapes(values: Tensor, targets: Tensor, name: str) -> None:
    if values.shape[:-1] != targets.shape:
        raise ValueError(f"{name} has leading shape {tuple(values.shape[:-1])}, targets {tuple(targets.shape)}")
