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

from ...analysis.table import si, table
from ...runs.errors import UserError
from ...runs.manifest import is_done, read_manifest
from ..verbs import VERBS
from .cost import Cost, Known
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
    rows.append(_line("to do", "", "", _total([costs[name] for name, state in states.items() if state != DONE])))
    text = f"{recipe.name}: {len(recipe.stages)} stages into {recipe.out}\n\n{table(rows, list(rows[0]))}"
    if dear := [s.name for s in recipe.stages if states[s.name] == AGAIN and is_dear(s)]:
        text += f"\n\nfinished training is done again only if told to: --redo {' '.join(dear)}"
    return text


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
            f"jobs: {jobs} models at once ({names}) take at least {si(needed)}B of memory, {si(free)}B are free: "
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
        (there, exact), wanted = known.tokens(stage.fields["corpus"]), known.costs[stage.folder].tokens
        allowed = float(stage.fields["max_epochs"])
        if wanted is not None and wanted > there * allowed * (1 if exact else 1 + _UNSURE):
            raise UserError(
                f"stage {stage.name}: {Path(stage.fields['corpus']).name} has {'' if exact else 'about '}{si(there).strip()} "
                f"tokens, and the arm needs {si(wanted).strip()}: at most {allowed:g} passes are allowed (epochs); give it "
                "more text, or fewer steps"
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
    known = Known()
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
    flops, disk = ([getattr(c, name) or 0 for c in costs] for name in ("flops", "disk"))
    return Cost(None, sum(flops), sum(disk), False)


def _line(name: str, verb: str, state: str, cost: Cost) -> dict[str, str]:
    mark = "" if cost.exact else "~"

    def number(value: float | None, unit: str) -> str:
        if value is None:
            return ""
        return UNKNOWN if math.isnan(value) else mark + si(value) + unit

    return {
        "stage": name,
        "verb": verb,
        "state": state,
        "tokens": number(cost.tokens, ""),
        "FLOP": number(cost.flops, ""),
        "disk": number(cost.disk, "B"),
    }
