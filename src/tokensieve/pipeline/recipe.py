"""``tokensieve run RECIPE``: stages in order, each a verb with its config and a folder of its own.

    name: demo
    out: runs/demo                      each stage writes <out>/<stage>
    settings: {seed: 0}                 ${seed} in any string; --set '{seed: 1}' changes it
    requires: [{path: ..., message: ...}]
    stages:
      text:  {verb: prepare, sources: [...]}
      model: {verb: train, corpus: "@text", ...}          @stage is that stage's folder

A stage that is done is skipped; one whose config or inputs changed is removed and done again. A recipe is data: nothing
in it is executed.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..runs import MANIFEST, StaleFolder, UserError, atomic_file, describe_files, read_manifest, write_manifest
from .verbs import VERBS, make_config

STAGE_VERBS = ("prepare", "train", "score", "evaluate", "compare", "check")


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
    dry_run: bool = False
    """Print the plan with tokens, FLOPs and disk, and do nothing."""


@dataclass(frozen=True)
class Stage:
    """One stage, resolved: no settings or references are left in its config."""

    name: str
    verb: str
    folder: Path
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Recipe:
    """A recipe, resolved against its settings and output folder."""

    name: str
    out: Path
    stages: tuple[Stage, ...]
    source: Mapping[str, Any]


def run(config: RecipeConfig) -> Path | str:
    """Do what is to do; the run folder. With ``dry_run`` the plan, as text."""
    recipe = load(config)
    if config.dry_run:
        from .plan import describe

        return describe(recipe)
    chosen = [s for s in recipe.stages if not config.only or s.name in config.only]
    for number, stage in enumerate(chosen, 1):
        print(f"[{number}/{len(chosen)}] {stage.name} ({stage.verb})", flush=True)
        run_stage(recipe, stage)
    if not config.only:
        _finish(recipe)
    return recipe.out


def load(config: RecipeConfig) -> Recipe:
    """Read, resolve and check a recipe: every stage's fields are parsed before the first one runs."""
    path = find(config.recipe)
    source = _read_yaml(path)
    unknown = set(source) - {"name", "out", "settings", "requires", "stages", "templates"}
    if unknown:
        raise UserError(
            f"{path}: unknown key {min(unknown)!r}; a recipe has name, out, settings, requires, templates, stages"
        )
    if not isinstance(source.get("stages"), dict) or not source["stages"]:
        raise UserError(f"{path}: stages: a mapping of stage name to verb and config is needed")
    settings = dict(source.get("settings") or {})
    if wrong := set(config.set) - set(settings):
        raise UserError(f"{path}: no setting {min(wrong)!r}; it has {', '.join(settings) or 'none'}")
    settings.update(config.set)
    out = Path(config.out or _filled(source.get("out") or f"runs/{path.stem}", settings, path))
    for need in source.get("requires") or []:
        if not Path(_filled(need["path"], settings, path)).exists():
            raise UserError(f"{path.name}: {_filled(need['path'], settings, path)} is not here: {need['message']}")
    names: list[str] = []
    stages = []
    for name, fields in source["stages"].items():
        stages.append(_stage(path, str(name), fields, settings, out, names))
        names.append(str(name))
    return Recipe(source.get("name") or path.stem, out, tuple(stages), {**source, "settings": settings})


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


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        source = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(e).split())}") from None
    if not isinstance(source, dict):
        raise UserError(f"{path}: a recipe is a mapping with the key stages")
    return source


def _stage(path: Path, name: str, fields: Any, settings: dict[str, Any], out: Path, before: list[str]) -> Stage:
    where = f"{path.name}: stage {name}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UserError(f"{where}: a stage's name is its folder's: letters, digits, '_', '-' and '.' only")
    if not isinstance(fields, dict) or fields.get("verb") not in STAGE_VERBS:
        raise UserError(
            f"{where}: verb is {fields.get('verb') if isinstance(fields, dict) else None!r}, "
            f"one of {', '.join(STAGE_VERBS)} is needed"
        )
    resolved = _resolve({k: v for k, v in fields.items() if k != "verb"}, settings, out, before, path)
    if fields["verb"] != "check":
        resolved["out"] = str(out / name)
    make_config(fields["verb"], resolved, where)  # typos are found before the first stage runs
    return Stage(name, fields["verb"], out / name, resolved)


def _resolve(value: Any, settings: Mapping[str, Any], out: Path, before: list[str], path: Path) -> Any:
    if isinstance(value, dict):
        return {k: _resolve(v, settings, out, before, path) for k, v in value.items()}
    if isinstance(value, list):
        return [_resolve(v, settings, out, before, path) for v in value]
    if not isinstance(value, str):
        return value
    if value.startswith("@"):
        stage, _, rest = value[1:].partition("/")
        if stage not in before:
            raise UserError(f"{path.name}: {value} refers to no earlier stage; there are {', '.join(before) or 'none'}")
        return str(out / stage / rest) if rest else str(out / stage)
    return _filled(value, settings, path)


def _filled(value: Any, settings: Mapping[str, Any], path: Path) -> Any:
    """``${name}`` replaced by its setting. A string that is nothing but ``${name}`` takes the setting's type."""
    if not isinstance(value, str):
        return value
    for name in re.findall(r"\$\{(\w+)\}", value):
        if name not in settings:
            raise UserError(f"{path.name}: no setting {name!r}; it has {', '.join(settings) or 'none'}")
    whole = re.fullmatch(r"\$\{(\w+)\}", value)
    if whole:
        return settings[whole[1]]
    return re.sub(r"\$\{(\w+)\}", lambda m: str(settings[m[1]]), value)


def run_stage(recipe: Recipe, stage: Stage) -> None:
    """Do one stage, or skip it if it is done; a folder that other work left there is removed first."""
    config = make_config(stage.verb, stage.fields, f"stage {stage.name}")
    work = VERBS[stage.verb].runner()
    if stage.verb == "check":
        print("\n".join(work(config)))
        return
    try:
        work(config)
    except StaleFolder as e:
        if not stage.folder.resolve().is_relative_to(recipe.out.resolve()):
            raise
        print(f"      redone: {e}", flush=True)
        shutil.rmtree(stage.folder)
        work(config)


def _finish(recipe: Recipe) -> None:
    """The run's own manifest: its recipe as it was resolved, and what each stage came to."""
    import yaml

    stages = {
        s.name: {"verb": s.verb, "folder": s.name, "fingerprint": read_manifest(s.folder)["fingerprint"]}
        for s in recipe.stages
        if s.verb != "check"
    }
    with atomic_file(recipe.out / "recipe.yaml", "w") as f:
        yaml.safe_dump(dict(recipe.source), f, sort_keys=False, allow_unicode=True)
    (recipe.out / MANIFEST).unlink(missing_ok=True)
    write_manifest(
        recipe.out,
        "run",
        config={"name": recipe.name, "settings": recipe.source["settings"]},
        inputs={name: s["fingerprint"] for name, s in stages.items()},
        files=describe_files(recipe.out, ["recipe.yaml"]),
        stages=stages,
    )
