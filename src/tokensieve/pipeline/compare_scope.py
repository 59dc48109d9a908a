"""What a comparison could tell at all, what the asked certainty would cost, and what of it holds for a larger run.

Said of every study, at its end; what is said before its first run is in recipe/beforehand.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..analysis.certainty import MOST_SEEDS, detectable, sd_interval, seeds_needed
from ..analysis.comparison import Row, choosers, difference, over_seeds, rivals
from ..analysis.table import rounded, table
from ..runs.manifest import read_manifest
from .configs.compare import CompareConfig
from .lineage import begun_from

POWER = (
    "What these seeds could tell four times in five, by how much their differences spread (two-sided paired t test at 5 %), "
    "and what more would cost:"
)
_ONCE = 1.001  # passes that a rounded number of steps makes of one


def passes(seeds: Sequence[Sequence[Row]]) -> list[str]:
    """A sentence: whether the arms read fresh rows, or rows for a second time. None where a run does not say."""
    found: dict[str, list[float]] = {}
    for row in (r for rows in seeds for r in rows if r.get("passes") is not None):
        found.setdefault(row["arm"], []).append(row["passes"])
    again = {arm: over_seeds(values).mean or 0.0 for arm, values in found.items() if max(values) > _ONCE}
    if not found:
        return []
    if not again:
        return ["Fresh rows: no arm read a row of its corpus twice."]
    told = ", ".join(f"{arm} {times:.2f} times" for arm, times in again.items())
    others = ", all others once at most" if len(again) < len(found) else ""
    return [f"Not fresh rows only: {told} through its corpus{others}."]


def powers(
    config: CompareConfig,
    seeds: Sequence[CompareConfig],
    each: Sequence[Sequence[Row]],
    declared: Mapping[str, str] | None,
    effect: float | None,
) -> list[dict[str, Any]]:
    """For each arm that has a verdict, against its rival: ``arm``, ``rival``, ``seeds``, ``sd`` of their differences with its
    95 % ``sd_interval`` (chi-squared), ``detectable`` (nats); ``flops`` of both arms for one seed and ``minutes`` of one
    process at the pace of these very cells (null where not known); for the study's ``effect`` the ``seeds_needed`` (null: more
    than 1000). Nothing for one seed."""
    made = []
    for arm in choosers(each[0], config.baseline, declared):
        rival = rivals(each[0], arm, config.baseline, declared)[0]
        gap = difference(each, arm, rival)
        if gap.sd is None:
            continue
        flops, minutes = _cost(seeds, each, (arm, rival))
        needed = {} if effect is None else {"effect": effect, "seeds_needed": seeds_needed(effect, gap.sd)}
        made.append({
            "arm": arm, "rival": rival, "seeds": gap.n, "sd": gap.sd, "sd_interval": sd_interval(gap.sd, gap.n),
            "detectable": detectable(gap.n, gap.sd), "flops": flops, "minutes": minutes, **needed,
        })  # fmt: skip
    return made


def _cost(
    seeds: Sequence[CompareConfig], each: Sequence[Sequence[Row]], arms: Sequence[str]
) -> tuple[float | None, float | None]:
    """(total FLOPs of ``arms`` for one seed, minutes that one process takes for as many, as fast as it trained them)."""
    totals = [[r.get("flops_total") for r in rows if r["arm"] in arms] for rows in each]
    known = [math.fsum(t for t in total if t is not None) for total in totals if None not in total]
    if len(known) < len(totals):
        return None, None
    flops = math.fsum(known) / len(known)
    trained_in = [read_manifest(str(one.runs[arm]), "model")["summary"] for one in seeds for arm in arms]
    timed = [(s["flops_student"], s["seconds"]) for s in trained_in if s.get("flops_student") and s.get("seconds")]
    pace = math.fsum(f for f, _ in timed) / math.fsum(s for _, s in timed) if timed else 0.0
    return flops, flops / pace / 60 if pace else None


def power_table(records: Sequence[Mapping[str, Any]], markdown: bool) -> str:
    """A line for each pair."""
    lines = []
    for r in records:
        low, high = r["sd_interval"] or (math.nan, math.nan)
        line = {
            "pair": f"{r['arm']} - {r['rival']}",
            "seeds": r["seeds"],
            "sd of differences": f"{r['sd']:.4f}",
            "95 % of it": f"{low:.4f} to {high:.4f}",
            "tells from": f"{r['detectable']:.4f}",
        }
        if "effect" in r:
            needed = r["seeds_needed"]
            line[f"seeds for {r['effect']:g}"] = f"> {MOST_SEEDS}" if needed is None else str(needed)
            for head, key, form in (
                ("FLOP of both", "flops", rounded),
                ("min of one process", "minutes", "{:,.0f}".format),
            ):
                line[head] = None if None in (needed, r[key]) else form(needed * r[key]).strip()
        lines.append(line)
    return table(lines, list(lines[0]), markdown=markdown)


def scope(config: CompareConfig, each: Sequence[Sequence[Row]], registration: Mapping[str, Any]) -> list[str]:
    """What the study says of its own size, and what it does not say of the run that it stands for. ``registration``: with the
    ``parameters`` that were counted beforehand, if they were."""
    counted = (registration.get("beforehand") or [{}])[-1]
    parameters, large = counted.get("parameters"), counted.get("large_parameters")
    tokens = over_seeds(r.get("tokens_seen") for rows in each for r in rows if r["arm"] == config.baseline).mean
    sized = "" if parameters is None else f" of {rounded(parameters).strip()} parameters"
    seen = "" if tokens is None else f" that read {rounded(tokens).strip()} tokens"
    says = f"This says which arm ended lower for students{sized}{seen}, on this text and by its tokenizer."
    if large is None or not parameters:
        return [f"{says} It does not say what holds for larger models or longer runs."]
    return [
        f"{says} Of the run that it stands for ({rounded(large)} parameters, {large / parameters:,.0f} times as many) it does "
        "not say how large the difference will be, at which ratio and rate, nor that the order stays: of two corpora, the one "
        "that was better at 150M parameters was better at 1B in about 80 % of the pairs (DataDecide, arXiv 2504.11393), and "
        "for rules nobody has counted. What follows is whether a pair of arms ten times as large is worth its compute, not "
        "what the large run will gain."
    ]


def limits(
    config: CompareConfig,
    seeds: Sequence[CompareConfig],
    each: Sequence[Sequence[Row]],
    declared: Mapping[str, str] | None,
) -> list[str]:
    """What intervals over seeds do not cover: another base, where all seeds went on from one, and how many verdicts there are.
    Nothing for one seed."""
    if len(seeds) == 1:
        return []
    begun = [begun_from(read_manifest(str(one.runs[config.baseline]), "model")) for one in seeds]
    bases = {links[0]["model"] for links in begun if links}
    said = []
    if len(bases) == 1 and all(begun):
        said.append(
            "All seeds went on from one base model: the intervals say what chance in order, masks and references changes, not "
            "what another base would."
        )
    if (count := len(choosers(each[0], config.baseline, declared))) > 1:
        said.append(
            f"{count} verdicts, each at 5 % and not corrected for their number: where nothing is to be found, one in 20 finds "
            "something."
        )
    return said
