"""The words of a command line and its ``--config`` files as one mapping of fields, and where each value was given.

    --config a.yaml --seed 3 --training.max_steps 5 --sources.0.path x     later wins, field by field

Of a word the type of its field decides what it is: text where text is taken (``--out 3``), else YAML. Imports nothing heavy.
"""

from __future__ import annotations

import copy
import dataclasses
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .fields import Wrong, WrongFields, from_fields, unknown
from .hints import fits, hints_of, item_class, item_hint, members
from .yaml_text import Place, read_value, read_yaml_lines, written

NOT_IN_A_FILE = "allow_code"


class Given:
    """What was given for the fields of ``config_class``."""

    def __init__(self, config_class: Any, words: Sequence[str]) -> None:
        self.config_class, self.hints = config_class, hints_of(config_class)
        self.fields: dict[str, Any] = {}
        self.wrong: list[Wrong] = []
        self.places: dict[Place, str] = {}
        """Place of a value -> "FILE line N", or nothing where the command line gave it."""
        for name, value in self._pairs(words):
            if name == "config":
                self._add_file(value)
            else:
                self._add(name, value)

    def config(self, *, partial: bool = False) -> Any:
        """The config. Raises WrongFields with everything that is wrong; ``partial``: None for what is missing."""
        try:
            made = from_fields(self.config_class, self.fields, filled=True, partial=partial)
        except WrongFields as e:
            raise WrongFields([*self.wrong, *self.located(e).wrong]) from None
        if self.wrong:
            raise WrongFields(self.wrong)
        return made

    def printed(self) -> str:
        """The fields as YAML, defaults included; null for what is missing."""
        return written(_plain(dataclasses.asdict(self.config(partial=True)))).rstrip("\n")

    def located(self, error: WrongFields) -> WrongFields:
        """The error with file and line before each thing that a file has wrong."""
        return WrongFields([dataclasses.replace(w, where=w.where or self._where(w)) for w in error.wrong])

    def _where(self, wrong: Wrong) -> str:
        place = wrong.place if wrong.key is None else (*wrong.place, wrong.key)
        return next((self.places[place[:n]] for n in range(len(place), 0, -1) if place[:n] in self.places), "")

    def _pairs(self, words: Sequence[str]) -> Iterator[tuple[str, str]]:
        """``--name value`` and ``--name=value``; only what begins with two dashes is a name, so that ``--seed -1`` is one."""
        waiting = list(words)
        while waiting:
            word = waiting.pop(0)
            name, equals, value = word.removeprefix("--").partition("=")
            if not word.startswith("-"):
                self.wrong.append(Wrong((), f"{word!r} stands behind no --field"))
            elif not word.startswith("--"):
                self.wrong.append(Wrong((), unknown(word.lstrip("-"), self.hints)))
            elif equals:
                yield name, value
            elif waiting and not waiting[0].startswith("--"):
                yield name, waiting.pop(0)
            else:
                known = name.partition(".")[0].removesuffix("+") in {*self.hints, "config"}
                self.wrong.append(
                    Wrong((name,), "a value is missing") if known else Wrong((), unknown(name, self.hints))
                )

    def _add_file(self, path: str) -> None:
        values, lines = read_yaml_lines(path)
        if values.get(NOT_IN_A_FILE, False) is not False:  # --print_config prints a false, which allows nothing
            says = "a file cannot allow this to itself, give it on the command line"
            self.wrong.append(Wrong((NOT_IN_A_FILE,), says, where=f"{path} line {lines[NOT_IN_A_FILE,]}"))
            del values[NOT_IN_A_FILE]
        self.fields |= values
        self.places = {place: where for place, where in self.places.items() if place[0] not in values}
        self.places |= {place: f"{path} line {line}" for place, line in lines.items()}

    def _add(self, name: str, text: str) -> None:
        head, *below = name.split(".")
        head, appends = head.removesuffix("+"), head.endswith("+")
        hint, before = self.hints.get(head, Any), self._before(head)
        if appends and not below:
            value = typed(text, hint)
            more = value if isinstance(value, list) else [typed(text, item_hint(hint, 0))]
            self.fields[head] = [*(before if isinstance(before, list) else []), *more]
        else:
            self.fields[head] = _placed(before, hint, below, text)
        is_list = any(typing.get_origin(member) is list for member in members(hint))
        place = (head,) if is_list else (head, *below)
        self.places = {p: where for p, where in self.places.items() if p[: len(place)] != place} | {place: ""}

    def _before(self, name: str) -> Any:
        """What the field holds so far: what was given, else its default."""
        if name in self.fields:
            return copy.deepcopy(self.fields[name])
        field = next((f for f in dataclasses.fields(self.config_class) if f.name == name), None)
        return field.default_factory() if field and field.default_factory is not dataclasses.MISSING else None


def typed(text: str, hint: Any) -> Any:
    """A word as the value of a field of this type: ``--out 3`` names a folder, ``--seed 3`` is a number."""
    if not text or members(hint) == (str,):
        return text
    value = read_value(text)
    if hint is Any or not fits(text, hint):
        return value
    return value if (value is None or isinstance(value, (list, dict))) and fits(value, hint) else text


def _placed(before: Any, hint: Any, names: Sequence[str], text: str) -> Any:
    """``before`` with the value at ``names`` below it set. A list's items go by number; a name alone means its last one."""
    if not names:
        return typed(text, hint)
    name, *below = names
    if any(typing.get_origin(member) is list for member in members(hint)) and (item_class(hint) or name.isdecimal()):
        items = list(before) if isinstance(before, (list, tuple)) else []
        at = min(int(name), len(items)) if name.isdecimal() else max(len(items) - 1, 0)
        rest = below if name.isdecimal() else names
        items[at : at + 1] = [_placed(items[at] if at < len(items) else None, item_hint(hint, at), rest, text)]
        return items
    kept = dict(before) if isinstance(before, Mapping) else {}
    inner = item_hint(hint, name)
    if members(inner) == (str,) and not item_class(hint):  # name -> text: the name may hold dots
        name, below = ".".join(names), []
    kept[name] = _placed(kept.get(name), inner, below, text)
    return kept


def _plain(value: Any) -> Any:
    """Tuples as lists: YAML knows no other."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
