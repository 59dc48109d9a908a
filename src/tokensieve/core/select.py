"""From scores to a selection: which of the valid tokens are kept."""

from __future__ import annotations

from typing import Literal, TypeVar

import torch
from torch import Tensor

Scope = Literal["sequence", "batch", "step", "corpus"]
"""What a ranking is taken over. ``corpus``: nothing is ranked; a threshold is that of a whole data set, see kth.py."""
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
    check_ratio(ratio)
    place, num_valid = _placed(score, valid, scope, group)
    return place < kept_count(num_valid, ratio)


def places(score: Tensor, valid: Tensor, scope: Scope = "batch", *, group: Tensor | None = None) -> Tensor:
    """The place of each token among those ranked with it, by falling score: 0 is the highest, invalid tokens come last.

    int64, shape of ``score``. Scope and ``group`` as in :func:`top_fraction`, which keeps the places below k. Ties go to the
    earlier position.
    """
    return _placed(score, valid, scope, group)[0]


def above_threshold(score: Tensor, valid: Tensor, threshold: float | Tensor) -> Tensor:
    """``score >= threshold`` among valid tokens, bool: a selection without ranking, whose size is not known beforehand."""
    return (score >= threshold) & valid.bool()


def check_ratio(ratio: float) -> None:
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio is {ratio}, it must be in (0, 1]")


def _placed(score: Tensor, valid: Tensor, scope: str, group: Tensor | None) -> tuple[Tensor, Tensor]:
    """(place of each token, number of valid tokens ranked with it, in a shape that broadcasts)."""
    if score.shape != valid.shape:
        raise ValueError(f"score has shape {tuple(score.shape)}, valid {tuple(valid.shape)}")
    if scope not in ("sequence", "batch", "step"):
        raise ValueError(f"a ranking has the scope sequence, batch or step, not {scope!r}")
    valid = valid.bool()
    if scope != "sequence":
        return _places(score.reshape(1, -1), valid.reshape(1, -1)).view(score.shape), valid.sum()
    if group is not None:
        place_T, num_valid_T = _places_by_group(score.reshape(-1), valid.reshape(-1), group.reshape(-1))
        return place_T.view(score.shape), num_valid_T.view(score.shape)
    if score.dim() < 2:
        raise ValueError("scope 'sequence': a flat batch has no rows, say by `group` which token is in which")
    return _places(score, valid), valid.sum(-1, keepdim=True)


def _places(score_BT: Tensor, valid_BT: Tensor) -> Tensor:
    """Per row: sort by (valid first, score falling, position). Two stable sorts, no loop, no sync."""
    by_score_BT = score_BT.argsort(dim=-1, descending=True, stable=True)
    invalid_BT = (~valid_BT).gather(-1, by_score_BT).to(torch.int8)
    order_BT = by_score_BT.gather(-1, invalid_BT.argsort(dim=-1, stable=True))
    place_BT = torch.arange(score_BT.shape[-1], device=score_BT.device).expand_as(order_BT)
    return torch.zeros_like(order_BT).scatter_(-1, order_BT, place_BT)


def _places_by_group(score_T: Tensor, valid_T: Tensor, group_T: Tensor) -> tuple[Tensor, Tensor]:
    """(place of each token in its group, valid tokens there): sort by (group, valid first, score falling, position)."""
    _, group_T = group_T.unique(return_inverse=True)
    order_T = score_T.argsort(descending=True, stable=True)
    order_T = order_T[(~valid_T)[order_T].to(torch.int8).argsort(stable=True)]
    order_T = order_T[group_T[order_T].argsort(stable=True)]
    num_G = torch.bincount(group_T)
    start_G = num_G.cumsum(0) - num_G
    place_T = torch.arange(score_T.numel(), device=score_T.device) - start_G[group_T[order_T]]
    valid_G = torch.bincount(group_T, weights=valid_T.double()).long()
    return torch.zeros_like(order_T).scatter_(0, order_T, place_T), valid_G[group_T]
