"""A comparison for people: the table of arms, the paired differences, and last the verdict in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..analysis.comparison import (
    PLUS_MINUS,
    Row,
    by_seed,
    kept_by_source,
    over_seeds,
    plus_minus,
    reached_cell,
    rises,
    verdicts,
)
from ..analysis.speedup import Speedup
from ..analysis.table import table
from .compare_scope import POWER, passes, power_table
from .configs.compare import CompareConfig

_OPTIONAL = ("seconds", "passes")
"""Columns that are left out where they say nothing of any arm: times of stages side by side, one pass over fresh rows."""


def render(config: CompareConfig, rows: Sequence[Row], *, markdown: bool = False) -> str:
    """The table of arms, what share of each source the selective ones kept, and the verdict in words."""
    seeds = by_seed(rows)
    said = verdicts(seeds, config.baseline, config.target, "solution" if config.solution else "all", _declared(config))
    return "\n\n".join([*_tables(config, seeds, {}, markdown), *rises(seeds, config.baseline), *said])


def with_findings(
    config: CompareConfig, rows: Sequence[Row], found: Mapping[str, Any], *, markdown: bool = False
) -> str:
    """:func:`render`, and over several seeds, or for a study, every paired difference."""
    seeds = by_seed(rows)
    parts = _tables(config, seeds, found.get("speedups", {}), markdown)
    if len(seeds) > 1:
        parts += [
            f"Means over {len(seeds)} seeds; {PLUS_MINUS}. Paired differences in nll (negative: the first is better); "
            "beside the t interval, which decides, the 95 % interval of a bootstrap over documents:",
            _differences(found["differences"], markdown),
        ]
    if "speedups" in found:
        parts.append(_speedup_note(config))
    if found.get("power"):
        parts += [POWER, power_table(found["power"], markdown)]
    parts += [*found["sentences"], *([found["registration"]] if "registration" in found else [])]
    return "\n\n".join([*parts, *found.get("scope", [])])


def _declared(config: CompareConfig) -> dict[str, str] | None:
    return dict(config.rivals) if config.rivals or config.registration is not None else None


def _tables(
    config: CompareConfig, seeds: Sequence[Sequence[Row]], speedups: Mapping[str, Any], markdown: bool
) -> list[str]:
    arms = list(dict.fromkeys(row["arm"] for rows in seeds for row in rows))
    of_arm = {arm: [row for rows in seeds for row in rows if row["arm"] == arm] for arm in arms}
    cells = [_cells(config, found, speedups) for found in of_arm.values()]
    heads = [h for h in cells[0] if any(row.get(h) is not None for row in cells) or h not in _OPTIONAL]
    parts = [table(cells, heads, markdown=markdown), *passes(seeds)]
    if shares := _shares(seeds):
        parts += ["share of valid tokens kept, by source", table(shares, list(shares[0]), markdown=markdown)]
    return parts


def _cells(config: CompareConfig, rows: Sequence[Row], speedups: Mapping[str, Any]) -> dict[str, str | None]:
    """The cells of one arm, ``rows`` by seed: means, with ± where there are several seeds."""
    first, arm = rows[0], rows[0]["arm"]

    def mean(values: Sequence[float | None], form: str, scale: float = 1.0) -> str | None:
        return plus_minus(over_seeds(None if v is None else v / scale for v in values), form) or None

    def of(key: str, form: str, scale: float = 1.0) -> str | None:
        return mean([r.get(key) for r in rows], form, scale)

    def flops(key: str) -> str | None:
        return of(key, ".2f", 1e12) or ("?" if key in first else None)

    def speedup(axis: str) -> str | None:
        found = speedups.get(axis, {}).get(arm)
        interval = None if found is None or found["interval"] is None else tuple(found["interval"])
        return None if found is None else Speedup(**{**found, "interval": interval}).told() or None

    needs = {
        f"{config.baseline} needs, x FLOPs": speedup("flops_total"),
        f"{config.baseline} needs, x tokens": speedup("tokens_seen"),
    }
    is_other_arm = arm in config.runs and arm != config.baseline
    return {
        "arm": arm,
        f"{config.target} nll": of("nll", ".4f"),
        "bits/byte": of("bits_per_byte", ".4f"),
        **{f"{other} nll": mean([r["others"][other] for r in rows], ".4f") for other in config.others},
        **{f"{s} forgotten": mean([r["forgetting"][s] for r in rows], "+.4f") for s in config.forgetting},
        "Mtok seen": of("tokens_seen", ".3f", 1e6),
        "Mtok trained": of("tokens_trained", ".3f", 1e6),
        "student TFLOP": flops("flops_student"),
        "+ scoring": flops("flops_scoring"),
        "+ reference": flops("flops_reference"),
        "total TFLOP": flops("flops_total"),
        **({f"total / {config.students} students": flops("flops_amortised")} if config.students > 1 else {}),
        "seconds": of("seconds", ".0f"),
        "passes": of("passes", ".2f") if any((r.get("passes") or 0) > 1.001 for r in rows) else None,
        **(needs if speedups else {f"tokens to {config.baseline}'s end": reached_cell(rows) if is_other_arm else None}),
    }


def _differences(records: Sequence[Mapping[str, Any]], markdown: bool) -> str:
    lines = [
        {
            "difference": f"{r['arm']} - {r['rival']}",
            "set": r["set"],
            "by seed": ", ".join(f"{v:+.4f}" for v in r["values"]),
            "mean ± half of the 95 % interval": plus_minus(over_seeds(r["values"]), "+.4f") or None,
            "over documents": None
            if r["documents"] is None
            else f"{r['documents'][0]:+.4f} to {r['documents'][1]:+.4f}",
        }
        for r in records
    ]
    return table(lines, list(lines[0]), markdown=markdown) if lines else "no arm stands beside the baseline"


def _shares(seeds: Sequence[Sequence[Row]]) -> list[dict[str, Any]]:
    """What share of each source each selective arm kept, mean over seeds."""
    each = [kept_by_source([dict(row) for row in rows if "length_of" not in row]) for rows in seeds]
    made = []
    for number, line in enumerate(each[0]):
        arms = [key for key in line if key != "source"]
        values = {arm: over_seeds(e[number].get(arm) for e in each if number < len(e)).mean for arm in arms}
        made.append({"source": line["source"], **{arm: None if v is None else f"{v:.1%}" for arm, v in values.items()}})
    return made


def _speedup_note(config: CompareConfig) -> str:
    names = ", ".join([*config.curve, *config.on_curve, config.baseline])
    return (
        f"{config.baseline} needs: so many times the arm's own total FLOPs (tokens seen) for the nll at which the arm ends, "
        f"on a curve E + A / C^alpha through the ends of {names}, whose schedules end there; 95 % t intervals over seeds."
    )
