"""How a token is coloured by a number or a class, in a terminal: its style, and the legend of all styles.

    nll, ref_nll    dim, plain, cyan, yellow, bold pink        without colours from 2 nats on (2 to 4) [4 to 6] {from 6}
    excess          bold cyan, cyan, dim, yellow, bold yellow  without colours <below -1> (to -0.25) near 0 [to 1] {from 1}
    class           H->H pink, L->H yellow, H->L cyan, L->L dim        without colours {H->H} [L->H] (H->L) L->L

The steps are the same for every text, so that two of them can be compared.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from ..analysis.token_classes import CLASSES
from ..data.text import visible, width_of
from .terminal import PLAIN

StyledText = tuple[str, str]  # (text, style)

NLL_EDGES = (1.0, 2.0, 4.0, 6.0)
NLL_STYLES = ("low", "lower", "middle", "higher", "high")
EXCESS_EDGES = (-1.0, -0.25, 0.25, 1.0)
EXCESS_STYLES = ("far below", "below", "near", "above", "far above")
VALUES = {
    "nll": (NLL_EDGES, NLL_STYLES),
    "ref_nll": (NLL_EDGES, NLL_STYLES),
    "excess": (EXCESS_EDGES, EXCESS_STYLES),
}
BARS = "▁▂▃▄▅▆▇█"


def styles_of(by: str, values: Sequence[Any]) -> list[str]:
    """The style of each token by its nll, ref_nll, excess (nats, NaN: plain) or class (index into CLASSES, below 0: plain)."""
    if by == "class":
        return [CLASSES[int(v)] if v >= 0 else PLAIN for v in values]
    edges, styles = VALUES[by]
    return [PLAIN if math.isnan(v) else styles[bisect_right(edges, v)] for v in values]


def legend_of(by: str, styles: Sequence[str]) -> list[StyledText]:
    """What each style means and, for classes, the share of tokens that have it."""
    if by == "class":
        counts = [styles.count(c) for c in CLASSES]
        shares = [f" {100 * n / sum(counts):.0f} %" if sum(counts) else "" for n in counts]
        return _joined([(c, c) for c in CLASSES], shares)
    edges, names = VALUES[by]
    middle = [f"{low:g} to {high:g}" for low, high in pairwise(edges)]
    texts = [f"below {edges[0]:g}", *middle, f"from {edges[-1]:g}"]
    return [(f"{by} ", PLAIN), *_joined(list(zip(texts, names, strict=True))), (" nats", PLAIN)]


def _joined(parts: list[StyledText], after: Sequence[str] = ()) -> list[StyledText]:
    ends = [f"{a}, " for a in after] if after else [" | "] * len(parts)
    made = [p for part, end in zip(parts, ends, strict=True) for p in (part, (end, PLAIN))]
    return [*made[:-1], (made[-1][0].rstrip(", |"), PLAIN)]


def sparkline(values: Sequence[float], low: float, high: float) -> str:
    """A bar a value between ``low`` and ``high``; "" for none or NaN."""
    if not len(values) or any(math.isnan(v) for v in values):
        return ""
    span = max(high - low, 1e-9)
    return "".join(BARS[min(len(BARS) - 1, max(0, int((v - low) / span * len(BARS))))] for v in values)


def fitting_columns(rows: Sequence[dict[str, Any]], width: int) -> list[str]:
    """As many of the rows' columns, from the left, as a table of ``width`` columns has room for; the first always."""
    chosen: list[str] = []
    used = -2
    for name in rows[0] if rows else ():
        cells = [name, *("-" if r[name] is None else "".join(map(visible, str(r[name]))) for r in rows)]
        used += 2 + max(map(width_of, cells))
        if chosen and used > width:
            break
        chosen.append(name)
    return chosen
