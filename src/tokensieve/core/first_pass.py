"""The first pass: every token's nll and what its backward will need, without a gradient. Shape letters as in ``nll.py``."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor

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

KeepLogits = Literal["auto"] | bool
# `auto` keeps the logits of the first pass while all of them together take no more than this: 8192 tokens of V = 128k in
# bfloat16. A dense cross-entropy takes three (float32) to seven times (bfloat16) what is kept.
KEPT_LOGITS_BYTES = 2 << 30
ROWS_AT_ONCE = 1024


class FirstPass:
    """What is known of every token before weights are chosen: the first half of :class:`tokensieve.core.nll.LinearNLL`.

    ``nll`` and ``loss`` are [...] and detached; ``softmax``, ``slices``, ``kept_logits`` and ``second`` are for the backward.
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
        check_shapes(hidden, targets, "hidden")
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
        self.backend = backend
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
        """``nll``, or one of the ``statistics`` asked for; detached, 0 where the target is -100. ValueError if it was not."""
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


def _check_second(second: SparseTargets | None, targets: Tensor, backend: str) -> None:
    if second is None:
        return
    if second.ids.shape[:-1] != targets.shape:
        raise ValueError(
            f"second targets have leading shape {tuple(second.ids.shape[:-1])}, targets {tuple(targets.shape)}"
        )
    if backend != OWN:
        raise ValueError(f"backend {backend!r} knows one target a token: use backend='tokensieve' for second targets")


def check_shapes(values: Tensor, targets: Tensor, name: str) -> None:
    if values.shape[:-1] != targets.shape:
        raise ValueError(f"{name} has leading shape {tuple(values.shape[:-1])}, targets {tuple(targets.shape)}")
