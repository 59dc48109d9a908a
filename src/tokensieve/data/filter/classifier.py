"""A linear model of hashed runs of words: is a document of the text that is wanted, or which number would it be labelled with?

features of a document: log(1 + count) of each run of 1 ... ``run`` words, hashed into 2^bits places, divided by their norm
classifier              p = 1 / (1 + exp(-(w x + b))), logistic regression, both sides weighing the same
labels                  w x + b, ridge regression

DCLM (arXiv 2406.11794) does this with fastText: word bigrams hashed into buckets, embedded, averaged, a softmax of two classes.
A linear model of the runs themselves has no embedding to learn and a single optimum, so it does not depend on the order of its
training text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...runs.errors import UserError
from ..read.documents import Document
from ..read.readers import sampled_documents
from ..read.source import Source, split_position
from .options import Classifier
from .table import document_key, document_text
from .words import hash_words, text_batches, word_runs

HELD_OUT = 0.1  # of the training text, by a hash of each text: what quality is told of
_STRENGTH = 10.0  # inverse of the penalty on weights of documents of norm 1
_RIDGE = 1.0


class LinearText:
    """Documents -> ``score`` float32. Made by :func:`fit_text`."""

    def __init__(self, run: int, bits: int, weights: np.ndarray, bias: float, *, labels: bool) -> None:
        self.run, self.bits, self.weights, self.bias, self.labels = run, bits, weights, bias, labels

    def __call__(self, found: Sequence[Document]) -> dict[str, Any]:
        texts = [document_text(d) for d in found]
        score = np.empty(len(texts), np.float64)
        for some in text_batches(texts):
            score[some] = features(texts[some], self.run, self.bits) @ self.weights + self.bias
        return {"score": (score if self.labels else 1 / (1 + np.exp(-score))).astype(np.float32)}


def features(texts: Sequence[str], run: int, bits: int) -> Any:
    """A sparse matrix [texts, 2^bits], float64, rows of norm 1 (0 for a text without words)."""
    from scipy.sparse import csr_array
    from sklearn.preprocessing import normalize

    words, counts = hash_words(texts)
    found = [word_runs(words, counts, n) for n in range(1, run + 1)]
    places = np.concatenate([h >> np.uint64(64 - bits) for h, _ in found]).astype(np.int32)
    rows = np.concatenate([of for _, of in found])
    made = csr_array((np.ones(len(rows)), (rows, places)), (len(texts), 1 << bits))
    made.sum_duplicates()
    made.data = np.log1p(made.data)
    return normalize(made, copy=False)


def fit_text(
    options: Classifier, positive: Sequence[Source], negative: Sequence[Source], seed: int, unit_bytes: int
) -> tuple[LinearText, dict[str, Any]]:
    """The model, and what it came to on held-out text: ``auc``, or of labels ``rank_correlation`` and ``mean_error``.

    Equal texts count once, and in the order of their hashes: the order of the training text is nothing. A text on both sides is
    one that is wanted. UserError where there is too little text, or where only some rows have labels.
    """
    _check_library()
    wanted = _training_texts(positive, options.training_bytes, seed, unit_bytes)
    labels = [label for _, label in wanted.values()]
    if any(label is not None for label in labels):
        if None in labels:
            raise UserError("classifier.positive: some rows have a label, and some have not")
        if negative:
            raise UserError("classifier: labelled rows need no negative text: leave classifier.negative out")
        return _fit(options, {h: (text, float(y)) for h, (text, y) in wanted.items()}, labelled=True)  # type: ignore[arg-type]
    other = _training_texts(negative, options.training_bytes, seed, unit_bytes)
    # Of a sample of the sources themselves: what is wanted does not count against itself.
    sides = {h: (text, 0.0) for h, (text, _) in other.items()} | {h: (text, 1.0) for h, (text, _) in wanted.items()}
    return _fit(options, sides, labelled=False)


def _fit(
    options: Classifier, texts: dict[int, tuple[str, float]], *, labelled: bool
) -> tuple[LinearText, dict[str, Any]]:
    from sklearn.linear_model import LogisticRegression, Ridge

    order = sorted(texts)
    held = np.array([split_position(f"held out\n{h}") < HELD_OUT for h in order])
    y = np.array([texts[h][1] for h in order])
    few = min(int((y[~held] == v).sum()) for v in (0, 1)) if not labelled else int((~held).sum())
    if few < 10:
        raise UserError(f"classifier: {few} training documents of a side are too few: at least 10 of each are needed")
    x = _all_features([texts[h][0] for h in order], options)
    used = np.unique(x[~held].indices)  # the other weights end at 0 either way, and a step over 2^20 of them is slow
    known = x[~held][:, used]
    if labelled:
        model = Ridge(_RIDGE, solver="sparse_cg", tol=1e-5)
        model.fit(known, y[~held], _balanced(y[~held]) if options.balance else None)
    else:
        model = LogisticRegression(C=_STRENGTH, class_weight="balanced", max_iter=300)
        model.fit(known, y[~held])
    weights, bias = np.zeros(x.shape[1], np.float32), float(np.asarray(model.intercept_).reshape(-1)[0])
    weights[used] = np.asarray(model.coef_).reshape(-1)
    made = LinearText(options.run, options.bits, weights, bias, labels=labelled)
    return made, _quality(x[held] @ weights + bias, y[held], labelled) | {
        "trained_on": int((~held).sum()),
        "held_out": int(held.sum()),
    }


def _all_features(texts: Sequence[str], options: Classifier) -> Any:
    from scipy.sparse import vstack

    return vstack([features(texts[some], options.run, options.bits) for some in text_batches(texts)], "csr")


def _balanced(y: np.ndarray) -> np.ndarray:
    """Weights under which every rounded label has the same sum: n / (labels * count of the label)."""
    _, which, counts = np.unique(np.rint(y), return_inverse=True, return_counts=True)
    return len(y) / (len(counts) * counts[which])


def _quality(score: np.ndarray, y: np.ndarray, labelled: bool) -> dict[str, Any]:
    """None where the held-out text cannot say."""
    from scipy.stats import spearmanr
    from sklearn.metrics import roc_auc_score

    if not labelled:
        return {"auc": float(roc_auc_score(y, score)) if 0 < y.sum() < len(y) else None}
    varied = len(y) > 2 and len(np.unique(y)) > 1 and len(np.unique(score)) > 1
    correlation = float(spearmanr(y, score).statistic) if varied else None
    return {"rank_correlation": correlation, "mean_error": float(np.abs(score - y).mean()) if len(y) else None}


def _check_library() -> None:
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise UserError("filter --kind classifier needs scikit-learn: pip install 'tokensieve[filter]'") from None


def _training_texts(
    sources: Sequence[Source], size: int, seed: int, unit_bytes: int
) -> dict[int, tuple[str, float | None]]:
    """hash of a text -> (text, its label): a seeded sample of ``size`` bytes, shared out evenly over the sources."""
    found: dict[int, tuple[str, float | None]] = {}
    for source in sources:
        share = min(source.config.max_bytes or size, size // len(sources))
        for document in sampled_documents(
            replace(source, seed=seed, config=replace(source.config, max_bytes=share)), unit_bytes
        ):
            text = document_text(document)
            key, label = document_key(document)[0], document.label
            earlier = found.get(key, (text, label))[1]  # labelled twice: the lower label, in any order
            found[key] = (text, label if earlier is None or label is None else min(label, earlier))
    return found
