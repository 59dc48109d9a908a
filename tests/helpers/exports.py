"""What tests of exports begin with: scores by chance, a rule, and the config of an export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from export_readers import Term

from tokensieve.data.corpus import open_corpus
from tokensieve.pipeline import score
from tokensieve.pipeline.configs.export import ExportConfig
from tokensieve.pipeline.configs.score import ScoreConfig

RATIO = 0.4
RULE = {"name": "rho1_low_ref", "ratio": RATIO, "scope": "sequence"}


def made_scores(out: Path, corpus: Path, columns: tuple[str, ...] = ("ref_nll",), seed: int = 0) -> Path:
    """Scores by chance, in whole sixteenths, so that many tie."""
    opened = open_corpus(corpus)
    values = np.random.default_rng(seed).integers(0, 80, (opened.num_rows, opened.length)) / 16
    np.save(out.with_suffix(".npy"), values)
    out.with_suffix(".npy.json").write_text(f'{{"corpus_hash": "{opened.content_hash}"}}')
    config = ScoreConfig(
        str(out), str(corpus), from_file=str(out.with_suffix(".npy")), columns=list(columns), dtype="float32"
    )
    return score.run(config)


def config(out: Path, corpus: Path, to: str, *scores: Path, **fields: Any) -> ExportConfig:
    """Of scores, RULE, if no other objective is given."""
    rule = {"objective": RULE, "scores": [str(folder) for folder in scores]} if scores else {}
    return ExportConfig(str(out), str(corpus), to, **{**rule, **fields})  # type: ignore[arg-type]


def flat(rows: Any) -> list[Term]:
    return [term for row in rows for term in row]
