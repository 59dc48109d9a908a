"""Figures of what ``evaluate --measures`` found over checkpoints: one for each measure that a run has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..analysis.folders import Run
from .style import ARMS, BASELINE, label_ends, panel, si
from .svg import INK

Records = list[dict[str, Any]]
Drawn = tuple[str, str, str, Any]
"""name, title, caption, drawing"""


def measure_figures(run: Run) -> Iterator[Drawn]:
    """In the order of MEASURE_FIGURES; a measure that the run has not, or of one checkpoint alone, has none."""
    for name, draw in MEASURE_FIGURES.items():
        if records := [r for r in run.measures if r["measure"] == name and r["value"] is not None]:
            yield from draw(records)


def _surprisal(records: Records) -> Iterator[Drawn]:
    lines = _lines(records, "delta_ll")
    caption = (
        "What surprisal adds to a regression on reading times, nats a word, at each checkpoint; bars are standard errors over "
        "words. The best model of text need not be the best one of readers."
    )
    if drawn := _over_tokens("gain in log-likelihood, nats a word", lines):
        yield "surprisal", "Reading times by tokens seen", caption, drawn


def _probes(records: Records) -> Iterator[Drawn]:
    lines = _lines(records, "copy_gain")
    caption = (
        "nll of a sequence where it stands for the first time, less that of its copies: what a model makes of a copy."
    )
    if drawn := _over_tokens("gain by repetition, nats a token", lines):
        yield "copying", "Copying by tokens seen", caption, drawn
    if drawn := _over_tokens("mean attention weight", _lines(records, "induction")):
        caption = "Weight that the best heads put on what followed a token when it stood there last."
        yield "induction", "Induction heads by tokens seen", caption, drawn


def _quantisation(records: Records) -> Iterator[Drawn]:
    """Two panels on one axis: the loss by rounding, and the learning rate of the moment below it."""
    from matplotlib.figure import Figure as Drawing

    found = [r for r in records if r["metric"].startswith("relative_increase_")]
    lines = {key: rows for key, rows in _by_line(found, "metric").items() if len(rows) > 1}
    if not lines:
        return
    figure = Drawing(figsize=(3.5, 3.2))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    ends, of_models = [], dict[str, Records]()
    for i, ((model, on, metric), rows) in enumerate(lines.items()):
        colour, bits = ARMS[i % len(ARMS)], metric.rpartition("_")[2]
        x, y = [r["tokens_seen"] for r in rows], [r["value"] for r in rows]
        above.errorbar(x, y, [r["stderr"] or 0.0 for r in rows], color=colour, marker="o")
        ends.append((float(x[-1]), float(y[-1]), f"{model} {on} {bits} bits", colour))
        of_models[model] = rows
    for rows in of_models.values():
        known = [r for r in rows if r["learning_rate"] is not None]
        below.plot([r["tokens_seen"] for r in known], [r["learning_rate"] for r in known], color=BASELINE, marker="o")
    above.set_title("nll gained by rounding, over nll")
    below.set_title("learning rate")
    below.set_xlabel("tokens seen")
    below.xaxis.set_major_formatter(si)
    for axes in (above, below):
        axes.grid(visible=True, axis="y")
    label_ends(above, ends)
    caption = (
        "Weights rounded to the nearest level at each checkpoint, and the learning rate there; bars: standard errors."
    )
    yield "quantisation", "Rounding and the learning rate", caption, figure


def _signal(records: Records) -> Iterator[Drawn]:
    rows = [r for r in records if r["metric"] == "monotonicity"]
    if not rows:
        return
    names = list(dict.fromkeys(r["on"] for r in rows))
    models = list(dict.fromkeys(r["model"] for r in rows))
    figure, axes = panel("rank correlation with the step", grid="x")
    figure.set_size_inches(3.5, 0.9 + 0.22 * len(names))
    for i, model in enumerate(models):
        here = [r for r in rows if r["model"] == model]
        places = [names.index(r["on"]) for r in here]
        axes.plot([r["value"] for r in here], places, "o", color=ARMS[i % len(ARMS)], label=model, clip_on=False)
    axes.axvline(0, color=INK, linewidth=0.6, alpha=0.5)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(-1, 1)
    if len(models) > 1:
        axes.legend(frameon=False)
    caption = (
        "Of each metric over checkpoints: 1 is better at every one, 0 says nothing about how far training has come."
    )
    yield "signal", "Which metrics say how far training is", caption, figure


def _contamination(records: Records) -> Iterator[Drawn]:
    """The gap of items seen, and of the first one with a gap what weight decay leaves of it at most."""
    gaps = {key: rows for key, rows in _lines(records, "gap").items() if len(rows) > 1}
    drawn = _over_tokens("nll of unseen - of seen items, nats", gaps)
    if drawn is None:
        return
    bounds = {(r["model"], r["step"]): r["value"] for r in records if r["metric"] == "bound"}
    for rows in gaps.values():
        known = [(r, b) for r in rows if (b := bounds.get((r["model"], r["step"]))) is not None]
        if known:
            first, b0 = known[0]
            x, y = zip(*((r["tokens_seen"], first["value"] * b / b0) for r, b in known), strict=True)
            drawn.axes[0].plot(x, y, color=INK, alpha=0.5, linewidth=0.8, linestyle=(0, (2, 2)))
    caption = (
        "What items gained by standing in the training text, by how often they did. Dashed: the first gap times what weight "
        "decay alone leaves of an update of that time; forgetting is faster where a line runs below."
    )
    yield "contamination", "Seen and unseen items by tokens seen", caption, drawn


MEASURE_FIGURES: dict[str, Callable[[Records], Iterator[Drawn]]] = {
    "surprisal": _surprisal,
    "probes": _probes,
    "quantisation": _quantisation,
    "signal": _signal,
    "contamination": _contamination,
}


def _lines(records: Records, metric: str) -> dict[tuple[str, ...], Records]:
    return _by_line([r for r in records if r["metric"] == metric])


def _by_line(records: Records, *further: str) -> dict[tuple[str, ...], Records]:
    """(model, on, ...) -> its records in order of tokens seen; those of no known time are left out."""
    found: dict[tuple[str, ...], Records] = {}
    for r in sorted((r for r in records if r["tokens_seen"] is not None), key=lambda r: r["tokens_seen"]):
        found.setdefault((r["model"], r["on"], *(r[name] for name in further)), []).append(r)
    return found


def _over_tokens(title: str, lines: dict[tuple[str, ...], Records]) -> Any | None:
    """A panel with a line for each of several checkpoints; None without one."""
    lines = {key: rows for key, rows in lines.items() if len(rows) > 1}
    if not lines:
        return None
    figure, axes = panel(title, "tokens seen")
    ends: list[tuple[float, float, str, str]] = []
    for i, ((model, on), rows) in enumerate(lines.items()):
        x, y, colour = [r["tokens_seen"] for r in rows], [r["value"] for r in rows], ARMS[i % len(ARMS)]
        axes.errorbar(x, y, [r["stderr"] or 0.0 for r in rows], color=colour, marker="o")
        ends.append((float(x[-1]), float(y[-1]), _name(model, on, lines), colour))
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(si)
    label_ends(axes, ends)
    return figure


def _name(model: str, on: str, lines: Sequence[tuple[str, ...]] | dict[tuple[str, ...], Records]) -> str:
    """What tells a line from the others."""
    several = (len({m for m, _ in lines}) > 1, len({o for _, o in lines}) > 1)
    return {(True, True): f"{model}, {on}", (True, False): model, (False, True): on, (False, False): model}[several]
