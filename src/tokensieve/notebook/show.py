"""HTML for a notebook: a table, and coloured tokens. Backgrounds are translucent, so that they suit light and dark pages.

Corpus text and names are other people's: every character is escaped, and those that a page would hide or obey are symbols.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..analysis.table import table
from ..data.text import visible

ORANGE, BLUE = "217, 138, 0", "43, 140, 201"
DIM = "opacity: .5"
MOST_NATS, MOST_EXCESS, MOST_WEIGHT = 8.0, 2.0, 2.0
"""What has the strongest colour: of nll and ref_nll, of excess (nats, either side), of weights."""


def text_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """As ``analysis.table``: every column of the first row."""
    return table(rows, list(rows[0]) if rows else [])


def html_table(rows: Sequence[Mapping[str, Any]], sentences: Sequence[str] = ()) -> str:
    """Rows as a table, sentences below it."""
    names = list(rows[0]) if rows else []
    head = "".join(f"<th>{_escaped(name)}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f'<td style="text-align: right">{_escaped(_cell(row.get(n)))}</td>' for n in names) + "</tr>"
        for row in rows
    )
    below = "".join(f"<p>{_escaped(sentence)}</p>" for sentence in sentences)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{below}"


def coloured(pieces: Sequence[str], values: Mapping[str, Any], by: str, title: str = "") -> str:
    """The text of ``pieces``, each token's background by its value of ``by``; all that is known of it when pointed at.

    kept      orange: kept; dim: dropped            excess   blue: below the reference; orange: above it
    nll       the bluer, the dearer                 weight   orange above 0, blue below, dim at 0
    """
    spans = []
    for at, piece in enumerate(pieces):
        value = float(values[by][at])
        told = ", ".join([f"{at}", *(f"{n} {float(v[at]):.3g}" for n, v in values.items() if not math.isnan(v[at]))])
        spans.append(f'<span style="{_style(by, value)}" title="{told}">{_text(piece)}</span>')
    legend = f"<div>{_escaped(title)}: coloured by {_escaped(by)}</div>" if title else ""
    return f'{legend}<pre style="white-space: pre-wrap">{"".join(spans)}</pre>'


def _style(by: str, value: float) -> str:
    if math.isnan(value):
        return ""
    if by == "kept":
        return _background(ORANGE, 0.5) if value else DIM
    if by == "weight":
        return _background(ORANGE if value > 0 else BLUE, abs(value) / MOST_WEIGHT) if value else DIM
    if by == "excess":
        return _background(ORANGE if value > 0 else BLUE, abs(value) / MOST_EXCESS)
    return _background(BLUE, value / MOST_NATS)


def _background(colour: str, strength: float) -> str:
    return f"background: rgba({colour}, {0.8 * min(1.0, max(0.0, strength)):.2f})"


def _text(piece: str) -> str:
    """A token as it may stand in a page; a newline is shown and ends the line."""
    return "".join(_escaped(char) + ("\n" if char == "\n" else "") for char in piece)


def _escaped(text: str) -> str:
    return html.escape("".join(map(visible, text)))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer() and abs(value) >= 1000):
        return f"{int(value):,}" if abs(value) < 1e15 else f"{value:.3e}"
    if isinstance(value, float):
        return f"{value:.4f}" if 1e-3 <= abs(value) < 1e6 or not value else f"{value:.3e}"
    return str(value)
