"""Figures of measures: one where there are checkpoints to draw, none where there are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest

from tokensieve.analysis.folders import Run
from tokensieve.report.figures import figures
from tokensieve.report.measures import MEASURE_FIGURES
from tokensieve.report.page import SECTIONS
from tokensieve.report.style import RC

METRICS = {
    "surprisal": ["delta_ll"],
    "probes": ["copy_gain", "induction"],
    "quantisation": ["relative_increase_4"],
    "signal": ["monotonicity"],
    "contamination": ["gap", "bound"],
}


def run_of(steps: int) -> Run:
    records: list[dict[str, Any]] = []
    for measure, metrics in METRICS.items():
        for metric in metrics:
            for step in range(1, 1 + (steps if measure != "signal" else 1)):
                told = {"model": "clm", "step": step, "tokens_seen": 100 * step, "learning_rate": 0.1 / step}
                records.append(
                    {**told, "measure": measure, "metric": metric, "on": "x", "value": 1 / step, "stderr": 0.1}
                )
    return Run("r", Path("r"), {}, [], measures=records)


def drawn(run: Run) -> dict[str, Any]:
    with mpl.rc_context(RC):
        return {f.name: f for f in figures([run])}


def test_a_figure_each() -> None:
    found = drawn(run_of(3))
    assert list(found) == ["surprisal", "copying", "induction", "quantisation", "signal", "contamination"]
    assert {f.section for f in found.values()} == {"measures"} <= set(SECTIONS)
    assert set(METRICS) == set(MEASURE_FIGURES)
    dashed = found["contamination"].drawing.axes[0].lines[-1].get_ydata()
    assert list(dashed) == pytest.approx([1, 1 / 2, 1 / 3])  # the first gap times the bound, which is 1 / step here


def test_one_checkpoint_is_no_curve() -> None:
    assert list(drawn(run_of(1))) == ["signal"]
