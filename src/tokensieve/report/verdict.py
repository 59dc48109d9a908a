"""Whether selection paid, in the words of analysis/comparison.py; and the table of the arms that it rests on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..analysis.comparison import TOTAL, over_seeds, plus_minus, reached_cell, rises, verdicts
from ..analysis.folders import Run


def verdict(runs: Sequence[Run]) -> str:
    """What the comparison came to, a line for each arm that chooses by a score. ``runs``: the same recipe, other seeds."""
    run = runs[0]
    if not run.rows or run.baseline is None:
        return "This run compares no arms, so there is no verdict."
    if run.found.get("runs") == len(runs) and "registration" in run.found:  # a study, whose rivals are declared
        return "\n".join([*run.found["sentences"], run.found["registration"], *run.found.get("scope", [])])
    declared = run.compared.get("rivals") or None  # an arm that was given as much compute is who it is held against
    said = verdicts([r.rows for r in runs], run.baseline, str(run.target), run.on, declared)
    said = [*rises([r.rows for r in runs], run.baseline), *said] if said else said
    return "\n".join(said) or f"No arm that chooses by a score stands beside {run.baseline}, so there is no verdict."


# --- the table of arms -----------------------------------------------------------------------------------------------------


def arms_table(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """(headings, rows of cells): every evaluated model, means over ``runs``; ± as in verdicts."""
    run = runs[0]
    heads = ["arm", f"{run.target} nll", "bits/byte", *(f"{o} nll" for o in run.compared.get("others", []))]
    heads += [
        "Mtok seen",
        "Mtok trained",
        "student TFLOP",
        "+ scoring",
        "+ reference",
        "total TFLOP",
        f"tokens to {run.baseline}'s end",
    ]
    return heads, [_arm_cells(run, row["arm"], runs) for row in run.rows]


def _arm_cells(run: Run, arm: str, runs: Sequence[Run]) -> list[str]:
    rows = [r for each in runs for r in each.rows if r["arm"] == arm]
    cells = [arm, _mean(rows, "nll", 4), _mean(rows, "bits_per_byte", 4)]
    cells += [_mean([r["others"] for r in rows], other, 4) for other in run.compared.get("others", [])]
    cells += [_mean(rows, key, 3, 1e6) for key in ("tokens_seen", "tokens_trained")]
    cells += [_mean(rows, key, 2, 1e12) or ("?" if key in rows[0] else "") for key in TOTAL]
    cells.append(_total(rows))
    if "tokens_seen" not in rows[0] or arm == run.baseline:
        return [*cells, ""]
    return [*cells, reached_cell(rows).replace("<=", "≤")]


def _total(rows: Sequence[dict[str, Any]]) -> str:
    """Total compute; of comparisons that early versions made, which did not write it down, the sum of its parts."""
    if "tokens_seen" not in rows[0]:
        return ""
    totals = [r["flops_total"] if "flops_total" in r else _sum([r.get(key) for key in TOTAL]) for r in rows]
    return _mean([{"total": t} for t in totals], "total", 2, 1e12) or "?"


def _sum(parts: Sequence[float | None]) -> float | None:
    known = [p for p in parts if p is not None]
    return sum(known) if len(known) == len(parts) else None


def _mean(rows: Sequence[dict[str, Any]], key: str, digits: int, scale: float = 1.0) -> str:
    values = (None if r.get(key) is None else r[key] / scale for r in rows)
    return plus_minus(over_seeds(values), f".{digits}f")
