"""A recipe's text -> its stages, resolved and checked. A recipe is data: nothing in it is executed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...data.read.files import find_files
from ...data.read.remote import is_url
from ...runs.errors import UserError
from ...runs.files import MANIFEST
from ..config.fields import WrongFields, from_fields, unknown
from ..configs.hardware import HardwareConfig, PaperConfig
from ..configs.run import RecipeConfig
from ..verbs import VERBS, make_config, validate
from .extends import read_recipe
from .inputs import RecipeInput, inputs_of
from .study import SEED, Cells, cells_of, seeds_of

KEYS = (
    "name", "out", "settings", "threads", "requires", "inputs", "hardware", "paper", "templates", "seeds", "stages",
    "arms", "study", "report",
)  # fmt: skip
_PARTS = {"hardware": HardwareConfig, "paper": PaperConfig}
RESOLVED = "recipe.yaml"


@dataclass(frozen=True)
class RecipeStage:
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
        """Whether it leaves a folder; one without a verb that there is, of which something else is said, as well."""
        return self.verb not in VERBS or VERBS[self.verb].takes("out")


@dataclass(frozen=True)
class Recipe:
    """A recipe, resolved against its settings and output folder."""

    name: str
    out: Path
    stages: tuple[RecipeStage, ...]
    source: Mapping[str, Any]
    cells: Cells
    inputs: Mapping[str, RecipeInput] = field(default_factory=dict)
    """What it reads and does not bring along."""
    hardware: HardwareConfig | None = None
    """What it is planned for."""
    paper: PaperConfig | None = None
    """What a paper's runs took, for its plan to stand beside."""

    @property
    def threads(self) -> int | None:
        """Threads of each stage; None: as many as torch likes."""
        return self.source.get("threads")


def load(config: RecipeConfig) -> Recipe:
    """Read, resolve and check a recipe: every stage's fields are parsed before the first one runs."""
    path = find_recipe(config.recipe)
    source = read_recipe(path, find_recipe)
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
    inputs = inputs_of(path, _fill(source.get("inputs") or {}, settings, path), settings)
    hardware, paper = (_part(path, source, key, make, settings) for key, make in _PARTS.items())
    seeds = seeds_of(path, source, config.seeds)
    cells = _cells(path, source, settings, out, seeds, config.allow_code)
    made = _stages(path, cells.stages, settings, out, config.allow_code)
    known = [*cells.stages, *cells.of]
    for asked, names in (("only", config.only), ("redo", [name for name in config.redo if name != "all"])):
        for name in names:
            if name not in known:
                raise UserError(f"{asked}: {unknown(name, known, 'stage')}")
    source = {**source, "settings": settings, **({"seeds": list(seeds)} if seeds else {})}
    for name in paper.hours if paper is not None else ():
        if name not in known:
            raise UserError(f"{path}: paper: hours: {unknown(name, known, 'stage')}")
    return Recipe(source.get("name") or path.stem, out, tuple(made), source, cells, inputs, hardware, paper)


def _part(path: Path, source: Mapping[str, Any], key: str, make: Any, settings: Mapping[str, Any]) -> Any:
    """What a recipe says under ``key``, checked; None if it says nothing."""
    if (given := source.get(key)) is None:
        return None
    if not isinstance(given, dict):
        raise UserError(f"{path}: {key}: a mapping of fields to values is needed")
    try:
        return from_fields(make, _fill(given, settings, path), key)
    except WrongFields as e:
        raise e.at(str(path)) from None


def _cells(
    path: Path,
    source: Mapping[str, Any],
    settings: Mapping[str, Any],
    out: Path,
    seeds: Sequence[int],
    allow_code: bool,
) -> Cells:
    """The stages over seeds and arms: nothing but the recipe's stages where it has neither."""
    if not seeds and not {"arms", "study"} & set(source):
        return Cells(dict(source["stages"]))
    kept = {**settings, "seed": SEED} if seeds else settings
    filled = {key: _fill(source[key], kept, path) for key in ("stages", "arms", "study") if key in source}
    return cells_of(path, filled, out, seeds, allow_code)


def _fill(value: Any, settings: Mapping[str, Any], where: Path) -> Any:
    if isinstance(value, dict):
        return {k: _fill(v, settings, where) for k, v in value.items()}
    if isinstance(value, list):
        return [_fill(v, settings, where) for v in value]
    return _filled(value, settings, where)


def _stages(
    path: Path, stages: Mapping[Any, Any], settings: dict[str, Any], out: Path, allow_code: bool
) -> list[RecipeStage]:
    """The stages; one error for all that is wrong in any of them."""
    made, wrong = list[RecipeStage](), list[UserError]()
    for name, fields in stages.items():
        try:
            made.append(_stage(path, name, fields, settings, out, made, allow_code))
        except UserError as e:
            wrong.append(e)
            verb = fields.get("verb") if isinstance(fields, dict) else None
            made.append(
                RecipeStage(str(name), str(verb), out / str(name), {})
            )  # a later @stage of this name is no error
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
        if not _is_here(where := str(_filled(need["path"], settings, path))):
            raise UserError(f"{path.name}: {where} is not here: {need['message']}")


def _is_here(path: str) -> bool:
    """Whether there is a file or folder of this name, or something that it names as a source of text does."""
    try:
        return path.startswith("hub:") or is_url(path) or bool(find_files(path)[2])
    except UserError:
        return False


def stage_verbs() -> list[str]:
    """The verbs that may be a stage."""
    return [name for name, verb in VERBS.items() if verb.stage]


def find_recipe(recipe: str) -> Path:
    """A recipe's file: a path, or a name among those shipped with the package."""
    path = Path(recipe)
    if path.is_file():
        return path
    shipped = Path(__file__).parents[2] / "recipes"
    if (shipped / f"{recipe}.yaml").is_file():
        return shipped / f"{recipe}.yaml"
    names = ", ".join(sorted(p.stem for p in shipped.glob("*.yaml")))
    raise UserError(f"{recipe} is no recipe file; shipped recipes: {names}")


def _stage(
    path: Path, name: Any, fields: Any, settings: dict[str, Any], out: Path, before: list[RecipeStage], allow_code: bool
) -> RecipeStage:
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
    return RecipeStage(name, verb, out / name, resolved)


def _resolve(value: Any, settings: Mapping[str, Any], folders: Mapping[str, Path], where: str) -> Any:
    if isinstance(value, dict):
        return {k: _resolve(v, settings, folders, where) for k, v in value.items()}
    if isinstance(value, list):
        return [_resolve(v, settings, folders, where) for v in value]
    value = _filled(value, settings, where)
    if not isinstance(value, str):
        return value
    if value.startswith("@"):  # written so, or by a setting
        stage, _, rest = value[1:].partition("/")
        if stage not in folders:
            raise UserError(f"{where}: {value} refers to no earlier stage; there are {', '.join(folders) or 'none'}")
        return str(folders[stage] / rest)
    return value


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
