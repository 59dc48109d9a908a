"""What a measure is given and what it gives: a model at one point of its training, and records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...data.bos import expected
from ...data.corpus import Corpus
from ...data.tokenizer import Encoder, load_tokenizer, token_bytes, tokenizer_folder
from ...modeling.checkpoints import Checkpoint
from ...modeling.folder import model_folder
from ...modeling.load import check_vocabulary, max_positions
from ...runs.layout import METRICS, log_lines
from ...scoring.engine import Scorer
from ...scoring.texts import nll_of_pieces

MeasureRecord = dict[str, Any]


@dataclass
class ModelFigures:
    """Records of a model, and lines of a file of its own where there is more to tell than figures."""

    records: list[MeasureRecord]
    lines: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Subject:
    """A model at one point of its training. ``folder``: as the user named it."""

    target: Checkpoint
    folder: str
    model: Any
    sets: Mapping[str, Corpus]
    device: str | None = None
    batch_rows: int = 0

    @cached_property
    def scorer(self) -> Scorer:
        return Scorer(self.model, device=self.device, batch_rows=self.batch_rows)

    @cached_property
    def encoder(self) -> Encoder:
        """Of the tokenizer that lies with the model. UserError where none does, or it is another vocabulary's."""
        of = tokenizer_folder(model_folder(self.target.folder))
        tokenizer = load_tokenizer(of)
        encoder = Encoder(Path(of) / "tokenizer.json", int(tokenizer.eos_token_id), token_bytes(tokenizer))
        check_vocabulary(self.model, encoder.vocab_size, str(self.target.folder))
        return encoder

    @cached_property
    def start(self) -> int:
        """What stands before a text, so that its first token has a prediction: BOS, or the EOS of a document before it."""
        bos = expected(self.target.folder)
        return self.encoder.eos_id if bos is None or bos.id is None else bos.id

    @cached_property
    def no_text(self) -> frozenset[int]:
        """Ids that stand for no text: EOS, BOS, padding and what else the tokenizer calls special."""
        tokenizer = load_tokenizer(tokenizer_folder(model_folder(self.target.folder)))
        return frozenset({self.encoder.eos_id, self.start, *tokenizer.all_special_ids})

    @property
    def longest(self) -> int | None:
        return max_positions(self.model.config.get_text_config())

    def nll(self, pieces: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Of each piece, the nll of its tokens given those before them in it, float64 [T]; NaN for the first."""
        return nll_of_pieces(self.scorer, pieces)

    @cached_property
    def rates(self) -> dict[int, float]:
        """step -> the learning rate that it was done with, of the run that the model comes from; at the steps it logged."""
        folder = Path(self.target.folder)
        run = next((f for f in (folder, folder.parent) if (f / METRICS).is_file()), folder)
        return {line["step"]: line["learning_rate"] for line in log_lines(run / METRICS) if "learning_rate" in line}


def record(metric: str, value: float | None, stderr: float | None = None, **more: Any) -> MeasureRecord:
    """One figure; null for what is not finite. ``on``: what it is of."""
    return {"metric": metric, "value": _finite(value), "stderr": _finite(stderr), **more}


def mean_record(metric: str, values: Any, **more: Any) -> MeasureRecord:
    """The mean of independent values and its standard error; null where there are too few."""
    found = np.asarray(values, float)
    n = len(found)
    error = float(found.std(ddof=1) / n**0.5) if n > 1 else None
    return record(metric, float(found.mean()) if n else None, error, n=n, **more)


def _finite(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)
