"""What a training step costs in FLOPs: the one count of it, for the log of a run, for its plan, and for a rival of equal
compute."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core import Objective
from ..core.stats import head_statistics
from ..modeling.flops import TokenFlops, token_flops


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of steps: the student's, and those of all that runs beside it in every step. NaN: not known."""

    student: TokenFlops
    first_pass: bool = False
    """Whether a step takes a forward of its own, of all its tokens, to choose those that it trains on."""
    teacher: TokenFlops | None = None
    """Of a model that is asked in each step."""
    asked: int = 0
    """How often, for each token."""

    def of(self, places: float, trained: float) -> float:
        """``student.train(places, trained) + first_pass * student.forward(places) + asked * teacher.forward(places)`` of
        ``places`` positions, padding included, of which ``trained`` have a weight."""
        flops = self.student.train(places, trained)
        if self.first_pass:
            flops += self.student.forward(places)
        return flops if self.teacher is None else flops + self.asked * self.teacher.forward(places)


def has_first_pass(objective: Objective) -> bool:
    """Whether its tokens are chosen by a forward before the one that trains: ranked over a step, by what a forward says."""
    return objective.scope == "step" and bool(head_statistics(objective.needs))


def asks_teacher(objective: Objective) -> bool:
    """Whether a model runs beside the student in each step."""
    return objective.second is not None and objective.second.origin == "teacher"


def step_flops(
    objective: Objective,
    student: Any,
    length: float,
    *,
    sparse: bool = False,
    strict: bool = False,
    teacher: Any = None,
) -> StepFlops:
    """The price of steps of ``student``, as it trains now, on rows of ``length``; the models may be shapes without weights.

    A first pass that ranks by divergence asks the teacher as well. A ``teacher`` that the objective asks and that is None: NaN.
    """
    own, first = token_flops(student, length, sparse=sparse, strict=strict), has_first_pass(objective)
    if not asks_teacher(objective):
        return StepFlops(own, first)
    theirs = TokenFlops(math.nan, math.nan) if teacher is None else token_flops(teacher, length)
    return StepFlops(own, first, theirs, 2 if first and "divergence" in objective.needs else 1)


def share_trained(options: Mapping[str, Any]) -> float:
    """The share of its tokens that an objective trains on, as far as its options, or those of the one rule in it, say; else
    all of them."""
    if "ratio" in options and options["ratio"] is not None:
        return float(options["ratio"])
    inner = options.get("of")
    return share_trained(inner) if isinstance(inner, Mapping) and not options.get("instead") else 1.0
