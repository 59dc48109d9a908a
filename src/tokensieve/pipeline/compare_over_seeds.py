"""What a comparison comes to over its seeds: paired differences on every set, the effective speedup, the words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..analysis.certainty import over_documents
from ..analysis.comparison import Row, by_seed, difference, rises, rivals, trained, verdicts
from ..analysis.speedup import FEWEST, as_json, effective
from ..evaluation.documents import read_documents
from ..runs.files import read_json
from .compare_scope import limits, powers, scope
from .configs.compare import CompareConfig
from .recipe.registration import registered

Documents = Mapping[tuple[str, str, str], Mapping[str, Any]]
SPEEDUP_AXES = ("flops_total", "tokens_seen")


def findings(config: CompareConfig, seeds: Sequence[CompareConfig], rows: Sequence[Row]) -> dict[str, Any]:
    """``differences``: a record for each arm, what it is held against, and each set: ``arm``, ``rival``, ``set``, ``values``
    (by seed), ``mean``, ``sd``, ``interval`` (95 % t), ``documents`` (95 % bootstrap over documents; null without them);
    ``speedups``: axis -> arm -> ``factor``, ``interval``, ``seeds``, ``of``, ``beyond`` (see analysis/speedup.py);
    ``sentences``: the verdict; of a study ``registration``, a sentence, ``power`` and ``scope`` (see compare_scope.py);
    ``runs``: number of seeds.
    """
    each = by_seed(rows)
    declared = dict(config.rivals) if config.rivals or config.registration is not None else None
    on = "solution" if config.solution else "all"
    made: dict[str, Any] = {"runs": len(each), "differences": _differences(config, seeds, each, declared)}
    if 1 + len(config.curve) + len(config.on_curve) >= FEWEST:
        made["speedups"] = {axis: _speedups(config, each, axis) for axis in SPEEDUP_AXES}
    said = verdicts(each, config.baseline, config.target, on, declared)
    made["sentences"] = [*rises(each, config.baseline), *said]
    if config.registration is not None:
        registration = read_json(config.registration)
        made["registration"] = registered(registration)
        made["power"] = powers(config, seeds, each, declared, registration["now"].get("effect"))
        made["scope"] = [*scope(config, each, registration), *limits(config, seeds, each, declared)]
    return made


def _differences(
    config: CompareConfig,
    seeds: Sequence[CompareConfig],
    each: Sequence[Sequence[Row]],
    declared: Mapping[str, str] | None,
) -> list[dict[str, Any]]:
    """Every arm against each that it is held against, on every set."""
    arms = [a for a in trained(each[0]) if a != config.baseline and a in config.runs]
    documents = [read_documents(str(one.evaluation)) for one in seeds]
    found = []
    for arm in arms:
        for rival in rivals([r for r in each[0] if r["arm"] in config.runs], arm, config.baseline, declared):
            for name in (config.target, *config.others):
                gap = difference(each, arm, rival, None if name == config.target else name)
                on = "solution" if config.solution and name == config.target else "all"
                sets = config.mean if name == "mean" and config.mean else [name]
                found.append({
                    "arm": arm, "rival": rival, "set": name, "values": list(gap.values), "mean": gap.mean, "sd": gap.sd,
                    "interval": gap.interval, "documents": _bootstrap(documents, arm, rival, sets, on),
                })  # fmt: skip
    return found


def _bootstrap(
    seeds: Sequence[Documents | None], arm: str, rival: str, sets: Sequence[str], on: str
) -> tuple[float, float] | None:
    """Over the documents of ``sets``, the differences of each averaged over seeds; None where an evaluation does not have them,
    or the seeds have other documents."""
    drawn = []
    for name in sets:
        pairs = [(s.get((arm, name, on)), s.get((rival, name, on))) if s is not None else (None, None) for s in seeds]
        known = [(a, b) for a, b in pairs if a is not None and b is not None]
        if len(known) < len(seeds):
            return None
        first = known[0][0]
        same = ("document", "tokens")
        if not all(np.array_equal(first[k], side[k]) for pair in known for side in pair for k in same):
            return None
        gaps_SD = np.stack([a["nll"] - b["nll"] for a, b in known])
        drawn.append((gaps_SD.mean(0), first["tokens"].astype(np.float64)))
    return over_documents(drawn)


def _speedups(config: CompareConfig, each: Sequence[Sequence[Row]], axis: str) -> dict[str, Any]:
    """arm -> how many times its own cost the baseline would have needed for the arm's end."""
    own = (config.baseline, *config.curve, *config.on_curve)
    points = [[(r.get(axis), r["nll"]) for r in rows if r["arm"] in own] for rows in each]
    ends = [[(c, nll) for c, nll in seed if c is not None and nll is not None] for seed in points]
    made = {}
    for arm in (a for a in config.runs if a != config.baseline and a not in config.on_curve):
        mine = [next(r for r in rows if r["arm"] == arm) for rows in each]
        made[arm] = as_json(effective(ends, [(r.get(axis), r["nll"]) for r in mine]))
    return made
