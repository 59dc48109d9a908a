"""One sentence on whether selection paid, with its uncertainty; and the table of the arms that it rests on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .folders import Run

CONTROLS = ("clm", "random")
TOTAL = ("flops_student", "flops_scoring", "flops_reference")


def verdict(runs: Sequence[Run]) -> str:
    """What the comparison came to: the first selective arm against the baseline and the random control.

    ``runs`` are the same recipe with other seeds. Differences are paired by seed: mean ± standard error (sample deviation /
    sqrt(seeds)); a difference of less than two standard errors is called undecided. Of one seed it says that.
    """
    run = runs[0]
    arm = contender(run)
    if not run.rows or run.baseline is None:
        return "This run compares no arms, so there is no verdict."
    if arm is None:
        return f"No selective arm stands beside {run.baseline}, so there is no verdict."
    gaps = differences(runs, arm, run.baseline)
    random = next((r["arm"] for r in run.rows if r.get("objective") == "random"), None)
    sides = [_side(gaps, run.baseline)]
    if random is not None:
        sides.append(_side(differences(runs, arm, random), random))
    return (
        f"{_opening(gaps)} {arm} ends {' and '.join(sides)} on {run.target}, {_price(run, arm)} ({_uncertainty(gaps)})."
    )


def contender(run: Run) -> str | None:
    """The arm that the verdict is about: the first that chooses tokens by more than chance."""
    rows = [r for r in run.rows if r.get("kept_share", 1.0) < 1.0 and r.get("objective") not in CONTROLS]
    return next((str(r["arm"]) for r in rows if r["arm"] != run.baseline), None)


def differences(runs: Sequence[Run], first: str, second: str) -> list[float]:
    """nll of ``first`` minus nll of ``second`` at the end, a value for each run that has both."""
    by_run = [{r["arm"]: r["nll"] for r in run.rows} for run in runs]
    return [nll[first] - nll[second] for nll in by_run if None not in (nll.get(first), nll.get(second))]


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """(mean, standard error of the mean); the error of one value is NaN."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))


def _opening(gaps: Sequence[float]) -> str:
    if not gaps:
        return "Undecided:"
    mean, error = mean_and_error(gaps)
    if abs(mean) < 0.0005 or abs(mean) < 2 * error:
        return "Undecided:"
    return "Selection paid here:" if mean < 0 else "Selection did not pay here:"


def _side(gaps: Sequence[float], other: str) -> str:
    if not gaps:
        return f"without a value to set against {other}"
    mean, error = mean_and_error(gaps)
    size = f"{abs(mean):.3f}" + ("" if math.isnan(error) else f" ± {error:.3f}")
    return f"{size} nats {'below' if mean < 0 else 'above'} {other}"


def _price(run: Run, arm: str) -> str:
    rows = {r["arm"]: r for r in run.rows}
    mine, base = rows[arm], rows[str(run.baseline)]
    seen = "at equal tokens seen"
    if mine["tokens_seen"] != base["tokens_seen"]:
        seen = f"with {mine['tokens_seen'] / base['tokens_seen']:.2f} times its tokens seen"
    compute = sum(mine[k] for k in TOTAL) / (sum(base[k] for k in TOTAL) or math.nan)
    return f"{seen} and {compute:.2f} times {run.baseline}'s total compute, scoring and reference included"


def _uncertainty(gaps: Sequence[float]) -> str:
    return f"{len(gaps)} seeds, ± standard error" if len(gaps) > 1 else "one seed: no uncertainty"


# --- the table of arms -----------------------------------------------------------------------------------------------------


def arms_table(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """(headings, rows of cells): every evaluated model, means over ``runs``; ± is the standard error."""
    run = runs[0]
    heads = ["arm", f"{run.target} nll", "bits/byte", *(f"{o} nll" for o in run.compared.get("others", []))]
    heads += [
        "Mtok seen",
        "Mtok trained",
        "student TFLOP",
        "+ scoring",
        "+ reference",
        f"tokens to {run.baseline}'s end",
    ]
    return heads, [_arm_cells(run, row["arm"], runs) for row in run.rows]


def _arm_cells(run: Run, arm: str, runs: Sequence[Run]) -> list[str]:
    rows = [r for each in runs for r in each.rows if r["arm"] == arm]
    cells = [arm, _mean(rows, "nll", 4), _mean(rows, "bits_per_byte", 4)]
    cells += [_mean([r["others"] for r in rows], other, 4) for other in run.compared.get("others", [])]
    cells += [_mean(rows, key, 3, 1e6) for key in ("tokens_seen", "tokens_trained")]
    cells += [_mean(rows, key, 2, 1e12) for key in TOTAL]
    if "tokens_seen" not in rows[0] or arm == run.baseline:
        return [*cells, ""]
    speedups = [r["speedup"] for r in rows]
    if None in speedups:
        return [*cells, "never" if len(rows) == 1 else f"never in {speedups.count(None)} of {len(rows)}"]
    bound = "≤ " if any(r.get("speedup_is_bound") for r in rows) else ""
    return [*cells, f"{bound}1/{mean_and_error(speedups)[0]:.2f}"]


def _mean(rows: Sequence[dict[str, Any]], key: str, digits: int, scale: float = 1.0) -> str:
    values = [r[key] / scale for r in rows if r.get(key) is not None]
    if not values:
        return ""
    mean, error = mean_and_error(values)
    return f"{mean:.{digits}f}" + ("" if math.isnan(error) or error == 0 else f" ± {error:.{digits}f}")
