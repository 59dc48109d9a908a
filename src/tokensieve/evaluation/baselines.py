"""n-gram models as baselines: an undertrained network must not look like a result."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..core import IGNORE_INDEX
from ..data.bos import bos_words
from ..data.corpus import Corpus, open_corpus
from ..data.rows import Rows
from ..data.scored import join_scores
from ..runs.errors import UserError
from .ngram import NGram, sample_rows
from .sums import Sums

# name -> its order
NGRAMS = {"unigram": 1, "trigram": 3}


def baseline_figures(baselines: Sequence[str], sets: Mapping[str, Corpus]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(baseline, set, figures): n-gram models counted on the baseline corpora, on exactly the target positions of the neural
    evaluation.

    Counted on a sample, their figures also say of how many tokens of how many. UserError for a corpus whose tokenizer or BOS is
    another's.
    """
    if not baselines:
        return
    corpora = [open_corpus(folder, verify="size") for folder in baselines]
    vocab_size = max(c.vocab_size for c in [*corpora, *sets.values()])
    for corpus in [*corpora, *sets.values()]:
        if corpus.tokenizer_hash != corpora[0].tokenizer_hash:
            raise UserError(f"baselines: {corpus.folder} has another tokenizer than {corpora[0].folder}")
        if corpus.bos_id != corpora[0].bos_id:
            both = f"{bos_words(corpus.bos_id)}, those of {corpora[0].folder} with {bos_words(corpora[0].bos_id)}"
            raise UserError(f"baselines: the documents of {corpus.folder} begin with {both}")
    sizes = [c.row_tokens() for c in corpora]
    drawn = sample_rows(sizes)
    text = [ids for corpus, rows in zip(corpora, drawn, strict=True) for ids in corpus.contexts(rows)]
    has_bos = corpora[0].bos_id is not None
    outcomes = (
        [o for corpus, rows in zip(corpora, drawn, strict=True) for o in corpus.outcomes(rows)] if has_bos else None
    )
    total = sum(int(s.sum(dtype="int64")) for s in sizes)
    told = {} if drawn[0] is None else {"counted_tokens": sum(map(len, text)), "counted_of": total}
    if told:
        print(f"n-gram baselines from a sample of {told['counted_tokens']:,} of {total:,} tokens", file=sys.stderr)
    for label, order in NGRAMS.items():
        ngram = NGram.fit(text, vocab_size, order, outcomes)
        for name, corpus in sets.items():
            sums, rows = Sums(corpus), Rows(join_scores(corpus, verify=None))
            for index in range(corpus.num_rows):
                sums.add(index, _target_nll(ngram, rows[index]))
            for record in sums.records():
                yield label, name, {**record, **told}


def _target_nll(ngram: Any, row: Any) -> np.ndarray:
    """nll of a row's targets, NaN elsewhere: the masks and the contexts of the neural evaluation."""
    ids_T = row["input_ids"].numpy()
    pieces = np.split(ids_T, np.flatnonzero(row["position_ids"].numpy() == 0)[1:]) if "position_ids" in row else [ids_T]
    nll_T = np.concatenate([ngram.nll(ids) for ids in pieces])
    labels_T = row["labels"].numpy()
    return np.where(labels_T == IGNORE_INDEX, np.nan, nll_T)
