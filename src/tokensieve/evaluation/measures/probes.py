"""Copy and induction scores: how much a model makes of what stands in its context already.

    copy_nll    mean nll of the copies after the first, of a sequence that stands there ``copies`` times   [2205.10487, 3.2]
    copy_gain   mean nll of the first copy - copy_nll: what the repetition is worth, nats a token
    induction   mean attention weight on what followed a token's last occurrence (prefix matching), of the best heads

"Scaling Laws and Interpretability of Learning from Repeated Data", arXiv 2205.10487: repeated training data cost copying and
induction heads more than their share. Its copied paragraph is text; here both random tokens and text of the sets. The
induction score is that of ``scoring/retrieval.py`` [AttentionInfluence].
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from ...data.corpus import Corpus
from ...data.list_columns import list_values
from ...runs.errors import UserError
from ...scoring.retrieval import RetrievalHeads
from .options import ProbeOptions
from .subject import MeasureRecord, ModelFigures, Subject, mean_record, record


def probes(subject: Subject, options: ProbeOptions) -> ModelFigures:
    """Of random tokens, and of the first rows of each set. UserError where a sequence does not fit into the context."""
    if options.rows < 1 or options.tokens < 2 or options.copies < 2:
        raise UserError("probes: rows must be at least 1, tokens and copies at least 2")
    long = options.tokens * options.copies + 1
    if subject.longest is not None and long > subject.longest:
        raise UserError(
            f"probes: {options.copies} copies of {options.tokens} tokens are {long - 1}, and {subject.target.folder} has a "
            f"context of {subject.longest}: give fewer probes.tokens"
        )
    sequences = {"random": random_sequences(options, subject.encoder.vocab_size, subject.no_text)}
    for name, corpus in subject.sets.items():
        sequences[name] = text_sequences(options, corpus, subject.no_text)
    records = [r for on, found in sequences.items() for r in _copying(subject, options, found, on)]
    return ModelFigures([*records, *_induction(subject, options)])


def random_sequences(options: ProbeOptions, vocab_size: int, without: Collection[int]) -> list[list[int]]:
    """Sequences of tokens drawn alike, none of them ``without``: BOS, EOS and the like would begin or end a text."""
    rng = np.random.default_rng(options.seed)
    there = np.setdiff1d(np.arange(vocab_size), np.array(sorted(without), np.int64))
    found: list[list[int]] = there[rng.integers(0, len(there), (options.rows, options.tokens))].tolist()
    return found


def text_sequences(options: ProbeOptions, corpus: Corpus, without: Collection[int]) -> list[list[int]]:
    """Of the first rows that have so much the first tokens of one text, without what begins, ends or fills up a row."""
    found: list[list[int]] = []
    for i in range(corpus.num_rows):
        run: list[int] = []
        for token in list_values(corpus.rows, "input_ids", i, i + 1)[0].tolist():
            run = [] if token in without else [*run, token]
            if len(run) == options.tokens:
                found.append(run)
                break
        if len(found) == options.rows:
            break
    return found


def _copying(subject: Subject, options: ProbeOptions, sequences: list[list[int]], on: str) -> Iterator[MeasureRecord]:
    nll = subject.nll([[subject.start, *s * options.copies] for s in sequences])
    by_copy = np.array([x[1:].reshape(options.copies, -1).mean(1) for x in nll]).reshape(-1, options.copies)
    later = by_copy[:, 1:].mean(1)
    yield mean_record("copy_nll", later, on=on)
    yield mean_record("copy_gain", by_copy[:, 0] - later, on=on)


def _induction(subject: Subject, options: ProbeOptions) -> Iterator[MeasureRecord]:
    heads = RetrievalHeads(subject.scorer.model, options.heads, options.seed)
    try:
        chosen = np.array([float(heads.score[at]) for at in heads.heads])
        best = [int(i) for i in heads.heads[0]]
    finally:
        heads.close()
    yield record("induction", float(chosen.mean()), on="random", heads=len(chosen), best=best)
