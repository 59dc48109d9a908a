"""What ``tokensieve demo`` is told."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class DemoConfig:
    """Base model, reference, scores, and students: full loss, random control and Rho-1 on the same tokens, and full loss for as
    long as Rho-1's total compute lasts."""

    out: str = "runs/demo"
    """Folder of the run."""
    seed: int = 0
    """Seed of weights, row order and random masks."""
    redo: list[str] = field(default_factory=list)
    """Finished `train` stages, or all, that may be removed and done again: for another seed in the same folder."""
    jobs: int = 2
    """Stages at once, one thread each."""
    color: bool | None = None
    """Colours at the end; if not given, where this is a terminal."""
