"""What ``tokensieve score`` is told: a model x a corpus -> score columns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

KIND = "scores"
NOT_WORK = ("out", "model", "corpus", "device", "verify")


@dataclass(frozen=True)
class ScoreConfig:
    """Score every token of a corpus with a reference model."""

    out: str
    """Folder to write."""
    model: str
    """The reference model: a Hugging Face folder, or a folder that `train` wrote."""
    corpus: str
    """A folder that `prepare` wrote."""
    columns: list[str] | dict[str, str] = field(default_factory=lambda: ["ref_nll"])
    """ref_nll and, if wanted, ref_entropy; or names of your choice and what they hold, as {base_nll: nll, base_h: entropy}."""
    dtype: str = "float16"
    """How scores are stored: float16 (error at most 0.008 nats up to 32, clipped at 65,504) or float32."""
    model_dtype: str = "float32"
    """What the model computes in: float32, bfloat16 or float16."""
    batch_rows: int = 0
    """Rows of one forward; 0 for about 8192 tokens."""
    device: str | None = None
    """cpu, cuda or cuda:0; the GPU where there is one."""
    verify: Literal["full", "size"] = "full"
    """full: the bytes of what is read are hashed, once a machine, and remembered by size and times; size: sizes only."""
