"""Arms of one experiment side by side: end values, and who reached whose end with how many tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np


def tokens_to_reach(curve: Sequence[tuple[float, float]], goal: float) -> float | None:
    """Tokens at which a curve of (tokens, nll) first comes down to ``goal``; None if it never does.

    Between two points the curve is a straight line. The curve need not be monotone: the first crossing counts.
    """
    points = sorted(curve)
    if points and points[0][1] <= goal:
        return points[0][0]
    for (x0, y0), (x1, y1) in pairwise(points):
        if y0 > goal >= y1:
            return x0 + (x1 - x0) * (y0 - goal) / (y0 - y1)
    return None


def curve(results: Sequence[dict[str, Any]], model: str, target: str, on: str = "all") -> list[tuple[float, float]]:
    """(tokens seen, nll) of one model's checkpoints on one set."""
    return [
        (r["tokens_seen"], r["nll"])
        for r in results
        if (r["model"], r["set"], r["on"]) == (model, target, on) and None not in (r.get("tokens_seen"), r["nll"])
    ]


def end(results: Sequence[dict[str, Any]], model: str, target: str, on: str = "all") -> dict[str, Any]:
    """The record of a model's last weights on one set. Raises KeyError if there is none."""
    found = [r for r in results if r["model"] == model and r["set"] == target and r["on"] == on]
    if not found:
        raise KeyError(f"no result of {model!r} on {target!r} ({on})")
    return max(found, key=lambda r: r.get("step") or 0)


def kept_by_source(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a source, a column a selective arm: the share of the source's valid tokens that the arm kept.

    ``rows`` as ``compare`` makes them, one an arm; arms that keep every token are left out, and so is a lone source.
    """
    shares = {r["arm"]: r["kept_share_by_source"] for r in rows if r.get("kept_share", 1.0) < 1.0}
    sources = sorted({name for by_source in shares.values() for name in by_source})
    if len(sources) < 2:
        return []
    return [{"source": name, **{arm: by.get(name) for arm, by in shares.items()}} for name in sources]


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """(mean, sample standard deviation: n - 1); the spread of a single value is NaN, not 0."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else float("nan")
