"""Statistics of each token given less than what stands before it: its last N tokens, or all but a named span.

    context {last: 2}, stride 1      row [a b c d e]  -> [a b c] [b c d] [c d e]     a token is the last of its window
    without problem                  [P P S S E]      -> [E S S E]: S S E, and the row as it is: P
    without earlier_documents        [a a E b b E]    -> [a a E] [E b b E]

What is fed in place of a row is a list of windows; each says which of its tokens' numbers go where in the row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from ..core import IGNORE_INDEX
from ..data.list_columns import list_values
from ..data.rows import Rows, bos_places, collate
from ..runs.errors import UserError
from .engine import BATCH_TOKENS, RowStatistics, Scorer, fill_of, statistics

NO_PLACE = -1


@dataclass(frozen=True)
class Window:
    """Tokens that are fed together; entry t of ``place_T`` is where in its row the numbers of token t go, -1: nowhere."""

    ids_T: np.ndarray
    place_T: np.ndarray


@dataclass(frozen=True)
class ContextRow:
    """What windows are made of: ids, whether each is a target, where its pieces begin and which of them begin a document."""

    ids_T: np.ndarray
    target_T: np.ndarray
    starts_P: np.ndarray
    solutions_P: np.ndarray
    """Where each piece's solution starts."""
    bos_D: np.ndarray
    """Places of a document's BOS, if the corpus has one."""
    isolated: bool
    eos_id: int

    def contexts(self) -> Iterator[tuple[int, int]]:
        """(start, stop) of the tokens that have one context: the row's, or each piece's."""
        cuts = [0, *(self.starts_P[1:].tolist() if self.isolated else []), len(self.ids_T)]
        yield from pairwise(cuts)


Windows = Callable[[ContextRow], Iterator[Window]]


def last(row: ContextRow, size: int, stride: int = 1) -> Iterator[Window]:
    """Each target with ``size`` to ``size + stride - 1`` tokens before it, fewer at the beginning of its context.

    The first window serves the first ``size`` targets: they have no more than that before them anyway.
    """
    place_T = np.where(row.target_T, np.arange(len(row.ids_T)), NO_PLACE)
    for start, stop in row.contexts():
        ends = [min(start + size + 1, stop)]
        while ends[-1] < stop:
            ends.append(min(ends[-1] + stride, stop))
        for i, end in enumerate(ends):
            asked = start if i == 0 else ends[i - 1]
            first = start if i == 0 else asked - size
            places = place_T[first:end].copy()
            places[: max(asked - first, 1)] = NO_PLACE
            if (places != NO_PLACE).any():
                yield Window(row.ids_T[first:end], places)


def without_problem(row: ContextRow) -> Iterator[Window]:
    """Targets of a solution with no document's problem before them; those of a problem with all that stands there."""
    place_T = np.where(row.target_T, np.arange(len(row.ids_T)), NO_PLACE)
    in_problem_T = np.zeros(len(row.ids_T), bool)
    for start, solution in zip(row.starts_P.tolist(), row.solutions_P.tolist(), strict=True):
        in_problem_T[start:solution] = True
    in_problem_T[row.bos_D] = False  # it begins a text, whatever that is made of
    for start, stop in row.contexts():
        here = slice(start, stop)
        problem_T, places_T = in_problem_T[here], place_T[here]
        if (whole_T := np.where(problem_T, places_T, NO_PLACE)).max(initial=NO_PLACE) != NO_PLACE:
            yield Window(row.ids_T[here], whole_T)
        ids_T, places_T = row.ids_T[here][~problem_T], places_T[~problem_T]
        if len(places_T) and places_T[0] != NO_PLACE:  # nothing stands before it any more
            ids_T, places_T = np.append([row.eos_id], ids_T), np.append([NO_PLACE], places_T)
        if (places_T != NO_PLACE).any():
            yield Window(ids_T, places_T)


def without_earlier_documents(row: ContextRow) -> Iterator[Window]:
    """Targets with nothing but their own document before them, and the EOS that ends the one before it."""
    place_T = np.where(row.target_T, np.arange(len(row.ids_T)), NO_PLACE)
    cuts = [*row.starts_P.tolist(), len(row.ids_T)]
    for start, stop in pairwise(cuts):
        first = start if place_T[start : start + 1].max(initial=NO_PLACE) == NO_PLACE else start - 1
        places = place_T[first:stop].copy()
        places[: start - first] = NO_PLACE
        if (places != NO_PLACE).any():
            yield Window(row.ids_T[first:stop], places)


SPANS: dict[str, Windows] = {"problem": without_problem, "earlier_documents": without_earlier_documents}


@dataclass(frozen=True)
class Context:
    """What is left of each token's context: its ``last`` tokens, or all ``without`` a span of SPANS."""

    last: int | None = None
    stride: int = 1
    without: str | None = None

    def __post_init__(self) -> None:
        if (self.last is None) == (self.without is None):
            raise ValueError("one of last (a number of tokens) and without (a span) is needed")
        if self.last is not None and self.last < 1:
            raise ValueError(f"last is {self.last}, it must be at least 1")
        if self.stride < 1 or (self.last is None and self.stride != 1):
            raise ValueError(f"stride is {self.stride}, it must be at least 1, and goes with last")
        if self.without is not None and self.without not in SPANS:
            raise ValueError(f"without: there is no span {self.without!r}, only {', '.join(SPANS)}")

    def windows(self, row: ContextRow) -> Iterator[Window]:
        """What is fed in place of a row."""
        if self.last is not None:
            return last(row, self.last, self.stride)
        assert self.without is not None
        return SPANS[self.without](row)

    def cost(self, length: int) -> tuple[float, int]:
        """(tokens fed for each token of a row that is full, at most; length of what is fed together)."""
        if self.last is None:
            return (2.0 if self.without == "problem" else 1.0), length
        first = min(self.last + 1, length)
        groups = -(-(length - first) // self.stride)
        return (first + groups * (self.last + self.stride)) / length, min(self.last + self.stride, length)

    def check(self, corpus: Any) -> None:
        """UserError where the corpus has nothing to leave out."""
        if self.without == "problem":
            starts_P, solutions_P = (
                list_values(corpus.rows, n, 0, corpus.num_rows)[0] for n in ("doc_starts", "doc_targets")
            )
            if (solutions_P <= starts_P).all():
                raise UserError(f"context.without: no document of {corpus.folder} has a problem before its solution")
        if self.without == "earlier_documents" and corpus.isolate_documents:
            raise UserError(f"context.without: the documents of {corpus.folder} are isolated, none sees an earlier one")


def ablated(
    scorer: Scorer, corpus: Any, rows: Rows, context: Context, *, start: int = 0, stop: int | None = None
) -> Iterator[RowStatistics]:
    """``scorer.run(rows, ...)`` with less context. ``rows``: of ``corpus``. Costs ``context.cost`` forwards of a token each."""
    spans = scorer.spans(rows, start, stop)
    if spans:
        scorer.prove(rows, len(spans[0]))
    names = ["num_tokens", "doc_starts", "doc_targets", *(["doc_offsets"] if corpus.bos_id is not None else [])]
    told = corpus.rows.select_columns(names).with_format("numpy")
    for span in spans:
        items = rows.__getitems__(span)
        targets = collate(items)["targets"]
        windows = [
            (b, window)
            for b, item in enumerate(items)
            for window in context.windows(_row(item, told[span.start + b], corpus))
        ]
        yield statistics(span.start, _scattered(scorer, windows, targets.shape), targets, scorer.model)


def _row(item: Mapping[str, Any], told: Mapping[str, Any], corpus: Any) -> ContextRow:
    count = int(told["num_tokens"])
    target_T = item["labels"].numpy()[:count] != IGNORE_INDEX
    target_T[:1] = False
    bos_D = bos_places(told) if corpus.bos_id is not None else np.empty(0, np.int64)
    starts_P, solutions_P = (np.asarray(told[name], np.int64) for name in ("doc_starts", "doc_targets"))
    ids_T = item["input_ids"].numpy()[:count]
    return ContextRow(ids_T, target_T, starts_P, solutions_P, bos_D, corpus.isolate_documents, corpus.eos_id)


def _scattered(scorer: Scorer, windows: list[tuple[int, Window]], shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Name -> [B, T, ...]: each window's numbers in the rows that they belong to."""
    found: dict[str, np.ndarray] = {}
    names = ("nll", *scorer.statistics, *(("topk_ids", "topk_logp") if scorer.top_k else ()))
    for name in names:
        dtype = np.int32 if name == "topk_ids" else np.float32
        found[name] = np.full((*shape, *([scorer.top_k] if name.startswith("topk") else [])), fill_of(name), dtype)
    for batch in _batches(windows, scorer.batch_rows):
        values = scorer.fed(collate([_item(window) for _, window in batch]))
        for name, values_WT in values.items():
            for (row, window), values_T in zip(batch, values_WT, strict=True):
                asked = window.place_T != NO_PLACE
                found[name][row, window.place_T[asked]] = values_T[: len(asked)][asked]
    return found


def _batches(windows: list[tuple[int, Window]], batch_rows: int) -> Iterator[list[tuple[int, Window]]]:
    """Windows of about one length together, so that little is padding."""
    batch: list[tuple[int, Window]] = []
    for window in sorted(windows, key=lambda w: len(w[1].ids_T)):
        if batch and (len(batch) == batch_rows or (len(batch) + 1) * len(window[1].ids_T) > BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def _item(window: Window) -> dict[str, torch.Tensor]:
    ids_T = torch.from_numpy(np.ascontiguousarray(window.ids_T, np.int64))
    return {"input_ids": ids_T, "labels": ids_T.masked_fill(torch.from_numpy(window.place_T == NO_PLACE), IGNORE_INDEX)}
