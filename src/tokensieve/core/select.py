"""From scores to a selection: which of the valid tokens are kept."""

from __future__ import annotations

from typing import Literal, TypeVar

import torch
from torch import Tensor

Scope = Literal["sequence", "batch", "step"]
Count = TypeVar("Count", int, Tensor)


def kept_count(num_valid: Count, ratio: float) -> Count:
    """``k = floor(ratio * num_valid + 0.5)``, at least 1 if any token is valid. An int gives an int, a tensor int64.

    Known before the forward, so a step's denominator is too. Python's round() would send halves to the even neighbour.
    """
    check_ratio(ratio)
    if isinstance(num_valid, int):
        return max(int(ratio * num_valid + 0.5), 1) if num_valid > 0 else 0
    k = torch.floor(num_valid.double() * ratio + 0.5).long()
    return torch.where(num_valid > 0, k.clamp(min=1), torch.zeros_like(k))


def top_fraction(
    score: Tensor, valid: Tensor, ratio: float, scope: Scope = "batch", *, group: Tensor | None = None
) -> Tensor:
    """The ``kept_count(valid, ratio)`` valid tokens of highest score, bool, same shape (Rho-1, Eq. 5).

    score and valid [T] or [B, T]; ratio in (0, 1]. ``scope="batch"`` (and ``"step"``) ranks all tokens given together,
    ``"sequence"`` each row of [B, T] on its own, or the tokens of equal ``group`` of a flat [T], which has no rows without
    one (ValueError). Ties go to the earlier position. Invalid tokens are never kept and never counted, whatever their score.
    No valid token: nothing is kept. Which tokens are chosen is independent of how a loss is later computed. Without NaN:
    NaN ranks highest.
    """
    if score.shape != valid.shape:
        raise ValueError(f"score has shape {tuple(score.shape)}, valid {tuple(valid.shape)}")
    check_ratio(ratio)
    valid = valid.bool()
    if scope not in ("sequence", "batch", "step"):
        raise ValueError(f"unknown scope {scope!r}: sequence, batch or step")
    if scope != "sequence":
        return _keep_top(score.reshape(1, -1), valid.reshape(1, -1), ratio).view(score.shape)
    if group is None:
        if score.dim() < 2:
            raise ValueError("scope 'sequence': a flat batch has no rows, say by `group` which token is in which")
        return _keep_top(score, valid, ratio)
    return _keep_top_by_group(score.reshape(-1), valid.reshape(-1), group.reshape(-1), ratio).view(score.shape)


def above_threshold(score: Tensor, valid: Tensor, threshold: float | Tensor) -> Tensor:
    """``score >= threshold`` among valid tokens, bool: a selection without ranking, whose size is not known beforehand."""
    return (score >= threshold) & valid.bool()


def check_ratio(ratio: float) -> None:
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio is {ratio}, it must be in (0, 1]")


def _keep_top(score_BT: Tensor, valid_BT: Tensor, ratio: float) -> Tensor:
    """Per row: sort by (valid first, score falling, position), keep the first k. Two stable sorts, no loop, no sync."""
    by_score_BT = score_BT.argsort(dim=-1, descending=True, stable=True)
    invalid_BT = (~valid_BT).gather(-1, by_score_BT).to(torch.int8)
    order_BT = by_score_BT.gather(-1, invalid_BT.argsort(dim=-1, stable=True))
    k_B1 = kept_count(valid_BT.sum(-1, keepdim=True), ratio)
    place_T = torch.arange(score_BT.shape[-1], device=score_BT.device)
    return torch.zeros_like(valid_BT).scatter_(-1, order_BT, place_T < k_B1)


def _keep_top_by_group(score_T: Tensor, valid_T: Tensor, group_T: Tensor, ratio: float) -> Tensor:
    """As :func:`_keep_top`, for rows laid end to end: sort by (group, valid first, score falling, position)."""
    _, group_T = group_T.unique(return_inverse=True)
    order_T = score_T.argsort(descending=True, stable=True)
    order_T = order_T[(~valid_T)[order_T].to(torch.int8).argsort(stable=True)]
    order_T = order_T[group_T[order_T].argsort(stable=True)]
    num_G = torch.bincount(group_T)
    start_G = num_G.cumsum(0) - num_G
    k_G = kept_count(torch.bincount(group_T, weights=valid_T.double()).long(), ratio)
    place_T = torch.arange(score_T.numel(), device=score_T.device) - start_G[group_T[order_T]]
    return torch.zeros_like(valid_T).scatter_(0, order_T, place_T < k_G[group_T[order_T]])
