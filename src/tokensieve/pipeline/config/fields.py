"""One way from a mapping to a config: every field checked by its type, and all that is wrong told at once, each with its place.

    from_fields(TrainConfig, {"out": "x", "seed": "y", "sed": 1})
    WrongFields: seed: a whole number is needed, not y; unknown field 'sed', did you mean 'seed'?; missing: corpus, model

The mapping comes from a command line, a file, a recipe's stage, or is itself a field of one of those (``training``, ``lora``,
``objective``, ``head``). Values are data: nothing in them is looked up, imported or called. Imports nothing heavy.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...runs.errors import UserError
from .hints import fits, hints_of, is_dataclass, is_enum, member_for, needed, parameters
from .yaml_text import Place, read_value

MAX_SHOWN = 200


@dataclass(frozen=True)
class Wrong:
    """One thing that does not fit: ``where: place: says``."""

    place: Place
    says: str
    key: str | None = None
    """Of an unknown field: its name, at ``place``."""
    where: str = ""
    """The file and line, or the recipe and its stage."""

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, ".".join(map(str, self.place)), self.says) if part)


class WrongFields(UserError):
    """Everything that is wrong with a mapping."""

    def __init__(self, wrong: Sequence[Wrong]) -> None:
        super().__init__("; ".join(map(str, wrong)))
        self.wrong = tuple(wrong)

    def at(self, where: str) -> WrongFields:
        """The same, each told with ``where`` it stands."""
        return WrongFields(
            [dataclasses.replace(w, where=": ".join(filter(None, (where, w.where)))) for w in self.wrong]
        )


def from_fields(make: Any, fields: Mapping[str, Any], *place: str, filled: bool = False, partial: bool = False) -> Any:
    """``make(**fields)``, every field checked by its type: ``make`` is a dataclass, ours or not, or a function.

    Types are int, float, str, bool, None, Literal, Enum, list, tuple, dict, unions, and dataclasses inside each other. A value
    stays what it is, but for a whole number where a number is needed, a list for a tuple, a mapping for a dataclass, and text
    that does not fit, which is taken for what it says as YAML ("3e-4"). Infinite numbers and NaN are refused.

    Args:
        place: Of the mapping itself, where it is a field of another.
        filled: Refuse text that is empty, as an unset shell variable makes it, or that no file system can hold.
        partial: None for what is missing, instead of an error.

    Raises WrongFields naming all that is unknown, missing or of another type, and else what ``make`` has against the values.
    """
    check = _Check(filled, partial)
    made = check.fields(make, fields, place)
    if check.wrong:
        raise WrongFields(check.wrong)
    return made


def all_of(*checks: Callable[[], Any]) -> list[Any]:
    """What each of these gives; if any raise UserError, one error with what all of them have to say."""
    made, errors = [], list[UserError]()
    for check in checks:
        try:
            made.append(check())
        except UserError as e:
            errors.append(e)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise WrongFields([w for e in errors for w in (e.wrong if isinstance(e, WrongFields) else [Wrong((), str(e))])])
    return made


def unknown(name: str, names: Iterable[str], what: str = "field") -> str:
    """``unknown field 'sed', did you mean 'seed'?``; where nothing is near, what there is."""
    names = list(names)
    if close := difflib.get_close_matches(name, names, 1):
        return f"unknown {what} {name!r}, did you mean {close[0]!r}?"
    return f"unknown {what} {name!r}" + (f"; there are {', '.join(names)}" if 0 < len(names) <= 16 else "")


# --- values --------------------------------------------------------------------------------------------------------------


class _Check:
    """Values into what their types say; what does not fit is added to ``wrong``."""

    def __init__(self, filled: bool, partial: bool) -> None:
        self.wrong: list[Wrong] = []
        self.filled, self.partial = filled, partial

    def fields(self, make: Any, given: Mapping[str, Any], place: Place) -> Any:
        """``make(**given)``; None if there is something wrong."""
        before, hints, made = len(self.wrong), hints_of(make), {}
        needs = [name for name, p in parameters(make).items() if p.default is p.empty]
        for name, value in given.items():
            if name not in hints:
                self.wrong.append(Wrong(place, unknown(str(name), hints), key=str(name)))
            elif value is not None or name not in needs or fits(None, hints[name]):
                made[name] = self.value(value, hints[name], (*place, name))
        if missing := [name for name in needs if name not in made]:
            if self.partial:
                made |= dict.fromkeys(missing)
            else:
                self.wrong.append(Wrong(place, f"missing: {', '.join(missing)}"))
        if len(self.wrong) > before:
            return None
        try:
            return make(**made)
        except (TypeError, ValueError, ImportError) as e:
            self.wrong.append(Wrong(place, " ".join(str(e).split())))

    def value(self, value: Any, hint: Any, place: Place) -> Any:
        kind = member_for(value, hint)
        if kind is None and isinstance(value, str):
            said = read_value(value)
            kind, value = (found, said) if (found := member_for(said, hint)) is not None else (None, value)
        if kind is None:
            self.wrong.append(Wrong(place, f"{needed(hint)} is needed, not {_shown(value)}"))
        elif self.filled and isinstance(value, str) and (fault := _text_fault(value)):
            self.wrong.append(Wrong(place, fault))
        else:
            return self.inside(value, kind, place)
        return None

    def inside(self, value: Any, kind: Any, place: Place) -> Any:
        """A value that fits by its outside: what it holds, checked."""
        origin, args = typing.get_origin(kind) or kind, typing.get_args(kind)
        if origin is float:
            if not math.isfinite(value):
                self.wrong.append(Wrong(place, f"a finite number is needed, not {_shown(value)}"))
            return float(value)
        if is_enum(origin):
            return origin(value)
        if is_dataclass(origin):
            return self.fields(origin, value, place) if isinstance(value, Mapping) else value
        if origin is tuple and args:
            each = args if Ellipsis not in args else args[:1] * len(value)
            return tuple(self.value(v, hint, (*place, i)) for i, (v, hint) in enumerate(zip(value, each, strict=True)))
        if origin in (list, Sequence):
            return [self.value(v, args[0] if args else Any, (*place, i)) for i, v in enumerate(value)]
        if origin is dict:
            return self.mapping(value, args or (Any, Any), place)
        return value

    def mapping(self, value: Mapping[Any, Any], args: tuple[Any, ...], place: Place) -> dict[Any, Any]:
        for key in value:
            if not fits(key, args[0]):
                self.wrong.append(
                    Wrong(place, f"{needed(args[0])} is needed for a name, not {_shown(key)}: put it in quotes")
                )
        return {key: self.value(v, args[1], (*place, str(key))) for key, v in value.items()}


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    try:
        text = str(value) or "''"
    except ValueError:  # a number of thousands of digits
        return "what it says"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _text_fault(text: str) -> str | None:
    if not text:
        return "a value is missing"
    if "\0" in text:
        return f"{text!r} holds a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"{text!r} is not valid UTF-8"
    return None
