"""The figures of a report: each one panel, one column wide, with a caption that says what is seen and from where.

A figure is left out where a run has not logged what it needs; nothing is filled in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..analysis.comparison import TOTAL
from ..analysis.folders import Arm, Run, checkpoint_records, total_flops
from .dynamics_figures import dynamics_figures
from .logged import Columns, logged_tokens
from .measures import measure_figures
from .style import (
    ARMS,
    BASELINE,
    DROPPED_COLOUR,
    KEPT_COLOUR,
    Figure,
    arm_colours,
    label_ends,
    panel,
    percent,
    si,
)
from .svg import INK


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
        yield from dynamics_figures(dynamics)
    for name, title, caption, drawing in measure_figures(run):
        yield Figure(name, "measures", title, caption, drawing)
    yield from plan_curves(run)


# --- target and forgetting -------------------------------------------------------------------------------------------------

AXES: dict[str, tuple[str, str, str, Callable[[Arm, dict[str, Any]], float]]] = {
    "seen": ("tokens seen", "by tokens seen", "tokens_seen", lambda arm, r: r["tokens_seen"]),
    "trained": ("tokens trained", "by tokens trained", "tokens_trained", lambda arm, r: r["tokens_trained"]),
    "flops": ("FLOPs, total", "by total compute", "flops_total", lambda arm, r: total_flops(arm, r["tokens_seen"])),
}
"""Its label, its title, the comparison's column of it, and its value at a checkpoint."""


def target_curves(runs: Sequence[Run]) -> Iterator[Figure]:
    """nll on the target against three axes: tokens seen, tokens trained, FLOPs of student, scoring and reference together."""
    run = runs[0]
    notes = {
        "seen": "Every checkpoint against the text it had passed through.",
        "trained": "The same, counting only tokens that stood in the loss.",
        "flops": "The same against all FLOPs: a scored arm starts where its scoring and its reference model have been paid.",
    }
    for key, (_, title, *_) in AXES.items():
        if run.target and (drawn := _curves(runs, run.target, key)):
            seeds = f" Thin lines are the {len(runs)} seeds, the thick one is their mean." if len(runs) > 1 else ""
            yield Figure(f"target-{key}", "target", f"{run.target} {title}", notes[key] + seeds, drawn)


def forgetting_curves(runs: Sequence[Run]) -> Iterator[Figure]:
    """The further evaluation sets, where forgetting would show."""
    run = runs[0]
    for i, other in enumerate(run.others):
        if drawn := _curves(runs, other, "seen"):
            caption = f"nll on {other} at every checkpoint: a rise is forgetting."
            yield Figure(f"forgetting-{i + 1}", "forgetting", f"{other} by tokens seen", caption, drawn)


def _curves(runs: Sequence[Run], on_set: str, axis: str) -> Any | None:
    run, colours = runs[0], arm_colours(runs[0])
    figure, axes = panel("nll, nats a token", AXES[axis][0])
    ends = []
    for arm in run.arms:
        lines = [line for each in runs if (line := _line(each, arm.name, on_set, axis))]
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


def _line(run: Run, arm: str, on_set: str, axis: str) -> Any:
    found = next((a for a in run.arms if a.name == arm), None)
    on = run.on if on_set == run.target else "all"
    records = checkpoint_records(run, arm, on_set, on) if found else []
    records = [r for r in records if r["tokens_seen"] is not None]
    if found is None or not records:
        return None
    _, _, column, value = AXES[axis]
    x = np.array([value(found, r) for r in records], float) + spent_before(run, found, column)
    return (x, np.array([r["nll"] for r in records])) if np.isfinite(x).all() else None


def spent_before(run: Run, arm: Arm, column: str) -> float:
    """What the comparison charges an arm with beside its own run: runs that it alone was begun from. 0 without a comparison.

    Of an annealed arm the table had the first part, and its curve began at 0.
    """
    row = next((r for r in run.rows if r["arm"] == arm.name), {})
    own = [arm.summary.get(key) for key in (TOTAL if column == "flops_total" else (column,))]
    known = [v for v in own if v is not None]
    return 0.0 if row.get(column) is None or len(known) < len(own) else float(row[column] - sum(known))


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
