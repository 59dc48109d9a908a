"""What a recipe would do, before it does it: the state of each stage, its tokens, FLOPs and disk. Estimates are marked with ~.

A verb's module says what a stage of it takes (``estimate``) and what work it is (``work``); here is what they share.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from ...analysis.table import rounded, table
from ...runs.errors import UserError
from ...runs.manifest import is_done, read_manifest
from ..configs.hardware import PEAK_FLOPS
from ..verbs import VERBS
from .cost import Cost, Known
from .inputs import describe_inputs
from .jobs import visible_gpus
from .load import Recipe, RecipeStage

_UNSURE = 0.25
"""A share that a corpus not yet prepared may be larger than is estimated: an arm is not refused for less."""
DONE, TO_DO, AGAIN, UNKNOWN = "done", "to do", "to be redone", "?"


def describe_plan(recipe: Recipe) -> str:
    """The plan as a table: a line a stage, and the sum of what is still to do."""
    states = states_of(recipe)
    costs = costs_of(recipe, states)
    rows = [_line(stage.name, stage.verb, states[stage.name], costs[stage.name]) for stage in recipe.stages]
    to_do = [costs[name] for name, state in states.items() if state != DONE]
    rows.append({**_line("to do", "", "", _total(to_do)), **_with_unknown(to_do)})
    notes = [*_with_hours(recipe, rows, [*(costs[s.name] for s in recipe.stages), _total(to_do)])]
    notes += describe_inputs(recipe.inputs.values())
    text = f"{recipe.name}: {len(recipe.stages)} stages into {recipe.out}\n\n{table(rows, list(rows[0]))}"
    text += "".join(f"\n\n{note}" if not note.startswith("  ") else f"\n{note}" for note in notes)
    if dear := [s.name for s in recipe.stages if states[s.name] == AGAIN and is_dear(s)]:
        text += f"\n\nfinished training is done again only if told to: --redo {' '.join(dear)}"
    return text


def _with_hours(recipe: Recipe, rows: Sequence[dict[str, str]], costs: Sequence[Cost]) -> Iterator[str]:
    """Adds to each row of the plan its hours on the recipe's hardware and those of its paper; sentences on both."""
    if (hardware := recipe.hardware) is not None:
        for row, cost in zip(rows, costs, strict=True):
            row["hours"] = "" if cost.flops is None else _hours(hardware.hours(cost.flops))
        peak = rounded(PEAK_FLOPS[hardware.kind])
        yield (
            f"hours: on {hardware.gpus} {hardware.kind}, {hardware.mfu:.0%} (mfu) of {peak}FLOP/s each (bfloat16, data sheet) "
            "for the FLOPs that an ideal implementation needs"
        )
    if (paper := recipe.paper) is not None:
        for row in rows:
            row["paper"] = _hours(paper.hours[row["stage"]]) if row["stage"] in paper.hours else ""
        known = {row["stage"]: cost.flops for row, cost in zip(rows, costs, strict=True) if cost.flops}
        shares = [f"{name} {paper.mfu(known[name], name):.0%}" for name in paper.hours if name in known]
        told = f", which is an mfu of {', '.join(shares)} by the FLOPs above" if shares else ""
        yield f"paper: hours on {paper.gpus} {paper.kind} ({paper.source}){told}"


def _hours(hours: float) -> str:
    if math.isnan(hours):
        return UNKNOWN
    return f"{hours:.1f}" if hours >= 0.05 or hours == 0 else "<0.1"


def needs_of(stages: Sequence[RecipeStage]) -> dict[str, frozenset[str]]:
    """stage -> the earlier stages that it waits for: those whose folders it reads, and those that check what it reads."""
    needs: dict[str, frozenset[str]] = {}
    for i, stage in enumerate(stages):
        read = _reads(stage, stages[:i])
        checks = {s.name for s in stages[:i] if not s.writes and _reads(s, stages[:i]) & read}
        needs[stage.name] = frozenset(read | checks)
    return needs


def _reads(stage: RecipeStage, before: Sequence[RecipeStage]) -> set[str]:
    """The stages before it whose folders, or what lies in them, its fields name, however the path is spelled."""
    named = set(_paths(stage.fields))
    return {s.name for s in before if s.writes and {Path(os.path.abspath(s.folder)), s.folder.resolve()} & named}


def check_jobs(recipe: Recipe, stages: Sequence[RecipeStage], jobs: int) -> None:
    """Refuse (UserError) more processes than there are GPUs, where there are any, or than memory has room for models."""
    if jobs < 1:
        raise UserError(f"jobs must be at least 1, not {jobs}")
    if jobs == 1:
        return
    if gpus := visible_gpus():
        if jobs > len(gpus):
            raise UserError(f"jobs: {jobs} processes need a GPU each, here are {len(gpus)}")
        return
    states = states_of(recipe)
    costs = costs_of(recipe, states)
    known = [(costs[s.name].memory, s.name) for s in stages if states[s.name] != DONE]
    largest = sorted(((m, name) for m, name in known if not math.isnan(m)), reverse=True)[:jobs]
    needed, free = sum(m for m, _ in largest), psutil.virtual_memory().available
    if needed > free:
        names = ", ".join(name for _, name in largest)
        raise UserError(
            f"jobs: {jobs} models at once ({names}) take at least {rounded(needed)}B of memory, {rounded(free)}B are free: "
            "run with fewer jobs"
        )


def check_filled(recipe: Recipe, stages: Sequence[RecipeStage]) -> None:
    """Refuse (UserError) a training that would go through its corpus more often than its ``max_epochs``, as far as is known."""
    limited = [s for s in stages if s.verb == "train" and s.fields.get("max_epochs") is not None]
    if not limited:
        return
    states = states_of(recipe)
    known = known_of(recipe, states)
    for stage in (s for s in limited if states[s.name] != DONE):
        (there, exact), wanted = known.room(stage.fields["corpus"]), known.costs[stage.folder].tokens
        allowed = float(stage.fields["max_epochs"])
        if wanted is not None and wanted > there * allowed * (1 if exact else 1 + _UNSURE):
            name, about = Path(stage.fields["corpus"]).name, "" if exact else "about "
            raise UserError(
                f"stage {stage.name}: {name} has {about}{rounded(there).strip()} tokens, and the arm needs "
                f"{rounded(wanted).strip()}: at most {allowed:g} passes are allowed (epochs); give it more text, or fewer steps"
            )


def states_of(recipe: Recipe) -> dict[str, str]:
    """stage -> done, to do, to be redone (its work is another than what stands there, or it reads a stage that is not done),
    or ? where that cannot be said."""
    states: dict[str, str] = {}
    for i, stage in enumerate(recipe.stages):
        states[stage.name] = _state(stage, all(states[name] == DONE for name in _reads(stage, recipe.stages[:i])))
    return states


def _state(stage: RecipeStage, ready: bool) -> str:
    if not is_done(stage.folder):
        return TO_DO
    try:
        manifest = read_manifest(stage.folder)
        if not ready:
            return AGAIN
        work = stage.module().work(stage.config())
        return DONE if manifest["kind"] == work.kind and work.changes(manifest) == [] else AGAIN
    except Exception:  # an input that is gone, damaged, or on a server that is not reached: doing it will say so
        return UNKNOWN


def _paths(value: Any) -> Iterator[Path]:
    """Every text in a stage's fields as a path, and the folders it lies in: ``runs/x/base/model`` reads ``runs/x/base``.

    Each as it is spelled and with links followed, from the root.
    """
    if isinstance(value, str):
        for path in {Path(os.path.abspath(value)), Path(value).resolve()}:
            yield from (path, *path.parents)
    elif isinstance(value, Mapping | list):
        for inside in value.values() if isinstance(value, Mapping) else value:
            yield from _paths(inside)


def is_dear(stage: RecipeStage) -> bool:
    """Whether in its folder stands work of a kind that a recipe does again only if it is told to."""
    kind = read_manifest(stage.folder)["kind"]
    modules = [verb.config_module() for verb in VERBS.values() if verb.stage]
    return any(getattr(module, "DEAR", False) and kind == module.KIND for module in modules)


def costs_of(recipe: Recipe, states: Mapping[str, str]) -> dict[str, Cost]:
    """name -> cost of every stage, in order: later stages build on what earlier ones would give."""
    known = known_of(recipe, states)
    return {stage.name: known.costs[stage.folder] for stage in recipe.stages}


def known_of(recipe: Recipe, states: Mapping[str, str]) -> Known:
    """What is known of the stages' folders, with the cost of each."""
    known = Known(recipe.inputs.values(), None if recipe.hardware is None else recipe.hardware.gpus)
    for stage in recipe.stages:
        config = stage.config()
        known.add(stage.folder, config, states[stage.name] == DONE)
        known.costs[stage.folder] = _estimated(stage, config, known)
    return known


def _estimated(stage: RecipeStage, config: Any, known: Known) -> Cost:
    estimate = getattr(stage.module(), "estimate", None)
    try:
        return Cost() if estimate is None else estimate(config, known)
    except Exception:  # whatever a library says to a folder, a config or a source: a plan without a number still is one
        return Cost(math.nan, math.nan, math.nan, False, math.nan)


def _total(costs: list[Cost]) -> Cost:
    """The sum of what is known."""
    flops, disk = ([v for c in costs if (v := getattr(c, name)) and not math.isnan(v)] for name in ("flops", "disk"))
    return Cost(None, sum(flops), sum(disk), False)


def _with_unknown(costs: list[Cost]) -> dict[str, str]:
    """The columns of the sum in which something is not known: what is, and a question mark."""
    known = _line("", "", "", _total(costs))
    names = {"flops": "FLOP", "disk": "disk"}
    gone = [name for name in names if any(v is not None and math.isnan(v) for v in (getattr(c, name) for c in costs))]
    return {names[name]: f"{known[names[name]]} + {UNKNOWN}" for name in gone}


def _line(name: str, verb: str, state: str, cost: Cost) -> dict[str, str]:
    mark = "" if cost.exact else "~"

    def number(value: float | None, unit: str) -> str:
        if value is None:
            return ""
        return UNKNOWN if math.isnan(value) else mark + rounded(value) + unit

    return {
        "stage": name,
        "verb": verb,
        "state": state,
        "tokens": number(cost.tokens, ""),
        "FLOP": number(cost.flops, ""),
        "disk": number(cost.disk, "B"),
    }
