"""What ``tokensieve export`` is told: a corpus and a selection -> the files of another trainer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

KIND = "export"
NOT_WORK = ("out", "corpus", "scores", "allow_code", "verify")
MANIFEST_KEYS = ("to", "corpus_hash", "tokenizer_hash", "exported")

To = Literal["jsonl", "parquet", "llama_factory", "swift", "olmo", "datatrove", "megatron", "mds"]


@dataclass(frozen=True)
class ExportConfig:
    """Write a corpus with a selection that stands before training, as another trainer reads it."""

    out: str
    """Folder to write."""
    corpus: str
    """A folder that `prepare` wrote."""
    to: To
    """jsonl or parquet (TRL, axolotl), llama_factory, swift, olmo, datatrove, megatron (also GPT-NeoX) or mds (MosaicML)."""
    objective: dict[str, Any] = field(default_factory=lambda: {"name": "clm"})
    """name and options, as for `train`; its weights must stand before training (docs/export.md)."""
    scores: list[str] = field(default_factory=list)
    """Folders that `score` wrote for this corpus, where the objective needs them."""
    student: dict[str, str] = field(default_factory=dict)
    """What the rule needs of the student's forward -> the column of a checkpoint's scores: {nll: base_nll}."""
    at_step: int | None = None
    """Of a rule that moves with the steps (random, schedule): its weights at this step, for all."""
    allow_code: bool = False
    """Let the objective be code of your own (package.module:factory). On the command line only, never in a file."""
    verify: Literal["full", "size"] = "full"
    """full: the bytes of what is read are hashed, once a machine, and remembered by size and times; size: sizes only."""
