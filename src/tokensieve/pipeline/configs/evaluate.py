"""What ``tokensieve evaluate`` is told: models x evaluation sets -> nll per token."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

KIND = "evaluation"
NOT_WORK = ("out", "baselines", "batch_rows", "device", "verify")


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure models on evaluation sets: nats per token and bits per byte, on whole texts and on solutions only."""

    out: str
    """Folder to write: evaluation.json, documents.parquet, table.txt."""
    models: dict[str, str]
    """name -> Hugging Face folder or a folder that `train` wrote."""
    sets: dict[str, str]
    """name -> a folder that `prepare` wrote."""
    checkpoints: bool = False
    """Also every checkpoint of the runs among the models."""
    average: int = 1
    """Of the runs among the models: the mean of the weights of the last so many checkpoints, in place of the last one."""
    baselines: list[str] = field(default_factory=list)
    """Corpora to count a unigram and a trigram model on: an undertrained model must not look like a result."""
    batch_rows: int = 0
    """Rows of one forward; 0 for about 8192 tokens."""
    device: str | None = None
    """cpu, cuda or cuda:0; the GPU where there is one."""
    verify: Literal["full", "size"] = "full"
    """full: the bytes of what is read are hashed, once a machine, and remembered by size and times; size: sizes only."""
