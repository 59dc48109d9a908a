"""What ``tokensieve plan`` is told: finished runs, and a budget to plan with."""

from __future__ import annotations

from dataclasses import dataclass, field

KIND = "plan"
NOT_WORK = ("out", "runs", "reference")


@dataclass(frozen=True)
class PlanConfig:
    """Fit laws of scale to finished runs; by them say how a budget of FLOPs is best spent, each number with its interval."""

    runs: list[str]
    """CSV files with a line a run, or folders that `run`, `train` and `evaluate` wrote."""
    out: str
    """Folder to write: plan.json, table.txt."""
    flops: float | None = None
    """The budget C. Without it laws are fitted, and nothing is planned."""
    unique: float | None = None
    """Different tokens that there are: what is seen beyond them is repeated."""
    domain_tokens: float | None = None
    """Tokens of the text that the model is to get good at: a reference is trained on them, and a mixture has too few."""
    ratio: float = 1.0
    """Share of tokens that selection would keep."""
    tolerance: float = 0.05
    """Nats by which a mixture may raise the nll of general text."""
    reference: str | None = None
    """Model folder of the reference; a model as large as the planned one if not given."""
    reference_passes: float = 1.0
    """How often the reference is trained on the domain's tokens."""
    length: int = 1024
    """Tokens of a row, for the FLOPs of `reference`."""
    students: int = 1
    """So many students share reference and scores."""
    set: str | None = None
    """The evaluation set whose nll counts; the evaluation's first if not given."""
    forms: list[str] = field(default_factory=list)
    """Forms to fit, of those in docs/plan.md; all that the table has the columns of if not given."""
    hold_out: list[str] = field(default_factory=list)
    """Runs, by name, that are left out of every fit and predicted."""
    seed: int = 0
    """Of random starts and of the bootstrap."""
