"""Objectives made of objectives: both, either, and one whose option moves with the steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from itertools import pairwise

import torch
from torch import Tensor

from ..objective import Denominator, Objective
from ..select import Scope
from ..stats import TokenStats
from .given import WEIGHT, times


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


def schedule(make: Callable[[float], Objective], points: Sequence[Sequence[float]], over: str = "steps") -> Objective:
    """An objective whose option has the value at the step: linear between ``points`` [step, value], constant beyond them.

    ``make(value)`` is the objective with that value. The step counts optimizer steps done before this one; ``over: tokens``
    counts the tokens with a target seen before it instead, over all ranks, which waits for the device once a step. A resumed
    run goes on where it was. An option that is a whole number has the nearest one.
    """
    if not points or any(len(p) != 2 for p in points) or any(b[0] <= a[0] for a, b in pairwise(points)):
        raise ValueError(f"schedule: points must be [step, value] pairs with rising steps, not {list(points)}")
    if over not in ("steps", "tokens"):
        raise ValueError(f"schedule: over is {over!r}, it must be steps or tokens")
    parts = [make(float(value)) for _, value in points]
    first, bounds = parts[0], [part.most_rows for part in parts]
    if first.scope == "corpus":
        raise ValueError("schedule: under scope 'corpus' each value would be another ranking of the whole data set")
    if len({(part.scope, part.denominator, part.selects, part.second) for part in parts}) > 1:
        raise ValueError(
            "schedule: an option that changes scope, denominator or second target cannot move with the steps"
        )

    reached = _Tokens() if over == "tokens" else lambda stats: stats.step

    def now(stats: TokenStats) -> Objective:
        return make(_at(points, reached(stats)))

    def most_rows(rows: int, length: int) -> int:
        return max(bound(rows, length) for bound in bounds if bound is not None)

    return Objective(
        "schedule",
        weigh=lambda stats: now(stats).weigh(stats),
        needs=frozenset({"tokens_seen"} if over == "tokens" else ()).union(*(part.needs for part in parts)),
        scope=first.scope,
        denominator=first.denominator,
        known_count=None if first.known_count is None else lambda known: _count(now(known), known),
        most_rows=None if None in bounds else most_rows,
        selects=first.selects,
        signed=any(part.signed for part in parts),
        score=None if first.score is None else lambda stats: _score(now(stats), stats),
        static=all(part.static for part in parts),
        options={"of": first.name, "points": [list(p) for p in points], "over": over},
        second=first.second,
        share=None if first.share is None else lambda stats: _share(now(stats), stats),
    )


def by_source(of: Objective, instead: Mapping[str, Objective]) -> Objective:
    """A rule within each source of the corpus: the tokens of a source are ranked, averaged and counted by themselves.

    ``of`` is the rule of all sources but those in ``instead``, name -> another rule, or other options of the same. So a rule
    that prefers one source's tokens cannot drop another's, and each source has a ratio of its own. Rules must agree in what
    they are divided by, and in scope as in ``intersect``. A name that the corpus has not is refused. Where one of them reads
    the column ``weight``, as ``column`` does, it multiplies what the others give.
    """
    parts = [of, *instead.values()]
    if any(WEIGHT in part.needs for part in parts):  # nobody multiplies the whole any more: times() leaves it as it is
        of, instead = times(of), {name: times(part) for name, part in instead.items()}
        parts = [of, *instead.values()]
    if len({part.denominator for part in parts}) > 1:
        raise ValueError("by_source: its rules are divided by different things: give them one denominator")
    if any(part.corpus_scores for part in parts):
        raise ValueError(
            "by_source: under scope 'corpus' the tokens of all sources have one threshold: give it another scope"
        )
    if second := [part.name for part in parts if part.second is not None]:
        raise ValueError(f"by_source: put by_source into the of of {second[0]!r}, which has a second target")

    def each(stats: TokenStats) -> list[tuple[Objective, TokenStats]]:
        """(rule, the statistics with its source's tokens alone valid) of every source."""
        if not stats.sources:
            raise ValueError("by_source: this run was not told the names of its sources")
        if unknown := sorted(set(instead) - set(stats.sources)):
            raise ValueError(f"by_source: no source is called {unknown[0]!r}, there are {', '.join(stats.sources)}")
        source = stats.need("source_id")
        return [
            (instead.get(name, of), replace(stats, valid=stats.valid & (source == number)))
            for number, name in enumerate(stats.sources)
        ]

    def weigh(stats: TokenStats) -> Tensor:
        none = torch.zeros(stats.valid.shape, device=stats.valid.device)
        return sum((_zero_elsewhere(rule.weigh(own), own) for rule, own in each(stats)), none)

    def known_count(known: TokenStats) -> Tensor:
        none = torch.zeros((), dtype=torch.int64, device=known.valid.device)
        return sum((_count(rule, own) for rule, own in each(known)), none)

    return Objective(
        "by_source",
        weigh=weigh,
        needs=frozenset({"source_id"}).union(*(part.needs for part in parts)),
        scope=_widest("by_source", [part.scope for part in parts]),
        denominator=of.denominator,
        known_count=known_count if all(part.known_count is not None for part in parts) else None,
        selects=all(part.selects for part in parts),
        signed=any(part.signed for part in parts),
        static=all(part.static for part in parts),
        options={
            "of": {"name": of.name, **of.options},
            "instead": {n: {"name": p.name, **p.options} for n, p in instead.items()},
        },
    )


def _count(made: Objective, known: TokenStats) -> Tensor:
    assert made.known_count is not None
    return made.known_count(known)


def _score(made: Objective, stats: TokenStats) -> Tensor:
    assert made.score is not None
    return made.score(stats)


def _share(made: Objective, stats: TokenStats) -> float:
    assert made.share is not None
    return made.share(stats)


class _Tokens:
    """Tokens seen, as a number: asked of the device once, however often a step asks."""

    def __init__(self) -> None:
        self._last: tuple[Tensor | int, float] = (0, 0.0)

    def __call__(self, stats: TokenStats) -> float:
        if stats.tokens_seen is not self._last[0]:
            self._last = (stats.tokens_seen, float(stats.tokens_seen))
        return self._last[1]


def _at(points: Sequence[Sequence[float]], step: float) -> float:
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
    if second := [part.name for part in of if part.second is not None]:
        raise ValueError(f"{name}: put {name} into the of of {second[0]!r}, which has a second target for what is kept")
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
