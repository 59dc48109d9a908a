"""``filter --kind model``: what a model's nll say of whole documents."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data.filter.measured import Measured
from ..data.filter.options import Measure
from ..data.filter.table import document_text
from ..data.read.documents import Document
from ..data.tokenizer import load_tokenizer, tokenizer_folder
from ..modeling.flops import known_or_none, token_flops
from ..modeling.folder import model_folder
from ..modeling.load import check_tokenizer
from ..scoring.retrieval import RetrievalHeads
from ..scoring.texts import TextScorer
from . import launch


class ModelMeasure:
    """Documents -> ``score`` float32, ``nll`` float32 (mean, nats), ``tokens`` int32.

    perplexity: -nll, so that exp(-score) is the perplexity. excess: nll - ref_nll, means over the same tokens. retrieval:
    (L masked - L) / L, L the nll. NaN for a document without a target.
    """

    def __init__(self, options: Measure, seed: int) -> None:
        launch.check_device(options.device)
        self.options = options
        self.scorer = self._scorer(options.model)
        self.reference = self._scorer(options.reference) if options.reference else None
        if options.reference:
            tokenizer = load_tokenizer(tokenizer_folder(model_folder(options.model)))
            check_tokenizer(options.reference, tokenizer, options.model)
        self.heads = RetrievalHeads(self.scorer.model, options.heads, seed) if options.score == "retrieval" else None

    def _scorer(self, folder: str) -> TextScorer:
        o = self.options
        return TextScorer(
            folder,
            length=o.length,
            max_tokens=o.max_tokens,
            batch_tokens=o.batch_tokens,
            dtype=o.model_dtype,
            device=o.device,
        )

    def __call__(self, found: Sequence[Document]) -> dict[str, Any]:
        texts = [document_text(d) for d in found]
        pieces, of = self.scorer.pieces(texts)
        tokens = np.bincount(of, [len(p) for p in pieces], len(texts)).astype(np.int32)
        nll = self.scorer.mean_nll(texts)
        return {"score": self._score(texts, nll).astype(np.float32), "nll": nll.astype(np.float32), "tokens": tokens}

    def _score(self, texts: Sequence[str], nll: np.ndarray) -> np.ndarray:
        if self.reference is not None:
            return np.asarray(nll - self.reference.mean_nll(texts))
        if self.heads is None:
            return -nll
        with self.heads.masked():
            masked = self.scorer.mean_nll(texts)
        return np.asarray(np.divide(masked - nll, nll, out=np.full(len(nll), np.nan), where=nll > 0))

    def told(self, measured: Measured) -> dict[str, Any]:
        """Further keys of the manifest: tokens read, FLOPs (null where not known), of retrieval the masked heads."""
        tokens = int(measured.numbers("tokens").sum())
        models = [self.scorer.model] * (2 if self.heads else 1) + ([self.reference.model] if self.reference else [])
        flops = sum(token_flops(m, self.options.length).forward(tokens) for m in models)
        heads = {}
        if self.heads is not None:
            heads = {"heads": [[*at, float(self.heads.score[at])] for at in self.heads.heads]}
        return {"tokens": tokens, "flops": known_or_none(flops), **heads}

    def close(self) -> None:
        with contextlib.suppress(AttributeError):
            self.heads.close()  # type: ignore[union-attr]
