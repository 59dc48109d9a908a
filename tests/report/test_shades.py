"""Shades: a value's step, the legend that says so, and curves."""

from __future__ import annotations

import pytest

from tokensieve.analysis.table import table
from tokensieve.report.shades import fitting_columns, legend_of, sparkline, styles_of
from tokensieve.report.terminal import ANSI, MARKS, PLAIN


def test_steps() -> None:
    """A value on an edge belongs to the step above it, as its legend says: "below 1", "1 to 2"."""
    nan = float("nan")
    assert styles_of("nll", [0.0, 0.99, 1.0, 2.0, 4.0, 6.0, 99.0, nan]) == [
        *("low", "low", "lower", "middle", "higher", "high", "high", PLAIN)
    ]
    assert styles_of("excess", [-3.0, -1.0, -0.25, 0.0, 0.25, 1.0, nan]) == [
        *("far below", "below", "near", "near", "above", "far above", PLAIN)
    ]
    assert styles_of("class", [0, 1, 2, 3, -1]) == ["H->H", "L->H", "H->L", "L->L", PLAIN]


@pytest.mark.parametrize("by", ["nll", "ref_nll", "excess", "class"])
def test_every_style_is_in_the_legend_and_can_be_told_from_the_others(by: str) -> None:
    values = range(4) if by == "class" else [-9, -0.9, -0.2, 0.3, 1.5, 3.0, 5.0, 9.0]
    styles = styles_of(by, [float(v) for v in values])
    legend = legend_of(by, styles)
    assert set(styles) <= {style for _, style in legend}
    shown = {style for _, style in legend if style != PLAIN}
    assert len({ANSI[s] for s in shown}) == len(shown)
    assert len({MARKS[s] for s in shown if s in MARKS}) == sum(s in MARKS for s in shown)


def test_shares_of_classes() -> None:
    text = "".join(t for t, _ in legend_of("class", styles_of("class", [0, 2, 2, 3, -1])))
    assert text == "H->H 25 %, L->H 0 %, H->L 50 %, L->L 25 %"
    assert "".join(t for t, _ in legend_of("class", [PLAIN])) == "H->H, L->H, H->L, L->L"


def test_curves() -> None:
    assert sparkline([0, 4, 8, 2], 0, 8) == "▁▅█▃"
    assert sparkline([1, 1], 1, 1) == "▁▁"
    assert sparkline([float("nan"), 1], 0, 1) == sparkline([], 0, 1) == ""


def test_columns_that_fit() -> None:
    rows = [{"at": "1", "token": "你好", "nll": "10.25", "class": None}]
    for width in range(2, 30):
        columns = fitting_columns(rows, width)
        assert columns == list(rows[0])[: len(columns)]
        widest = max(len(line) + 2 * line.count("你好") for line in table(rows, columns).split("\n"))
        assert widest <= width or columns == ["at"]
    assert fitting_columns(rows, 30) == list(rows[0])
