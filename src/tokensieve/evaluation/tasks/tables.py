"""Records of tasks -> tables as the paper has them: a line a model, a column a task, and their mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...analysis.table import table
from .catalogue import PAPER_GENERAL, PAPER_MATHS

PREFERRED = ("accuracy", "acc_norm", "acc")
"""Which of a task's metrics stands in the table, the first that it has; else its first."""


def task_tables(records: Sequence[Mapping[str, Any]], asked: Sequence[str], limit: int | None = None) -> str:
    """Accuracies in per cent with their standard errors, then bits per byte of the right answers, and what to know of them.

    ``asked``: names of all tasks that were asked for, in the order of the columns; one without records is "-". ``AVG`` is the
    mean over the tasks that ran; the table says which.
    """
    columns = [PAPER_MATHS[n].column if n in PAPER_MATHS else PAPER_GENERAL[n] for n in asked]
    ran = list(dict.fromkeys(r["column"] for r in records))
    parts = [_table(records, columns, ran, _main)]
    if any(r["metric"] == "bits_per_byte" for r in records):
        own = [c for c, n in zip(columns, asked, strict=True) if n in PAPER_MATHS]
        parts += ["bits per byte of the right answers:", _table(records, own, ran, _bits)]
    return "\n\n".join([*parts, "\n".join(_notes(records, columns, ran, limit))])


def _table(records: Sequence[Mapping[str, Any]], columns: list[str], ran: list[str], cell_of: Any) -> str:
    models = list(dict.fromkeys((r["model"], r["step"]) for r in records))
    lines = []
    for model, step in models:
        its = [r for r in records if (r["model"], r["step"]) == (model, step)]
        last = next((r["is_last"] for r in its), True)
        cells = {c: cell_of([r for r in its if r["column"] == c]) for c in columns}
        values = [value for value, _ in filter(None, cells.values())]
        whole = values and len(values) == sum(c in ran for c in columns)
        decimals = 3 if cell_of is _bits else 1
        line = {"model": model if last else f"{model} @{step}", "tokens seen": its[0]["tokens_seen"]}
        line |= {c: None if cell is None else _shown(cell, decimals) for c, cell in cells.items()}
        lines.append({**line, "AVG": f"{sum(values) / len(values):.{decimals}f}" if whole else None})
    shown = ["model", "tokens seen", *columns, "AVG"]
    return table(lines, [c for c in shown if c != "tokens seen" or any(r["tokens_seen"] for r in records)])


def _main(records: Sequence[Mapping[str, Any]]) -> tuple[float, float | None] | None:
    """A task's value and standard error in per cent."""
    by_metric = {r["metric"]: r for r in records}
    found = next((by_metric[m] for m in (*PREFERRED, *by_metric) if m in by_metric), None)
    if found is None or found["value"] is None:
        return None
    return 100 * found["value"], None if found["stderr"] is None else 100 * found["stderr"]


def _bits(records: Sequence[Mapping[str, Any]]) -> tuple[float, float | None] | None:
    found = next((r for r in records if r["metric"] == "bits_per_byte" and r["value"] is not None), None)
    return None if found is None else (found["value"], found["stderr"])


def _shown(cell: tuple[float, float | None], decimals: int) -> str:
    value, error = cell
    return f"{value:.{decimals}f}" + ("" if error is None else f" ±{error:.{decimals}f}")


def _notes(records: Sequence[Mapping[str, Any]], columns: list[str], ran: list[str], limit: int | None) -> list[str]:
    those = [c for c in columns if c in ran]
    notes = [
        f"AVG: the mean of {len(those)} of {len(columns)} tasks: {', '.join(those)}; ±: standard error over problems"
    ]
    if left := [c for c in columns if c not in ran]:
        notes.append(f"not run: {', '.join(left)}")
    if limit is not None:
        notes.append(f"only the first {limit} problems of each task")
    shots = dict.fromkeys((r["column"], r["shots"]) for r in records if "shots" in r)
    if shots:
        notes.append("worked examples: " + ", ".join(f"{n} {c}" for c, n in shots))
    cut = {(r["model"], r["column"]): r for r in records if r.get("cut")}
    notes += [
        f"{m}: {r['cut']} prompts of {c} are longer than its context and lost their beginning"
        for (m, c), r in cut.items()
    ]
    left_out = {(r["model"], r["column"]): r for r in records if r.get("left_out")}
    notes += [
        f"{m}: {r['left_out']} right answers of {c} are longer than its context and in no bits per byte"
        for (m, c), r in left_out.items()
    ]
    return notes
