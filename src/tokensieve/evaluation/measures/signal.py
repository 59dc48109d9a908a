"""What a metric says while training runs: does it move one way, by more than its noise, and rank models as it will at the end?

    monotonicity       Spearman's correlation of the metric with the step; 1 is better at every checkpoint, -1 worse
    signal_to_noise    |last - first| / noise
    noise              sqrt(mean(e^2) / 1.5), e_i = y_i - (y_(i-1) + y_(i+1)) / 2: of the spread around any smooth curve
    rank_consistency   mean over earlier checkpoints of Kendall's tau-b of the models' order there and at the last one

After the criteria of the E2LM competition, arXiv 2506.07731 (quality of the signal, consistency of rankings; the third, that
items are of science, is no number of ours), whose own weights of them are not used. The noise is the estimator of Gasser, Sroka
and Jennen-Steinmetz (1986) for checkpoints at even distances: a straight line has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...runs.errors import UserError
from ...runs.files import read_json
from .subject import MeasureRecord, record

RECORD_FILES = {"evaluation": "evaluation.json", "tasks": "tasks.json", "measures": "measures.json"}
JUDGEMENTS = ("monotonicity", "signal_to_noise", "noise", "rank_consistency")
# Metrics that are better where they are lower, by how their names begin.
LOWER = ("nll", "bits_per_byte", "copy_nll", "surprisal", "weight_error", "relative_increase")
# Figures of an evaluation's record that are metrics; other records name theirs.
OF_SETS = ("nll", "bits_per_byte")

Trajectory = dict[int, float]
"""step -> value"""


def signal(records: Sequence[MeasureRecord]) -> list[MeasureRecord]:
    """The four of every metric in ``records`` (with ``model``, ``step``, ``what``, ``value``) that has at least 3 checkpoints.

    UserError where none has.
    """
    curves = curves_of(records)
    made = [r for (model, what), curve in curves.items() if len(curve) >= 3 for r in _of_curve(model, what, curve)]
    if not made:
        raise UserError(
            "signal: no metric has 3 checkpoints: set checkpoints, or name folders in signal.of that have them"
        )
    for what in dict.fromkeys(what for _, what in curves):
        made += _of_models(what, {model: c for (model, w), c in curves.items() if w == what})
    return made


def curves_of(records: Sequence[MeasureRecord]) -> dict[tuple[str, str], Trajectory]:
    """(model, metric) -> its curve, in order of steps; records without step or value are left out."""
    curves: dict[tuple[str, str], Trajectory] = {}
    for r in records:
        if r["step"] is not None and r["value"] is not None:
            curves.setdefault((r["model"], r["what"]), {})[r["step"]] = r["value"]
    return {key: dict(sorted(curve.items())) for key, curve in curves.items()}


def flattened(records: Sequence[Mapping[str, Any]]) -> Iterator[MeasureRecord]:
    """Records of a set, a task or a measure as (model, step, what, value)."""
    for r in records:
        whose = {"model": r["model"], "step": r["step"]}
        if "metric" in r:
            on = " ".join(str(r[k]) for k in ("task", "measure", "on") if r.get(k) is not None)
            yield {**whose, "what": f"{r['metric']} {on}".strip(), "value": r["value"]}
        else:
            for name in OF_SETS:
                on = r["set"] if r["on"] == "all" else f"{r['set']} ({r['on']}s)"
                yield {**whose, "what": f"{name} {on}", "value": r[name]}


def read_records(folder: str, kind: str) -> list[MeasureRecord]:
    return list(flattened(read_json(Path(folder) / RECORD_FILES[kind])))


def noise(values: Sequence[float]) -> float:
    """See above; NaN of less than 3."""
    y = np.asarray(values, float)
    e = y[1:-1] - (y[:-2] + y[2:]) / 2
    return float(np.sqrt((e**2).mean() / 1.5)) if len(e) else float("nan")


def _of_curve(model: str, what: str, curve: Trajectory) -> Iterator[MeasureRecord]:
    from scipy.stats import spearmanr

    steps, values = list(curve), list(curve.values())
    told: dict[str, Any] = {"model": model, "on": what, "n": len(values)}
    better = -1.0 if what.startswith(LOWER) else 1.0
    moves = len(set(values)) > 1
    yield record("monotonicity", better * float(spearmanr(steps, values).statistic) if moves else None, **told)
    spread = noise(values)
    yield record("noise", spread, **told)
    yield record("signal_to_noise", abs(values[-1] - values[0]) / spread if spread > 0 else None, **told)


def _of_models(what: str, curves: Mapping[str, Trajectory]) -> Iterator[MeasureRecord]:
    from scipy.stats import kendalltau

    shared = sorted(set.intersection(*(set(c) for c in curves.values())))
    if len(curves) < 2 or len(shared) < 2:
        return
    at = [[c[step] for c in curves.values()] for step in shared]
    taus = np.array([float(kendalltau(row, at[-1]).statistic) for row in at[:-1]])
    taus = taus[np.isfinite(taus)]  # none where all models are alike
    error = float(taus.std(ddof=1) / len(taus) ** 0.5) if len(taus) > 1 else None
    value = float(taus.mean()) if len(taus) else None
    yield record("rank_consistency", value, error, model="all", on=what, n=len(taus), models=len(curves))
