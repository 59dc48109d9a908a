"""A recipe that ``extends:`` others: what they say is laid under what it says itself.

    extends: rho1-math-1b                 a name, or a file beside it; or a list, later ones over earlier ones
    settings: {ratio: 0.7}                mappings are joined, everything else is replaced
    stages: {rho1_50b: null}              null takes away what was there; a stage or input that was not there is an error

``name`` and ``out`` are each recipe's own. Stages come in the order of the recipes, but none before one that it reads: so a
recipe may put a stage in the place of something that the other one reads from elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...runs.errors import UserError
from ..config.fields import unknown
from ..config.yaml_text import read_yaml
from .study import stage_named, texts_in

_EXTENDS = "extends"
_OWN = ("name", "out")


def read_recipe(path: Path, find: Callable[[str], Path], above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """What a recipe says, with what it extends. ``find``: a name -> the recipe's file. UserError for a circle."""
    if path.resolve() in above:
        raise UserError(f"{path}: extends goes round in a circle")
    source = read_yaml(path)
    if _EXTENDS not in source:
        return source
    named = source.pop(_EXTENDS)
    names = [named] if isinstance(named, str) else named
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and n for n in names):
        raise UserError(f"{path}: extends: the name of a recipe, or a list of names, is needed, not {named}")
    made: dict[str, Any] = {}
    for name in names:
        beside = path.parent / name
        try:
            found = beside if beside.is_file() else find(name)
        except UserError as e:
            raise UserError(f"{path}: extends: {e}") from None
        below = read_recipe(found, find, (*above, path.resolve()))
        made = laid_over(made, {k: v for k, v in below.items() if k not in _OWN})
    _check_nulls(path, made, source)
    made = laid_over(made, source)
    settings = made.get("settings") or {}
    if isinstance(made.get("stages"), dict) and isinstance(settings, dict):  # what is neither, load says
        made["stages"] = _in_order(made["stages"], settings)
    return made


def _check_nulls(path: Path, below: Mapping[str, Any], source: Mapping[str, Any]) -> None:
    """Refuse a ``null`` over a stage or an input that no recipe below has: most likely its name is misspelt."""
    for section in ("stages", "inputs"):
        there, own = below.get(section) or {}, source.get(section) or {}
        if not isinstance(there, Mapping) or not isinstance(own, Mapping):
            continue  # load says what is wrong with it
        if nothing := [str(name) for name, value in own.items() if value is None and name not in there]:
            raise UserError(
                f"{path}: {section}: null takes away what an extended recipe has: {unknown(nothing[0], there, section[:-1])}"
            )


def laid_over(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` laid over ``under``: mappings are joined, ``null`` takes away what is there, all else is replaced."""
    made = dict(under)
    for key, value in over.items():
        if value is None and key in made:
            del made[key]
        elif isinstance(value, Mapping) and isinstance(made.get(key), Mapping):
            made[key] = laid_over(made[key], value)
        else:
            made[key] = value
    return made


def _in_order(stages: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The stages as they come, each behind those that it reads. Of a circle, resolving the recipe says what is wrong."""
    made: dict[str, Any] = {}

    def put(name: str, above: tuple[str, ...]) -> None:
        if name in made or name in above or name not in stages:
            return
        for text in texts_in(stages[name]):
            filled = re.sub(r"\$\{([^}]*)\}", lambda m: str(settings.get(m[1])), text)
            if (read := stage_named(filled)) is not None:
                put(read, (*above, name))
        made[name] = stages[name]

    for name in stages:
        put(name, ())
    return made
