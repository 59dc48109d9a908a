"""Copies and near copies: MinHash signatures [Broder 1997], bands, and one document of each cluster.

Two documents with a share s of runs in common (Jaccard) agree in each of ``hashes`` entries with probability s, and in all r
entries of one of b bands with probability 1 - (1 - s^r)^b; datasketch chooses b and r. What a band brings together is compared
by whole signatures, so a band's false alarms cost time and drop nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...runs.errors import UserError
from ..read.documents import Document
from .judge import Judgement
from .measured import Measured, chunks
from .options import Dedup
from .table import document_text
from .words import hash_words, text_batches, word_runs

SIGNATURE = "minhash"
_PAIRS = 1 << 14  # compared at a time: 16 MB of signatures of 128 hashes
_RUNS = 1 << 13  # of one document hashed at a time: 8 MB
_ROUNDS = 8  # documents of a band's bucket that the others are compared with, one after another


class Signatures:
    """Documents -> ``minhash`` uint32 [documents, hashes], ``runs`` int32: how many runs of words each has."""

    def __init__(self, run: int, hashes: int) -> None:
        self.run, self.hashes = run, hashes
        _minhash(hashes)  # a missing library is told before anything is read

    def __call__(self, found: Sequence[Document]) -> dict[str, Any]:
        texts = [document_text(d) for d in found]
        signatures, numbers = np.empty((len(texts), self.hashes), np.uint32), np.zeros(len(texts), np.int32)
        empty = _minhash(self.hashes)
        for some in text_batches(texts):
            words, counts = hash_words(texts[some])
            run_hashes, of = word_runs(words, counts, self.run)
            bounds = np.searchsorted(of, np.arange(len(counts) + 1))
            ends = np.cumsum(counts)
            for i, count in enumerate(counts.tolist()):
                mine = run_hashes[bounds[i] : bounds[i + 1]]
                if 0 < count < self.run:  # of a text shorter than a run, the text is the run
                    mine = word_runs(words[ends[i] - count : ends[i]], np.array([count]), count)[0]
                made = empty.copy()
                for lo in range(0, len(mine), _RUNS):
                    made.update_batch((mine[lo : lo + _RUNS] >> np.uint64(32)).tolist())
                signatures[some.start + i], numbers[some.start + i] = made.hashvalues, len(mine)
        return {SIGNATURE: signatures, "runs": numbers}


def no_signatures(found: Sequence[Document]) -> dict[str, Any]:
    """For exact copies the hash of the text is enough, which every document has."""
    return {}


@functools.cache
def _minhash(hashes: int) -> Any:
    """An empty MinHash; it takes hashes of 32 bits as they are."""
    try:
        from datasketch import MinHash
    except ImportError:
        raise UserError("dedup.method minhash needs datasketch: pip install 'tokensieve[filter]'") from None
    return MinHash(hashes, seed=1, hashfunc=int)


def bands_of(similarity: float, hashes: int) -> tuple[int, int]:
    """(bands, rows of each) by which false alarms and misses around ``similarity`` are fewest, as datasketch's LSH has them."""
    from datasketch import MinHashLSH

    made = MinHashLSH(similarity, hashes)
    return int(made.b), int(made.r)


def judge_copies(options: Dedup, measured: Measured) -> Judgement:
    """Of equal texts the first of the table is kept. Of near copies likewise: bands join documents to components; in each the
    first is kept, those at least ``similarity`` like it are dropped, and so on with what is left. So each dropped document is
    that similar to the one that its row names, and no two kept ones of a component are.

    Score: the estimated similarity to the document that is kept instead; none for one that is kept.
    """
    scope = measured.source if options.across == "source" else np.zeros(len(measured), np.int32)
    original = _first_of(measured.text_hash, scope)
    score = np.where(original == np.arange(len(original)), np.nan, 1.0).astype(np.float32)
    exact = int((~np.isnan(score)).sum())
    told: dict[str, Any] = {"exact_copies": exact}
    if options.method == "minhash":
        bands, rows = bands_of(options.similarity, options.hashes)
        there = np.flatnonzero(np.isnan(score) & (measured.numbers("runs") > 0))
        component = _components(measured, there, scope, bands, rows, options)
        near, kept, similarity = _near_copies(measured, there, component, options.similarity)
        original[near], score[near] = kept, similarity
        told |= {"near_copies": len(near), "bands": bands, "rows": rows}

    def why(indices: np.ndarray) -> list[str]:
        dropped = indices[original[indices] != indices]
        of = original[dropped]
        for _ in range(2):  # an exact copy of a near copy
            of = original[of]
        names = zip(measured.take("source", of).to_pylist(), measured.take("id", of).to_pylist(), strict=True)
        said = {
            i: f"{'copy' if same else f'near copy ({score[i]:.2f})'} of {source} {key}"
            for i, same, (source, key) in zip(
                dropped.tolist(), (measured.text_hash[dropped] == measured.text_hash[of]).tolist(), names, strict=True
            )
        }
        return [said.get(i, "") for i in indices.tolist()]

    times = (original == np.arange(len(original))).astype(np.int16)
    return Judgement(score, times, why, told)


def _first_of(values: np.ndarray, scope: np.ndarray) -> np.ndarray:
    """The first index with the same value in the same scope, of each. int64 [N]"""
    order = np.lexsort((values, scope))  # stable: equal ones stay in order
    new = np.append(True, (values[order][1:] != values[order][:-1]) | (scope[order][1:] != scope[order][:-1]))
    first = np.empty(len(values), np.int64)
    if len(values):
        first[order] = order[np.flatnonzero(new)[np.cumsum(new) - 1]]
    return first


def _components(
    measured: Measured, there: np.ndarray, scope: np.ndarray, bands: int, rows: int, options: Dedup
) -> np.ndarray:
    """A number for each of the documents ``there``, equal where pairs that are similar enough join them. [M]

    Band by band: held are a hash, an order and a number a document. In a bucket all are compared with its first document, the
    others with the first of the others, at most _ROUNDS times; what is joined already is not compared again.
    """
    label = np.arange(len(there))
    for band in range(bands):
        value = _band_hashes(measured, there, slice(band * rows, (band + 1) * rows))
        value ^= scope[there].astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        order = np.argsort(value, kind="stable")
        again = value[order][1:] == value[order][:-1]
        left = order[np.append(again, False) | np.append(False, again)] if len(order) else order
        for _ in range(_ROUNDS):
            head = _heads(value[left])
            pair = (left[head], left)
            pair, rest = _apart(pair, label)
            if not len(pair[0]):
                break
            close = similarities(measured, there[pair[0]], there[pair[1]]) >= options.similarity
            label = _joined(label, pair[0][close], pair[1][close])
            left = left[rest][~close]
    return label


def _heads(values: np.ndarray) -> np.ndarray:
    """Of sorted values: where the first equal one stands, of each."""
    new = np.append(True, values[1:] != values[:-1])[: len(values)]
    return np.flatnonzero(new)[np.cumsum(new) - 1] if len(values) else np.empty(0, np.int64)


def _apart(pair: tuple[np.ndarray, np.ndarray], label: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """(the pairs that are not joined yet, where they stood)."""
    rest = np.flatnonzero(label[pair[0]] != label[pair[1]])
    return (pair[0][rest], pair[1][rest]), rest


def _joined(label: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not len(one):
        return label
    size = len(label)
    graph = coo_array((np.ones(len(one), np.int8), (label[one], label[other])), (size, size))
    return np.asarray(connected_components(graph, directed=False)[1][label])


def _band_hashes(measured: Measured, there: np.ndarray, columns: slice) -> np.ndarray:
    """A hash of so many entries of each signature, uint64 [M]."""
    factors = np.array(
        [pow(0xD6E8FEB86659FD93, k + 1, 1 << 64) for k in range(columns.stop - columns.start)], np.uint64
    )
    found = np.empty(len(there), np.uint64)
    for some in chunks(len(there), _PAIRS):
        part = measured.matrix(SIGNATURE, there[some])[:, columns].astype(np.uint64)
        found[some] = (part * factors).sum(1, np.uint64)
    return found * np.uint64(0xBF58476D1CE4E5B9)


def similarities(measured: Measured, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Share of equal entries of two signatures, of each pair: an estimate of their Jaccard similarity. float32 [pairs]"""
    found = np.empty(len(one), np.float32)
    for some in chunks(len(one), _PAIRS):
        found[some] = (measured.matrix(SIGNATURE, one[some]) == measured.matrix(SIGNATURE, other[some])).mean(1)
    return found


def _near_copies(
    measured: Measured, there: np.ndarray, component: np.ndarray, similarity: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(documents that are dropped, the one kept instead of each, their similarity)."""
    dropped, kept, similar = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    left = _several(component)
    while len(left):
        head = _heads(component[left])
        waiting = np.flatnonzero(head != np.arange(len(left)))
        one, other = there[left[head[waiting]]], there[left[waiting]]
        close = similarities(measured, one, other)
        drop = close >= similarity
        dropped.append(other[drop])
        kept.append(one[drop])
        similar.append(close[drop])
        left = left[waiting[~drop]]
    return np.concatenate(dropped), np.concatenate(kept), np.concatenate(similar)


def _several(component: np.ndarray) -> np.ndarray:
    """Indices in components of more than one document, sorted by component, within it in order."""
    order = np.argsort(component, kind="stable")
    again = component[order][1:] == component[order][:-1]
    return order[np.append(again, False) | np.append(False, again)] if len(order) else order
