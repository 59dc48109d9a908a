"""``tokensieve plan``: laws of scale through finished runs, and how to spend a budget by them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..analysis.certainty import FloatArray
from ..analysis.scaling.allocation import allocate
from ..analysis.scaling.forms import FORMS
from ..analysis.scaling.law import Law, fit_law
from ..analysis.table import table
from ..modeling.folder import model_hash
from ..runs.errors import UserError
from ..runs.files import atomic_file, write_json
from ..runs.stage import stage
from ..runs.work import Work
from .configs.plan import KIND, NOT_WORK, PlanConfig
from .plan_answers import Answer, Evidence, allocating, answers, in_units, lines
from .plan_runs import BEYOND, RunTable, read_runs
from .recipe.cost import Cost, Known

WRITTEN = ("plan.json", "table.txt")
_CURVE = 24  # points of the figure's line
# Fitted only where they are asked for: those of a mixture to the runs of one length, that of fine-tuning to runs of one model.
BY_NAME = ("mixture", "critical_share", "rectified")


def run(config: PlanConfig) -> Path:
    """Write ``plan.json`` (docs/formats.md) and ``table.txt``."""
    validate(config)
    out, there = Path(config.out), read_runs(config.runs, config.set)
    with stage(out, _work(config, there)) as s:
        if s.done:
            return out
        made = plan(config, there)
        s.bind()
        write_json(out / "plan.json", made)
        with atomic_file(out / "table.txt", "w") as f:
            f.write(render(made) + "\n")
        s.finish(WRITTEN)
    return out


def command(config: PlanConfig) -> str:
    """The table, and where it lies."""
    out = run(config)
    return f"{(out / 'table.txt').read_text(encoding='utf-8')}\n{out}"


def work(config: PlanConfig) -> Work:
    """What says which plan it is: the runs' numbers, by the bytes of files and the fingerprints of folders."""
    return _work(config, read_runs(config.runs, config.set))


def _work(config: PlanConfig, there: RunTable) -> Work:
    reference = {} if config.reference is None else {"reference": model_hash(config.reference)}
    return Work.of(KIND, config, NOT_WORK, {"runs": sorted(there.inputs), **reference})


def estimate(config: PlanConfig, known: Known) -> Cost:
    """Nothing to speak of: seconds."""
    return Cost()


def validate(config: PlanConfig) -> None:
    """Raise UserError for a number out of range, or a form that nobody has."""
    if not config.runs:
        raise UserError("runs: name a CSV file with a line a run, or a folder of finished runs")
    for name in ("flops", "unique", "domain_tokens", "tolerance", "reference_passes"):
        value = getattr(config, name)
        if value is not None and not 0 < value < BEYOND:
            within = f" and below {BEYOND:g}" if value > 0 else ""
            raise UserError(f"{name} must be above 0{within}, not {value}")
    if not 0 < config.ratio <= 1:
        raise UserError(f"ratio must be above 0 and at most 1, not {config.ratio}")
    if config.students < 1 or config.length < 1:
        raise UserError("students and length must be at least 1")
    if config.seed < 0:
        raise UserError(f"seed must be at least 0, not {config.seed}")
    if wrong := [name for name in config.forms if name not in FORMS]:
        raise UserError(f"forms: there is no form {wrong[0]!r}; there are {', '.join(FORMS)}")


def plan(config: PlanConfig, there: RunTable) -> dict[str, Any]:
    """What ``plan.json`` holds. UserError where no form can be fitted."""
    if missing := [name for name in config.hold_out if name not in there.rows]:
        raise UserError(f"hold_out: no run is called {missing[0]!r}, but {', '.join(there.rows)}")
    names = [name for name in there.rows if name not in config.hold_out]
    columns = {c: np.array([there.rows[name][c] for name in names]) for c in there.columns()}
    laws, refused = fit_all(config, columns)
    if not laws:
        raise UserError(f"runs: no law can be fitted to them: {'; '.join(refused.values())}")
    each, largest = 6.0, math.nan
    if {"flops", "params", "tokens"} <= set(columns):
        each = float(np.median(columns["flops"] / (columns["params"] * columns["tokens"])))
        largest = float(columns["flops"].max())
    evidence = Evidence(config, laws, refused, columns, each, largest)
    law = allocating(laws, config.unique)
    return {
        "runs": [{"name": name, **there.rows[name]} for name in names],
        "flops_each": each,
        "flops_assumed": there.assumed,
        "laws": [_law_record(law) for law in laws.values()],
        "refused": refused,
        "chosen": None if law is None else law.form,
        "answers": [dataclasses.asdict(a) for a in answers(evidence)],
        "held_out": [_predicted(laws, name, there.rows[name]) for name in config.hold_out],
        "curve": [] if law is None or math.isnan(largest) else _curve(config, law, each, columns["flops"]),
    }


def fit_all(config: PlanConfig, columns: Mapping[str, FloatArray]) -> tuple[dict[str, Law], dict[str, str]]:
    """(form -> law, form -> why it was not fitted). Without names, forms are tried where the table has their columns, but for
    BY_NAME."""
    laws, refused = dict[str, Law](), dict[str, str]()
    for name, form in FORMS.items():
        there = {form.predicts, *form.varies} <= set(columns)
        if name in config.forms or (not config.forms and there and name not in BY_NAME):
            try:
                laws[name] = fit_law(name, columns, seed=config.seed)
            except UserError as e:
                refused[name] = str(e)
    return laws, refused


def _law_record(law: Law) -> dict[str, Any]:
    return {
        "form": law.form,
        "predicts": FORMS[law.form].predicts,
        "constants": {name: law.constant(name).as_json() for name in law.constants},
        "held_out_error": law.error,
        "largest_error": None if math.isnan(law.largest) else law.largest,
        "at_bound": list(law.at_bound),
        **({"flat": list(law.flat)} if law.flat else {}),
    }


def _predicted(laws: Mapping[str, Law], name: str, row: Mapping[str, float]) -> dict[str, Any]:
    """What each law of nll says of a run that none was fitted to."""
    said = {}
    for form, law in laws.items():
        if FORMS[form].predicts == "nll" and set(FORMS[form].varies) <= set(row):
            said[form] = law.of_a_run({c: row[c] for c in FORMS[form].varies}).as_json()
    return {"name": name, **row, "predicted": said}


def _curve(config: PlanConfig, law: Law, each: float, flops: FloatArray) -> list[dict[str, float]]:
    """The lowest nll by C, from the smallest run to the budget."""
    ends = flops.min(), max(float(flops.max()), config.flops or 0.0)
    points = []
    for c in np.geomspace(*ends, _CURVE):
        points.append({"flops": float(c), **allocate(law, float(c), each, config.unique).nll.as_json()})
    return points


# --- as text --------------------------------------------------------------------------------------------------------------


def render(made: Mapping[str, Any]) -> str:
    """Laws, answers and held-out runs as text tables."""
    parts = [f"{len(made['runs'])} runs, {_each(made)}", _laws_text(made)]
    if made["answers"]:
        found = [Answer(**a) for a in made["answers"]]
        parts.append(table(lines(found), ["question", "answer", "unit", "90 % interval", "law", "note"]))
    if made["held_out"]:
        parts.append(_held_out_text(made["held_out"]))
    return "\n\n".join(parts)


def _each(made: Mapping[str, Any]) -> str:
    assumed = " (assumed: the table says no FLOPs)" if made["flops_assumed"] else ""
    return f"{made['flops_each']:.3g} FLOPs a parameter and token{assumed}"


def _laws_text(made: Mapping[str, Any]) -> str:
    """All laws by their errors, and the constants of the one that plans (of all where none does)."""
    rows = [
        {
            "law": f"{law['form']}{' *' if law['form'] == made['chosen'] else ''}",
            "of": law["predicts"],
            "constants": len(law["constants"]),
            "held-out error": f"{law['held_out_error']:.2%}",
            "largest quarter": "" if law["largest_error"] is None else f"{law['largest_error']:.2%}",
            "at the end of its range": ", ".join(law["at_bound"]),
        }
        for law in made["laws"]
    ]
    shown_laws = [law for law in made["laws"] if made["chosen"] in (None, law["form"])]
    constants = [
        {
            "law": law["form"],
            "constant": name,
            "value": f"{c['value']:.4g}",
            "90 % interval": f"{c['low']:.4g} to {c['high']:.4g}",
        }
        for law in shown_laws
        for name, c in law["constants"].items()
    ]
    said = [f"not fitted: {why}" for why in made["refused"].values()]
    if made["chosen"]:
        said.insert(0, "* shares out the budget: the best on held-out runs among laws of parameters and tokens")
    return "\n".join([table(rows, list(rows[0])), *said, "", table(constants, list(constants[0]))])


def _held_out_text(held_out: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        {
            "held out": run["name"],
            "measured": in_units(run["nll"], "nats"),
            "predicted": in_units(p["value"], "nats"),
            "90 % interval of a run": f"{in_units(p['low'], 'nats')} to {in_units(p['high'], 'nats')}",
            "law": form,
            "off by": f"{p['value'] / run['nll'] - 1:+.2%}",
        }
        for run in held_out
        for form, p in run["predicted"].items()
    ]
    return table(rows, list(rows[0])) if rows else "held out: no law of nll reads what those runs say"
