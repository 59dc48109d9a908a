"""What a recipe with ``arms:`` says under ``study:``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class StudyConfig:
    """What the arms of a study share, and what they are compared by."""

    student: dict[str, Any]
    """Fields of `train` that every arm has; corpus, model and seed are @corpus, @base and ${seed} unless it says otherwise."""
    sets: dict[str, str]
    """name -> the stage that prepared this evaluation set, as @target."""
    target: str
    """The set that decides; `mean` for the mean of the sets in `mean`."""
    mean: list[str] = field(default_factory=list)
    """Sets whose nll are averaged, each counting once."""
    forgetting: list[str] = field(default_factory=list)
    """Sets on which it is told how far each arm moved from the base model."""
    solution: bool = False
    """On solutions only, for sets that have them."""
    baseline: str = "clm"
    """The arm that an arm is held against, unless another one was given its compute."""
    lengths: list[float] = field(default_factory=list)
    """Shares of the student's steps: further runs of the baseline whose schedules end there, for the effective speedup."""
    longer: str | None = None
    """A stage with more of the same text, as @longer, for arms that go on for longer than the students: equal compute, lengths
    above 1. Scores are then made of no more text than the students read."""
    epochs: float = 1
    """How often an arm may go through its text; an arm may say otherwise."""
    students: int = 1
    """Over so many students the cost of scoring and reference is shared out in the second column of total FLOPs."""
    effect: float | None = None
    """The difference in nats that the study should tell: what that would cost is said before the first run, and at the end."""
    sd: float | str | None = None
    """The standard deviation of differences of seeds to reckon with beforehand, in nats; or a folder that `compare` wrote over
    seeds, a pilot's for example, which measured it. 0.02 if not given."""
    large: str | dict[str, Any] | None = None
    """The model of the run that this study is made for, a folder or a config: the end says what follows for it, what not."""
    average: int = 1
    """Evaluate the mean of each run's last so many checkpoints."""
    checkpoints: bool = False
    """Evaluate every checkpoint, too."""
    ngrams: list[str] = field(default_factory=list)
    """Stages whose corpora a unigram and a trigram model are counted on."""
    stop: str = "after the seeds that are listed, whatever they show"
    """When no more runs are made: for people, written down before the first run."""
