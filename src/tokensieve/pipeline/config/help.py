"""What configs have in common: their help, and small checks. Imports nothing heavy.

``from_fields`` makes a config of a mapping (``fields``), ``read_yaml`` reads one (``yaml_text``), ``given`` a command line.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from ...runs.errors import UserError
from .fields import WrongFields, all_of, from_fields, unknown
from .hints import hints_of, item_class
from .yaml_text import read_yaml

__all__ = [
    "WrongFields",
    "all_of",
    "check_seed",
    "describe_fields",
    "field_docs",
    "from_fields",
    "objective_docs",
    "one_line",
    "read_yaml",
    "unknown",
]

MAX_SEED = 2**32 - 1
OBJECTIVES_FOLDER = Path(__file__).parents[2] / "core" / "objectives"


def check_seed(seed: int) -> None:
    if not 0 <= seed <= MAX_SEED:
        raise UserError(f"seed must be between 0 and {MAX_SEED}, not {seed}")


def one_line(error: BaseException) -> str:
    """An error's text on one line."""
    return " ".join(str(error).split())


# --- help ----------------------------------------------------------------------------------------------------------------


def describe_fields(
    config_class: Any, indent: str = "  ", mark: str = "--", seen: set[Any] | None = None
) -> Iterator[str]:
    """Lines of help: each field with its documentation and its default; fields of its items, or the objectives, below it.

    Items of one class (``seen``) are described once.
    """
    docs, hints, seen = field_docs(config_class), hints_of(config_class), set() if seen is None else seen
    for field in dataclasses.fields(config_class):
        name = f"{indent}{mark}{field.name}"
        items = item_class(hints[field.name])
        again = " (fields as above)" if items in seen else ""
        yield from _entry(name, f"{docs[field.name]} {_default(field)}".rstrip() + again)
        if items and items not in seen:
            seen.add(items)
            yield from describe_fields(items, indent + "    ", "", seen)
        if field.name == "objective":
            for objective, doc in objective_docs().items():
                yield from _entry(f"{indent}    {objective}", doc)


def _entry(name: str, text: str) -> Iterator[str]:
    """A name and what it is, from column 26 on; a long name has a line to itself."""
    if len(name) > 24:
        yield name
        name = ""
    for line in textwrap.wrap(text, 84, break_on_hyphens=False):
        yield f"{name:<26}{line}"
        name = ""


def _default(field: Any) -> str:
    value = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    if value is dataclasses.MISSING:
        return "(needed)"
    if value is None or value in ([], {}) or dataclasses.is_dataclass(value):
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


def objective_docs(folder: Path = OBJECTIVES_FOLDER) -> dict[str, str]:
    """The built-in objectives by name, each with the first line of its docstring: read from the source, which imports torch."""
    docs: dict[str, str] = {}
    for path in folder.glob("*.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        docs |= {f"{path.stem}.{n.name}": ast.get_docstring(n) or "" for n in body if isinstance(n, ast.FunctionDef)}
    tree = ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))
    targets = {getattr(n, "target", None): n.value for n in tree.body if isinstance(n, ast.AnnAssign)}
    found = next(
        value for target, value in targets.items() if isinstance(target, ast.Name) and target.id == "OBJECTIVES"
    )
    assert isinstance(found, ast.Dict)
    names = {
        ast.literal_eval(key): ast.unparse(value) for key, value in zip(found.keys, found.values, strict=True) if key
    }
    return {name: docs.get(function, "").partition("\n")[0] for name, function in names.items()}
