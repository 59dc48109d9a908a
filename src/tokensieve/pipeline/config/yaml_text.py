"""YAML as values, and the line each stands on: ``3e-4`` is a number, a key given twice an error. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...runs.errors import UserError

MAX_YAML_VALUES = 100_000  # with every alias written out: a few lines of aliases of aliases can stand for billions
INTS, FLOATS, DATES = (f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp"))
Place = tuple[str | int, ...]


class NotYaml(UserError):
    """Text that is no YAML."""


def read_yaml(path: Path | str) -> dict[str, Any]:
    """A file that holds a mapping. ``3e-4`` is a number here (YAML 1.1 calls it a string); a key given twice is an error.

    Raises UserError naming the file and, where it is not YAML or a key is double, the line.
    """
    return read_yaml_lines(path)[0]


def read_yaml_lines(path: Path | str) -> tuple[dict[str, Any], dict[Place, int]]:
    """The same, and the line of each value by its place in the mapping, as ``("sources", 0, "split")``."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror or e}") from None
    except UnicodeDecodeError as e:
        raise UserError(f"{path} is not valid YAML: {e}") from None
    value, lines = _read(text, str(path))
    if not isinstance(value, dict):
        raise UserError(f"{path}: a mapping of names to values is needed, this is {_what(value)}")
    return value, lines


def read_value(text: str) -> Any:
    """A word of a command line as YAML: ``3e-4``, ``[a, b]``, ``{name: rho1}``. Text that is not YAML is itself."""
    try:
        return _read(text, text if len(text) < 40 else f"{text[:40]}...")[0] if text else text
    except NotYaml:
        return text


def written(value: Any) -> str:
    """YAML that :func:`read_yaml` reads as ``value``."""
    import yaml

    class Dumper(yaml.SafeDumper):
        yaml_implicit_resolvers = _loader().yaml_implicit_resolvers

    return str(yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True))


def _read(text: str, name: str) -> tuple[Any, dict[Place, int]]:
    import yaml

    try:
        loader = _loader()(text)
        loader.name = name
        node = loader.get_single_node()
        _refuse_double_keys(node, name)
        if _count_values(node, {}, name) > MAX_YAML_VALUES:
            raise UserError(f"{name} stands for more than {MAX_YAML_VALUES:,} values")
        return None if node is None else loader.construct_document(node), dict(_lines(node, ()))
    except UserError:
        raise
    except (yaml.YAMLError, ValueError) as e:  # ValueError: a number of thousands of digits
        raise NotYaml(f"{name} is not valid YAML: {' '.join(str(e).split())}") from None
    except RecursionError:
        raise UserError(f"{name} is nested too deep") from None


def _what(value: Any) -> str:
    kinds = {
        dict: "a mapping",
        list: "a list",
        str: "text",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
    }
    return "empty" if value is None else kinds.get(type(value), "something else")


def _lines(node: Any, place: Place) -> Iterator[tuple[Place, int]]:
    """The line of every value below a node: of its key, or of the value itself in a list."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            below = (*place, str(key.value))
            yield below, key.start_mark.line + 1
            yield from _lines(value, below)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield (*place, i), value.start_mark.line + 1
            yield from _lines(value, (*place, i))


def _loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.yaml_implicit_resolvers = {
        first: [(tag, form) for tag, form in resolvers if tag not in (INTS, FLOATS, DATES)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    # Without YAML 1.1's 0123 for 83 and 12:30 for 750, which nobody means.
    whole = r"^[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)$"
    Loader.add_implicit_resolver(INTS, re.compile(whole), list("-+0123456789"))
    number = r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9]+)"
    plain, special = r"[-+]?[0-9][0-9_]*\.[0-9_]*|[-+]?\.[0-9]+", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
    form = rf"^(?:{number}[eE][-+]?[0-9]+|{plain}|{special})$"
    Loader.add_implicit_resolver(FLOATS, re.compile(form), list("-+0123456789."))
    return Loader


def _refuse_double_keys(root: Any, name: str) -> None:
    """YAML readers let the later of two equal keys win silently: a stage or a field would be gone."""
    import yaml

    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen or not isinstance(node, yaml.CollectionNode):
            continue
        seen.add(id(node))
        if not isinstance(node, yaml.MappingNode):
            waiting += node.value
            continue
        keys = set()
        for key, value in node.value:
            waiting.append(value)
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                raise UserError(f"{name} line {key.start_mark.line + 1}: {key.value!r} is given twice")
            keys.add(key.value if isinstance(key, yaml.ScalarNode) else None)


def _count_values(node: Any, counts: dict[int, int], name: str) -> int:
    """Values under a node with every alias written out. ``counts`` holds those of the nodes that were seen, 0 while inside."""
    if node is None or isinstance(node.value, str):
        return 1
    if id(node) not in counts:
        counts[id(node)] = 0
        children = [child for item in node.value for child in (item if isinstance(item, tuple) else (item,))]
        counts[id(node)] = 1 + sum(_count_values(child, counts, name) for child in children)
    elif not counts[id(node)]:
        raise UserError(f"{name} line {node.start_mark.line + 1}: an alias stands inside what it names")
    return counts[id(node)]
