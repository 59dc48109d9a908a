"""Curves of a token log: means over tokens, and no step counts whose mean nobody knows."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tokensieve.analysis.folders import Arm
from tokensieve.report.figures import _around, spent_before, windowed

Step = dict[str, Any]


def steps(*lines: tuple[int, int, float | None, float | None]) -> list[Step]:
    """(valid, kept, kept_nll, dropped_nll) of each step."""
    return [
        {"step": i + 1, "tokens_seen": 10 * (i + 1), "valid": v, "kept": k, "kept_nll": kept, "dropped_nll": dropped}
        for i, (v, k, kept, dropped) in enumerate(lines)
    ]


@pytest.mark.parametrize(
    ("lines", "kept", "dropped"),
    [
        ([(10, 6, 3.0, 2.0), (10, 2, 1.0, 4.0)], 2.5, (4 * 2 + 8 * 4) / 12),
        ([(10, 6, 3.0, 2.0), (10, 0, None, None)], 3.0, 2.0),  # no update: 10 dropped tokens, of nobody knows what nll
        ([(10, 6, 3.0, None), (10, 6, 1.0, 5.0)], 2.0, 5.0),  # a dropped token of infinite nll
        ([(10, 10, 3.0, None), (10, 10, 1.0, None)], 2.0, None),
        ([(10, 0, None, None)], None, None),
    ],
)
def test_a_mean_that_is_null_is_no_zero(lines: Any, kept: float | None, dropped: float | None) -> None:
    """A step that was skipped drew the dropped tokens' curve down to 0, and a stretch of nothing else was an IndexError."""
    for which, wanted in (("kept", kept), ("dropped", dropped)):
        _, means = windowed(steps(*lines), which, windows=1)
        assert means.tolist() == ([] if wanted is None else [pytest.approx(wanted)])
        around = _around(steps(*lines), which, 2, 2)
        assert math.isnan(around) if wanted is None else around == pytest.approx(wanted)


def test_a_curve_begins_where_what_an_arm_was_begun_from_is_paid() -> None:
    """The table charged an annealed arm with its first part; on the axes of tokens and of total compute it began at 0."""
    spent = {"flops_student": 5.0, "flops_scoring": 1.0, "flops_reference": 2.0, "tokens_seen": 10, "tokens_trained": 6}
    arm = Arm("anneal", Path(), {"summary": spent}, [])
    row = {"arm": "anneal", "flops_total": 20.0, "tokens_seen": 40, "tokens_trained": 36}
    run = SimpleNamespace(rows=[row])
    assert [spent_before(run, arm, c) for c in ("flops_total", "tokens_seen", "tokens_trained")] == [12, 30, 30]  # type: ignore[arg-type]
    assert spent_before(SimpleNamespace(rows=[]), arm, "flops_total") == 0  # type: ignore[arg-type]
    row["flops_total"] = None  # type: ignore[assignment]
    assert spent_before(run, arm, "flops_total") == 0  # type: ignore[arg-type]
