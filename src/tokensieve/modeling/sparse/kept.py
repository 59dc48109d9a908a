"""Which positions of a micro-batch are kept, as the indices that gathering and scattering need, made once for all blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Kept:
    """Of ``keep_BT`` [B, T] bool, flattened to N = B * T rows of which K are kept.

    Queries are also needed by row: as many slots each, ``most`` the largest number kept of a row; slots left over hold a kept
    row again, and what comes out of them goes nowhere. On a GPU the host waits here for the counts, once a micro-batch.
    """

    def __init__(self, keep_BT: Tensor) -> None:
        self.rows, self.length = keep_BT.shape
        counts_B = keep_BT.sum(1)
        numbers = counts_B.tolist()
        self.most = max(numbers, default=0)
        self.even = min(numbers, default=0) == self.most
        flat_N = keep_BT.reshape(-1)
        self.kept_K = flat_N.nonzero().squeeze(1)
        self.dropped = (~flat_N).nonzero().squeeze(1)  # [N - K]
        place = torch.arange(self.most, device=keep_BT.device)
        self.there_Bn = place < counts_B[:, None]
        first_B = counts_B.cumsum(0) - counts_B
        slot_Bn = (first_B[:, None] + place).clamp(max=max(0, len(self.kept_K) - 1))
        self.slots = slot_Bn.reshape(-1)  # [B * n] -> which of the K
        self.real_K = self.there_Bn.reshape(-1).nonzero().squeeze(1)  # which of the B * n slots, in order
        kept_Bn = self.kept_K[self.slots].view(self.rows, self.most) if len(self.kept_K) else slot_Bn
        self.positions_Bn = torch.where(self.there_Bn, kept_Bn % self.length, 0)
        self.cache: dict[Any, Any] = {}
        """What else is the same for all blocks: masks, by the mask that the model made."""

    def __len__(self) -> int:
        return len(self.kept_K)

    def by_row(self, values_HKe: Tensor) -> Tensor:
        """[H, K, e] -> [B, H, n, e]"""
        if not self.even:
            values_HKe = values_HKe.index_select(1, self.slots)
        heads, _, width = values_HKe.shape
        return values_HKe.reshape(heads, self.rows, self.most, width).transpose(0, 1)

    def flat(self, values_BnHe: Tensor) -> Tensor:
        """[B, n, H, e] -> [1, K, H, e]: the slots that count."""
        values = values_BnHe.reshape(self.rows * self.most, *values_BnHe.shape[2:])
        return (values if self.even else values.index_select(0, self.real_K)).unsqueeze(0)


def some_rows(value: Any, index: Tensor, rows: int, length: int) -> Any:
    """What a block is called with, for some of its rows: tensors of [B, T, ...] or [1, T, ...] gathered to [1, K, ...]; the
    rest as it is."""
    if isinstance(value, (tuple, list)):
        return type(value)(some_rows(v, index, rows, length) for v in value)
    if isinstance(value, dict):
        return {k: some_rows(v, index, rows, length) for k, v in value.items()}
    if not isinstance(value, Tensor) or value.dim() < 2 or value.shape[1] != length or value.shape[0] not in (1, rows):
        return value
    if value.shape[0] == 1:
        return value.index_select(1, index % length)
    return value.reshape(1, rows * length, *value.shape[2:]).index_select(1, index)
