"""Objectives made of objectives: both, either, and one whose option moves with the steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import pairwise

import torch
from torch import Tensor

from ..objective import Denominator, Objective
from ..select import Scope
from ..stats import TokenStats


def intersect(of: Sequence[Objective]) -> Objective:
    """``w = w_1 * w_2 * ...``: of selections what all keep, of a selection and soft weights the weights of what is kept.

    Each part ranks in its own scope, whatever the others keep; ``batch`` and ``step`` cannot be mixed. Divided by what the
    first part is divided by.
    """
    return _combined("intersect", of, torch.mul, lambda counts, _: min(counts))


def union(of: Sequence[Objective]) -> Objective:
    """``w = max(w_1, w_2, ...)``: of selections what any keeps. Scopes and denominator as in ``intersect``.

    Refuses parts with weights below 0, of which the largest is none.
    """
    if signed := [part.name for part in of if part.signed]:
        raise ValueError(f"union: the weights of {signed[0]!r} may be negative")
    return _combined("union", of, torch.maximum, lambda counts, size: min(sum(counts), size))


def schedule(make: Callable[[float], Objective], points: Sequence[Sequence[float]]) -> Objective:
    """An objective whose option has the value at the step: linear between ``points`` [step, value], constant beyond them.

    ``make(value)`` is the objective with that value. The step counts optimizer steps done before this one, so a resumed run
    goes on where it was.
    """
    if not points or any(len(p) != 2 for p in points) or any(b[0] <= a[0] for a, b in pairwise(points)):
        raise ValueError(f"schedule: points must be [step, value] pairs with rising steps, not {list(points)}")
    parts = [make(float(value)) for _, value in points]
    first, bounds = parts[0], [part.most_rows for part in parts]
    if first.scope == "corpus":
        raise ValueError("schedule: under scope 'corpus' each value would be another ranking of the whole data set")
    if len({(part.scope, part.denominator, part.selects) for part in parts}) > 1:
        raise ValueError("schedule: an option that changes scope or denominator cannot move with the steps")

    def now(stats: TokenStats) -> Objective:
        return make(_at(points, stats.step))

    def most_rows(rows: int, length: int) -> int:
        return max(bound(rows, length) for bound in bounds if bound is not None)

    return Objective(
        "schedule",
        weigh=lambda stats: now(stats).weigh(stats),
        needs=frozenset().union(*(part.needs for part in parts)),
        scope=first.scope,
        denominator=first.denominator,
        known_count=None if first.known_count is None else lambda known: _count(now(known), known),
        most_rows=None if None in bounds else most_rows,
        selects=first.selects,
        signed=any(part.signed for part in parts),
        score=None if first.score is None else lambda stats: _score(now(stats), stats),
        static=all(part.static for part in parts),
        options={"of": first.name, "points": [list(p) for p in points]},
    )


def _count(made: Objective, known: TokenStats) -> Tensor:
    assert made.known_count is not None
    return made.known_count(known)


def _score(made: Objective, stats: TokenStats) -> Tensor:
    assert made.score is not None
    return made.score(stats)


def _at(points: Sequence[Sequence[float]], step: int) -> float:
    """The value at a step."""
    for (left, low), (right, high) in pairwise(points):
        if step <= left:
            return float(low)
        if step < right:
            return low + (high - low) * (step - left) / (right - left)
    return float(points[-1][1] if step >= points[-1][0] else points[0][1])


def _combined(
    name: str,
    of: Sequence[Objective],
    join: Callable[[Tensor, Tensor], Tensor],
    bound: Callable[[list[int], int], int],
) -> Objective:
    if not of:
        raise ValueError(f"{name}: of needs at least one objective")
    limits = [part.most_rows for part in of if part.most_rows is not None]
    bounded = bool(limits) and (name == "intersect" or len(limits) == len(of))
    signed = any(part.signed for part in of)
    denominator: Denominator = "abs" if signed and of[0].denominator == "weight" else of[0].denominator
    return Objective(
        name,
        weigh=lambda stats: reduce(join, (_zero_elsewhere(part.weigh(stats), stats) for part in of)),
        needs=frozenset().union(*(part.needs for part in of)),
        scope=_widest(name, [part.scope for part in of]),
        denominator=denominator,
        most_rows=(lambda rows, length: bound([f(rows, length) for f in limits], rows * length)) if bounded else None,
        selects=all(part.selects for part in of),
        signed=signed,
        static=all(part.static for part in of),
        options={"of": [{"name": part.name, **part.options} for part in of]},
        corpus_scores={name: score for part in of for name, score in part.corpus_scores.items()},
    )


def _zero_elsewhere(weight: Tensor, stats: TokenStats) -> Tensor:
    return torch.where(stats.valid, weight, torch.zeros_like(weight))


def _widest(name: str, scopes: Sequence[Scope]) -> Scope:
    if {"batch", "step"} <= set(scopes):
        raise ValueError(f"{name}: of its parts one ranks a batch and another a step: give them one scope")
    return next(scope for scope in ("step", "batch", "sequence", "corpus") if scope in scopes)
