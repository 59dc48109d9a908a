"""Documents that share a run of words with an evaluation set [GPT-3, arXiv 2005.14165, appendix C]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ...runs.errors import UserError
from ..read.documents import Document
from ..read.readers import sampled_documents
from ..read.source import Source
from .judge import Judgement
from .measured import Measured
from .options import Decontaminate
from .table import document_text
from .words import hash_words, text_batches, word_runs

MAX_LISTED = 100  # evaluation documents of a set whose ids the manifest lists


class EvaluationRuns:
    """All runs of words of the evaluation sets: 16 bytes each, 4 more for each further document that has it; and a table of
    bits that keeps most look-ups short."""

    def __init__(self, sources: Sequence[Source], run: int, unit_bytes: int) -> None:
        found = sorted((d.source, d.id, document_text(d)) for s in sources for d in sampled_documents(s, unit_bytes))
        self.run = run
        self.names = [(source, key) for source, key, _ in found]
        """(set, id) of each evaluation document."""
        hashes, owners, self.too_short = [np.empty(0, np.uint64)], [np.empty(0, np.int32)], dict.fromkeys(self.sets, 0)
        for some in text_batches(texts := [text for *_, text in found]):
            words, counts = hash_words(texts[some])
            run_hashes, of = word_runs(words, counts, run)
            hashes.append(run_hashes)
            owners.append((of + some.start).astype(np.int32))
            for i in np.flatnonzero(counts < run):
                self.too_short[self.names[some.start + int(i)][0]] += 1
        self._set_runs(np.concatenate(hashes), np.concatenate(owners))
        if not len(self.hashes):
            raise UserError(f"decontaminate.against: no document of the evaluation sets has {run} words")
        self.shift = np.uint64(64 - min(26, max(16, (16 * len(self.hashes)).bit_length())))
        self._set_bits()

    def _set_runs(self, hashes: np.ndarray, owner: np.ndarray) -> None:
        """The runs in order, and of each all documents that have it: of run i those from ``start[i]`` to ``start[i + 1]``."""
        order = np.lexsort((owner, hashes))
        hashes, self.owner = hashes[order], owner[order]
        self.hashes, first = np.unique(hashes, return_index=True)
        self.start = np.append(first, len(hashes)).astype(np.int32)

    def _set_bits(self) -> None:
        self.bits = np.zeros(1 << (64 - int(self.shift)), bool)
        self.bits[self.hashes >> self.shift] = True

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "bits"}  # each unit brings them to its worker

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._set_bits()

    @property
    def sets(self) -> list[str]:
        return sorted({source for source, _ in self.names})

    def __call__(self, found: Sequence[Document]) -> dict[str, Any]:
        """``shared``: runs of each document that stand in an evaluation set, int32; ``owners``: all documents that have one."""
        texts = [document_text(d) for d in found]
        shared, owners = np.zeros(len(texts), np.int32), [np.empty(0, np.int32)] * len(texts)
        for some in text_batches(texts):
            run_hashes, of = word_runs(*hash_words(texts[some]), self.run)
            maybe = np.flatnonzero(self.bits[run_hashes >> self.shift])
            at = np.minimum(np.searchsorted(self.hashes, run_hashes[maybe]), len(self.hashes) - 1)
            hit = self.hashes[at] == run_hashes[maybe]
            of, at = of[maybe[hit]] + some.start, at[hit]
            np.add.at(shared, of, 1)
            for i in np.unique(of):
                runs = np.unique(at[of == i])
                owners[i] = np.unique(np.concatenate([self.owner[self.start[r] : self.start[r + 1]] for r in runs]))
        lists = pa.ListArray.from_arrays(
            np.cumsum([0, *map(len, owners)]).astype(np.int32), np.concatenate([*owners, []]).astype(np.int32)
        )
        return {"shared": shared, "owners": lists}


def judge_shared(options: Decontaminate, runs: EvaluationRuns, measured: Measured) -> Judgement:
    """Score: minus the number of shared runs. The manifest tells of each set its documents, those too short to have a run,
    those that some document shares a run with, and the first of their ids."""
    shared = measured.numbers("shared")
    hit = np.flatnonzero(shared)
    lists = dict(zip(hit.tolist(), measured.take("owners", hit).to_pylist(), strict=True))
    told: dict[str, Any] = {}
    found = sorted({owner for owners in lists.values() for owner in owners})
    for name in runs.sets:
        ids = [runs.names[i][1] for i in found if runs.names[i][0] == name]
        told[name] = {
            "documents": sum(source == name for source, _ in runs.names),
            "too_short": runs.too_short[name],
            "found": len(ids),
            "found_ids": ids[:MAX_LISTED],
            "training_documents": sum(any(runs.names[o][0] == name for o in owners) for owners in lists.values()),
        }

    def why(indices: np.ndarray) -> list[str]:
        return [_sentence(int(shared[i]), lists[i], runs) if i in lists else "" for i in indices.tolist()]

    times = np.where((shared > 0) & (options.action == "drop"), 0, 1).astype(np.int16)
    return Judgement(
        -shared.astype(np.float32) + np.float32(0), times, why, {"sets": told, "evaluation_runs": len(runs.hashes)}
    )


def _sentence(shared: int, owners: Sequence[int], runs: EvaluationRuns) -> str:
    name, key = runs.names[owners[0]]
    more = f" and {len(owners) - 1} more" if len(owners) > 1 else ""
    return f"shares {shared} run{'s'[: shared > 1]} of {runs.run} words with {name} {key}{more}"
