"""Per-token negative log-likelihood from hidden states and a vocabulary head, without the [tokens, vocab] logits.

Shape letters: T tokens (any leading shape, flattened), D hidden width, V vocabulary, C columns (vocabulary entries) of one
slice, R rows of non-zero weight.

    pass 1, no gradient, all rows:      logits_TC, slice after slice -> nll_T, entropy_T      1 unit of head matmul
    choose the weights from nll_T
    pass 2, rows of non-zero weight:    softmax_RC -> d hidden, d head_weight                 2 units (kept) or 3 (recomputed)

A unit is one [T, D] x [D, V] product. A dense cross-entropy costs 3 units, whatever the weights are. The vocabulary is
sliced, not the rows: each slice of the head's weight is read once a pass, and each slice of its gradient is one product over
all rows, summed inside the matmul (float32) and written once. Chunks of rows read and add [V, D] again for each chunk: with
131 rows a chunk that cost more than a dense cross-entropy at V = 128k.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from .backends import OWN, check_backend
from .head import LinearHead
from .slices import (
    IGNORE_INDEX,
    Scratch,
    accumulation_dtype,
    capped,
    disabled_autocast,
    matmul_dtype,
    raw_logits,
    slice_width,
)
from .softmax import EXTRAS, OnlineSoftmax
from .targets import ListedLogits, Second, SparseTargets, listed_logits
from .weighted import weighted_sum

KeepLogits = Literal["auto"] | bool
# `auto` keeps the logits of the first pass while all of them together take no more than this: 8192 tokens of V = 128k in
# bfloat16. A dense cross-entropy takes three (float32) to seven times (bfloat16) what is kept.
KEPT_LOGITS_BYTES = 2 << 30
ROWS_AT_ONCE = 1024


def token_nll_from_logits(logits: Tensor, targets: Tensor) -> Tensor:
    """``-log_softmax(logits)[..., target]`` in float32; 0 where the target is -100.

    logits [..., V] of any float dtype, targets [...] already shifted (the logits at t predict ``targets[t]``).
    Differentiable. Adding a constant to all logits of a token changes nothing. float64 logits give float64. A target whose
    logit is -inf has an nll of inf; where all logits of a token are -inf, it is NaN.
    """
    _check_shapes(logits, targets, "logits")
    flat_TV = logits.reshape(-1, logits.shape[-1])
    nll_T = F.cross_entropy(
        flat_TV.to(accumulation_dtype(logits.dtype)), targets.reshape(-1), ignore_index=IGNORE_INDEX, reduction="none"
    )
    return nll_T.view(targets.shape)


def token_nll(
    hidden: Tensor, head_weight: Tensor | LinearHead, targets: Tensor, *, slice_columns: int | None = None
) -> Tensor:
    """``-log_softmax(hidden @ head_weight.T)[..., target]``, detached float32 nats; 0 where the target is -100.

    hidden [..., D], head_weight [V, D] (or a :class:`LinearHead`), targets [...] already shifted: hidden at t predicts
    ``targets[t]``. No more than ``slice_columns`` columns of logits exist at a time. inf and NaN as in
    :func:`token_nll_from_logits`.
    """
    return LinearNLL(hidden, head_weight, targets, keep_logits=False, slice_columns=slice_columns).nll


class LinearNLL:
    """nll of every token, then the gradient of only those that get a weight: two steps that share one pass.

        head = LinearNLL(hidden, head_weight, targets)
        head.nll                        # [...] float32, detached; 0 where the target is -100
        head.statistic("entropy")       # the same for what is asked for with statistics=("entropy", ...)
        head.weighted_sum(weight)       # (sum(weight * nll), sum(weight)): differentiable, once

    hidden [..., D]; head_weight [V, D] or :class:`LinearHead`; targets [...] already shifted, -100 for none; others must lie in
    the vocabulary. ``statistics``: of entropy, sum_p2, target_rank, top_entropy (see STATISTICS), from the same pass;
    ``entropy=True`` is short for the first. ``top_k``: how many of the likeliest entries ``topk`` tells. ``second``: a second
    target of each token, which takes its share of the loss (``targets.py``; of the backend tokensieve). ``keep_logits``: True
    keeps the first pass's logits for the backward (less time, T * V numbers), False computes them again, "auto" keeps them
    while they take at most 2 GiB. ``backend``: "tokensieve", or "torch" or "liger" for another library's backward over the
    selected rows (weights must then be 0 or 1, and nothing is kept). Under autocast the matmuls run in autocast's dtype; nll
    and statistics are float32 (float64 for float64 input), the head's gradient is summed over tokens in float32.
    """

    def __init__(
        self,
        hidden: Tensor,
        head_weight: Tensor | LinearHead,
        targets: Tensor,
        *,
        keep_logits: KeepLogits = "auto",
        entropy: bool = False,
        statistics: Collection[str] = (),
        top_k: int = 0,
        second: SparseTargets | None = None,
        backend: str = OWN,
        slice_columns: int | None = None,
    ) -> None:
        _check_shapes(hidden, targets, "hidden")
        check_backend(backend)
        _check_second(second, targets, backend)
        asked = [name for name in EXTRAS if name in statistics or (entropy and name == "entropy")]
        if unknown := set(statistics) - set(EXTRAS):
            raise ValueError(f"unknown statistic {min(unknown)!r} of the head: one of {', '.join(EXTRAS)}")
        self.head = LinearHead.of(head_weight)
        vocab, width = self.head.weight.shape
        if hidden.shape[-1] != width:
            raise ValueError(f"hidden has width {hidden.shape[-1]}, the head {width}: they do not fit")
        if slice_columns is not None and slice_columns < 1:
            raise ValueError(f"slice_columns is {slice_columns}, it must be at least 1")
        if not 0 <= top_k <= vocab:
            raise ValueError(f"top_k is {top_k}, it must be between 0 and the vocabulary of {vocab}")
        self.shape = targets.shape
        self.hidden_TD = hidden.reshape(-1, width)
        self.targets_T = targets.reshape(-1)
        self.dtype = matmul_dtype(self.hidden_TD, self.head.weight)
        columns = slice_columns or slice_width(hidden.device.type, targets.numel())
        self.slices = [slice(start, min(start + columns, vocab)) for start in range(0, vocab, columns)]
        self.backend, self._spent = backend, False
        self.kept_logits: list[Tensor] | None = [] if self._keeps(keep_logits) else None
        ignored_T = self.targets_T == IGNORE_INDEX
        # Reads past the end fail here, on the device too; -1 taken for the last or the first token would be trained on.
        self.head.weight.detach()[:, 0].gather(0, self.targets_T.masked_fill(ignored_T, 0))
        self.softmax = self._first_pass(asked, top_k, second)
        self.nll = self.softmax.nll().masked_fill_(ignored_T, 0).view(self.shape)
        self.second, self.loss = None, self.nll
        if second is not None and isinstance(self.softmax.last, ListedLogits):
            self.second = Second(second, self.softmax.last)
            self.loss = self.second.mixed(self.nll.reshape(-1)).masked_fill(ignored_T, 0).view(self.shape)
        self._asked = {n: self.softmax.extra(n).masked_fill(ignored_T, 0).view(self.shape) for n in asked}

    @property
    def entropy(self) -> Tensor:
        """``-sum_v p_v log p_v`` of the prediction, nats, detached float32; 0 where the target is -100."""
        return self.statistic("entropy")

    def statistic(self, name: str) -> Tensor:
        """``nll``, or one of the ``statistics`` asked for; detached, 0 where the target is -100. ValueError if it was not.

        ``divergence`` of second targets, KL(target || prediction), needs no asking where there are some.
        """
        if name == "divergence" and self.second is not None:
            ignored_T = self.targets_T == IGNORE_INDEX
            return self.second.kl().masked_fill(ignored_T, 0).view(self.shape)
        if name != "nll" and name not in self._asked:
            raise ValueError(f"{name} was not asked for: LinearNLL(..., statistics=({name!r},))")
        return self.nll if name == "nll" else self._asked[name]

    @property
    def topk(self) -> tuple[Tensor, Tensor]:
        """The ``top_k`` likeliest entries of each prediction, falling, and their log p (nats) under the whole softmax.

        (int64 [..., K], float32 [..., K]), detached; 0 where the target is -100. ValueError if they were not asked for.
        """
        top = self.softmax.top
        if top is None:
            raise ValueError("the likeliest entries were not asked for: LinearNLL(..., top_k=20)")
        ignored_T1, shape = (self.targets_T == IGNORE_INDEX).unsqueeze(-1), (*self.shape, top.ids_TK.shape[-1])
        return top.ids_TK.masked_fill(ignored_T1, 0).view(shape), top.value().masked_fill(ignored_T1, 0).view(shape)

    def weighted_sum(self, weight: Tensor, *, max_rows: int | None = None) -> tuple[Tensor, Tensor]:
        """``(sum(weight * nll), sum(weight))`` over the tokens that have a target. See :func:`weighted_nll`.

        With a ``second`` target ``loss`` stands in the place of nll: ``(1 - share) nll + share CE``.
        Called once: kept logits are freed by its backward. ``max_rows``, a known bound on the number of non-zero weights,
        spares the GPU a synchronisation; exceeding it would drop tokens, so give a true bound. With another backend soft
        weights are then an error of the device's.
        """
        if self._spent:
            raise RuntimeError("weighted_sum was called before: make a new LinearNLL")
        self._spent = True
        return weighted_sum(self, weight, max_rows)

    def _keeps(self, keep_logits: KeepLogits) -> bool:
        if not torch.is_grad_enabled() or self.backend != OWN:
            return False
        if keep_logits == "auto":
            rows, vocab = self.targets_T.numel(), self.head.weight.shape[0]
            return rows * vocab * self.dtype.itemsize <= KEPT_LOGITS_BYTES
        return keep_logits

    @torch.no_grad()
    def _first_pass(self, asked: list[str], top_k: int, second: SparseTargets | None) -> OnlineSoftmax:
        """Sums over the vocabulary for all rows, a slice of columns at a time; raw logits go into ``kept_logits``."""
        hidden_TD, wide = self.hidden_TD.to(self.dtype), accumulation_dtype(self.dtype)
        at_T = self._target_logits(hidden_TD) if "target_rank" in asked else None
        softmax = OnlineSoftmax(
            self.targets_T, wide, extras=asked, target_logit_T=at_T, top_k=top_k, last=listed_logits(second)
        )
        raw, work = Scratch(hidden_TD, self.slices), Scratch(hidden_TD, self.slices, wide)
        with disabled_autocast(hidden_TD):
            for columns in self.slices:
                out_TC = None if self.kept_logits is not None else raw.view(columns)
                raw_TC = raw_logits(self.head, hidden_TD, columns, out_TC)
                logits_TC = capped(self.head, raw_TC)
                if self.kept_logits is not None:
                    self.kept_logits.append(raw_TC)
                may_write = logits_TC.dtype == wide and (self.kept_logits is None or logits_TC is not raw_TC)
                softmax.add(logits_TC, columns.start, logits_TC if may_write else work.view(columns))
        return softmax

    def _target_logits(self, hidden_TD: Tensor) -> Tensor:
        """The targets' logits in the accumulation dtype, [T]: what TargetRank compares with. Some rows at a time: [T, D] of
        the head's weight would be as much as the hidden states."""
        head, parts = self.head, []
        for rows in range(0, len(hidden_TD), ROWS_AT_ONCE):
            index = self.targets_T[rows : rows + ROWS_AT_ONCE].clamp(min=0)
            wide_RD = hidden_TD[rows : rows + ROWS_AT_ONCE].to(accumulation_dtype(self.dtype))
            raw_R = torch.linalg.vecdot(wide_RD, head.weight[index].to(self.dtype).to(wide_RD.dtype))
            raw_R = raw_R if head.bias is None else raw_R + head.bias[index].to(self.dtype).to(raw_R.dtype)
            parts.append(raw_R.to(self.dtype))  # rounded as the slices' products are
        return capped(head, torch.cat(parts)).to(accumulation_dtype(self.dtype))


def weighted_nll(
    hidden: Tensor,
    head_weight: Tensor | LinearHead,
    targets: Tensor,
    weight: Tensor,
    *,
    keep_logits: KeepLogits = "auto",
    backend: str = OWN,
    slice_columns: int | None = None,
) -> tuple[Tensor, Tensor]:
    """``(sum_t weight_t * nll_t, sum_t weight_t)`` over tokens with a target: Rho-1's Eq. 4 before its one division.

    hidden [..., D], head_weight [V, D] or :class:`LinearHead`, targets [...] already shifted (-100: no target, its weight
    counts nowhere), weight [...] bool or of any sign. Both sums are float32 scalars; only the first has a gradient, to hidden,
    head weight and bias, never to ``weight``. Add the sums of all micro-batches and ranks, then divide once. Nothing
    kept gives 0 with zero gradients, not NaN. A row of weight 0 costs no backward and adds exactly 0, whatever its nll is, inf
    and NaN too; a row with a weight and an nll of inf makes the sum inf. Options as of :class:`LinearNLL`.
    """
    options: dict[str, Any] = {"keep_logits": keep_logits, "backend": backend, "slice_columns": slice_columns}
    head = LinearNLL(hidden, head_weight, targets, **options)
    return head.weighted_sum(weight)


def _check_second(second: SparseTargets | None, targets: Tensor, backend: str) -> None:
    if second is None:
        return
    if second.ids.shape[:-1] != targets.shape:
        raise ValueError(
            f"second targets have leading shape {tuple(second.ids.shape[:-1])}, targets {tuple(targets.shape)}"
        )
    if backend != OWN:
        raise ValueError(f"backend {backend!r} knows one target a token: use backend='tokensieve' for second targets")


def _check_shapes(values: Tensor, targets: Tensor, name: str) -> None:
    if values.shape[:-1] != targets.shape:
        raise ValueError(f"{name} has leading shape {tuple(values.shape[:-1])}, targets {tuple(targets.shape)}")
