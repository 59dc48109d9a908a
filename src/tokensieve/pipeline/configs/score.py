"""What ``tokensieve score`` is told: a model x a corpus -> score columns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

KIND = "scores"
NOT_WORK = ("out", "model", "corpus", "from_file", "device", "verify", "teacher")


@dataclass(frozen=True)
class ScoreConfig:
    """Score every token of a corpus with a reference model, or take numbers a token from a file."""

    out: str
    """Folder to write."""
    corpus: str
    """A folder that `prepare` wrote."""
    model: str = ""
    """The reference model: a Hugging Face folder, or a folder that `train` wrote."""
    from_file: str = ""
    """Also --from: instead of a model, a .npy or .parquet file of a number a token, made for this corpus (docs/formats.md)."""
    columns: list[str] | dict[str, str] = field(default_factory=lambda: ["ref_nll"])
    """ref_nll, ref_entropy, ref_rank; or {my_nll: nll, h: entropy, r: target_rank}; of a file its columns, {name: column}."""
    top_k: int = 0
    """Also the columns topk_ids and topk_logp: the so many likeliest entries of each prediction, 8 bytes each; 0 for none."""
    context: Literal["none"] | dict[str, Any] = "none"
    """Less before a token: {last: N}, {last: N, stride: S}, {without: problem | earlier_documents}: docs/formats.md."""
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
    teacher: str = ""
    """A model of the same tokenizer: a column may then hold KL(teacher || model), as {ref_divergence: divergence}."""
    teacher_top_k: int = 64
    """Over how many of the teacher's likeliest entries; all others are one bucket."""
