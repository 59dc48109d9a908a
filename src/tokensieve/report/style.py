"""How every figure looks: one column wide, one panel, one colour an arm wherever it stands, lines labelled at their ends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..analysis.folders import Run
from ..analysis.token_classes import CLASSES
from .svg import INK

# Okabe and Ito's colours, which the colour-blind can tell apart, in tones that stand out from white and from near-black.
BASELINE, RANDOM = "#858585", "#cc79a7"
ARMS = ("#2b8cc9", "#d4761c", "#169a78", "#8c7ae6", "#b59a1a")
KEPT_COLOUR, DROPPED_COLOUR = "#d98a00", "#7d8b99"
CLASS_COLOURS = dict(zip(CLASSES, ("#cc79a7", "#d98a00", "#2b8cc9", "#858585"), strict=True))
SIZE = (3.5, 2.5)


@dataclass(frozen=True)
class Figure:
    """A drawn figure. ``name`` is its file's, ``section`` where it stands on the page, ``caption`` plain text."""

    name: str
    section: str
    title: str
    caption: str
    drawing: Any


RC: dict[str, Any] = {
    "axes.edgecolor": INK,
    "axes.facecolor": "none",  # one drawing is the file's, on white, and the page's, on whatever the reader's scheme has
    "axes.labelcolor": INK,
    "axes.labelsize": 7.5,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.titlesize": 7.5,
    "axes.unicode_minus": True,
    "figure.constrained_layout.use": True,
    "figure.figsize": SIZE,
    "font.family": "sans-serif",
    "font.size": 7.5,
    "grid.alpha": 0.13,
    "grid.color": INK,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "lines.markersize": 3.5,
    "lines.solid_capstyle": "round",
    "path.simplify": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "tokensieve",
    "text.color": INK,
    "text.parse_math": False,  # names of sources are data: a dollar sign in one is a dollar sign
    "xtick.color": INK,
    "xtick.labelsize": 7.5,
    "xtick.major.size": 2.5,
    "xtick.major.width": 0.6,
    "ytick.color": INK,
    "ytick.labelsize": 7.5,
    "ytick.major.size": 0,
}


def arm_colours(run: Run) -> dict[str, str]:
    """arm -> colour: the baseline grey, the random control pink, the others in their order."""
    rest = iter(ARMS * (1 + len(run.arms)))
    colours = {}
    for arm in run.arms:
        if arm.name == run.baseline:
            colours[arm.name] = BASELINE
        else:
            colours[arm.name] = RANDOM if arm.summary["objective"] == "random" else next(rest)
    return colours


def panel(y_title: str, x_label: str = "", *, grid: Literal["x", "y"] = "y") -> tuple[Any, Any]:
    """(figure, axes) of one panel; what y is stands above the axis, upright."""
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.subplots()
    axes.set_title(y_title)
    axes.set_xlabel(x_label)
    axes.grid(visible=True, axis=grid)
    axes.set_axisbelow(True)
    return figure, axes


def label_ends(axes: Any, ends: Iterable[tuple[float, float, str, str]], gap: float = 0.065) -> None:
    """Names at the ends (x, y, name, colour) of lines, in their colours.

    Those at the right edge stand beside it, at least ``gap`` of the height apart; a line that ends earlier has its name below.
    """
    ordered = sorted(ends, key=lambda e: e[1])
    low, high = axes.get_ylim()
    right = max((x for x, *_ in ordered), default=0.0)
    beside = [e for e in ordered if e[0] > 0.9 * right]
    heights = spread([(y - low) / (high - low) for _, y, *_ in beside], gap)
    for height, (_, _, name, colour) in zip(heights, beside, strict=True):
        axes.annotate(
            name,
            (right, height),
            xycoords=("data", "axes fraction"),
            xytext=(4, 0),
            textcoords="offset points",
            color=colour,
            va="center",
            annotation_clip=False,
        )
    for x, y, name, colour in ordered:
        if x <= 0.9 * right:
            place = _freest(axes, x, y, len(name))
            axes.annotate(
                name, (x, y), xytext=place, textcoords="offset points", ha="center", va="center", color=colour
            )


def _freest(axes: Any, x: float, y: float, letters: int) -> tuple[float, float]:
    """Where a name of so many letters beside the point is farthest from every line: right of, below or above it; in points."""
    import numpy as np

    to_points = 72 / axes.figure.dpi
    lines = [line.get_xydata() for line in axes.lines if len(line.get_xdata())]  # a run without checkpoints: one point
    dense = [
        np.column_stack([np.interp(np.linspace(0, len(p) - 1, 99), np.arange(len(p)), c) for c in p.T]) for p in lines
    ]
    places = axes.transData.transform(np.concatenate(dense)) * to_points
    here = axes.transData.transform((x, y)) * to_points
    width = 4.2 * letters
    offsets = [(5 + width / 2, 0.0), (0.0, -9.0), (0.0, 9.0)]

    def room(offset: tuple[float, float]) -> float:
        gaps = np.abs(places - here - offset) - (width / 2, 3)
        return float(np.hypot(*np.maximum(gaps, 0).T).min())

    return max(offsets, key=room)


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Ascending ``values`` moved as little as a few sweeps can, so that neighbours are ``gap`` apart."""
    places = list(values)
    for _ in range(200):
        close = [i for i in range(len(places) - 1) if places[i + 1] - places[i] < gap - 1e-9]
        if not close:
            break
        for i in close:
            push = (gap - (places[i + 1] - places[i])) / 2
            places[i], places[i + 1] = places[i] - push, places[i + 1] + push
    return places


def si(value: float, _: Any = None) -> str:
    """Tick labels: 1500000 -> 1.5M"""
    for factor, name in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{name}"
    return f"{value:.3g}"


def percent(value: float, _: Any = None) -> str:
    return f"{100 * value:.3g}%"
