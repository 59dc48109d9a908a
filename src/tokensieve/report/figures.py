"""The figures of a report: each one panel, one column wide, with a caption that says what is seen and from where.

A figure is left out where a run has not logged what it needs; nothing is filled in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..analysis.folders import Arm, Dynamics, Run, checkpoint_records, total_flops
from .logged import Columns, logged_tokens
from .measures import measure_figures
from .style import (
    ARMS,
    BASELINE,
    CLASS_COLOURS,
    DROPPED_COLOUR,
    KEPT_COLOUR,
    arm_colours,
    label_ends,
    panel,
    percent,
    si,
)
from .svg import INK


@dataclass(frozen=True)
class Figure:
    """A drawn figure. ``name`` is its file's, ``section`` where it stands on the page, ``caption`` plain text."""

    name: str
    section: str
    title: str
    caption: str
    drawing: Any


def figures(runs: Sequence[Run]) -> Iterator[Figure]:
    """Every figure that the runs' files allow, in the page's order; ``runs`` are the same recipe with other seeds."""
    run = runs[0]
    yield from target_curves(runs)
    yield from forgetting_curves(runs)
    logged = {arm.name: found for arm in run.arms if arm.is_selective and (found := logged_tokens(arm)) is not None}
    yield from selection_by_source(run)
    yield from selection_by_position(run, logged)
    yield from nll_over_time(run)
    yield from loss_against_target(run)
    yield from score_distributions(run, logged)
    for dynamics in run.dynamics:
        yield from dynamics_figures(run, dynamics)
    for name, title, caption, drawing in measure_figures(run):
        yield Figure(name, "measures", title, caption, drawing)
    yield from plan_curves(run)


# --- target and forgetting -------------------------------------------------------------------------------------------------

AXES: dict[str, tuple[str, str, Callable[[Arm, dict[str, Any]], float]]] = {
    "seen": ("tokens seen", "by tokens seen", lambda arm, r: r["tokens_seen"]),
    "trained": ("tokens trained", "by tokens trained", lambda arm, r: r["tokens_trained"]),
    "flops": ("FLOPs, total", "by total compute", lambda arm, r: total_flops(arm, r["tokens_seen"])),
}


def target_curves(runs: Sequence[Run]) -> Iterator[Figure]:
    """nll on the target against three axes: tokens seen, tokens trained, FLOPs of student, scoring and reference together."""
    run = runs[0]
    notes = {
        "seen": "Every checkpoint against the text it had passed through.",
        "trained": "The same, counting only tokens that stood in the loss.",
        "flops": "The same against all FLOPs: a scored arm starts where its scoring and its reference model have been paid.",
    }
    for key, (x_label, title, value) in AXES.items():
        if run.target and (drawn := _curves(runs, run.target, x_label, value)):
            seeds = f" Thin lines are the {len(runs)} seeds, the thick one is their mean." if len(runs) > 1 else ""
            yield Figure(f"target-{key}", "target", f"{run.target} {title}", notes[key] + seeds, drawn)


def forgetting_curves(runs: Sequence[Run]) -> Iterator[Figure]:
    """The further evaluation sets, where forgetting would show."""
    run = runs[0]
    for i, other in enumerate(run.others):
        x_label, _, value = AXES["seen"]
        if drawn := _curves(runs, other, x_label, value):
            caption = f"nll on {other} at every checkpoint: a rise is forgetting."
            yield Figure(f"forgetting-{i + 1}", "forgetting", f"{other} by tokens seen", caption, drawn)


def _curves(
    runs: Sequence[Run], on_set: str, x_label: str, value: Callable[[Arm, dict[str, Any]], float]
) -> Any | None:
    run, colours = runs[0], arm_colours(runs[0])
    figure, axes = panel("nll, nats a token", x_label)
    ends = []
    for arm in run.arms:
        lines = [line for each in runs if (line := _line(each, arm.name, on_set, value))]
        if not lines:
            continue
        colour, mean = colours[arm.name], _mean_line(lines)
        for x, y in lines if len(lines) > 1 else []:
            axes.plot(x, y, color=colour, linewidth=0.5, alpha=0.6)
        axes.plot(*mean, color=colour, marker="o", zorder=3)
        ends.append((float(mean[0][-1]), float(mean[1][-1]), arm.name, colour))
    if not ends:
        return None
    _levels(axes, run, on_set)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(si)
    label_ends(axes, ends)
    return figure


def _line(run: Run, arm: str, on_set: str, value: Callable[[Arm, dict[str, Any]], float]) -> Any:
    found = next((a for a in run.arms if a.name == arm), None)
    on = run.on if on_set == run.target else "all"
    records = checkpoint_records(run, arm, on_set, on) if found else []
    records = [r for r in records if r["tokens_seen"] is not None]
    if found is None or not records:
        return None
    x = np.array([value(found, r) for r in records], float)
    return (x, np.array([r["nll"] for r in records])) if np.isfinite(x).all() else None


def _mean_line(lines: Sequence[Any]) -> Any:
    """The mean over seeds where all have the same number of checkpoints; else the first seed's line."""
    if len({len(x) for x, _ in lines}) > 1:
        return lines[0]
    return np.mean([x for x, _ in lines], axis=0), np.mean([y for _, y in lines], axis=0)


def _levels(axes: Any, run: Run, on_set: str) -> None:
    """Dotted lines where models stand that are no arm: base, reference, n-grams; only near the curves."""
    low, high = axes.get_ylim()
    margin = 0.6 * (high - low)
    arms, last = {a.name for a in run.arms}, {}
    on = run.on if on_set == run.target else "all"
    for r in run.results:
        if r["model"] not in arms and r["set"] == on_set and r["on"] == on and r["nll"] is not None:
            last[r["model"]] = r["nll"]
    for name, nll in last.items():
        if low - margin <= nll <= high + margin:
            axes.axhline(nll, color=INK, alpha=0.55, linewidth=0.7, linestyle=(0, (1, 2)))
            axes.annotate(name, (0, nll), xytext=(3, 2), textcoords="offset points", alpha=0.75, fontsize=7)


# --- selection -------------------------------------------------------------------------------------------------------------


def selection_by_source(run: Run) -> Iterator[Figure]:
    """Share of each source's valid tokens that the selective arms kept, over the whole run."""
    arms = [a for a in run.arms if a.is_selective]
    sources = sorted({s for a in arms for s in a.summary["kept_share_by_source"]})
    if len(sources) < 2:
        return
    colours = arm_colours(run)
    figure, axes = panel("share of tokens kept", grid="x")
    figure.set_size_inches(3.5, 0.75 + 0.24 * len(sources))
    for arm in arms:
        shares = arm.summary["kept_share_by_source"]
        places = [i for i, s in enumerate(sources) if s in shares]
        values = [shares[sources[i]] for i in places]
        axes.plot(values, places, "o", color=colours[arm.name], markersize=5, clip_on=False)
        top = max(places, key=lambda i: -i)
        axes.annotate(
            arm.name,
            (shares[sources[top]], top),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            color=colours[arm.name],
        )
    axes.set_yticks(range(len(sources)), sources)
    axes.set_ylim(len(sources) - 0.5, -0.9)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_formatter(percent)
    caption = "Of each source's tokens, the share that stood in the loss, over the whole run."
    yield Figure("kept-by-source", "selection", "What was kept, by source", caption, figure)


def selection_by_position(run: Run, logged: dict[str, Columns]) -> Iterator[Figure]:
    """Share kept by position in the row, of the tokens that were logged."""
    if not logged:
        return
    colours = arm_colours(run)
    figure, axes = panel("share of logged tokens kept", "position in the row")
    ends = []
    for name, columns in logged.items():
        edges = np.unique(np.linspace(0, columns["position"].max() + 1, 17).round())
        count, _ = np.histogram(columns["position"], edges)
        kept, _ = np.histogram(columns["position"][columns["keep"]], edges)
        middle, share = (edges[:-1] + edges[1:]) / 2, kept / np.maximum(count, 1)
        middle, share, count = middle[count > 0], share[count > 0], count[count > 0]
        half = 1.96 * np.sqrt(share * (1 - share) / count)
        axes.fill_between(middle, share - half, share + half, color=colours[name], alpha=0.18, linewidth=0)
        axes.plot(middle, share, color=colours[name])
        ends.append((float(middle[-1]), float(share[-1]), name, colours[name]))
    axes.yaxis.set_major_formatter(percent)
    axes.yaxis.get_major_locator().set_params(steps=[1, 2, 5, 10], nbins=6)
    label_ends(axes, ends)
    tokens = max(len(c["step"]) for c in logged.values())
    caption = f"Up to {tokens:,} logged tokens an arm; bands are 95 % intervals of a share, over tokens."
    yield Figure("kept-by-position", "selection", "What was kept, by position", caption, figure)


# --- kept and dropped over time --------------------------------------------------------------------------------------------


def _scored(run: Run) -> list[Arm]:
    """Arms that choose tokens by a score: of a random choice, kept and dropped tokens are alike."""
    return [a for a in run.arms if a.is_selective and a.summary["objective"] != "random"]


def nll_over_time(run: Run) -> Iterator[Figure]:
    """Figure 6 of the paper from the training log: nll of kept and dropped tokens, and of the target at checkpoints."""
    for arm in _scored(run):
        figure, axes = panel("nll, nats a token", "tokens seen")
        ends = []
        for key, name, colour in (("kept", "kept", KEPT_COLOUR), ("dropped", "dropped", DROPPED_COLOUR)):
            x, y = windowed(arm.steps, key)
            axes.plot(x, y, color=colour)
            ends.append((float(x[-1]), float(y[-1]), name, colour))
        records = checkpoint_records(run, arm.name, run.target) if run.target else []
        if target := [(r["tokens_seen"], r["nll"]) for r in records if r["tokens_seen"] is not None]:
            axes.plot(*zip(*target, strict=True), color=INK, marker="o", linewidth=1)
            ends.append((*target[-1], str(run.target), INK))
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(si)
        label_ends(axes, ends)
        caption = (
            "Means over windows of steps, before each step; which tokens are kept changes from step to step. Compare the "
            "paper's figure 6."
        )
        yield Figure(f"kept-dropped-{arm.name}", "time", f"{arm.name}: kept, dropped and target nll", caption, figure)


def windowed(steps: Sequence[dict[str, Any]], which: str, windows: int = 60) -> Any:
    """(tokens seen, mean nll) of ``kept`` or ``dropped`` tokens over about ``windows`` equal stretches of steps.

    Means are over tokens, not over steps: sums travel. Stretches without such a token are left out, and so are steps whose
    mean is null, those without an update or with a dropped token of infinite nll: as 0 they pulled the curve down.
    """
    known = np.array([s[f"{which}_nll"] is not None for s in steps], bool)
    count = known * np.array([s["kept"] if which == "kept" else s["valid"] - s["kept"] for s in steps], float)
    nll = np.array([s[f"{which}_nll"] or 0.0 for s in steps])
    seen = np.array([s["tokens_seen"] for s in steps], float)
    starts = np.unique(np.linspace(0, len(steps), min(windows, len(steps)) + 1).astype(int))[:-1]
    totals = np.add.reduceat(count, starts)
    means = np.add.reduceat(count * nll, starts) / np.maximum(totals, 1)
    x = np.append(seen[starts[1:] - 1], seen[-1])
    return x[totals > 0], means[totals > 0]


def loss_against_target(run: Run) -> Iterator[Figure]:
    """Figure 7 of the paper: at each checkpoint, the target's nll against that of kept and of dropped tokens."""
    for arm in _scored(run):
        target = checkpoint_records(run, arm.name, run.target) if run.target else []
        points = [(r["step"], r["nll"]) for r in target if r["step"]]
        if len(points) < 3:
            continue
        figure, axes = panel(f"{run.target} nll, nats a token", "nll of logged training tokens, nats")
        for key, colour in (("kept", KEPT_COLOUR), ("dropped", DROPPED_COLOUR)):
            x = np.array([_around(arm.steps, key, step, points[0][0]) for step, _ in points])
            y = np.array([nll for _, nll in points])
            axes.plot(x, y, color=colour, marker="o", linewidth=0.8)
            axes.annotate(f"{key} (r = {np.corrcoef(x, y)[0, 1]:.2f})", (x[0], y[0]), xytext=(0, 5), color=colour,
                          textcoords="offset points", ha="center")  # fmt: skip
        axes.margins(x=0.16, y=0.12)
        caption = (
            "A point a checkpoint, from top to bottom in time; the training nll is the mean of the stretch before it. "
            "Compare the paper's figure 7. Few points: r describes, it does not test."
        )
        yield Figure(f"against-target-{arm.name}", "time", f"{arm.name}: training nll and target nll", caption, figure)


def _around(steps: Sequence[dict[str, Any]], which: str, step: int, width: int) -> float:
    """Mean nll over the last ``width`` steps; NaN where none of them says it."""
    near = [s for s in steps if step - width < s["step"] <= step]
    means = windowed(near, which, 1)[1] if near else []
    return float(means[0]) if len(means) else float("nan")


# --- scores ----------------------------------------------------------------------------------------------------------------


def score_distributions(run: Run, logged: dict[str, Columns]) -> Iterator[Figure]:
    """Where the excess loss of logged tokens lies, kept and dropped, and the threshold over time."""
    for arm in [a for a in run.arms if a.name in logged]:
        columns = logged[arm.name]
        if "ref_nll" in columns:
            yield _excess_histogram(arm, columns)
        steps = [(s["tokens_seen"], s["threshold"]) for s in arm.steps if s["threshold"] is not None]
        if (
            steps and arm.summary["objective"] != "random"
        ):  # its scores are random numbers: their threshold says nothing
            yield _threshold(arm, steps)


def _excess_histogram(arm: Arm, columns: Columns) -> Figure:
    known = np.isfinite(columns["nll"])  # of a masked vocabulary's token it is inf, and no bin's
    excess, keep = (columns["nll"] - columns["ref_nll"])[known], columns["keep"][known]
    figure, axes = panel("share of tokens in a bin", "excess: student nll - reference nll, nats")
    low, high = np.quantile(excess, [0.005, 0.995])
    edges = np.linspace(min(low, -0.5), max(high, 0.5), 50)
    inside = np.clip(excess, edges[0], edges[-1])
    weights = np.full(len(excess), 1 / len(excess))
    axes.hist([inside[~keep], inside[keep]], edges, weights=[weights[~keep], weights[keep]], stacked=True,
              color=[DROPPED_COLOUR, KEPT_COLOUR], linewidth=0)  # fmt: skip
    axes.axvline(0, color=INK, linewidth=0.6, alpha=0.5)
    axes.yaxis.set_major_formatter(percent)
    top = axes.get_ylim()[1]
    axes.annotate("kept", (edges[-1], top), ha="right", va="top", color=KEPT_COLOUR)
    axes.annotate("dropped", (edges[0], top), va="top", color=DROPPED_COLOUR)
    caption = (
        f"{len(excess):,} tokens logged over the whole run, the outermost 1 % put into the last bins. The colours mix where "
        "the threshold moved between steps."
    )
    return Figure(f"excess-{arm.name}", "scores", f"{arm.name}: distribution of excess", caption, figure)


def _threshold(arm: Arm, steps: Sequence[tuple[float, float]]) -> Figure:
    colour = KEPT_COLOUR
    x, y = (np.array(v, float) for v in zip(*steps, strict=True))
    figure, axes = panel("lowest score kept, nats", "tokens seen")
    axes.plot(x, y, color=colour, linewidth=0.4, alpha=0.35)
    parts = np.array_split(np.arange(len(x)), min(40, len(x)))
    axes.plot([x[p].mean() for p in parts], [np.median(y[p]) for p in parts], color=colour)
    low, high = np.quantile(y, [0.005, 0.995])
    axes.set_ylim(low - 0.1 * (high - low) - 1e-6, high + 0.1 * (high - low) + 1e-6)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(si)
    caption = "At every step (thin) and the median of stretches (thick)."
    return Figure(f"threshold-{arm.name}", "scores", f"{arm.name}: threshold", caption, figure)


# --- dynamics --------------------------------------------------------------------------------------------------------------


def dynamics_figures(run: Run, dynamics: Dynamics) -> Iterator[Figure]:
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


# --- plan ------------------------------------------------------------------------------------------------------------------


def plan_curves(run: Run) -> Iterator[Figure]:
    """The runs that a plan rests on, the lowest nll by compute under its law with a 90 % band, and runs that it did not see."""
    for name, plan in run.plans.items():
        if not plan["curve"]:
            continue
        figure, axes = panel("nll, nats a token", "FLOPs")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(si)  # matplotlib's own are formulas, which no text here is read as
        x, *band = ([point[key] for point in plan["curve"]] for key in ("flops", "low", "high", "value"))
        axes.fill_between(x, band[0], band[1], color=ARMS[0], alpha=0.18, linewidth=0)
        axes.plot(x, band[2], color=ARMS[0])
        axes.plot(
            [r["flops"] for r in plan["runs"]], [r["nll"] for r in plan["runs"]], "o", color=BASELINE, linewidth=0
        )
        for held in plan["held_out"]:
            if said := held["predicted"].get(plan["chosen"]):
                axes.plot([held["flops"]] * 2, [said["low"], said["high"]], color=ARMS[1])
                axes.plot(held["flops"], held["nll"], "D", color=ARMS[1], markerfacecolor="none")
        caption = (
            f"Dots are the runs; the line is the lowest nll that {plan['chosen']} expects of a budget, best shared out, with "
            "its 90 % interval. A diamond is a run that no law was fitted to, a bar the interval predicted for it."
        )
        yield Figure(f"{name}-curve", "plan", f"{name}: nll by compute", caption, figure)
