"""Unigram, bigram and trigram baselines: what a target nll is worth beside a model that only counts.

    p_1(w)     = (c(w) + 1) / (N + V)                                                     add-one
    p_n(w | h) = (c(h w) + d(h) * p_{n-1}(w | h')) / (c(h) + d(h))                        Witten-Bell, n = 2, 3

c counts in the training rows, N is their number of tokens and V the vocabulary; c(h) is how often the n - 1 tokens h were
followed by anything, d(h) by how many different tokens, and h' is h without its oldest token. Nothing is tuned. An unseen
h has c(h) = d(h) = 0 and backs off to p_{n-1}. Each p sums to 1 over the vocabulary.

A row is a context of its own: no n-gram crosses its start. Give rows without their padding, and give the pieces of isolated
documents as rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..runs.errors import UserError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

# Three ids are packed into one int64, so that sorting and searching n-grams is sorting and searching integers.
MAX_VOCAB = 1 << 20
# What a baseline counts at most: 2.5 GB. Of more text a sample of rows is counted, which makes a trigram a little worse.
MOST_TOKENS = 1 << 24


@dataclass(frozen=True)
class _Counts:
    """Counts of the n-grams of one order n >= 2; an n-gram is packed as ``context * V + last token``. Keys are sorted."""

    grams_G: Ints
    gram_counts_G: Ints
    contexts_H: Ints
    context_counts_H: Ints  # c(h)
    context_distinct_H: Ints  # d(h)

    @classmethod
    def of(cls, packed: Ints, vocab_size: int) -> _Counts:
        grams, counts = np.unique(packed, return_counts=True)
        # Sorted grams hold the grams of one context side by side: one pass finds where each context begins.
        contexts, starts, distinct = np.unique(grams // vocab_size, return_index=True, return_counts=True)
        totals = np.add.reduceat(counts, starts) if len(starts) else counts
        return cls(grams, counts, contexts, totals, distinct)

    def interpolate(self, packed: Ints, p_lower: Floats, vocab_size: int) -> Floats:
        """p_n of each packed n-gram, given p_{n-1} of the same token."""
        context = packed // vocab_size
        count = _look_up(self.grams_G, self.gram_counts_G, packed)
        total = _look_up(self.contexts_H, self.context_counts_H, context)
        distinct = _look_up(self.contexts_H, self.context_distinct_H, context)
        seen = total > 0
        return np.where(seen, (count + distinct * p_lower) / np.where(seen, total + distinct, 1), p_lower)


@dataclass(frozen=True)
class NGram:
    """A fitted model of ``order`` 1, 2 or 3; make it with :meth:`fit`."""

    vocab_size: int
    token_counts_V: Ints
    higher: tuple[_Counts, ...]  # orders 2, 3, ...

    @property
    def order(self) -> int:
        return 1 + len(self.higher)

    @classmethod
    def fit(
        cls,
        rows: Iterable[npt.NDArray[Any]],
        vocab_size: int,
        order: int,
        outcomes: Iterable[Bools] | None = None,
    ) -> NGram:
        """Count ``rows`` (each int [T], EOS ids inside). All tokens count, also the first of a row.

        ``outcomes``: one bool [T] a row, False for tokens that only give context (BOS): nothing gives them probability.

        No rows give the uniform distribution. Raises :class:`UserError` for an id outside [0, vocab_size), an order other
        than 1, 2, 3, and a vocabulary above 2^20. Takes about 150 bytes and 0.4 us a token.
        """
        if order not in (1, 2, 3):
            raise UserError(f"an n-gram's order must be 1, 2 or 3, not {order}")
        if not 1 <= vocab_size <= MAX_VOCAB:
            raise UserError(f"an n-gram baseline needs a vocabulary of 1 to {MAX_VOCAB} tokens, not {vocab_size}")
        checked = [_checked(row, vocab_size) for row in rows]
        tokens = np.concatenate(checked) if checked else np.zeros(0, dtype=np.int64)
        positions = _positions(np.array([len(row) for row in checked], dtype=np.int64))
        counted = np.ones(len(tokens), bool) if outcomes is None else np.concatenate([*outcomes, np.zeros(0, bool)])
        higher = []
        for n in range(2, order + 1):
            ends = np.flatnonzero((positions >= n - 1) & counted)
            higher.append(_Counts.of(_pack(tokens, ends, n, vocab_size), vocab_size))
        return cls(vocab_size, np.bincount(tokens[counted], minlength=vocab_size), tuple(higher))

    def nll(self, row: npt.NDArray[Any]) -> Floats:
        """-ln p(row[t] | the order - 1 tokens before it in the row), nats, float64 [T]; NaN at t = 0, which is no target.

        Near the start of a row, where fewer tokens stand before it, the lower order is used.
        """
        tokens = _checked(row, self.vocab_size)
        p = (self.token_counts_V[tokens] + 1.0) / (self.token_counts_V.sum() + self.vocab_size)
        for n, counts in enumerate(self.higher, start=2):
            ends = np.arange(n - 1, len(tokens))
            p[ends] = counts.interpolate(_pack(tokens, ends, n, self.vocab_size), p[ends], self.vocab_size)
        nll_T: Floats = -np.log(p)
        nll_T[:1] = np.nan
        return nll_T


def sample_rows(tokens_by_corpus: Sequence[Ints], most: int | None = None, seed: int = 0) -> list[Ints | None]:
    """For each corpus the rows that a baseline counts, ascending; None for all of every one if that is at most ``most`` tokens.

    ``tokens_by_corpus``: tokens of each row, [rows] a corpus. Rows are drawn from all corpora alike, with a seed of its own,
    as many as come to at most ``most`` tokens (MOST_TOKENS).
    """
    most = MOST_TOKENS if most is None else most
    tokens_R = np.concatenate([np.asarray(t, np.int64) for t in tokens_by_corpus])
    if tokens_R.sum() <= most:
        return [None] * len(tokens_by_corpus)
    order_R = np.random.default_rng(seed).permutation(len(tokens_R))
    drawn = np.sort(order_R[np.cumsum(tokens_R[order_R]) <= most])
    ends = np.cumsum([len(t) for t in tokens_by_corpus])
    parts = np.split(drawn, np.searchsorted(drawn, ends[:-1]))
    return [part - (end - len(t)) for part, end, t in zip(parts, ends, tokens_by_corpus, strict=True)]


def _checked(row: npt.NDArray[Any], vocab_size: int) -> Ints:
    """``row`` as int64 [T]. Raises :class:`UserError` for an id outside the vocabulary."""
    tokens: Ints = np.asarray(row).astype(np.int64)
    if tokens.size and not (tokens.min() >= 0 and tokens.max() < vocab_size):
        bad = tokens[(tokens < 0) | (tokens >= vocab_size)][0]
        raise UserError(f"token id {bad} is outside the vocabulary of {vocab_size}")
    return tokens


def _positions(lengths_R: Ints) -> Ints:
    """Each token's position in its row, for rows laid end to end."""
    starts_R = np.cumsum(lengths_R) - lengths_R
    return np.arange(int(lengths_R.sum()), dtype=np.int64) - np.repeat(starts_R, lengths_R)


def _pack(tokens: Ints, ends: Ints, n: int, vocab_size: int) -> Ints:
    """The n-grams that end at ``ends``, each as one integer with base-V digits, the oldest token first."""
    packed = np.zeros(len(ends), dtype=np.int64)
    for back in range(n - 1, -1, -1):
        packed = packed * vocab_size + tokens[ends - back]
    return packed


def _look_up(keys: Ints, values: Ints, wanted: Ints) -> Ints:
    """``values[i]`` where ``keys[i] == wanted``, 0 where there is none. ``keys`` are sorted."""
    if len(keys) == 0:
        return np.zeros(len(wanted), dtype=np.int64)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)
