"""What ``tokensieve compare`` is told: runs of one experiment side by side."""

from __future__ import annotations

from dataclasses import dataclass, field

KIND = "comparison"
NOT_WORK = ("out", "evaluation", "runs", "curve", "registration")


@dataclass(frozen=True)
class CompareConfig:
    """Compare training runs on one evaluation set, or on the mean of several, over one seed or more."""

    out: str
    """Folder to write: comparison.json, verdict.json, table.txt, table.md."""
    evaluation: str | list[str]
    """A folder that `evaluate` wrote, or one for each seed."""
    runs: dict[str, str | list[str]]
    """arm -> a folder that `train` wrote, or one for each seed; the names are those used in the evaluation."""
    target: str
    """The evaluation set that the comparison is about; `mean` for the mean of the sets in `mean`."""
    others: list[str] = field(default_factory=list)
    """Further sets to show."""
    solution: bool = False
    """On solutions only, for sets that have them."""
    baseline: str = "clm"
    """The arm whose end the others are measured against."""
    mean: list[str] = field(default_factory=list)
    """Sets whose nll are averaged, each counting once."""
    forgetting: list[str] = field(default_factory=list)
    """Sets on which it is shown how far each arm moved from the model called base."""
    rivals: dict[str, str] = field(default_factory=dict)
    """arm -> the arm that its verdict is against, where that is not the baseline: one that was given as much compute."""
    curve: dict[str, str | list[str]] = field(default_factory=dict)
    """name in the evaluation -> the baseline's own run, or one for each seed, whose schedule ends at another length."""
    on_curve: list[str] = field(default_factory=list)
    """Arms that are the baseline but for the length of their schedule: their ends are points of the same curve."""
    students: int = 1
    """Over so many students scoring and reference are shared out in a second column of total FLOPs."""
    registration: str | None = None
    """registration.json of a study: the verdict says whether it was followed."""
