"""Weights from the same token's nll with more and with less context."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..objective import Objective
from ..stats import TokenStats
from .shared import check_range, soft, top, total_within


def cal(
    low: float = 1.0, high: float = 5.0, without: str = "ablated_nll", full: str = "nll", pooled: bool = True
) -> Objective:
    """``w = clamp(nll without context - nll with it, low, high)``, averaged over a token and its two neighbours; sum of w.

    Contrastive ALignment (arXiv 2405.17871; read in the authors' code): a token that the context (an image, the head of a
    document) makes likelier counts more. ``without`` is a score column, ``full`` another or the student's own ``nll``. The
    average is over valid tokens of the same row: theirs runs over the flattened batch, where weights bleed across sequences.
    """
    check_range("low", low, 0.0)
    check_range("high", high, low)

    def weigh(stats: TokenStats) -> Tensor:
        gap = stats.need(without).float() - stats.need(full).float()
        weight = torch.where(stats.valid, gap.clamp(low, high), torch.zeros_like(gap))
        return _pooled(weight, stats) if pooled else weight

    needs = frozenset({without, full, *(("row_id",) if pooled else ())})
    options = {"low": low, "high": high, "without": without, "full": full, "pooled": pooled}
    return soft("cal", weigh, needs, options, denominator="weight", static=full != "nll")


def long_context(
    form: Literal["dense", "sparse", "longce"] = "dense",
    short: str = "short_nll",
    long: str = "nll",
    least: float = 0.5,
    ratio: float = 0.5,
    most: float = 5.0,
) -> Objective:
    """More weight where a long context changes the nll, ``s = nll_long - nll_short``: three published forms, valid tokens.

    ``dense``: ``least + (1 - least) n abs(s) / sum abs(s)`` over the n valid tokens of the row. ``sparse``: the top ``ratio``
    of ``abs(s)`` in the row, at mean weight 1. ``longce``: ``min(exp(nll_short - nll_long), most)`` (LongCE, arXiv 2410.23771),
    not normalised. ``short`` is a score column, ``long`` another or the student's own ``nll``. Read in the authors' code.
    """
    forms = {"dense": _dense, "sparse": _sparse, "longce": _longce}
    if form not in forms:
        raise ValueError(f"form is {form!r}, it must be dense, sparse or longce")
    check_range("least", least, 0.0, 1.0)
    check_range("ratio", ratio, 0.0, 1.0)
    check_range("most", most, 0.0)
    option = {"dense": least, "sparse": ratio, "longce": most}[form]

    def weigh(stats: TokenStats) -> Tensor:
        return forms[form](stats.need(short).float() - stats.need(long).float(), stats, option)

    names = {"dense": "least", "sparse": "ratio", "longce": "most"}
    options = {"form": form, "short": short, "long": long, names[form]: option}
    return soft("long_context", weigh, frozenset({short, long}), options, static=long != "nll")


def _dense(gain: Tensor, stats: TokenStats, least: float) -> Tensor:
    count, total = (total_within(v, stats, "sequence") for v in (torch.ones_like(gain), gain.abs()))
    share = count * gain.abs() / torch.where(total == 0, torch.ones_like(total), total)
    return torch.where(total == 0, torch.ones_like(share), least + (1 - least) * share)


def _sparse(gain: Tensor, stats: TokenStats, ratio: float) -> Tensor:
    kept = top("sparse", lambda _: gain.abs(), frozenset(), {"ratio": ratio, "scope": "sequence"}).weigh(stats)
    count, total = (total_within(v, stats, "sequence") for v in (torch.ones_like(gain), kept))
    return kept * count / total.clamp(min=1)


def _longce(gain: Tensor, stats: TokenStats, most: float) -> Tensor:
    return gain.exp().clamp(max=most)


def _pooled(weight: Tensor, stats: TokenStats) -> Tensor:
    """The mean over each token and its neighbours to either side, as far as they are valid and of the same row."""
    row = stats.need("row_id")
    total, count = torch.zeros_like(weight), torch.zeros_like(weight)
    for step in (-1, 0, 1):
        there = stats.valid.roll(step, -1) & (row.roll(step, -1) == row) & _within(weight, step)
        total += torch.where(there, weight.roll(step, -1), 0.0)
        count += there
    return total / count.clamp(min=1)


def _within(like: Tensor, step: int) -> Tensor:
    """False at the end that a roll has brought round."""
    place = torch.arange(like.shape[-1], device=like.device)
    return (place - step >= 0) & (place - step < like.shape[-1])
