"""The figures of one dynamics folder: the four classes, their curves, who is in them, and what is kept of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..analysis.folders import Dynamics
from .style import CLASS_COLOURS, DROPPED_COLOUR, KEPT_COLOUR, Figure, label_ends, panel, percent, si
from .svg import INK


def dynamics_figures(dynamics: Dynamics) -> Iterator[Figure]:
    """Class shares beside the paper's, mean curve of each class, sample trajectories, and figure 6 as the paper has it."""
    tables = dynamics.tables
    yield _class_shares(dynamics)
    yield _class_curves(dynamics)
    for by, title in (("source", "source"), ("frequency", "how often the token occurs")):
        if rows := [b for b in tables["breakdowns"] if b["by"] == by]:
            yield _class_breakdown(dynamics, by, title, rows)
    if tables["samples"]:
        yield _trajectories(dynamics)
    if kept := [c for c in tables["classes"] if c["class"] in CLASS_COLOURS and c.get("kept_share") is not None]:
        yield _kept_by_class(dynamics, kept)
    if tables["selection"]:
        yield _kept_under(dynamics)


def label(name: str) -> str:
    """``H->L`` as it is printed."""
    return name.replace("->", "→")


def _class_shares(dynamics: Dynamics) -> Figure:
    tables = dynamics.tables
    rows = [c for c in tables["classes"] if c["class"] in CLASS_COLOURS]
    figure, axes = _class_bars("share of tokens", [(r["class"], r["share"], r["paper"] or 0.0) for r in rows])
    for i, row in enumerate(r for r in rows if r["paper"] is not None):
        axes.plot([row["paper"]] * 2, [i - 0.4, i + 0.4], color=INK, linewidth=1.2)
        if i == 0:
            axes.annotate("paper", (row["paper"], i - 0.4), xytext=(0, 2), textcoords="offset points", ha="center")
    axes.set_xlim(0, 1.15 * max(max(r["share"], r["paper"] or 0) for r in rows))
    caption = (
        f"{tables['tokens']:,} tokens at {len(tables['checkpoints'])} checkpoints, classed by the least-squares line through "
        f"their nll (±{tables['threshold']:g}). Ticks: the paper's shares, of a larger model on other text."
    )
    return Figure(f"{dynamics.name}-classes", "dynamics", f"{dynamics.model}: four classes of tokens", caption, figure)


def _class_bars(title: str, shares: Sequence[tuple[str, float, float]]) -> tuple[Any, Any]:
    """A bar a class of (name, share, where a tick will stand): the number steps aside for a tick near the bar's end."""
    figure, axes = panel(title, grid="x")
    figure.set_size_inches(3.5, 1.9)
    for i, (name, share, tick) in enumerate(shares):
        axes.barh(i, share, height=0.55, color=CLASS_COLOURS[name], linewidth=0)
        free = tick if share - 0.01 < tick < share + 0.12 else share
        axes.annotate(f"{share:.1%}", (free, i), xytext=(5, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(shares)), [label(name) for name, *_ in shares])
    axes.set_ylim(len(shares) - 0.5, -0.9)
    axes.xaxis.set_major_formatter(percent)
    return figure, axes


def _over_checkpoints(dynamics: Dynamics, lines: Sequence[tuple[str, str, Sequence[float | None]]]) -> Any:
    """A panel of (name, colour, nll at each checkpoint); lines with a hole are left out."""
    seen = dynamics.tokens_seen
    x = list(range(len(dynamics.tables["checkpoints"]))) if seen is None else seen
    figure, axes = panel("mean nll, nats a token", "checkpoint" if seen is None else "tokens seen")
    ends = []
    for name, colour, values in lines:
        y = [v for v in values if v is not None]
        if len(y) == len(x):
            axes.plot(x, y, color=colour, marker="o")
            ends.append((float(x[-1]), float(y[-1]), name, colour))
    if seen is not None:
        axes.xaxis.set_major_formatter(si)
    label_ends(axes, ends)
    return figure


def _class_curves(dynamics: Dynamics) -> Figure:
    by_class = {
        name: sorted((c for c in dynamics.tables["curves"] if c["class"] == name), key=lambda c: c["checkpoint"])
        for name in CLASS_COLOURS
    }
    lines = [(label(name), CLASS_COLOURS[name], [r["nll"] for r in rows]) for name, rows in by_class.items()]
    title = f"{dynamics.model}: mean nll of each class"
    caption = "Mean over the tokens of a class; classes are those of the whole stretch."
    return Figure(f"{dynamics.name}-curves", "dynamics", title, caption, _over_checkpoints(dynamics, lines))


def _class_breakdown(dynamics: Dynamics, by: str, title: str, rows: Sequence[dict[str, Any]]) -> Figure:
    """A bar a group, divided by class."""
    groups = list(dict.fromkeys(r["group"] for r in sorted(rows, key=lambda r: r["order"])))
    shares = {(r["group"], r["class"]): r["share"] or 0.0 for r in rows}
    figure, axes = panel("share of the group's tokens", grid="x")
    figure.set_size_inches(3.5, 0.9 + 0.2 * len(groups))
    left = np.zeros(len(groups))
    for name, colour in CLASS_COLOURS.items():
        width = np.array([shares.get((g, name), 0.0) for g in groups])
        axes.barh(range(len(groups)), width, left=left, height=0.7, color=colour, linewidth=0)
        if len(groups) and width[0] > 0.06:
            at = (left[0] + width[0] / 2, -0.45)
            axes.annotate(label(name), at, xytext=(0, 2), textcoords="offset points", ha="center", color=colour)
        left += width
    axes.set_yticks(range(len(groups)), groups)
    axes.set_ylim(len(groups) - 0.5, -1.1)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(percent)
    caption = f"Classes by {title}: each bar is all of a group's tokens."
    return Figure(f"{dynamics.name}-by-{by}", "dynamics", f"{dynamics.model}: classes by {title}", caption, figure)


def _trajectories(dynamics: Dynamics) -> Figure:
    """Small multiples on one scale: a few tokens of each class."""
    from matplotlib.figure import Figure as Drawing

    figure = Drawing(figsize=(3.5, 2.9))
    grid = figure.subplots(2, 2, sharex=True, sharey=True)
    for axes, (which, colour) in zip(grid.flat, CLASS_COLOURS.items(), strict=True):
        for row in [s for s in dynamics.tables["samples"] if s["class"] == which][:8]:
            axes.plot(row["nll"], color=colour, linewidth=0.7, alpha=0.9)
        axes.set_title(label(which), color=colour, pad=3)
        axes.grid(visible=True, axis="y")
    figure.supxlabel("checkpoint", fontsize=7.5)
    title = f"{dynamics.model}: sample trajectories"
    caption = "Up to eight tokens of each class, nll in nats; many fluctuate more than they move."
    return Figure(f"{dynamics.name}-samples", "dynamics", title, caption, figure)


def _kept_by_class(dynamics: Dynamics, rows: Sequence[dict[str, Any]]) -> Figure:
    figure, axes = _class_bars("share of tokens kept", [(r["class"], r["kept_share"], 0.0) for r in rows])
    axes.set_xlim(0, 1)
    title = f"{dynamics.model}: what is kept, by class"
    caption = (
        f"How often the top {dynamics.tables['ratio']:.0%} by excess hold a token of each class, over all checkpoints."
    )
    return Figure(f"{dynamics.name}-kept-by-class", "selection", title, caption, figure)


def _kept_under(dynamics: Dynamics) -> Figure:
    """Figure 6 as the paper has it: one selection, the last, looked at over all checkpoints."""
    selection = dynamics.tables["selection"]
    last = max(s["selected_at"] for s in selection)
    rows = sorted((s for s in selection if s["selected_at"] == last), key=lambda s: s["checkpoint"])
    lines = [
        (key, colour, [r[f"{key}_nll"] for r in rows])
        for key, colour in (("kept", KEPT_COLOUR), ("dropped", DROPPED_COLOUR))
    ]
    title = f"{dynamics.model}: one selection over time"
    caption = (
        f"Tokens of held-out text that the last selection (top {dynamics.tables['ratio']:.0%} by excess) keeps and drops, at "
        "every checkpoint: figure 6 as the paper has it."
    )
    return Figure(f"{dynamics.name}-selection", "time", title, caption, _over_checkpoints(dynamics, lines))
