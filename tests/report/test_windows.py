"""Curves of a token log: means over tokens, and no step counts whose mean nobody knows."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tokensieve.report.figures import _around, windowed

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
