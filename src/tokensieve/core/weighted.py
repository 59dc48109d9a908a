"""The weighted loss: sums over tokens, with a backward only over the rows that have a weight.

Shape letters as in ``nll.py``: T tokens, R rows of non-zero weight, C rows of one chunk, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .nll import IGNORE_INDEX, KeepLogits, LinearHead, LinearNLL, capped, disabled_autocast, raw_logits, target_index


def weighted_nll(
    hidden: Tensor,
    head_weight: Tensor | LinearHead,
    targets: Tensor,
    weight: Tensor,
    *,
    keep_logits: KeepLogits = "auto",
    chunk_rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """``(sum_t weight_t * nll_t, sum_t weight_t)`` over tokens with a target: Rho-1's Eq. 4 before its one division.

    hidden [..., D], head_weight [V, D] or :class:`LinearHead`, targets [...] already shifted (-100: no target, its weight
    counts nowhere), weight [...] bool or >= 0. Both sums are float32 scalars; only the first has a gradient, to hidden,
    head weight and bias, never to ``weight``. Add the sums of all micro-batches and ranks, then divide once. Nothing
    kept gives 0 with zero gradients, not NaN. A row of weight 0 costs no backward.
    """
    head = LinearNLL(hidden, head_weight, targets, keep_logits=keep_logits, chunk_rows=chunk_rows)
    return head.weighted_sum(weight)


def weighted_sum(nll: LinearNLL, weight: Tensor, max_rows: int | None) -> tuple[Tensor, Tensor]:
    """The second half of :class:`LinearNLL`: see :func:`weighted_nll`."""
    if weight.shape != nll.shape:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, targets {tuple(nll.shape)}")
    weight_T = weight.detach().reshape(-1).to(nll.nll.dtype)
    weight_T = weight_T.masked_fill(nll.targets_T == IGNORE_INDEX, 0)
    # apply() needs tensors as direct arguments to give them gradients; the rest travels in the object.
    inputs = (nll.hidden_TD, nll.head.weight, nll.head.bias, weight_T, nll, max_rows)
    loss_sum: Tensor = _WeightedSum.apply(*inputs)  # type: ignore[no-untyped-call]
    return loss_sum, weight_T.sum()


class _WeightedSum(torch.autograd.Function):
    """``sum(weight * nll)``, whose nll is known already: forward is a dot product, backward visits the weighted rows.

    d/d logits of one token = weight * (softmax - onehot(target)), through the cap: times 1 - (logit / cap)^2, and the scale.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        weight_T: Tensor,
        nll: LinearNLL,
        max_rows: int | None,
    ) -> Tensor:
        ctx.save_for_backward(hidden_TD, weight_VD, bias_V, weight_T, nll.targets_T, nll.lse_T)
        ctx.nll, ctx.max_rows = nll, max_rows
        return torch.dot(weight_T, nll.nll.reshape(-1))

    @staticmethod
    @once_differentiable  # the log-sum-exp is a constant here: a second derivative would be silently wrong
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        hidden_TD, weight_VD, bias_V, weight_T, targets_T, lse_T = ctx.saved_tensors
        nll: LinearNLL = ctx.nll
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        scaled_T = weight_T * grad_outputs[0]
        head = LinearHead(weight_VD, bias_V, nll.head.logit_scale, nll.head.softcap)
        sums = weight_T.dtype  # float32: many chunks add into the head's gradient
        d_hidden_TD = torch.zeros_like(hidden_TD) if needs_hidden else None
        d_weight_VD = torch.zeros_like(weight_VD, dtype=sums) if needs_weight else None
        d_bias_V = torch.zeros_like(bias_V, dtype=sums) if needs_bias and bias_V is not None else None
        with disabled_autocast(hidden_TD):
            for rows_C in _chunks_of_rows(weight_T, nll.chunk_rows, ctx.max_rows):
                raw_CV = _raw_rows(nll, head, hidden_TD, rows_C)
                grad_CV = _logit_grad(head, raw_CV, lse_T[rows_C], targets_T[rows_C], scaled_T[rows_C]).to(nll.dtype)
                if d_hidden_TD is not None:
                    d_hidden_TD.index_add_(0, rows_C, (grad_CV @ weight_VD.to(nll.dtype)).to(hidden_TD.dtype))
                if d_weight_VD is not None:
                    _add_product(d_weight_VD, grad_CV.T, hidden_TD[rows_C].to(nll.dtype))
                if d_bias_V is not None:
                    d_bias_V += grad_CV.sum(0, dtype=sums)
        nll.kept_logits = None  # the largest thing here: gone as soon as it was used
        return (
            d_hidden_TD,
            None if d_weight_VD is None else d_weight_VD.to(weight_VD.dtype),
            None if d_bias_V is None or bias_V is None else d_bias_V.to(bias_V.dtype),
            None,
            None,
            None,
        )


def _add_product(sum_VD: Tensor, left_VC: Tensor, right_CD: Tensor) -> None:
    """``sum += left @ right``; without a [V, D] product beside the sum where dtypes allow it."""
    if left_VC.dtype == sum_VD.dtype:
        sum_VD.addmm_(left_VC, right_CD)
    else:
        sum_VD += left_VC @ right_CD


def _chunks_of_rows(weight_T: Tensor, chunk_rows: int, max_rows: int | None) -> tuple[Tensor, ...]:
    """Indices of the rows with a weight, ascending, at most ``chunk_rows`` at a time.

    Their number is the GPU's secret until the host waits for it. ``max_rows``, a bound known beforehand, spares that wait:
    rows of weight 0 fill the list up, which costs their time and adds a gradient of zero.
    """
    if max_rows is None:
        rows_R = weight_T.nonzero().squeeze(-1)
    else:
        first_T = (weight_T == 0).to(torch.int8).argsort(stable=True)
        rows_R = first_T[: min(max_rows, weight_T.numel())].sort().values
    return rows_R.split(chunk_rows) if rows_R.numel() else ()


def _raw_rows(nll: LinearNLL, head: LinearHead, hidden_TD: Tensor, rows_C: Tensor) -> Tensor:
    """Raw logits of some rows: picked from those kept by the first pass, or computed again."""
    if nll.kept_logits is None:
        return raw_logits(head, hidden_TD[rows_C], nll.dtype)
    if len(nll.kept_logits) == 1:
        return nll.kept_logits[0][rows_C]
    return torch.cat(_pick(nll.kept_logits, rows_C, nll.chunk_rows))


def _pick(chunks: list[Tensor], rows_C: Tensor, chunk_rows: int) -> list[Tensor]:
    """Rows out of a list of equal chunks, in the (ascending) order given."""
    parts = rows_C.split(torch.bincount(rows_C // chunk_rows, minlength=len(chunks)).tolist())
    return [chunk[part - i * chunk_rows] for i, (chunk, part) in enumerate(zip(chunks, parts, strict=True))]


def _logit_grad(head: LinearHead, raw_CV: Tensor, lse_C: Tensor, targets_C: Tensor, scaled_C: Tensor) -> Tensor:
    """d loss / d raw logits, float32: ``scaled * (softmax - onehot) * d capped / d raw``. [C, V]"""
    logits_CV = capped(head, raw_CV)
    grad_CV = (logits_CV - lse_C.unsqueeze(-1)).exp_()
    grad_CV.scatter_add_(-1, target_index(targets_C), -torch.ones_like(lse_C).unsqueeze(-1))
    grad_CV *= (scaled_C * head.logit_scale).unsqueeze(-1)
    if head.softcap is not None:
        grad_CV *= 1 - (logits_CV / head.softcap).square_()
    return grad_CV
