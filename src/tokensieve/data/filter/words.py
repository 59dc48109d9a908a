"""Texts as words, and hashes of all their runs of words: what decontamination, near copies and the classifier look at.

words = runs of letters, digits and _ in lower case; everything else only separates them. A word's hash is a polynomial of its
UTF-8 bytes, mixed; a run's is one of its words' hashes, mixed again. Both come from prefix sums modulo 2^64, for all words of
a batch of texts at once: no loop over words in Python.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np

BATCH_CHARS = 1 << 20  # of text hashed at a time: about 50 bytes of arrays each
_WORD = re.compile(r"\w+")
_MASK = (1 << 64) - 1
_BYTE_BASE, _WORD_BASE = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93  # odd: they have inverses modulo 2^64


def text_batches(texts: Sequence[str]) -> Iterator[slice]:
    """Slices of ``texts`` of about BATCH_CHARS characters, at least one text each."""
    start = filled = 0
    for i, text in enumerate(texts):
        if filled and filled + len(text) > BATCH_CHARS:
            yield slice(start, i)
            start, filled = i, 0
        filled += len(text)
    if start < len(texts):
        yield slice(start, len(texts))


def hash_words(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(a hash of every word of all texts, uint64 [words], in order; how many words each text has, int64 [texts])."""
    words = [_WORD.findall(text.lower()) for text in texts]
    counts = np.array([len(w) for w in words], np.int64)
    joined = np.frombuffer(" ".join(chain.from_iterable(words)).encode(), np.uint8)
    if not counts.sum():
        return np.empty(0, np.uint64), counts
    ends = np.append(np.flatnonzero(joined == 32), len(joined))
    starts = np.append(0, ends[:-1] + 1)
    powers, inverses = _powers(_BYTE_BASE, len(joined))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum((joined.astype(np.uint64) + np.uint64(1)) * powers)])
    return _mixed((sums[ends] - sums[starts]) * inverses[starts]), counts


def word_runs(words: np.ndarray, counts: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(a hash of every run of ``length`` words, uint64 [runs]; the index of its text, int64 [runs], ascending).

    ``words`` and ``counts`` as :func:`hash_words` gives them. A text of fewer words has none; no run crosses two texts.
    """
    text = np.repeat(np.arange(len(counts)), counts)
    if length == 1:
        return words, text
    first = np.arange(max(0, len(words) - length + 1))
    first = first[text[first] == text[first + length - 1]] if len(first) else first
    powers, inverses = _powers(_WORD_BASE, len(words))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(words * powers)])
    return _mixed((sums[first + length] - sums[first]) * inverses[first] + np.uint64(length)), text[first]


def _powers(base: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(base^i, base^-i) modulo 2^64 for i < ``length``."""
    size = 1 << max(16, (length - 1).bit_length())
    powers, inverses = _powers_of_size(base, size) if size <= 2 * BATCH_CHARS else _all_powers(base, length)
    return powers[:length], inverses[:length]


def _all_powers(base: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    pair = []
    for factor in (base, pow(base, -1, 1 << 64)):
        factors = np.full(size, factor & _MASK, np.uint64)
        factors[:1] = 1
        pair.append(np.cumprod(factors, dtype=np.uint64))
    return pair[0], pair[1]


_powers_of_size = functools.lru_cache(maxsize=4)(_all_powers)


def _mixed(x: np.ndarray) -> np.ndarray:
    """A bijection of 64 bits after which every bit depends on all others (the finaliser of SplitMix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))
