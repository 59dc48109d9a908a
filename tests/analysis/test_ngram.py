"""The counting baselines: proper probabilities, the formula by hand, and no n-gram across a row's start."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from tokensieve.evaluation.ngram import MAX_VOCAB, NGram, sample_rows
from tokensieve.runs.errors import UserError

ROWS = [[0, 1, 2, 0, 1, 3], [1, 2, 2, 0], [3]]


def arrays(rows: list[list[int]]) -> list[np.ndarray]:
    return [np.array(row, dtype=np.int32) for row in rows]


def by_hand(rows: list[list[int]], vocab: int, history: tuple[int, ...], word: int) -> Fraction:
    """The docstring's formula in exact fractions, by scanning the rows."""
    n = len(history) + 1
    if n == 1:
        return Fraction(sum(row.count(word) for row in rows) + 1, sum(map(len, rows)) + vocab)
    grams = [tuple(row[i : i + n]) for row in rows for i in range(len(row) - n + 1)]
    followers = [gram[-1] for gram in grams if gram[:-1] == history]
    lower = by_hand(rows, vocab, history[1:], word)
    if not followers:
        return lower
    distinct = len(set(followers))
    return (followers.count(word) + distinct * lower) / (len(followers) + distinct)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_it_is_the_formula(order: int) -> None:
    model = NGram.fit(arrays(ROWS), 5, order)
    assert model.order == order
    for row in itertools.product(range(5), repeat=3):
        nll = model.nll(np.array(row))
        assert math.isnan(nll[0])
        for t in (1, 2):
            p = by_hand(ROWS, 5, row[max(0, t - order + 1) : t], row[t])
            assert nll[t] == pytest.approx(-math.log(p), rel=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_probabilities_sum_to_one(order: int) -> None:
    """Seen and unseen contexts alike; 4 never occurs. A back-off that forgets mass looks better than it is."""
    model = NGram.fit(arrays(ROWS), 5, order)
    for a, b in itertools.product(range(5), repeat=2):
        total = sum(math.exp(-model.nll(np.array([a, b, w]))[2]) for w in range(5))
        assert total == pytest.approx(1.0, abs=1e-12)


def test_an_unseen_context_backs_off() -> None:
    tri, bi, uni = (NGram.fit(arrays(ROWS), 5, order) for order in (3, 2, 1))
    assert tri.nll(np.array([4, 1, 2]))[2] == bi.nll(np.array([4, 1, 2]))[2]
    assert tri.nll(np.array([0, 4, 2]))[2] == uni.nll(np.array([0, 4, 2]))[2]


def test_no_ngram_crosses_a_row_start() -> None:
    """Rows laid end to end would teach that a row's last token is followed by the next row's first."""
    joined, apart = NGram.fit(arrays([[0, 1, 2, 3]]), 4, 3), NGram.fit(arrays([[0, 1], [2, 3]]), 4, 3)
    assert joined.nll(np.array([1, 2]))[1] < apart.nll(np.array([1, 2]))[1]
    assert apart.nll(np.array([1, 2]))[1] == NGram.fit(arrays([[0, 1], [2, 3]]), 4, 1).nll(np.array([1, 2]))[1]


def test_nothing_to_count() -> None:
    empty = NGram.fit([], 8, 3)
    assert empty.nll(np.array([1, 2, 3]))[1:] == pytest.approx(math.log(8))
    assert empty.nll(np.array([], dtype=np.int32)).shape == (0,)
    assert np.isnan(empty.nll(np.array([3]))).all()


def test_bad_input_is_named() -> None:
    with pytest.raises(UserError, match="token id 7"):
        NGram.fit(arrays([[0, 7]]), 5, 2)
    with pytest.raises(UserError, match="token id -1"):
        NGram.fit(arrays(ROWS), 5, 2).nll(np.array([-1]))
    with pytest.raises(UserError, match="order"):
        NGram.fit([], 5, 4)
    with pytest.raises(UserError, match="vocabulary"):
        NGram.fit([], MAX_VOCAB + 1, 3)


def test_the_largest_vocabulary_does_not_overflow() -> None:
    """Three ids of 20 bits fill 60 of int64's 63 bits; int32 rows multiplied as int32 would wrap."""
    top = MAX_VOCAB - 1
    model = NGram.fit(arrays([[top, top, top, 0]]), MAX_VOCAB, 3)
    p1 = 4 / (4 + MAX_VOCAB)
    p2 = (2 + 2 * p1) / (3 + 2)
    p3 = (1 + 2 * p2) / (2 + 2)
    assert model.nll(np.array([top, top, top], dtype=np.int32))[2] == pytest.approx(-math.log(p3))


@pytest.mark.parametrize("most", [0, 1, 50, 99, 100, 101, 500, 1190, 1200])
def test_a_sample_is_of_whole_rows_and_bounded(most: int) -> None:
    """From all corpora alike, and the same at every call; what is not too much is taken whole."""
    corpora = [np.full(7, 100, np.int32), np.array([100, 100, 30], np.int32), np.array([100, 100, 70], np.int32)]
    drawn = sample_rows(corpora, most)
    if most >= 1200:
        assert drawn == [None, None, None]
        return
    counted = sum(int(t[r].sum()) for t, r in zip(corpora, drawn, strict=True))
    assert max(0, most - 99) <= counted <= most
    for tokens, rows in zip(corpora, drawn, strict=True):
        assert rows is not None
        assert (np.diff(rows) > 0).all()
        assert ((rows >= 0) & (rows < len(tokens))).all()
    again = sample_rows(corpora, most)
    assert [r.tolist() for r in drawn if r is not None] == [r.tolist() for r in again if r is not None]


def test_a_sample_is_drawn_from_every_part() -> None:
    rows = sample_rows([np.full(1000, 10), np.full(3000, 10)], 8000)
    first, second = (len(r) for r in rows if r is not None)
    assert first + second == 800
    assert 150 < first < 250
    assert sample_rows([np.full(40, 2**31 - 1)], 2**33)[0] is not None  # int32 sums would be -40
