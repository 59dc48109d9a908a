"""Sums of nll over an evaluation set, and the figures they come to."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..data.corpus import Corpus
from ..data.pieces import per_token, solution_mask
from ..data.tokenizer import token_bytes


class Sums:
    """(nll, tokens, bytes) sums of a set, over all targets and over those of solutions."""

    def __init__(self, corpus: Corpus) -> None:
        self.rows = corpus.rows.with_format("numpy")
        self.bytes_V = token_bytes(corpus.tokenizer())
        self.exact = bool(corpus.manifest["stats"]["token_bytes_exact"])
        self.sums = {"all": np.zeros(3), "solution": np.zeros(3)}
        self.documents = {on: np.zeros((2, 0)) for on in self.sums}
        """on -> sums of nll and of targets by document. [2, documents]"""
        self.has_solutions = False

    def add(self, index: int, nll_T: np.ndarray) -> None:
        row = self.rows[index]
        names = ("input_ids", "doc_starts", "doc_targets", "doc_ids")
        ids_T, starts, targets, documents = (np.asarray(row[k]) for k in names)
        document_T = per_token(documents, starts, len(ids_T))
        self.has_solutions |= bool((targets != starts).any())
        solution_T = solution_mask(starts, targets, len(ids_T))
        target_T = ~np.isnan(nll_T)
        for on, mask_T in (("all", target_T), ("solution", target_T & solution_T)):
            self.sums[on] += (nll_T[mask_T].sum(dtype=np.float64), mask_T.sum(), self.bytes_V[ids_T[mask_T]].sum())
            self._add_documents(on, document_T[mask_T], nll_T[mask_T])

    def _add_documents(self, on: str, document_N: np.ndarray, nll_N: np.ndarray) -> None:
        more = int(document_N.max(initial=-1)) + 1 - self.documents[on].shape[1]
        if more > 0:
            self.documents[on] = np.pad(self.documents[on], ((0, 0), (0, more)))
        np.add.at(self.documents[on][0], document_N, nll_N.astype(np.float64))
        np.add.at(self.documents[on][1], document_N, 1)

    def records(self) -> Iterator[dict[str, Any]]:
        for on in ("all", "solution") if self.has_solutions else ("all",):
            nll, tokens, num_bytes = self.sums[on].tolist()
            yield {
                "on": on,
                "nll": nll / tokens if tokens else None,
                "bits_per_byte": nll / (math.log(2) * num_bytes) if num_bytes else None,
                "bits_per_byte_exact": self.exact,
                "tokens": round(tokens),
                "bytes": round(num_bytes),
            }
