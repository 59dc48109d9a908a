"""Type hints of configs: the fields they name, the values they take, their names in an error. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list, as [a, b],",
    Sequence: "a list, as [a, b],",
    dict: "a mapping, as {name: value},",
    Mapping: "a mapping, as {name: value},",
    type(None): "null",
}


def _once(look: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    """``look``, remembered of classes and functions: TrainingArguments has over a hundred fields, whose types are text."""
    known: Callable[[Any], dict[str, Any]] = functools.lru_cache(256)(look)
    return lambda make: dict(known(make) if inspect.isclass(make) or inspect.isfunction(make) else look(make))


_type_hints = _once(typing.get_type_hints)


def hints_of(make: Any) -> dict[str, Any]:
    """Name -> type of each field of a dataclass or parameter of a function, in order."""
    hints = _type_hints(make.func if isinstance(make, functools.partial) else make)
    return {name: hints.get(name, Any) for name in parameters(make)}


@_once
def parameters(make: Any) -> dict[str, inspect.Parameter]:
    """What a dataclass or function can be given by name."""
    found = inspect.signature(make).parameters
    return {name: p for name, p in found.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def members(hint: Any) -> tuple[Any, ...]:
    """The types of a union; one that is none, alone."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def item_class(hint: Any) -> Any:
    """The dataclass in a type, as SourceConfig in ``list[SourceConfig]``; None if there is none."""
    inner = (t for member in members(hint) for t in (member, *typing.get_args(member)))
    return next((t for t in inner if is_dataclass(t)), None)


def item_hint(hint: Any, key: str | int) -> Any:
    """The type of what stands at ``key`` in a value of this type; Any where it does not say."""
    for member in members(hint):
        args = typing.get_args(member)
        if is_dataclass(member) and key in (hints := hints_of(member)):
            return hints[key]
        if typing.get_origin(member) in (list, Sequence, dict):
            return args[-1]
    return Any


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of this type by its outside; what a list, mapping or dataclass holds is another question."""
    return member_for(value, hint) is not None


def needed(hint: Any) -> str:
    """A type in words: ``a whole number or null``."""
    kinds = [m for m in members(hint) if not (is_enum(m) and str in members(hint))]  # any text is: its owner will say
    return " or ".join(dict.fromkeys(map(_words, kinds)))


def member_for(value: Any, hint: Any) -> Any:
    """The type of a union that a value is of by its outside, the type itself if it is no union; None if there is none."""
    return next((member for member in members(hint) if _is_a(value, member)), None)


def _is_a(value: Any, kind: Any) -> bool:
    origin, args = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is Any:
        return True
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in args)
    if origin is float:
        return type(value) is float or (type(value) is int and value.bit_length() < 1024)
    if origin in (int, bool, str):
        return type(value) is origin  # true is no 1
    if origin in (list, Sequence):  # text is a sequence, too, and never meant
        return isinstance(value, (list, tuple))
    if origin is tuple:
        return isinstance(value, (list, tuple)) and (len(value) == len(args) or Ellipsis in args or not args)
    if is_enum(origin):
        return isinstance(value, origin) or value in [choice.value for choice in origin]
    if is_dataclass(origin):
        return isinstance(value, (origin, Mapping))
    return inspect.isclass(origin) and isinstance(value, origin)


def _words(kind: Any) -> str:
    origin, args = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is Literal or is_enum(origin):
        choices = [str(c) for c in args] if origin is Literal else [str(c.value) for c in origin]
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    if origin is tuple and args and Ellipsis not in args:
        return f"a list of {len(args)}"
    if is_dataclass(origin):
        origin = dict
    return KINDS.get(list if origin is tuple else origin, getattr(origin, "__name__", str(origin)))


def is_dataclass(kind: Any) -> bool:
    return inspect.isclass(kind) and dataclasses.is_dataclass(kind)


def is_enum(kind: Any) -> bool:
    return inspect.isclass(kind) and issubclass(kind, enum.Enum)
