"""A form fitted to a table of runs: constants and predictions with intervals, errors on runs that it has not seen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...runs.errors import UserError
from ..certainty import FloatArray
from .forms import FORMS, Form, RunColumns
from .solver import jacobian, solve

COVERAGE = 0.9
"""Of every interval."""
DRAWS = 400
STARTS = 96
_GO_ON = 12  # of the starts, those whose rough fits are best
FOLDS = 6
_DELTA = 1e-3  # Hoffmann et al.'s Huber threshold, of the fit that says how large residuals are
_NO_EFFECT = 1e-4  # a constant that moves no prediction by more, for a factor of e, shows in no run
_SAME = 1e-5  # singular value below which two constants do the same to all runs
_NOTHING = -30.0  # logarithm of a coefficient that is none
_CHANCE = 0.01  # that runs which do not change with a column look so: above it, they are said not to
_TOGETHER = 0.999  # correlation of log N and log D


@dataclass(frozen=True)
class Estimate:
    """A number, and the interval that holds it with a probability of COVERAGE."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, draws: FloatArray) -> Estimate:
        """``draws`` are those of a bootstrap."""
        low, high = np.nanquantile(draws, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
        return cls(float(value), float(low), float(high))

    def as_json(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Law:
    """A fitted form. ``draws``: the constants of DRAWS bootstrap tables, ``[DRAWS]`` each."""

    form: str
    constants: dict[str, float]
    draws: dict[str, FloatArray]
    residuals: FloatArray
    """log measured - log predicted, a run each, widened for the constants that were fitted: what one more run is off by."""
    at_bound: tuple[str, ...]
    """Constants at the end of where they were looked for: a floor of nothing, for the most part."""
    held_out: FloatArray
    """Squared log errors of runs predicted by fits without them, FOLDS times."""
    largest: float
    """Root mean squared log error of the quarter with the largest C (else the last quarter), from the others; NaN where they
    are too few."""
    flat: tuple[str, ...] = ()
    """``params`` or ``tokens``, where runs change no more with it than they scatter (an F test at 1 %): no optimum follows."""

    @property
    def error(self) -> float:
        """Root mean squared held-out log error: about the relative error."""
        return float(np.sqrt(self.held_out.mean()))

    def at(self, x: RunColumns) -> Any:
        """What the law predicts for ``x``, a mapping of numbers or arrays."""
        return FORMS[self.form].function(x, **self.constants)

    def draws_at(self, x: RunColumns) -> FloatArray:
        """The same by each draw: ``[DRAWS, ...]``."""
        shape = (-1, *(1,) * max((np.ndim(v) for v in x.values()), default=0))
        return np.asarray(FORMS[self.form].function(x, **{n: d.reshape(shape) for n, d in self.draws.items()}))

    def constant(self, name: str) -> Estimate:
        return Estimate.of(self.constants[name], self.draws[name])

    def expected(self, x: Mapping[str, float]) -> Estimate:
        """Where the law lies at ``x``."""
        return Estimate.of(float(self.at(x)), self.draws_at(x))

    def of_a_run(self, x: Mapping[str, float], seed: int = 0) -> Estimate:
        """Where one run at ``x`` will end: the law's draws, each with a run's residual."""
        draws = self.draws_at(x)
        noise = np.random.default_rng([seed, 1]).choice(self.residuals, len(draws))
        return Estimate.of(float(self.at(x)), draws * np.exp(noise))


class FitProblem:
    """A form and a table: constants as points of a bounded space in which fits are made.

    Constants are logarithms there (signed ones as they are), coefficients in units of the table's middle, so that all are of
    order one and hardly correlated: ``A N^-alpha`` at the middle N, not at N = 1.
    """

    def __init__(self, form: Form, columns: RunColumns) -> None:
        self.form, self.columns = form, columns
        self.log_y = np.log(np.asarray(columns[form.predicts], np.float64))
        self.typical = float(np.exp(np.median(self.log_y)))
        self.middle = {name: float(np.log(columns[name]).mean()) for name in form.varies}
        low, high = np.transpose([self._range(c.low, c.high, c.signed) for c in form.constants])
        self.starts = (low, high)
        room = [1.0 if c.signed else 3.0 if c.level or c.power else 1.5 for c in form.constants]
        floor = [8.0 if c.level and not c.power else r for c, r in zip(form.constants, room, strict=True)]
        self.bounds = (low - floor, high + room)

    @staticmethod
    def _range(low: float, high: float, signed: bool) -> tuple[float, float]:
        return (low, high) if signed else (math.log(low), math.log(high))

    def constants(self, theta: FloatArray) -> dict[str, FloatArray]:
        """theta ``[..., P]`` -> name -> ``[...]``, in the columns' own units."""
        found: dict[str, FloatArray] = {}
        coded = {name: theta[..., p] for p, name in enumerate(self.form.names)}
        for c in sorted(self.form.constants, key=lambda c: bool(c.power)):  # exponents first: they make the units
            unit = np.exp(sum(sign * found[by] * self.middle[column] for column, by, sign in c.power))
            value = coded[c.name] if c.signed else np.exp(coded[c.name])
            found[c.name] = value * unit * (self.typical if c.level else 1.0)
        return {name: found[name] for name in self.form.names}

    def depends(self, theta: FloatArray, column: str) -> bool:
        """Whether what these constants predict changes with a column; C changes with N and D."""
        middle = math.exp(self.middle[column])
        moved = {**self.columns, column: np.full_like(self.columns[column], middle)}
        if "flops" in moved:
            moved["flops"] = self.columns["flops"] * middle / self.columns[column]
        return bool(np.abs(self._logs(theta, moved) - self.logs(theta)).max() > _SAME)

    def logs(self, theta: FloatArray) -> FloatArray:
        return self._logs(theta, self.columns)

    def _logs(self, theta: FloatArray, columns: RunColumns) -> FloatArray:
        constants = {name: value[:, None] for name, value in self.constants(theta).items()}
        with np.errstate(all="ignore"):
            return np.log(np.maximum(self.form.function(columns, **constants), 1e-300))  # type: ignore[no-any-return]

    def fit(self, delta: float, start: FloatArray, **more: Any) -> tuple[FloatArray, FloatArray]:
        return solve(self.logs, more.pop("log_y", self.log_y), start, self.bounds, delta, **more)


def fit_law(name: str, columns: RunColumns, *, seed: int = 0, draws: int = DRAWS) -> Law:
    """The form ``name`` of FORMS through a table: ``argmin sum huber(log y - log f(x), delta)``, from STARTS random starts.

    delta is 1.345 robust standard deviations of the residuals of a first fit with 1e-3 (Hoffmann et al.'s), so that an outlier
    counts little and normal noise costs a twentieth of the precision. Intervals: a bootstrap of residuals, widened by
    sqrt(n / (n - P)) and to Student's quantile from the normal one. Held-out errors: FOLDS fits, each without every FOLDS-th
    run in the order of the column predicted.

    ``columns``: arrays ``[runs]``, positive. UserError where the table cannot say a constant: a column is missing, there are
    fewer runs than constants and one, values do not differ, or two constants do the same to every run.
    """
    form = FORMS[name]
    check_table(name, columns)
    problem = FitProblem(form, columns)
    rng = np.random.default_rng(seed)
    low, high = problem.starts
    starts = rng.uniform(low, high, (STARTS, len(form.constants)))
    rough, cost = problem.fit(_DELTA, starts, steps=40)
    rough = rough[np.argsort(np.nan_to_num(cost, nan=np.inf), kind="stable")[:_GO_ON]]
    n, p = len(problem.log_y), len(form.constants)
    off = problem.log_y - problem.logs(rough[:1])[0]
    delta = max(_DELTA, 1.345 * 1.4826 * float(np.median(np.abs(off))) * math.sqrt(n / (n - p)))
    found, cost = problem.fit(delta, rough)
    best: FloatArray = found[int(np.nanargmin(cost))]
    _check_told_apart(name, problem, best)
    fitted = problem.logs(best[None])[0]
    off = problem.log_y - fitted
    wide = (off - off.mean()) * math.sqrt(n / (n - p)) * _student(n - p)
    again = fitted + rng.choice(wide, (draws, n))
    theta, _ = problem.fit(delta, np.repeat(best[None], draws, 0), log_y=again)
    at = [c.name for c, t, a, b in zip(form.constants, best, *problem.bounds, strict=True) if not a < t < b]
    constants = {k: float(v) for k, v in problem.constants(best).items()}
    left_out = _left_out(problem, best, delta, columns)
    flat = tuple(_flat(problem, found, float(np.nanmin(cost)), delta))
    return Law(name, constants, problem.constants(theta), wide, tuple(at), *left_out, flat)


def _flat(problem: FitProblem, found: FloatArray, cost: float, delta: float) -> Iterator[str]:
    """Columns without whose term the runs are told as well: a term of 0 leaves its exponent free, so both are counted."""
    from scipy.special import fdtrc

    n, p = len(problem.log_y), found.shape[1]
    for i, constant in enumerate(problem.form.constants):
        if not (constant.level and constant.power):
            continue
        starts, low, high = found.copy(), *(b.copy() for b in problem.bounds)
        starts[:, i] = low[i] = high[i] = _NOTHING
        for column in sorted({"params", "tokens"} & set(problem.form.varies)):
            if problem.depends(starts[:1], column):
                continue
            gone = int((np.abs(jacobian(problem.logs, starts[:1])[0]).max(0) < _SAME).sum())
            _, without = solve(problem.logs, problem.log_y, starts, (low, high), delta)
            gain = (float(np.nanmin(without)) - cost) / gone / (max(cost, 1e-300) / (n - p))
            if fdtrc(gone, n - p, max(gain, 0.0)) > _CHANCE:
                yield column


def _student(freedom: int) -> float:
    """How much wider an interval is with a noise that was estimated from so many residuals than with one that is known."""
    from scipy.special import ndtri, stdtrit

    edge = (1 + COVERAGE) / 2
    return float(stdtrit(freedom, edge) / ndtri(edge))


def _left_out(problem: FitProblem, best: FloatArray, delta: float, columns: RunColumns) -> tuple[FloatArray, float]:
    """(squared log error of each run by a fit without it, that of the largest quarter by a fit of the others)."""
    n, p = len(problem.log_y), len(best)
    fold = np.empty(n, np.int64)
    fold[np.argsort(problem.log_y, kind="stable")] = np.arange(n) % FOLDS
    masks = [fold != f for f in range(FOLDS)]
    order = np.argsort(columns["flops"] if "flops" in columns else np.arange(n), kind="stable")
    largest = np.zeros(n, bool)
    largest[order[-max(1, n // 4) :]] = True
    weight = np.array([*masks, ~largest], np.float64)
    theta, _ = problem.fit(delta, np.repeat(best[None], len(weight), 0), weight=weight)
    squared = (problem.logs(theta) - problem.log_y) ** 2
    known = (~largest).sum() > p
    return squared[fold, np.arange(n)], float(np.sqrt(squared[-1][largest].mean())) if known else math.nan


def choose(laws: Sequence[Law]) -> Law:
    """The law that predicts left-out runs best: of those within a standard error of the smallest mean squared held-out error
    the one with fewest constants, then the smaller error. UserError for none."""
    if not laws:
        raise UserError("no form could be fitted to this table")
    first = min(laws, key=lambda law: law.error)
    margin = first.held_out.mean() + first.held_out.std(ddof=1) / math.sqrt(len(first.held_out))
    near = [law for law in laws if law.held_out.mean() <= margin]
    return min(near, key=lambda law: (len(law.constants), law.error))


# --- what a table cannot say ----------------------------------------------------------------------------------------------


def check_table(name: str, columns: RunColumns) -> None:
    """Raise UserError where the table by itself cannot identify the form's constants."""
    form = FORMS[name]
    read = (form.predicts, *form.varies)
    if missing := [c for c in read if c not in columns]:
        raise UserError(f"{name}: the table has no column {missing[0]}")
    if wrong := [c for c in read if not (np.isfinite(columns[c]) & (np.asarray(columns[c]) > 0)).all()]:
        raise UserError(f"{name}: {wrong[0]} must be numbers above 0")
    runs = len(columns[form.predicts])
    if runs <= len(form.constants):
        raise UserError(f"{name}: {runs} runs for {len(form.constants)} constants: at least one run more is needed")
    for column, least in form.varies.items():
        values = np.unique(np.round(np.log(columns[column]), 3))
        if len(values) < least:
            of = {c.name for c in form.constants for by, *_ in c.power if by == column}
            of |= {exponent for c in form.constants for by, exponent, _ in c.power if by == column}
            which = f"all {runs} runs have" if len(values) == 1 else f"the {runs} runs have {len(values)} values of"
            shown = f" {column} {float(np.median(columns[column])):.4g}" if len(values) == 1 else f" {column}"
            cannot = f"{', '.join(sorted(of))} cannot be identified" if of else "its effect cannot be identified"
            raise UserError(f"{name}: {which}{shown}: {cannot}; add runs, at least {least} different {column}")
    if {"params", "tokens"} <= set(form.varies) and min(form.varies["params"], form.varies["tokens"]) > 2:
        r = float(np.corrcoef(np.log(columns["params"]), np.log(columns["tokens"]))[0, 1])
        if abs(r) > _TOGETHER:
            raise UserError(
                f"{name}: params and tokens move together in all runs (correlation of logarithms {r:.4f}): alpha and beta "
                "cannot be told apart; add runs of one size over several numbers of tokens"
            )


_HINTS = {
    "R_D": "; add runs that repeat their text (tokens above unique)",
    "R_N": "; add runs with more parameters than their unique tokens feed",
}


def _check_told_apart(name: str, problem: FitProblem, best: FloatArray) -> None:
    """Raise UserError where a constant shows in no run, or a combination of them does nothing. Those at a bound stand still."""
    inside = (problem.bounds[0] < best) & (best < problem.bounds[1])
    slope = jacobian(problem.logs, best[None])[0]
    floors = np.array([c.level and not c.power for c in problem.form.constants])  # a floor of nothing is an answer
    inside &= ~(floors & (np.abs(slope).max(0) < _NO_EFFECT))
    slope = slope[:, inside]
    names = [n for n, free in zip(problem.form.names, inside, strict=True) if free]
    effect = np.abs(slope).max(0)
    if unseen := [n for n, e in zip(names, effect, strict=True) if e < _NO_EFFECT]:
        hint = _HINTS.get(unseen[0], "")
        raise UserError(f"{name}: {unseen[0]} shows in none of the {len(slope)} runs, so they cannot say it{hint}")
    _, size, directions = np.linalg.svd(slope / np.linalg.norm(slope, axis=0), full_matrices=False)
    if size[-1] < _SAME:
        same = [n for n, part in zip(names, directions[-1], strict=True) if abs(part) > 0.2]
        raise UserError(f"{name}: {' and '.join(same)} do the same to all {len(slope)} runs and cannot be told apart")
