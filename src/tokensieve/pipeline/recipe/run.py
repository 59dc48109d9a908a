"""``tokensieve run RECIPE``: stages in order, each a verb with its config and a folder of its own.

    name: demo
    out: runs/demo                      each stage writes <out>/<stage>
    settings: {seed: 0}                 ${seed} in any string; --set '{seed: 1}' changes it
    threads: 1                          of each stage, whatever --jobs is; as many as torch likes if not given
    requires: [{path: ..., message: ...}]
    inputs: {web: {what: ..., hub: owner/name, tokens: 14.0e9}}      read, and not brought along: see inputs.py
    hardware: {gpus: 32, kind: H100, mfu: 0.4}                       what a plan counts hours for
    extends: other-recipe               whose settings and stages this one changes: see extends.py
    stages:
      text:  {verb: prepare, sources: [...]}
      model: {verb: train, corpus: "@text", ...}          @stage is that stage's folder
    report: true                        report.html and figures/ at the end
    seeds: [0, 1]                       what says ${seed}, and what reads it, once for each: see study.py
    arms: {clm: {}, rho1: {ratio: 0.6}} students by a word each, compared as study: says: see arms.py

A stage that is done is skipped; one whose config or inputs changed is removed and done again. Training is not: a finished one
only with ``--redo``, one with checkpoints not at all. A recipe is data: nothing in it is executed.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ...runs.errors import StaleFolder, UserError
from ...runs.files import MANIFEST, atomic_file, describe_files
from ...runs.manifest import is_done, read_manifest, write_manifest
from .. import report
from ..config.yaml_text import read_yaml
from ..configs.report import ReportConfig
from ..configs.run import KIND, RecipeConfig
from ..verbs import VERBS
from .beforehand import beforehand
from .estimate import check_filled, check_jobs, describe_plan, is_dear, needs_of
from .inputs import check_inputs
from .jobs import num_threads, side_by_side
from .load import RESOLVED, Recipe, RecipeStage, load
from .registration import REGISTRATION, is_registered, register


def run(config: RecipeConfig) -> Path | str:
    """Do what is to do; the run folder. With ``dry_run`` the plan, as text."""
    if config.dry_run:
        recipe = load(config)
        told = None if recipe.cells.plan is None else beforehand(recipe, config.jobs)
        return describe_plan(recipe) + ("" if told is None else "\n\n" + "\n".join(told["said"]))
    recipe, chosen = begin(config)
    redo = [n for name in config.redo for n in recipe.cells.named(name)]
    _run_stages(recipe, chosen, dataclasses.replace(config, redo=redo))
    if not config.only:
        _finish(recipe)
        _report(recipe)
    return recipe.out


def begin(config: RecipeConfig) -> tuple[Recipe, list[RecipeStage]]:
    """(the recipe, the stages of it that are asked for), checked; its run folder says from here on whose it is, and a study is
    registered."""
    recipe = load(config)
    only = [n for name in config.only for n in recipe.cells.named(name)]
    chosen = [s for s in recipe.stages if not only or s.name in only]
    check_inputs(recipe.name, recipe.inputs.values(), [s.fields for s in chosen])
    check_filled(recipe, chosen)
    check_jobs(recipe, chosen, config.jobs)
    _start(recipe, config.jobs)
    return recipe, chosen


def _run_stages(recipe: Recipe, chosen: Sequence[RecipeStage], config: RecipeConfig) -> None:
    """In order, or side by side where they do not need each other."""
    place = {
        stage.name: f"[{number}/{len(chosen)}] {stage.name} ({stage.verb})" for number, stage in enumerate(chosen, 1)
    }
    if config.jobs > 1:
        work = {s.name: (run_stage, (recipe, s, config.allow_changed, config.redo)) for s in chosen}
        needs = needs_of(recipe.stages)
        told: Any = {"starting": lambda name: _tell(place[name]), "failing": _tell_wrong}
        side_by_side(work, needs, jobs=config.jobs, threads=recipe.threads, **told)
        return
    with num_threads(recipe.threads):
        for stage in chosen:
            _tell(place[stage.name])
            run_stage(recipe, stage, config.allow_changed, config.redo)


def _tell(line: str) -> None:
    print(line, flush=True)


def _tell_wrong(sentence: str) -> None:
    print(f"tokensieve run: {sentence}", file=sys.stderr, flush=True)


def _report(recipe: Recipe) -> None:
    """The run as a page, where the recipe asks for one. What it cannot show, it leaves out: a run is done without it."""
    if not recipe.source.get("report"):
        return
    if importlib.util.find_spec("tokensieve.report") is None:
        _say(["no report: this installation is without tokensieve.report"])
        return
    print(f"report: {report.run(ReportConfig([str(recipe.out)]))}", flush=True)


def _start(recipe: Recipe, jobs: int) -> None:
    """Note in the run folder whose it is. Another recipe's is refused: stages of the same name would be done over."""
    path = recipe.out / RESOLVED
    if is_done(recipe.out):
        read_manifest(recipe.out, KIND)
    told = _to_register(recipe, jobs)  # before anything is written: it may refuse the study
    if path.is_file():
        source = read_yaml(path)
        if source == _source(recipe):
            _register(recipe, told)
            return
        if source.get("name") != recipe.name:
            raise UserError(f"{recipe.out} is a run of the recipe {source.get('name')!r}: choose another out")
    elif there := [s.folder for s in recipe.stages if s.folder.exists()]:
        raise UserError(f"{there[0]} is there already, but no run of a recipe wrote it: choose another out")
    with atomic_file(path, "w") as f:
        yaml.safe_dump(_source(recipe), f, sort_keys=False, allow_unicode=True)
    _register(recipe, told)
    _unfinish(recipe)


def _to_register(recipe: Recipe, jobs: int) -> dict[str, Any] | None:
    """What is said beforehand of a study whose plan is not written down yet; None where there is nothing to write down."""
    plan = recipe.cells.plan
    return None if plan is None or is_registered(recipe.out, plan) else beforehand(recipe, jobs)


def _register(recipe: Recipe, told: Mapping[str, Any] | None) -> None:
    """Of a study: what decides, written down and told before the first cell is begun."""
    if recipe.cells.plan is None or told is None:
        return
    cells = [s for s in recipe.stages if s.verb == "train" and s.folder.exists()]
    register(recipe.out, recipe.cells.plan, [s.name for s in cells], told)
    for line in told["said"]:
        _tell(line)


def _source(recipe: Recipe) -> dict[str, Any]:
    return {**recipe.source, "name": recipe.name}


def _unfinish(recipe: Recipe) -> None:
    (recipe.out / MANIFEST).unlink(missing_ok=True)


def run_stage(recipe: Recipe, stage: RecipeStage, allow_changed: bool = False, redo: Collection[str] = ()) -> None:
    """Do one stage, or skip it if it is done; a folder that other work left there is removed first.

    Training is not removed: checkpoints of other work, unless ``allow_changed``, and a finished run, unless ``redo`` names
    the stage or ``all``, are a UserError that says what changed.
    """
    verb = VERBS[stage.verb]
    config = stage.config(**({"allow_changed": True} if allow_changed and verb.takes("allow_changed") else {}))
    work = verb.runner()
    if not stage.writes:
        _say(work(config))
        return
    was_done = is_done(stage.folder)
    if not was_done:
        _unfinish(recipe)
    try:
        work(config)
        _say([f"{stage.name}: done already"] if was_done else [])
    except StaleFolder as e:
        if not stage.folder.resolve().is_relative_to(recipe.out.resolve()):
            raise
        if was_done and not {stage.name, "all"} & set(redo) and is_dear(stage):
            raise UserError(
                f"stage {stage.name}: {stage.folder} holds a finished run of other work ({e.changed}): --redo {stage.name} "
                "removes it and trains again; change the recipe back, or choose another --out, to keep it"
            ) from None
        _say([f"{stage.name}: done again: {str(e).split(': ')[0]}"])
        _unfinish(recipe)
        shutil.rmtree(stage.folder)
        work(config)


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        print(f"      {line}", flush=True)


def _of_seed(recipe: Recipe, seed: int) -> dict[str, str]:
    """stage -> the folder of its cell of this seed, or of itself where it is the same for all."""
    cells = {cell: name for name, by_seed in recipe.cells.of.items() for cell in by_seed.values()}
    own = {by_seed[seed] for by_seed in recipe.cells.of.values()}
    return {
        cells.get(s.name, s.name): s.name for s in recipe.stages if s.writes and (s.name in own or s.name not in cells)
    }


def _finish(recipe: Recipe) -> None:
    """The run's own manifest: its recipe as it was resolved, and what each stage came to."""
    stages = {
        s.name: {"verb": s.verb, "folder": s.name, "fingerprint": read_manifest(s.folder)["fingerprint"]}
        for s in recipe.stages
        if s.writes
    }
    _unfinish(recipe)
    write_manifest(
        recipe.out,
        KIND,
        config={"name": recipe.name, "settings": recipe.source["settings"]},
        inputs={name: s["fingerprint"] for name, s in stages.items()},
        files=describe_files(recipe.out, [RESOLVED, *([REGISTRATION] if recipe.cells.plan is not None else [])]),
        stages=stages,
        **({"seeds": {str(seed): _of_seed(recipe, seed) for seed in recipe.cells.seeds}} if recipe.cells.of else {}),
    )
