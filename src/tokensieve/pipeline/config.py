"""From YAML and command lines to a config dataclass, and one sentence about what does not fit. Imports nothing heavy."""

from __future__ import annotations

import ast
import copy
import dataclasses
import difflib
import inspect
import re
import textwrap
import typing
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..runs import UserError

KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list, as [a, b],",
    "tuple": "a list, as [a, b],",
    "dict": "a mapping, as {name: value},",
    "NoneType": "null",
}
MAX_YAML_VALUES = 100_000  # with every alias written out: a few lines of aliases of aliases can stand for billions
MAX_SEED = 2**32 - 1


def class_parser(config_class: Any, **options: Any) -> Any:
    """The parser of a dataclass's fields, or of a function's parameters.

    Values are data: a ``class_path`` in them is refused, not imported.
    """
    from jsonargparse import ArgumentParser, set_parsing_settings

    # Without this any value may name a class of any module, which the parser then imports and calls.
    set_parsing_settings(
        import_path_denylist=["*"],
        import_path_allowlist=["tokensieve.data.sources"],
        instantiate_subclass_spec_in_any=False,
    )
    made = ArgumentParser(exit_on_error=False, **options)
    _resolve_annotations(config_class)
    add = made.add_class_arguments if inspect.isclass(config_class) else made.add_function_arguments
    add(config_class, fail_untyped=False)
    return made


def _resolve_annotations(config_class: Any) -> None:
    """Types for strings. The parser would resolve them by running the imports under the module's ``if TYPE_CHECKING``."""
    if dataclasses.is_dataclass(config_class) and inspect.isclass(config_class):
        hints = typing.get_type_hints(config_class)
        config_class.__init__.__annotations__.update(hints)
        for name in hints:
            _resolve_annotations(item_class(config_class, name))


def from_fields(config_class: Any, fields: Mapping[str, Any]) -> Any:
    """``config_class(**fields)``, every field checked by type; a function will do too. Raises UserError naming the field."""
    from jsonargparse import ArgumentError

    parser = class_parser(config_class, parser_mode="json")  # the mapping was parsed as YAML already
    try:
        return config_class(**vars(parser.instantiate(parser.parse_object(copy.deepcopy(dict(fields))))))
    except (ArgumentError, TypeError, ValueError) as e:
        raise UserError(explain(e, config_class)) from None


# --- YAML ----------------------------------------------------------------------------------------------------------------


def read_yaml(path: Path | str) -> dict[str, Any]:
    """A file that holds a mapping. ``3e-4`` is a number here (YAML 1.1 calls it a string); a key given twice is an error.

    Raises UserError naming the file and, where it is not YAML or a key is double, the line.
    """
    import yaml

    try:
        loader = _loader()(Path(path).read_text(encoding="utf-8"))
        loader.name = str(path)
        node = loader.get_single_node()
        _refuse_double_keys(node, path)
        if _count_values(node, {}, path) > MAX_YAML_VALUES:
            raise UserError(f"{path} stands for more than {MAX_YAML_VALUES:,} values")
        value = None if node is None else loader.construct_document(node)
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror or e}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise UserError(f"{path} is not valid YAML: {one_line(e)}") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deep") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: a mapping of names to values is needed, this is {_what(value)}")
    return value


def _what(value: Any) -> str:
    return "empty" if value is None else KINDS.get(type(value).__name__, "something else").split(",")[0]


def _loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    floats, dates = "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp"
    Loader.yaml_implicit_resolvers = {
        first: [(tag, form) for tag, form in resolvers if tag not in (floats, dates)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    number = r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9]+)"
    plain, special = r"[-+]?[0-9][0-9_]*\.[0-9_]*|[-+]?\.[0-9]+", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
    form = rf"^(?:{number}[eE][-+]?[0-9]+|{plain}|{special})$"
    Loader.add_implicit_resolver(floats, re.compile(form), list("-+0123456789."))
    return Loader


def _refuse_double_keys(root: Any, path: Path | str) -> None:
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
                raise UserError(f"{path} line {key.start_mark.line + 1}: {key.value!r} is given twice")
            keys.add(key.value if isinstance(key, yaml.ScalarNode) else None)


def _count_values(node: Any, counts: dict[int, int], path: Path | str) -> int:
    """Values under a node with every alias written out. ``counts`` holds those of the nodes that were seen, 0 while inside."""
    if node is None or isinstance(node.value, str):
        return 1
    if id(node) not in counts:
        counts[id(node)] = 0
        children = [child for item in node.value for child in (item if isinstance(item, tuple) else (item,))]
        counts[id(node)] = 1 + sum(_count_values(child, counts, path) for child in children)
    elif not counts[id(node)]:
        raise UserError(f"{path} line {node.start_mark.line + 1}: an alias stands inside what it names")
    return counts[id(node)]


# --- errors --------------------------------------------------------------------------------------------------------------


def explain(error: BaseException, config_class: Any) -> str:
    """A parser's error as one sentence about a field: ``seed: a whole number is needed, not x``."""
    text, path = one_line(error), list[str]()
    while found := re.match(r"Parser key \"([^\"]*)\": |Problem with given class_path '[^']*': ", text):
        path += [found[1]] if found[1] else []
        text = text[found.end() :]
    said = _said(text, _names(config_class, path))
    return f"{'.'.join(path)}: {said}" if path else said


def _said(text: str, names: list[str]) -> str:
    if found := re.match(r"Expected an? (.*?)\. Got value: (.*)", text):
        return f"{_kind(found[1])} is needed, not {found[2]}"
    if found := re.match(r"Does not validate against any .* Subtypes: \[(.*)\] Errors: .* Given value: (.*)", text):
        kinds = [_kind(k) for k in re.findall(r"<class '\w+'>|\w+\[.*?\](?=, |$)", found[1])]
        return f"{' or '.join(dict.fromkeys(kinds))} is needed, not {found[2]}"
    if found := re.match(r"Not a valid subclass of .*? Got value: (.*?) Subclass types expect", text):
        return f"{KINDS['dict']} is needed, not {found[1]}"
    if found := re.match(r"Option '(.*)' is not accepted", text):
        return unknown(found[1], names)
    if found := re.match(r"[Uu]nrecognized arguments: (-*)([^\s=]+)", text):
        return unknown(found[2].split(".")[0], names) if found[1] else f"{found[2]!r} stands behind no --field"
    if found := re.match(r"argument --?([^\s/]+)\S*: expected one argument", text):
        return f"{found[1]}: a value is missing"
    if found := re.match(r"[Tt]he following arguments are required: (.*)", text):
        return f"missing: {found[1]}"
    if found := re.match(r"Importing '(.*)' is not allowed|Expected a dot import path string: (.*)", text):
        return f"{KINDS['dict']} is needed, not {found[1] or found[2]}"
    return text


def unknown(name: str, names: Iterable[str], what: str = "field") -> str:
    """``unknown field 'sed', did you mean 'seed'?``; where nothing is near, what there is."""
    names = list(names)
    if close := difflib.get_close_matches(name, names, 1):
        return f"unknown {what} {name!r}, did you mean {close[0]!r}?"
    return f"unknown {what} {name!r}" + (f"; there are {', '.join(names)}" if 0 < len(names) <= 16 else "")


def _kind(text: str) -> str:
    """``<class 'int'>`` and ``typing.Literal['a', 'b']`` in words."""
    if choices := re.fullmatch(r"typing\.Literal\[(.*)\]", text):
        return "one of " + choices[1].replace("'", "")
    name = re.sub(r"<class '(.*)'>|\[.*", r"\1", text)
    return KINDS.get(name, text)


def _names(config_class: Any, path: Iterable[str]) -> list[str]:
    """The fields of the dataclass that stands at ``path`` below ``config_class``; none if there is no such."""
    for key in path:
        config_class = item_class(config_class, key)
        if config_class is None:
            return []
    return list(inspect.signature(config_class).parameters)


def item_class(config_class: Any, name: str) -> Any:
    """The dataclass in a field's type, as SourceConfig in ``list[SourceConfig]``; None if there is none."""
    hint = typing.get_type_hints(config_class).get(name)
    return next((t for t in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(t)), None)


def check_filled(config: Any) -> None:
    """Refuse a field of text that is empty, as an unset shell variable makes it, or that no file system can hold."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        for text in value if isinstance(value, list) else value.values() if isinstance(value, dict) else [value]:
            if dataclasses.is_dataclass(text):
                check_filled(text)
            elif isinstance(text, str):
                _check_text(field.name, text)


def _check_text(name: str, text: str) -> None:
    if not text:
        raise UserError(f"{name}: a value is missing")
    if "\0" in text:
        raise UserError(f"{name}: {text!r} holds a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{name}: {text!r} is not valid UTF-8") from None


def check_seed(seed: int) -> None:
    if not 0 <= seed <= MAX_SEED:
        raise UserError(f"seed must be between 0 and {MAX_SEED}, not {seed}")


def one_line(error: BaseException) -> str:
    """An error's text on one line, without the parser's indentation."""
    return " ".join(str(error).split())


# --- help ----------------------------------------------------------------------------------------------------------------


def describe_fields(config_class: Any, indent: str = "  ", mark: str = "--") -> Iterator[str]:
    """Lines of help: each field with its documentation and its default; fields of its items below it."""
    docs = field_docs(config_class)
    for field in dataclasses.fields(config_class):
        name = f"{indent}{mark}{field.name}"
        lines = textwrap.wrap(f"{docs[field.name]} {_default(field)}", 84, break_on_hyphens=False)
        if len(name) > 24:
            yield name
            name = ""
        for line in lines:
            yield f"{name:<26}{line}"
            name = ""
        if items := item_class(config_class, field.name):
            yield from describe_fields(items, indent + "    ", "")


def _default(field: Any) -> str:
    value = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    if value is dataclasses.MISSING:
        return "(needed)"
    if value is None or value in ([], {}):
        return ""
    text = str(value).lower() if isinstance(value, bool) else str(value).replace("'", "")
    return f"[{text}]"


def field_docs(config_class: type) -> dict[str, str]:
    """The string under each field of a dataclass: its one line of documentation."""
    body = ast.parse(textwrap.dedent(inspect.getsource(config_class))).body[0].body  # type: ignore[attr-defined]
    docs = {}
    for node, following in pairwise(body):
        if isinstance(node, ast.AnnAssign) and isinstance(following, ast.Expr) and isinstance(node.target, ast.Name):
            docs[node.target.id] = str(ast.literal_eval(following.value))
    return docs
