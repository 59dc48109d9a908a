"""The weighted loss: sums over tokens, with a backward only over the rows that have a weight.

Shape letters as in ``nll.py``: T tokens, R rows of non-zero weight, C columns of one slice, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .backends import OWN, selected_sum
from .head import LinearHead
from .slices import IGNORE_INDEX, Scratch, accumulation_dtype, capped, disabled_autocast, raw_logits
from .softmax import OnlineSoftmax, in_slice
from .targets import Second, SecondRows


class FirstPass(Protocol):
    """What the backward needs of the pass before it, :class:`tokensieve.core.nll.LinearNLL`. T tokens are ``targets_T``'s."""

    head: LinearHead
    hidden_TD: Tensor
    targets_T: Tensor
    shape: torch.Size
    """The leading shape that T was flattened from, which weights have."""
    dtype: torch.dtype
    """Of the matmuls."""
    slices: list[slice]
    backend: str
    softmax: OnlineSoftmax
    nll: Tensor
    loss: Tensor
    """nll, or what stands in its place with second targets."""
    second: Second | None
    kept_logits: list[Tensor] | None
    """Of each slice; None: they are computed again."""


def weighted_sum(nll: FirstPass, weight: Tensor, max_rows: int | None) -> tuple[Tensor, Tensor]:
    """``(sum(weight * loss), sum(weight))`` over the tokens of a first pass: see :func:`tokensieve.core.nll.weighted_nll`."""
    if weight.shape != nll.shape:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, targets {tuple(nll.shape)}")
    weight_T = weight.detach().reshape(-1).to(nll.nll.dtype)
    weight_T = weight_T.masked_fill(nll.targets_T == IGNORE_INDEX, 0)
    if nll.backend != OWN:
        return _sum_of_backend(nll, weight_T, max_rows), weight_T.sum()
    # apply() needs tensors as direct arguments to give them gradients; the rest travels in the object.
    inputs = (nll.hidden_TD, nll.head.weight, nll.head.bias, weight_T, nll, max_rows)
    loss_sum: Tensor = _WeightedSum.apply(*inputs)  # type: ignore[no-untyped-call]
    return loss_sum, weight_T.sum()


def _sum_of_backend(nll: FirstPass, weight_T: Tensor, max_rows: int | None) -> Tensor:
    """Other libraries sum rows, they do not weigh them: a soft weight taken for 1 would train on something else."""
    refusal = f"backend {nll.backend!r} takes weights of 0 and 1 only: use backend='tokensieve' for soft weights"
    if (
        max_rows is not None
    ):  # who gives a bound does not want to wait: on a GPU this fails where the device comes to it
        torch._assert_async(((weight_T == 0) | (weight_T == 1)).all(), refusal)
    elif not ((weight_T == 0) | (weight_T == 1)).all():
        raise ValueError(refusal)
    index_R, counts_R = _weighted_rows(weight_T, nll.softmax.total_T, max_rows)
    # Rows that fill a bound up have no target for the backend, and nothing that 0 * NaN could bring back.
    hidden_RD = torch.where(counts_R.unsqueeze(-1), nll.hidden_TD[index_R], 0)
    targets_R = nll.targets_T[index_R].masked_fill(~counts_R, IGNORE_INDEX)
    return selected_sum(nll.backend, hidden_RD.to(nll.dtype), nll.head, targets_R, _dot(weight_T, nll.nll))


def _dot(weight_T: Tensor, nll: Tensor) -> Tensor:
    """``sum(weight * nll)`` over the rows with a weight: 0 * inf is NaN, and a token left out may have any nll."""
    return torch.dot(weight_T, nll.reshape(-1).masked_fill(weight_T == 0, 0))


class _WeightedSum(torch.autograd.Function):
    """``sum(weight * nll)``, whose nll is known already: forward is a dot product, backward visits the weighted rows.

    d/d logits of one token = weight * (softmax - onehot(target)), through the cap: times 1 - (logit / cap)^2, and the scale.
    With a second target: ``targets.py``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        weight_T: Tensor,
        nll: FirstPass,
        max_rows: int | None,
    ) -> Tensor:
        ctx.save_for_backward(hidden_TD, weight_VD, bias_V, weight_T)
        ctx.nll, ctx.max_rows = nll, max_rows
        return _dot(weight_T, nll.loss)

    @staticmethod
    @once_differentiable  # the log-sum-exp is a constant here: a second derivative would be silently wrong
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        hidden_TD, weight_VD, bias_V, weight_T = ctx.saved_tensors
        nll: FirstPass = ctx.nll
        head = LinearHead(weight_VD, bias_V, nll.head.logit_scale, nll.head.softcap)
        rows = _rows(nll, hidden_TD, weight_T, grad_outputs[0] * head.logit_scale, ctx.max_rows)
        with disabled_autocast(hidden_TD):
            d_hidden_RD, d_weight_VD, d_bias_V = _gradients(nll, head, rows, ctx.needs_input_grad)
        nll.kept_logits = None
        d_hidden_TD = None
        if d_hidden_RD is not None:
            # Added, not copied: a row that fills the list up stands there twice.
            d_hidden_TD = torch.zeros_like(hidden_TD).index_add_(0, rows.index_R, d_hidden_RD.to(hidden_TD.dtype))
        return d_hidden_TD, d_weight_VD, d_bias_V, None, None, None


@dataclass(frozen=True)
class _Rows:
    """The rows that the backward visits: all that have a weight, in ascending order."""

    index_R: Tensor
    hidden_RD: Tensor
    targets_R: Tensor
    largest_R: Tensor
    factor_R: Tensor
    """``|weight| / total``: times exp(logit - largest) it is the weighted probability. Folded into the exponent it would save a
    pass and cost a third of the precision: the rounding of a log-sum-exp of 30 is 1e-6 of every probability."""
    at_target_R: Tensor
    """``|weight| * (p(target) - 1)``, from nll by expm1: the difference of p and 1 loses all digits of a token known well."""
    sign_R: Tensor
    """The sign of the incoming gradient times weight; it goes into the small [R, D] factors, not into [R, C]."""
    all_rows: bool
    second: SecondRows | None = None
    """Of second targets; then ``factor_R`` and ``at_target_R`` are theirs too."""


def _rows(nll: FirstPass, hidden_TD: Tensor, weight_T: Tensor, outer: Tensor, max_rows: int | None) -> _Rows:
    index_R, counts_R = _weighted_rows(weight_T, nll.softmax.total_T, max_rows)
    scale_R = torch.where(counts_R, weight_T[index_R] * outer, 0)
    all_rows = len(index_R) == len(weight_T) and max_rows is None
    hidden_RD = hidden_TD if all_rows else hidden_TD[index_R]
    nll_T = nll.nll.reshape(-1)
    factor_R, at_target_R = scale_R.abs() / nll.softmax.total_T[index_R], torch.expm1(-nll_T[index_R])
    second = None if nll.second is None else nll.second.rows(index_R, nll_T, scale_R.abs())
    if second is not None:
        factor_R, at_target_R = factor_R * second.factor_R, second.at_target_R
    return _Rows(
        index_R,
        hidden_RD.to(nll.dtype),
        nll.targets_T[index_R],
        nll.softmax.largest_T[index_R],
        factor_R,
        scale_R.abs() * at_target_R,
        scale_R.sign(),
        all_rows,
        second,
    )


def _weighted_rows(weight_T: Tensor, total_T: Tensor, max_rows: int | None) -> tuple[Tensor, Tensor]:
    """(index of the rows with a weight, ascending; whether each of them counts).

    Their number is the GPU's secret until the host waits for it. ``max_rows``, a bound known beforehand, spares that wait:
    the first row stands in the places that are left over, where it does not count. Its numbers must be finite, since NaN
    times 0 is NaN: where no row has a weight, it is the first whose softmax (``total``) is one.
    """
    if max_rows is None:
        index_R = weight_T.nonzero().squeeze(-1)
        return index_R, torch.ones_like(index_R, dtype=torch.bool)
    no_softmax_T = ~(total_T.isfinite() & (total_T > 0))
    order_T = (weight_T == 0).to(torch.int8) * (1 + no_softmax_T.to(torch.int8))
    index_R = order_T.argsort(stable=True)[:max_rows]
    counts_R = weight_T[index_R] != 0
    return torch.where(counts_R, index_R, index_R[:1]), counts_R


def _gradients(
    nll: FirstPass, head: LinearHead, rows: _Rows, needs: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(d hidden of the rows, d head weight, d bias): each slice of the vocabulary is computed, used and forgotten."""
    wide = accumulation_dtype(nll.dtype)
    d_hidden_RD = torch.zeros_like(rows.hidden_RD, dtype=wide) if needs[0] else None
    d_weight_VD = torch.empty_like(head.weight) if needs[1] else None
    d_bias_V = torch.empty_like(head.bias) if needs[2] and head.bias is not None else None
    signed_RD = rows.hidden_RD * rows.sign_R.unsqueeze(-1).to(nll.dtype)
    raw, work = Scratch(rows.hidden_RD, nll.slices), Scratch(rows.hidden_RD, nll.slices, wide)
    at_targets = _AtTargets(rows) if needs[0] and nll.dtype != wide else None
    for columns in nll.slices:
        raw_RC = _raw_rows(nll, head, rows, columns, raw)
        grad_RC = _logit_grad(head, rows, raw_RC, columns, raw_RC if nll.dtype == wide else work.view(columns))
        low_RC = grad_RC if nll.dtype == wide else raw_RC.copy_(grad_RC)
        if d_weight_VD is not None:
            _write_product(d_weight_VD[columns], low_RC.T, signed_RD)
        if d_bias_V is not None:
            d_bias_V[columns] = rows.sign_R.to(wide) @ grad_RC
        if d_hidden_RD is not None:
            if at_targets is not None:
                at_targets.take_out(grad_RC, low_RC, columns.start)
            _add_product(d_hidden_RD, low_RC, head.weight[columns].to(nll.dtype))
    if d_hidden_RD is not None:
        if at_targets is not None:
            d_hidden_RD.addcmul_(at_targets.grad_R1, at_targets.columns(head).to(nll.dtype).to(wide))
        d_hidden_RD *= rows.sign_R.unsqueeze(-1)
    return d_hidden_RD, d_weight_VD, d_bias_V


class _AtTargets:
    """The targets' part of d hidden, kept in float32 beside the products of a low dtype.

    It is the largest part of a row, and the product of its slice is rounded to the low dtype before slices are added up:
    that made d hidden in bfloat16 a fifth less precise than one product over the whole vocabulary.
    """

    def __init__(self, rows: _Rows) -> None:
        self.targets_R, self.grad_R1 = rows.targets_R, torch.zeros_like(rows.factor_R).unsqueeze(-1)
        self.row_R = torch.arange(len(rows.targets_R), device=rows.targets_R.device)

    def take_out(self, grad_RC: Tensor, low_RC: Tensor, start: int) -> None:
        """Note the gradient at the targets that lie in this slice, and put zeros in their place in ``low_RC``."""
        index_R1, here_R = in_slice(self.targets_R, start, low_RC.shape[-1])
        here_R1 = here_R.unsqueeze(-1)
        self.grad_R1 = torch.where(here_R1, grad_RC.gather(-1, index_R1), self.grad_R1)
        low_R1 = low_RC.gather(-1, index_R1).masked_fill(here_R1, 0)
        # Not scatter_: in bfloat16 on a CPU it casts the whole matrix to float32 and back.
        low_RC[self.row_R, index_R1.squeeze(-1)] = low_R1.squeeze(-1)

    def columns(self, head: LinearHead) -> Tensor:
        """The head's weight of each target; of a row that only fills the list up, and may have no target, any. [R, D]"""
        return head.weight[self.targets_R.clamp(min=0)]


def _add_product(sum_RD: Tensor, left_RC: Tensor, right_CD: Tensor) -> None:
    """``sum += left @ right``, in the sum's dtype where the matmul has it."""
    if left_RC.dtype == sum_RD.dtype:
        sum_RD.addmm_(left_RC, right_CD)
    else:
        sum_RD += left_RC @ right_CD


def _write_product(out_CD: Tensor, left_CR: Tensor, right_RD: Tensor) -> None:
    """``out = left @ right``: one product over all rows, summed in float32 inside the matmul and rounded once."""
    if left_CR.dtype == out_CD.dtype:
        torch.mm(left_CR, right_RD, out=out_CD)
    else:
        out_CD.copy_(left_CR @ right_RD)


def _raw_rows(nll: FirstPass, head: LinearHead, rows: _Rows, columns: slice, raw: Scratch) -> Tensor:
    """Raw logits of the rows in one slice, to be written over: taken from those kept, or computed again. [R, C]"""
    if nll.kept_logits is None:
        return raw_logits(head, rows.hidden_RD, columns, raw.view(columns))
    kept_TC = nll.kept_logits.pop(0)  # gone as soon as it was used: the gradient of the head grows as they go
    return kept_TC if rows.all_rows else torch.index_select(kept_TC, 0, rows.index_R, out=raw.view(columns))


def _logit_grad(head: LinearHead, rows: _Rows, raw_RC: Tensor, columns: slice, out_RC: Tensor) -> Tensor:
    """``|d loss / d raw logits|`` up to the row's sign: ``|weight| * (softmax - onehot) * d capped / d raw``. [R, C]"""
    logits_RC = capped(head, raw_RC)
    grad_RC = out_RC if logits_RC is out_RC else out_RC.copy_(logits_RC)
    grad_RC.sub_(rows.largest_R.unsqueeze(-1)).exp_().mul_(rows.factor_R.unsqueeze(-1))
    index_R1, here_R = in_slice(rows.targets_R, columns.start, grad_RC.shape[-1])
    at_target_R1 = torch.where(here_R.unsqueeze(-1), rows.at_target_R.unsqueeze(-1), grad_RC.gather(-1, index_R1))
    grad_RC.scatter_(-1, index_R1, at_target_R1)
    if rows.second is not None:
        rows.second.put(grad_RC, columns.start)
    if head.softcap is not None:
        grad_RC *= 1 - (logits_RC / head.softcap).square_()
    return grad_RC
