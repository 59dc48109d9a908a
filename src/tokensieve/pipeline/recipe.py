"""``tokensieve run RECIPE``: stages in order, each a verb with its config and a folder of its own.

    name: demo
    out: runs/demo                      each stage writes <out>/<stage>
    settings: {seed: 0}                 ${seed} in any string; --set '{seed: 1}' changes it
    threads: 1                          of each stage, whatever --jobs is; as many as torch likes if not given
    requires: [{path: ..., message: ...}]
    stages:
      text:  {verb: prepare, sources: [...]}
      model: {verb: train, corpus: "@text", ...}          @stage is that stage's folder
    report: true                        report.html and figures/ at the end

A stage that is done is skipped; one whose config or inputs changed is removed and done again. Training is not: a finished one
only with ``--redo``, one with checkpoints not at all. A recipe is data: nothing in it is executed.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..runs import MANIFEST, StaleFolder, UserError, atomic_file, describe_files, is_done, read_manifest, write_manifest
from .config import read_yaml, unknown
from .plan import check_jobs, is_dear, needs_of
from .verbs import VERBS, make_config, validate

KIND = "run"
MANIFEST_KEYS = ("stages",)
KEYS = ("name", "out", "settings", "threads", "requires", "templates", "stages", "report")
RESOLVED = "recipe.yaml"


@dataclass(frozen=True)
class RecipeConfig:
    """Run the stages of a recipe that are not done yet."""

    recipe: str
    """YAML file, or the name of one that is shipped (demo, math-tiny)."""
    out: str | None = None
    """Folder of the run; the recipe's own `out` if not given."""
    set: dict[str, Any] = field(default_factory=dict)
    """Values for the recipe's settings."""
    only: list[str] = field(default_factory=list)
    """Only these stages; their inputs must be there."""
    allow_changed: bool = False
    """Of unfinished `train` stages: go on from their checkpoints although the recipe or its data changed since."""
    redo: list[str] = field(default_factory=list)
    """These finished `train` stages, or all, may be removed and done again where the recipe or its data changed since."""
    jobs: int = 1
    """So many stages at once that do not need each other: processes, with a GPU each where there are any."""
    allow_code: bool = False
    """Let objectives be code (package.module:factory). A recipe cannot say this for itself."""
    dry_run: bool = False
    """Print the plan with tokens, FLOPs and disk, and do nothing."""


@dataclass(frozen=True)
class Stage:
    """One stage, resolved: no settings or references are left in its config."""

    name: str
    verb: str
    folder: Path
    fields: Mapping[str, Any]

    def module(self) -> Any:
        return VERBS[self.verb].module()

    def config(self, **instead: Any) -> Any:
        """The config of its verb."""
        return make_config(self.verb, {**self.fields, **instead}, f"stage {self.name}")

    @property
    def writes(self) -> bool:
        """Whether it leaves a folder."""
        return VERBS[self.verb].takes("out")


@dataclass(frozen=True)
class Recipe:
    """A recipe, resolved against its settings and output folder."""

    name: str
    out: Path
    stages: tuple[Stage, ...]
    source: Mapping[str, Any]

    @property
    def threads(self) -> int | None:
        """Threads of each stage; None: as many as torch likes."""
        return self.source.get("threads")


def run(config: RecipeConfig) -> Path | str:
    """Do what is to do; the run folder. With ``dry_run`` the plan, as text."""
    recipe = load(config)
    if config.dry_run:
        from .plan import describe

        return describe(recipe)
    chosen = [s for s in recipe.stages if not config.only or s.name in config.only]
    check_jobs(recipe, chosen, config.jobs)
    _start(recipe)
    _run_stages(recipe, chosen, config)
    if not config.only:
        _finish(recipe)
        _report(recipe)
    return recipe.out


def _run_stages(recipe: Recipe, chosen: Sequence[Stage], config: RecipeConfig) -> None:
    """In order, or side by side where they do not need each other."""
    from .jobs import num_threads, side_by_side

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
    from . import report

    print(f"report: {report.run(report.ReportConfig([str(recipe.out)]))}", flush=True)


def load(config: RecipeConfig) -> Recipe:
    """Read, resolve and check a recipe: every stage's fields are parsed before the first one runs."""
    path = find(config.recipe)
    source = read_yaml(path)
    for key in source:
        if key not in KEYS:
            raise UserError(f"{path}: {unknown(str(key), KEYS, 'key')}")
    stages = source.get("stages")
    if not isinstance(stages, dict) or not stages:
        raise UserError(f"{path}: stages: a mapping of stage name to verb and fields is needed")
    threads = source.get("threads", 1)
    if type(threads) is not int or threads < 1:
        raise UserError(f"{path}: threads: a whole number of at least 1 is needed, not {threads}")
    if not isinstance(source.get("report", False), bool):
        raise UserError(f"{path}: report: true or false is needed")
    settings = _settings(path, source, config.set)
    for key in ("name", "out"):
        if key in source and not (isinstance(source[key], str) and source[key]):
            raise UserError(f"{path}: {key}: text is needed, not {source[key]}")
    out = Path(config.out or str(_filled(source.get("out") or f"runs/{path.stem}", settings, path)))
    _check_requirements(path, source.get("requires") or [], settings)
    made = _stages(path, stages, settings, out, config.allow_code)
    for asked, names in (("only", config.only), ("redo", [name for name in config.redo if name != "all"])):
        for name in names:
            if name not in stages:
                raise UserError(f"{asked}: {unknown(name, stages, 'stage')}")
    return Recipe(source.get("name") or path.stem, out, tuple(made), {**source, "settings": settings})


def _stages(
    path: Path, stages: Mapping[Any, Any], settings: dict[str, Any], out: Path, allow_code: bool
) -> list[Stage]:
    """The stages; one error for all that is wrong in any of them."""
    made, wrong = list[Stage](), list[UserError]()
    for name, fields in stages.items():
        try:
            made.append(_stage(path, name, fields, settings, out, made, allow_code))
        except UserError as e:
            wrong.append(e)
            verb = fields.get("verb") if isinstance(fields, dict) else None
            made.append(Stage(str(name), str(verb), out / str(name), {}))  # a later @stage of this name is no error
    if wrong:
        raise wrong[0] if len(wrong) == 1 else UserError("; ".join(map(str, wrong)))
    return made


def _settings(path: Path, source: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    own = source.get("settings") or {}
    if not isinstance(own, dict):
        raise UserError(f"{path}: settings: a mapping of name to value is needed")
    for name in given:
        if name not in own:
            raise UserError(f"{path}: {unknown(name, own, 'setting')}")
    return {**own, **given}


def _check_requirements(path: Path, needs: Any, settings: Mapping[str, Any]) -> None:
    for need in needs if isinstance(needs, list) else [needs]:
        is_text = isinstance(need, dict) and all(isinstance(v, str) for v in need.values())
        if not is_text or set(need) != {"path", "message"}:
            raise UserError(f"{path}: requires: a list of {{path: ..., message: ...}} is needed")
        if not Path(str(_filled(need["path"], settings, path))).exists():
            raise UserError(f"{path.name}: {_filled(need['path'], settings, path)} is not here: {need['message']}")


def stage_verbs() -> list[str]:
    """The verbs that may be a stage."""
    return [name for name, verb in VERBS.items() if verb.stage]


def find(recipe: str) -> Path:
    """A recipe's file: a path, or a name among those shipped with the package."""
    path = Path(recipe)
    if path.is_file():
        return path
    shipped = Path(__file__).parent.parent / "recipes"
    if (shipped / f"{recipe}.yaml").is_file():
        return shipped / f"{recipe}.yaml"
    names = ", ".join(sorted(p.stem for p in shipped.glob("*.yaml")))
    raise UserError(f"{recipe} is no recipe file; shipped recipes: {names}")


def _stage(
    path: Path, name: Any, fields: Any, settings: dict[str, Any], out: Path, before: list[Stage], allow_code: bool
) -> Stage:
    where = f"{path.name}: stage {name}"
    if not isinstance(name, str):
        raise UserError(f"{where}: YAML reads this name as {type(name).__name__}: put it in quotes")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or name in (MANIFEST, RESOLVED):
        raise UserError(f"{where}: a stage's name is its folder's: letters, digits, '_', '-' and '.' only")
    if not isinstance(fields, dict) or "verb" not in fields:
        raise UserError(f"{where}: verb is missing: one of {', '.join(stage_verbs())}")
    verb = fields["verb"]
    if verb not in stage_verbs():
        raise UserError(f"{where}: {unknown(str(verb), stage_verbs(), 'verb')}")
    if "out" in fields:
        raise UserError(f"{where}: out: a stage's folder is named after it, leave it out")
    if "allow_code" in fields:
        raise UserError(f"{where}: allow_code: a recipe cannot allow this to itself, give it on the command line")
    folders = {s.name: s.folder for s in before if s.writes}
    resolved = _resolve({k: v for k, v in fields.items() if k != "verb"}, settings, folders, where)
    if VERBS[verb].takes("out"):
        resolved["out"] = str(out / name)
    if allow_code and VERBS[verb].takes("allow_code"):
        resolved["allow_code"] = True
    validate(verb, make_config(verb, resolved, where), where)  # typos are found before the first stage runs
    return Stage(name, verb, out / name, resolved)


def _resolve(value: Any, settings: Mapping[str, Any], folders: Mapping[str, Path], where: str) -> Any:
    if isinstance(value, dict):
        return {k: _resolve(v, settings, folders, where) for k, v in value.items()}
    if isinstance(value, list):
        return [_resolve(v, settings, folders, where) for v in value]
    if not isinstance(value, str):
        return value
    if value.startswith("@"):
        stage, _, rest = value[1:].partition("/")
        if stage not in folders:
            raise UserError(f"{where}: {value} refers to no earlier stage; there are {', '.join(folders) or 'none'}")
        return str(folders[stage] / rest)
    return _filled(value, settings, where)


def _filled(value: Any, settings: Mapping[str, Any], where: Path | str) -> Any:
    """``${name}`` replaced by its setting. A string that is nothing but ``${name}`` takes the setting's type."""
    if not isinstance(value, str):
        return value
    for name in re.findall(r"\$\{([^}]*)\}", value):
        if name not in settings:
            raise UserError(f"{where}: ${{{name}}}: {unknown(name, settings, 'setting')}")
    whole = re.fullmatch(r"\$\{([^}]*)\}", value)
    if whole:
        return settings[whole[1]]
    return re.sub(r"\$\{([^}]*)\}", lambda m: str(settings[m[1]]), value)


def _start(recipe: Recipe) -> None:
    """Note in the run folder whose it is. Another recipe's is refused: stages of the same name would be done over."""
    path = recipe.out / RESOLVED
    if is_done(recipe.out):
        read_manifest(recipe.out, KIND)
    if path.is_file():
        source = read_yaml(path)
        if source == _source(recipe):
            return
        if source.get("name") != recipe.name:
            raise UserError(f"{recipe.out} is a run of the recipe {source.get('name')!r}: choose another out")
    elif there := [s.folder for s in recipe.stages if s.folder.exists()]:
        raise UserError(f"{there[0]} is there already, but no run of a recipe wrote it: choose another out")
    with atomic_file(path, "w") as f:
        import yaml

        yaml.safe_dump(_source(recipe), f, sort_keys=False, allow_unicode=True)
    _unfinish(recipe)


def _source(recipe: Recipe) -> dict[str, Any]:
    return {**recipe.source, "name": recipe.name}


def _unfinish(recipe: Recipe) -> None:
    (recipe.out / MANIFEST).unlink(missing_ok=True)


def run_stage(recipe: Recipe, stage: Stage, allow_changed: bool = False, redo: Collection[str] = ()) -> None:
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
        files=describe_files(recipe.out, [RESOLVED]),
        stages=stages,
    )
