"""Rows of numbers as an aligned text table, for a terminal or as Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from ..data.text import visible, width_of

_WRITTEN_NUMBER = re.compile(r"~?[-+]?\d[\d,]*(\.\d*)?(e[-+]?\d+)?( ?[kMGTPEZ])?( ?B| ?%)?")


def table(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | Mapping[str, str], *, markdown: bool = False
) -> str:
    """``rows`` as an aligned text table, one line a row, without a newline at its end.

    ``columns`` are the keys to show, in order, or a mapping key -> heading. Columns of numbers are right-aligned; a missing
    key or None is shown as "-". Integers get thousands separators, floats three decimals (or an exponent where those would
    hide the number); hand in a string for anything else: "1.2850", "~3.4 M" and "60 %" still count as numbers.
    """
    headings: dict[str, str] = dict(columns) if isinstance(columns, Mapping) else {c: c for c in columns}
    values: list[list[Any]] = [list(headings.values()), *([row.get(key) for key in headings] for row in rows)]
    right = [_is_numeric([row[c] for row in values[1:]]) for c in range(len(headings))]
    text = [[_cell(v, markdown) for v in row] for row in values]
    widths = [max(3 if markdown else 1, *(width_of(row[c]) for row in text)) for c in range(len(headings))]
    lines = [[_pad(cell, w, r) for cell, w, r in zip(row, widths, right, strict=True)] for row in text]
    if markdown:
        rule = ["-" * (w - 1) + (":" if r else "-") for w, r in zip(widths, right, strict=True)]
        return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])
    rule = ["-" * w for w in widths]
    return "\n".join("  ".join(line).rstrip() for line in [lines[0], rule, *lines[1:]])


def rounded(value: float) -> str:
    """``1234567 -> "1.23 M"``; below a thousand ``"12 "``: a unit may follow at once."""
    for factor, name in ((1e21, " Z"), (1e18, " E"), (1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= factor:
            return f"{value / factor:.3g}{name}"
    return f"{value:.3g} "


def _is_numeric(values: list[Any]) -> bool:
    given = [v for v in values if v is not None and v != ""]
    return bool(given) and all(
        bool(_WRITTEN_NUMBER.fullmatch(v)) if isinstance(v, str) else isinstance(v, Real) and not isinstance(v, bool)
        for v in given
    )


def _cell(value: Any, markdown: bool) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return f"{int(value):,}"
    if isinstance(value, Real):
        return _number(float(value))
    text = "".join(map(visible, str(value)))
    return text.replace("\\", "\\\\").replace("|", "\\|") if markdown else text


def _number(x: float) -> str:
    hidden = math.isfinite(x) and x != 0 and not 1e-3 <= abs(x) < 1e6
    return f"{x:.3e}" if hidden else f"{x:.3f}"


def _pad(text: str, width: int, right: bool) -> str:
    space = " " * (width - width_of(text))
    return space + text if right else text + space
