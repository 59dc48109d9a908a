"""Writes docs/api.md from the code: ``python docs/make_api.py``. A test holds that the page is what it writes."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokensieve
from tokensieve.core import OBJECTIVES, SCORES
from tokensieve.pipeline.config.help import field_docs

PACKAGE = Path(tokensieve.__file__).parent

HEAD = """# Python names

*Written by `docs/make_api.py` from the code; change it there.*

`import tokensieve as ts` loads neither torch nor transformers: a name is loaded when it is first used. Shapes are in the names
of arguments or beside them; nll is in nats, float32. What is not on this page may change without a word. The command line says
of itself what it takes: `tokensieve VERB --help`.
"""

# In the order in which one meets them.
GROUPS: dict[str, tuple[str, ...]] = {
    "Tokens": ("token_nll", "token_nll_from_logits", "LinearNLL", "weighted_nll", "LinearHead", "IGNORE_INDEX"),
    "Scores and selection": ("excess", "top_fraction", "kept_count", "random_uniform", "ablated_nll", "SCORES"),
    "Objectives": ("objective", "Objective", "TokenStats", "OBJECTIVES", "STATISTICS"),
    "Trainers": ("SelectiveTrainer", "SelectiveSFTTrainer", "HeadSeam"),
    "Folders": ("load_scored", "read_run"),
    "The rest": ("UserError", "__version__"),
}

# What is no function and no class, and so has no docstring.
VALUES = {
    "IGNORE_INDEX": f"`{tokensieve.IGNORE_INDEX}`: the target of a position that has none, as in torch and transformers.",
    "OBJECTIVES": f"name -> factory of each of the {len(OBJECTIVES)} built-in rules: [objectives](objectives.md).",
    "SCORES": f"name -> function of `TokenStats`, what tokens can be ranked by: {', '.join(f'`{n}`' for n in SCORES)}.",
    "STATISTICS": "name -> what it is and who computes it: [what a rule may need](objectives.md#statistics).",
    "__version__": "The version, as text.",
}


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for title, names in GROUPS.items():
        parts += [f"## {title}\n", *(section(tokensieve, name) for name in names)]
    for module, names in packages().items():
        further = [name for name in names if name not in tokensieve.__all__]
        if module != "tokensieve" and further:
            made = importlib.import_module(module)
            parts += [f"## {module}\n", f"{told(made)}\n", *(section(made, name) for name in further)]
    return "\n".join(parts)


def packages() -> dict[str, list[str]]:
    """Each package that says what is public in it -> these names."""
    found = {}
    for path in sorted(PACKAGE.rglob("__init__.py")):
        if re.search(r"^__all__ = ", path.read_text(encoding="utf-8"), re.M):
            name = ".".join(("tokensieve", *path.parent.relative_to(PACKAGE).parts))
            found[name] = list(importlib.import_module(name).__all__)
    return found


def section(module: Any, name: str) -> str:
    """One name: how it is called, its docstring, and of a class its fields and methods."""
    if name in VALUES:
        return f"### {name}\n\n{VALUES[name]}\n"
    made = getattr(module, name)
    code = [] if inspect.isclass(made) and issubclass(made, Exception) else [_code(made, name)]
    return "\n".join([f"### {name}\n", *code, f"{told(made)}\n", *_members(made)])


def told(made: Any) -> str:
    """The docstring as Markdown. Raises AssertionError where there is none."""
    doc = inspect.getdoc(made)
    assert doc, f"{made} has no docstring"
    doc = _plain(doc)
    lines, listed = list[str](), False
    for line in doc.splitlines():
        if re.fullmatch(r"(Args|Returns|Raises):", line):
            lines += ["", f"{line[:-1]}:", ""]
            listed = line == "Args:"
        elif listed and (item := re.match(r"    (\w+): (.*)", line)):
            lines.append(f"- `{item[1]}`: {item[2]}")
        else:
            listed = listed and line.startswith("    ")
            lines.append(line.strip() if listed else line)
    return "\n".join(lines).strip()


def _plain(doc: str) -> str:
    """References to other names as code."""
    return re.sub(r":\w+:`~?([^`]+)`", r"``\1``", doc)


def _code(made: Any, name: str) -> str:
    return f"```python\n{called(made, name)}\n```\n"


def called(made: Any, name: str) -> str:
    """How a function or class is called, on a line, or an argument a line."""
    signature, kind = inspect.signature(made), ""
    arguments = []
    for one in signature.parameters.values():
        if one.name == "self":
            continue
        if one.kind is one.KEYWORD_ONLY and kind not in ("*", one.kind):
            arguments.append("*")
        kind = "*" if one.kind is one.VAR_POSITIONAL else one.kind
        arguments.append(_argument(one))
    gives = signature.return_annotation
    gives = "" if inspect.isclass(made) or gives is signature.empty else f" -> {_type(gives)}"
    line = f"{name}({', '.join(arguments)}){gives}"
    return line if len(line) <= 100 else f"{name}(\n" + "".join(f"    {a},\n" for a in arguments) + f"){gives}"


def _argument(one: inspect.Parameter) -> str:
    stars = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
    hint = "" if one.annotation is one.empty else f": {_type(one.annotation)}"
    value = "..." if "factory" in repr(one.default) else repr(one.default)
    given = "" if one.default is one.empty else f" = {value}" if hint else f"={value}"
    return f"{stars}{one.name}{hint}{given}"


def _type(hint: Any) -> str:
    return hint if isinstance(hint, str) else getattr(hint, "__name__", str(hint))


def _members(made: Any) -> Iterator[str]:
    """Fields of a dataclass as a list; methods and properties that the class adds to what its bases have."""
    if not inspect.isclass(made):
        return
    if dataclasses.is_dataclass(made):
        docs = field_docs(made)
        fields = [f"- `{f.name}: {_type(f.type)}`{_after(docs.get(f.name))}" for f in dataclasses.fields(made)]
        yield "\n".join([*fields, ""])
    for name, member in vars(made).items():
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        inherited = any(name in vars(base) for base in made.__mro__[1:])
        if name.startswith("_") or inherited or not inspect.isfunction(function) or not function.__doc__:
            continue
        code = f"```python\n{name}\n```\n" if isinstance(member, property) else _code(function, name)
        yield f"#### {made.__name__}.{name}\n\n{code}\n{told(function)}\n"


def _after(doc: str | None) -> str:
    return f": {' '.join(_plain(doc).split())}" if doc else ""


if __name__ == "__main__":
    Path(__file__).with_name("api.md").write_text(page(), encoding="utf-8")
