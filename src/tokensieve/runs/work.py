"""What says that two works are the same: kind, config and inputs, as far as they count."""

from __future__ import annotations

import dataclasses
import functools
import json
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from .files import hash_json

# Inputs that early versions did not note: where one is not there, nobody knows what it was, and it is taken for the same.
LATER_INPUTS = ("isolated", "isolated_sets")


@dataclass(frozen=True)
class Work:
    """A piece of work: the ``kind`` of folder it makes, how (``config``) and from what (``inputs``: role -> identity).

    What of it counts: every field of ``config`` but those in ``not_work`` and those at the default they have in
    ``config_class``; of ``inputs`` what is given. So a field that is added later makes no folder stale. A default must
    never change its value: the same fingerprint would stand for other work. Give such a field a new name.
    """

    kind: str
    config: Mapping[str, Any]
    """JSON, as the manifest shows it. May have fields that do not count: where text came from is worth knowing."""
    inputs: Mapping[str, Any]
    config_class: type | None = None
    """The dataclass of ``config``; None: no field has a default."""
    not_work: Collection[str] = ("out",)
    """Fields that do not say what work it is, dotted: ``sources.path`` is the path of each of the sources."""

    @classmethod
    def of(cls, kind: str, config: Any, not_work: Collection[str], inputs: Mapping[str, Any], **instead: Any) -> Work:
        """Of a config dataclass. ``instead``: fields that count, or are shown, by another value than the config's."""
        shown = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in not_work}
        return cls(kind, _plain({**shown, **instead}), _plain(dict(inputs)), type(config), not_work)

    @property
    def fingerprint(self) -> str:
        """sha256 over kind, config and inputs, as far as they count: equal work has an equal fingerprint."""
        config = _counted(_plain(self.config), self.config_class, self.not_work)
        return hash_json({"kind": self.kind, "config": config, "inputs": _given(self.inputs)})

    def changes(self, noted: Mapping[str, Any]) -> list[str] | None:
        """In what it differs from the work of a manifest or a ``work.json``; ``[]``: it is the same work.

        ``seed 0 -> 1`` for each config field, dotted, and ``input corpus`` for each input. None if it differs and nothing
        is noted that would say in what. Folders of earlier versions have other fingerprints: what they note is compared
        with defaults filled in.
        """
        if noted.get("fingerprint") == self.fingerprint:
            return []
        if (
            noted.get("kind", self.kind) != self.kind
            or not isinstance(noted.get("config"), Mapping)
            or not isinstance(noted.get("inputs"), Mapping)
        ):
            return None
        configs = (_filled(_plain(c), self.config_class, self.not_work) for c in (noted["config"], self.config))
        old, new = (flat(config) for config in configs)
        was, now = _given(noted["inputs"]), _given(self.inputs)
        fields = sorted(k for k in {*old, *new} if old.get(k) != new.get(k))
        late = {k for k in LATER_INPUTS if k not in was}
        roles = sorted(k for k in {*was, *now} - late if was.get(k) != now.get(k))
        return [f"{k} {_shown(old, k)} -> {_shown(new, k)}" for k in fields] + [f"input {r}" for r in roles]


def _plain(value: Any) -> Any:
    """As JSON reads it back: tuples are lists, and a nested dataclass is a mapping."""
    return json.loads(json.dumps(value, default=lambda v: dataclasses.asdict(v) if _is_dataclass(v) else str(v)))


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _given(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """An input that is not there counts as one that nobody knew of yet."""
    return {role: value for role, value in inputs.items() if value not in (None, [], {})}


@functools.cache
def _defaults(config_class: type | None) -> dict[str, Any]:
    """field -> its default, of the fields that have one."""
    found = {}
    for field in dataclasses.fields(config_class) if config_class is not None else ():
        if field.default_factory is not dataclasses.MISSING:
            found[field.name] = _plain(field.default_factory())
        elif field.default is not dataclasses.MISSING:
            found[field.name] = _plain(field.default)
    return found


@functools.cache
def _items(config_class: type | None) -> dict[str, type]:
    """field -> the dataclass in its type, as SourceConfig in ``list[SourceConfig]``, of the fields that have one."""
    hints = {} if config_class is None else typing.get_type_hints(config_class)
    inside = {name: [hint, *typing.get_args(hint)] for name, hint in hints.items()}
    return {name: t for name, types in inside.items() for t in types if dataclasses.is_dataclass(t)}  # type: ignore[misc]


def _filled(config: Mapping[str, Any], config_class: type | None, not_work: Collection[str]) -> dict[str, Any]:
    """``config`` with the defaults of what it does not say, and without what is not work; so are the items in it."""
    named = {**_defaults(config_class), **config}
    return {k: _in_items(_filled, k, v, config_class, not_work) for k, v in named.items() if k not in not_work}


def _counted(config: Mapping[str, Any], config_class: type | None, not_work: Collection[str]) -> dict[str, Any]:
    """``config`` without what is not work, and without what is at its default."""
    defaults = _defaults(config_class)
    named = {k: v for k, v in config.items() if k not in not_work and not (k in defaults and v == defaults[k])}
    return {k: _in_items(_counted, k, v, config_class, not_work) for k, v in named.items()}


def _in_items(
    change: Callable[..., dict[str, Any]], name: str, value: Any, config_class: type | None, not_work: Collection[str]
) -> Any:
    """``value`` of a field, with the dataclasses in it changed: one, or a list of them."""
    if (item := _items(config_class).get(name)) is None or not value:
        return value
    below = {n.removeprefix(f"{name}.") for n in not_work if n.startswith(f"{name}.")}
    if isinstance(value, list):
        return [change(v, item, below) if isinstance(v, Mapping) else v for v in value]
    return change(value, item, below) if isinstance(value, Mapping) else value


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings, and lists of them, as one mapping with dotted keys; an empty mapping is a value."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
            value = {str(i): v for i, v in enumerate(value)}
        nested = isinstance(value, Mapping) and value
        found.update(flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value})
    return found


def _shown(values: Mapping[str, Any], key: str) -> str:
    text = json.dumps(values[key], ensure_ascii=False, default=str) if key in values else "not set"
    return text if len(text) <= 60 else f"{text[:57]}..."
