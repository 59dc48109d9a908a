"""What ``tokensieve compare`` is told: runs of one experiment side by side."""

from __future__ import annotations

from dataclasses import dataclass, field

KIND = "comparison"
NOT_WORK = ("out", "evaluation", "runs")


@dataclass(frozen=True)
class CompareConfig:
    """Compare training runs on one evaluation set."""

    out: str
    """Folder to write: comparison.json, table.txt, table.md."""
    evaluation: str
    """A folder that `evaluate` wrote, with checkpoints."""
    runs: dict[str, str]
    """arm -> a folder that `train` wrote; the names are those used in the evaluation."""
    target: str
    """The evaluation set that the comparison is about."""
    others: list[str] = field(default_factory=list)
    """Further sets to show, forgetting for example."""
    solution: bool = False
    """On solutions only, for sets that have them."""
    baseline: str = "clm"
    """The arm whose end the others are measured against."""
