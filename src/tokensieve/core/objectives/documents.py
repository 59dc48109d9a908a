"""Selections of whole documents: what a rule ranks tokens by, averaged over each document."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor

from ..objective import Objective, Unit, sum_dtype
from ..select import Scope, kept_count
from ..stats import TokenStats
from .shared import rows_of


def with_unit(made: Objective, unit: Any) -> Objective:
    """The objective with documents ranked instead of tokens, by the mean score of their valid tokens; None, token: as it is.

    Whole documents are kept, from the highest mean, until at least k tokens are: the last one may go beyond. A document is what
    of it stands in one row: a row's pieces come apart when rows are shuffled. Of ``random`` a document's number is that of its
    first valid token, since means of long documents would all be near one half. Ties go to the earlier document. How many
    tokens that is shows after the forward, unless the rule is static. ValueError for a rule that ranks nothing.
    """
    if unit is not None and unit not in get_args(Unit):
        raise ValueError(f"unknown unit {unit!r}: token or document")
    if unit in (None, "token"):
        return made
    if made.corpus_scores:
        raise ValueError(
            "unit: document ranks the documents of a sequence, batch or step: scope 'corpus' is a threshold of tokens"
        )
    score, ratio = made.score, made.options.get("ratio")
    if score is None or ratio is None or not made.selects or made.second is not None:
        raise ValueError(
            f"unit: {made.name!r} does not keep a ratio by a score, so there is nothing to rank documents by"
        )

    def ranked(stats: TokenStats) -> tuple[_Documents, Tensor]:
        documents = _Documents.of(stats)
        values = score(stats).to(sum_dtype(stats.valid))
        return documents, documents.first(values) if made.name == "random" else documents.mean(values)

    def weigh(stats: TokenStats) -> Tensor:
        documents, by_RD = ranked(stats)
        return documents.spread(_from_the_top(by_RD, documents.count_RD, ratio, made.scope)).float()

    def of_token(stats: TokenStats) -> Tensor:
        documents, by_RD = ranked(stats)
        return documents.spread(by_RD)

    return replace(
        made,
        weigh=weigh,
        needs=made.needs | {"segment"},
        known_count=None,
        most_rows=None,
        score=of_token,
        options={**made.options, "unit": unit},
    )


@dataclass(frozen=True)
class _Documents:
    """Which document each token stands in, as (row, number in its row) in a grid of all there can be: no wait for the
    device."""

    place_T: Tensor
    """int64 index into the flattened grid, of every token. [T]"""
    valid: Tensor
    """As given. [T] or [B, T]"""
    count_RD: Tensor
    """Valid tokens of each document; 0 for those that are not there."""

    @staticmethod
    def of(stats: TokenStats) -> _Documents:
        row_T = rows_of(stats, "sequence")
        if row_T is None:
            rows, length = stats.valid.shape
            row_T = torch.arange(rows, device=stats.valid.device).repeat_interleave(length)
        else:
            found, row_T = row_T.unique(return_inverse=True)
            rows, length = len(found), len(row_T)
        place_T = row_T * length + stats.need("segment").flatten().clamp(0, length - 1)
        counted = stats.valid.flatten().to(sum_dtype(stats.valid))
        zeros = torch.zeros(rows * length, dtype=counted.dtype, device=counted.device)
        return _Documents(place_T, stats.valid, zeros.index_add(0, place_T, counted).view(rows, length))

    def mean(self, values: Tensor) -> Tensor:
        """Over each document's valid tokens. [R, D]"""
        kept_T = torch.where(self.valid, values, torch.zeros_like(values)).flatten()
        total = torch.zeros_like(self.count_RD).flatten().index_add(0, self.place_T, kept_T)
        return total.view_as(self.count_RD) / self.count_RD.clamp(min=1)

    def first(self, values: Tensor) -> Tensor:
        """That of each document's first valid token. [R, D]"""
        at_T = torch.arange(len(self.place_T), device=self.place_T.device)
        at_T = at_T.masked_fill(~self.valid.flatten(), len(at_T) - 1)
        none = torch.full_like(self.count_RD, len(at_T) - 1, dtype=torch.int64).flatten()
        return values.flatten()[none.scatter_reduce(0, self.place_T, at_T, "amin")].view_as(self.count_RD)

    def spread(self, values_RD: Tensor) -> Tensor:
        """From documents to their valid tokens, 0 elsewhere; in the shape given."""
        values = values_RD.flatten()[self.place_T].view(self.valid.shape)
        return torch.where(self.valid, values, torch.zeros_like(values))


def _from_the_top(by_RD: Tensor, count_RD: Tensor, ratio: float, scope: Scope) -> Tensor:
    """Whether each document is kept: as long as those above it have fewer than k tokens together. bool [R, D]"""
    shape = by_RD.shape if scope == "sequence" else (1, by_RD.numel())
    by, count = by_RD.reshape(shape), count_RD.reshape(shape)
    order = by.masked_fill(count == 0, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    ordered = count.gather(-1, order)
    before = ordered.cumsum(-1) - ordered
    kept = (before < kept_count(count.sum(-1, keepdim=True).long(), ratio)) & (ordered > 0)
    return torch.zeros_like(kept).scatter(-1, order, kept).view(by_RD.shape)
