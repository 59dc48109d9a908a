"""What ``tokensieve dynamics`` is told: every token's nll over checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

KIND = "dynamics"
NOT_WORK = ("out", "models", "corpus", "scores", "counts", "selector", "log", "device", "verify")


@dataclass(frozen=True)
class DynamicsConfig:
    """Follow every token's nll over the checkpoints of a run, and sort tokens into the paper's four classes."""

    out: str
    """Folder to write."""
    models: list[str]
    """In order of training: model folders, or a run for its checkpoints and last weights (RUN/model for these alone)."""
    corpus: str
    """A validation corpus: a folder that `prepare` wrote."""
    scores: str | None = None
    """Scores of that corpus (ref_nll): adds which tokens are kept by excess, and what became of kept and dropped ones."""
    ratio: float = 0.6
    """Share of the corpus's tokens that is kept at a checkpoint, those of highest excess. Only with scores."""
    selector: str | None = None
    """Another dynamics folder of this corpus, whose nll choose what is kept: what rho1 keeps, seen under clm."""
    counts: str | None = None
    """Corpus in which a token's frequency is counted, as the one trained on; this one if not given."""
    log: str | None = None
    """A run that was trained on this very corpus: its token log is counted by class."""
    threshold: float = 0.2
    """Change in nats along a token's line from which on it rises or falls."""
    samples: int = 20
    """Tokens of each class whose trajectories are written out."""
    seed: int = 0
    """Which tokens these are."""
    learning_time: float | Literal["mean"] | None = None
    """Also scores in OUT/learning_time: from when on a token's nll is at most so many nats; mean: the mean nll at the end."""
    model_dtype: str = "float32"
    """What the models compute in: float32, bfloat16 or float16."""
    batch_rows: int = 0
    """Rows of one forward; 0 for about 8192 tokens."""
    device: str | None = None
    """cpu, cuda or cuda:0; the GPU where there is one."""
    verify: Literal["full", "size"] = "full"
    """full: the bytes of what is read are hashed, once a machine, and remembered by size and times; size: sizes only."""
