"""The vocabulary in slices: their width, the memory they share, raw and final logits of one, and the dtypes of it all.

Shape letters as in ``nll.py``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .head import LinearHead

IGNORE_INDEX = -100
# A slice has so many columns, or as many as fit into 16 MiB of float32 where the rows are few: wide enough that products run
# at full speed, narrow beside any vocabulary for which memory matters. On a CPU half as many stay nearer between elementwise
# passes (bfloat16: 4 to 9 % of forward and backward, with the one cast of OnlineSoftmax.add); no power of two there, whose
# rows fall onto the same lines of a cache.
SLICE_COLUMNS, SLICE_COLUMNS_CPU = 4096, 2080
SLICE_ELEMENTS = 2048 * SLICE_COLUMNS_CPU


class Scratch:
    """One buffer, seen as [rows, columns of a slice] again and again: on a CPU new memory costs a page fault a page, which
    made the elementwise half of a pass three times slower."""

    def __init__(self, like_TD: Tensor, slices: list[slice], dtype: torch.dtype | None = None) -> None:
        self._like, self._rows = like_TD, like_TD.shape[0]
        self._size = self._rows * (slices[0].stop - slices[0].start if slices else 0)
        self._dtype = dtype or like_TD.dtype
        self._buffer: Tensor | None = None

    def view(self, columns: slice) -> Tensor:
        """[rows, columns], with whatever was written there last. Made at the first call: not every pass needs it."""
        if self._buffer is None:
            self._buffer = self._like.new_empty(self._size, dtype=self._dtype)
        width: int = columns.stop - columns.start
        return self._buffer[: self._rows * width].view(self._rows, width)


def raw_logits(head: LinearHead, hidden_TD: Tensor, columns: slice, out: Tensor | None = None) -> Tensor:
    """``(h @ weight.T + bias)[:, columns]`` in the dtype of ``hidden_TD``, before scale and cap. [T, C]"""
    weight_DC = head.weight[columns].to(hidden_TD.dtype).T
    if head.bias is None:
        return torch.mm(hidden_TD, weight_DC, out=out)
    return torch.addmm(head.bias[columns].to(hidden_TD.dtype), hidden_TD, weight_DC, out=out)


def capped(head: LinearHead, raw_TC: Tensor) -> Tensor:
    """Scaled and soft-capped logits in float32; ``raw_TC`` itself, of whatever dtype, where a head has neither."""
    if head.logit_scale == 1.0 and head.softcap is None:
        return raw_TC
    logits_TC = raw_TC.to(accumulation_dtype(raw_TC.dtype)) * head.logit_scale
    return logits_TC if head.softcap is None else logits_TC.div_(head.softcap).tanh_().mul_(head.softcap)


def slice_width(device: str, num_tokens: int) -> int:
    least = SLICE_COLUMNS_CPU if device == "cpu" else SLICE_COLUMNS
    return max(least, SLICE_ELEMENTS // max(1, num_tokens))


def disabled_autocast(like: Tensor) -> Any:
    """Dtypes here are chosen by hand; autocast would cast the float32 sums down again."""
    return torch.autocast(like.device.type, enabled=False)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for everything but float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def matmul_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Autocast's dtype where autocast is on, else the head's: what the model's own head would have computed in."""
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind) and weight.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return weight.dtype
