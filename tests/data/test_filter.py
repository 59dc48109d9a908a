"""Documents -> tables: runs of words, signatures, shares and ranks, each against its definition written as a loop."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokensieve.data.filter.dedup import Signatures
from tokensieve.data.filter.judge import Keep, buckets_of
from tokensieve.data.filter.words import hash_words, text_batches, word_runs
from tokensieve.data.read.documents import Document
from tokensieve.runs.errors import UserError

TEXTS = [
    "The cat sat. The cat sat, the CAT sat!",
    "",
    "... --- !!!",
    "Ärger über Öl; ärger ÜBER öl",
    "a b c d e f g h i j k l m n",
    "cat",
    "b c d e",
    "x_1 = 2\n\nreturn x_1",
]


def words_of(text: str) -> list[str]:
    return re.findall(r"[^\W]+", text.lower())


@pytest.mark.parametrize("length", [1, 2, 5, 13])
def test_runs_are_equal_where_their_words_are(length: int) -> None:
    """A run that crossed from one text into the next, or a punctuation mark that made a word another one."""
    hashes, of = word_runs(*hash_words(TEXTS), length)
    expected = [
        (i, tuple(words[k : k + length]))
        for i, words in enumerate(map(words_of, TEXTS))
        for k in range(len(words) - length + 1)
    ]
    assert of.tolist() == [i for i, _ in expected]
    meaning: dict[int, tuple[str, ...]] = {}
    for h, (_, words) in zip(hashes.tolist(), expected, strict=True):
        assert meaning.setdefault(h, words) == words
    assert len(set(meaning.values())) == len(meaning)  # equal words have one hash


def test_a_batch_changes_no_hash() -> None:
    """A power of the base that depended on where in the batch a word stood."""
    together, counts = hash_words(TEXTS)
    apart = [hash_words([text])[0] for text in TEXTS]
    assert together.tolist() == np.concatenate(apart).tolist()
    assert counts.tolist() == [len(words_of(text)) for text in TEXTS]
    long = ["word " * 150_000, "a", "b " * 400_000, "c"]
    cut = list(text_batches(long))
    assert [text for some in cut for text in long[some]] == long
    assert len(cut) > 1


def planted(share: float, rng: np.random.Generator, words: int = 400) -> tuple[str, str]:
    """A text, and one with this share of its words replaced."""
    text = [f"w{i}" for i in rng.integers(0, 5000, words)]
    other = list(text)
    for i in rng.choice(words, int(share * words), replace=False):
        other[i] = f"v{rng.integers(0, 5000)}"
    return " ".join(text), " ".join(other)


def jaccard(one: str, other: str, run: int) -> float:
    sets = [
        {tuple(w[i : i + run]) for i in range(len(w) - run + 1)} or {tuple(w)} for w in (words_of(one), words_of(other))
    ]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@pytest.mark.parametrize("share", [0.0, 0.01, 0.03, 0.1])
def test_signatures_estimate_the_jaccard_similarity(share: float) -> None:
    rng = np.random.default_rng(int(share * 100))
    pairs = [planted(share, rng) for _ in range(20)]
    documents = [Document(str(i), "s", "", text) for i, text in enumerate(t for pair in pairs for t in pair)]
    found = Signatures(5, 128)(documents)
    for i, pair in enumerate(pairs):
        true = jaccard(*pair, 5)
        estimate = float((found["minhash"][2 * i] == found["minhash"][2 * i + 1]).mean())
        assert abs(estimate - true) <= 4.5 * math.sqrt(true * (1 - true) / 128) + 1e-9


def test_a_text_shorter_than_a_run_is_a_run() -> None:
    texts = ["one two", "One, two!", "one three", "", "?!"]
    found = Signatures(5, 64)([Document(str(i), "s", "", t) for i, t in enumerate(texts)])
    assert found["runs"].tolist() == [1, 1, 1, 0, 0]
    assert (found["minhash"][0] == found["minhash"][1]).all()
    assert (found["minhash"][0] != found["minhash"][2]).mean() > 0.9


@pytest.mark.parametrize(("size", "buckets"), [(0, 20), (1, 20), (7, 20), (100, 20), (103, 20), (1000, 7)])
def test_buckets_are_of_equal_size(size: int, buckets: int) -> None:
    """Scores of a classifier pile up at 0 and 1: by their values all of them were in two buckets."""
    score = np.random.default_rng(0).integers(0, 5, size).astype(np.float32)
    found = buckets_of(score, buckets)
    ranked = sorted(range(size), key=lambda i: (score[i], i))
    assert found.tolist() == [buckets * ranked.index(i) // size for i in range(size)]
    counts = np.bincount(found, minlength=buckets)
    assert counts.max(initial=0) - counts.min() <= 1


class Found:
    """What of ``Measured`` a share is taken over."""

    def __init__(self, sources: list[str]) -> None:
        self.sources = sorted(set(sources))
        self.source = np.array([self.sources.index(s) for s in sources], np.int32)


def kept(keep: Keep, score: list[float], sources: list[str]) -> tuple[list[int], list[str]]:
    found: Any = Found(sources)
    made = keep.judge(np.array(score, np.float32), found)
    return made.times.tolist(), list(made.why(np.arange(len(score))))


@pytest.mark.parametrize("by_source", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.35, 0.5, 1.0])
def test_a_share_is_exact(share: float, reverse: bool, by_source: bool) -> None:
    rng = np.random.default_rng(3)
    score = rng.integers(0, 6, 101).astype(float).tolist()  # ties everywhere
    sources = [f"s{i}" for i in rng.integers(0, 3, 101)]
    times, why = kept(Keep(share, by_source=by_source, reverse=reverse), score, sources)
    expected = [0] * 101
    for group in sorted(set(sources)) if by_source else ["all"]:
        mine = [i for i in range(101) if not by_source or sources[i] == group]
        best = sorted(mine, key=lambda i: (score[i] if reverse else -score[i], i))
        for i in best[: math.floor(share * len(mine) + 0.5)]:
            expected[i] = 1
    assert times == expected
    assert [bool(w) for w in why] == [not t for t in times]


def test_shares_and_thresholds_by_group() -> None:
    score = [1.0, 2.0, 3.0, 4.0, 5.0, float("nan")]
    sources = ["de", "de", "fr", "fr", "en", "en"]
    groups = {"continent": ["de", "fr"]}
    shares: dict[str, float] = {"continent": 0.5, "en": 1.0}
    assert kept(Keep(shares, groups=groups), score, sources)[0] == [0, 0, 1, 1, 1, 1]
    assert kept(Keep(None, {"continent": 2.0, "en": 9.0}, groups=groups), score, sources)[0] == [0, 1, 1, 1, 0, 0]
    assert kept(Keep(threshold=2.0, reverse=True), score, sources)[0] == [1, 1, 0, 0, 0, 0]
    assert kept(Keep(repeat={3: 2, 5: 10}), score, sources)[0] == [1, 1, 2, 1, 10, 1]
    with pytest.raises(UserError, match="share: 'en' is not given"):
        kept(Keep({"continent": 0.5}, groups=groups), score, sources)
    with pytest.raises(UserError, match="threshold: 'it' is of no document"):
        kept(Keep(threshold={"de": 1, "fr": 1, "en": 1, "it": 1}), score, sources)
    with pytest.raises(UserError, match="groups: no document is of source 'it'"):
        kept(Keep(0.5, groups={"x": ["it"]}), score, sources)


def test_no_words_no_runs(tmp_path: Path) -> None:
    hashes, of = word_runs(*hash_words(["", "?"]), 3)
    assert len(hashes) == len(of) == 0
