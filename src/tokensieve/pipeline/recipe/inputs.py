"""What a recipe reads and does not bring along: what of it is here, and what to say of what is not."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data.read.remote import is_url
from ...runs.errors import UserError
from ..config.fields import WrongFields, from_fields
from ..configs.inputs import InputConfig
from .study import texts_in

HUB = "hub:"


@dataclass(frozen=True)
class RecipeInput:
    """An input, and the place that its setting gives."""

    name: str
    place: str
    """A file, folder or glob; of a text also a URL or ``hub:owner/name``; ``@stage`` where a stage makes it."""
    config: InputConfig

    @property
    def from_hub(self) -> bool:
        """Whether it is a text that is read over the network: then nobody looks whether it is there."""
        return (self.place.startswith(HUB) or is_url(self.place)) and self.config.model is None

    @property
    def is_here(self) -> bool:
        if self.from_hub or self.place.startswith(("@", "package:")):
            return True
        return Path(self.place).expanduser().exists() or (glob.has_magic(self.place) and bool(glob.glob(self.place)))

    @property
    def told(self) -> str:
        """What it is, and how to point at it."""
        config, ways = self.config, [f"--set.{self.name} FOLDER"]
        if config.hub is not None and config.model is not None:
            ways = [f"hf download {config.hub} --local-dir FOLDER, then --set.{self.name} FOLDER"]
        elif config.hub is not None:
            ways.append(f"--set.{self.name} {HUB}{config.hub}")
        return f"{config.what} ({' or '.join(ways)})"


def inputs_of(where: Path, given: Any, settings: Mapping[str, Any]) -> dict[str, RecipeInput]:
    """name -> input, of a recipe's ``inputs:``. UserError for fields that do not exist, and for one that has no setting."""
    if not isinstance(given, Mapping) or not all(isinstance(fields, Mapping) for fields in given.values()):
        raise UserError(
            f"{where}: inputs: a mapping of name to {{what: ..., hub: ..., tokens: ... or model: ...}} is needed"
        )
    made = {}
    for name, fields in given.items():
        try:
            config = from_fields(InputConfig, fields, "inputs", str(name))
        except WrongFields as e:
            raise e.at(str(where)) from None
        place = settings.get(name)
        if not isinstance(place, str) or not place:
            raise UserError(
                f"{where}: inputs: {name} needs a setting of this name that says where it is, as data/{name}"
            )
        made[str(name)] = RecipeInput(str(name), place, config)
    return made


def missing(inputs: Iterable[RecipeInput], fields: Sequence[Mapping[str, Any]]) -> list[RecipeInput]:
    """Those that are not here and that one of these stages' fields name."""
    named = {text for each in fields for text in texts_in(each)}
    return [i for i in inputs if not i.is_here and any(t == i.place or t.startswith(f"{i.place}/") for t in named)]


def check_inputs(recipe: str, inputs: Iterable[RecipeInput], fields: Sequence[Mapping[str, Any]]) -> None:
    """Raise UserError, in one sentence, if something is not here that these stages read."""
    if gone := missing(inputs, fields):
        told = ", ".join(f"{i.name} ({i.place})" for i in gone)
        raise UserError(f"{recipe}: not here: {told}; --dry-run says what each is and how to point at it")


def describe_inputs(inputs: Iterable[RecipeInput]) -> list[str]:
    """A line for each that is not here, and for each that would be read over the network."""
    gone, over = ([i for i in inputs if not i.is_here], [i for i in inputs if i.from_hub])
    width = max((len(i.name) for i in [*gone, *over]), default=0)
    lines = ["not here:"] if gone else []
    lines += [f"  {i.name:{width}}  {i.place}: {i.told}" for i in gone]
    lines += ["read over the network, and not looked at:"] if over else []
    return lines + [f"  {i.name:{width}}  {i.place}: {i.config.what}" for i in over]
