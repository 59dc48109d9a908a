"""The arrows between rooms, read from the AST of every module, imports inside functions and for types included; no circles.

cli -> pipeline -> {dynamics, evaluation, report, export, notebook} -> {training, scoring, analysis} -> modeling -> data -> core
runs: below all but core
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "tokensieve"

# A room may import rooms of a lower height; rooms of one height are siblings and don't know each other.
HEIGHT = {
    "core": 0,
    "data": 1,
    "modeling": 2,
    "training": 3,
    "scoring": 3,
    "analysis": 3,
    "dynamics": 4,
    "evaluation": 4,
    "report": 4,
    "export": 4,
    "notebook": 4,
    "tokensieve": 5,
    "pipeline": 5,
    "cli": 6,
    "__main__": 7,
}
# No files, no config, no logging, no process groups: what is left of the standard library for functions of tensors.
CORE_MAY_IMPORT = {
    "torch",
    *("__future__", "abc", "collections", "dataclasses", "enum", "functools", "importlib", "inspect"),
    *("itertools", "math", "operator", "types", "typing"),
}
# Another library's kernel, imported where it is asked for and nowhere else.
OPTIONAL = {"tokensieve.core.backends": ("liger_kernel",)}
# Below every room but core, which knows no files.
GROUND = ("runs",)
# What a report shows was measured before: it computes nothing with a model.
NEVER = {("report", "scoring"), ("report", "training")}
CORE_MUST_NOT = ("torch.distributed", "torch.utils.data")


def room_of(module: str) -> str:
    """``tokensieve.core.nll`` -> ``core``; the package itself and what is not a room -> ``tokensieve``, the front door."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (parts[1] in HEIGHT or parts[1] in GROUND) else "tokensieve"


def module_of(path: Path) -> str:
    parts = ("tokensieve", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str, module: str, is_package: bool) -> Iterator[str]:
    """Absolute dotted names of all that ``source`` imports; ``from a import b`` gives ``a.b``, whatever ``b`` is."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{stem}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (str(arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant))


def violation(module: str, imported: str) -> str | None:
    """Why ``module`` may not import ``imported``; None if it may."""
    room = room_of(module)
    top = imported.split(".")[0]
    if top != "tokensieve":
        allowed = {*CORE_MAY_IMPORT, *OPTIONAL.get(module, ())}
        forbidden = room == "core" and (top not in allowed or imported.startswith(CORE_MUST_NOT))
        return f"{module} imports {imported}: core is torch only" if forbidden else None
    other = room_of(imported)
    if (room, other) in NEVER:
        return f"{module} imports {imported}: {room} must not know {other}"
    if other == room:
        return None
    if room in GROUND or (room == "core" and other in GROUND) or (room, other) == ("tokensieve", "report"):
        return f"{module} imports {imported}: {room} must not know {other}"
    if other not in GROUND and HEIGHT[other] >= HEIGHT[room]:
        return f"{module} imports {imported}: {other} stands above {room} or beside it"
    return None


def all_violations() -> list[str]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        module = module_of(path)
        names = imports(path.read_text(encoding="utf-8"), module, path.name == "__init__.py")
        found += [v for v in (violation(module, name) for name in names) if v]
    return found


def test_every_arrow_goes_down() -> None:
    assert all_violations() == []


def test_every_module_lies_in_a_room() -> None:
    """A new folder that nobody placed would count as the front door and be free to import almost anything."""
    stems = {f"{module_of(p)}.tokensieve".split(".")[1] for p in PACKAGE.rglob("*.py")}
    assert stems <= {*HEIGHT, *GROUND}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("tokensieve.core.nll", "def f():\n    import json"),
        ("tokensieve.core.nll", "import torch.distributed as dist"),
        ("tokensieve.core.nll", "from torch import distributed"),
        ("tokensieve.core.nll", "from tokensieve import runs"),
        ("tokensieve.core.nll", "from ..data import corpus"),
        ("tokensieve.data.corpus", "from tokensieve.modeling import body"),
        ("tokensieve.training.trainer", "def f():\n    from tokensieve.scoring.pass_ import stream"),
        ("tokensieve.scoring.pass_", "import importlib\nimportlib.import_module('tokensieve.training')"),
        ("tokensieve.evaluation.ngram", "from tokensieve.report.terminal import paint_tokens"),
        ("tokensieve.report.terminal", "from tokensieve.pipeline import demo"),
        ("tokensieve.pipeline.train", "from tokensieve import cli"),
        ("tokensieve.pipeline.train", "import tokensieve"),
        ("tokensieve.analysis.comparison", "from ..report import verdict"),
        ("tokensieve.report.page", "from ..scoring import engine"),
        ("tokensieve.dynamics.tables", "from ..evaluation import sums"),
        ("tokensieve.runs.stage", "from tokensieve.core import nll"),
        ("tokensieve.runs.layout", "from ..data import corpus"),
        ("tokensieve.core.nll", "from tokensieve.runs.layout import checkpoints"),
        ("tokensieve", "from tokensieve.report import terminal"),
    ],
)
def test_the_reader_sees_what_is_forbidden(module: str, source: str) -> None:
    """An import reader that misses relative, nested or aliased imports passes everything."""
    found = [violation(module, name) for name in imports(source, module, is_package=module == "tokensieve")]
    assert any(found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "tokensieve.core.nll",
            "import math\nimport torch.nn.functional as F\nfrom tokensieve.core.stats import TokenStats",
        ),
        ("tokensieve.report.terminal", "from tokensieve.runs.errors import UserError"),
        ("tokensieve.report.verdict", "from ..analysis.comparison import verdicts"),
        ("tokensieve.runs.layout", "from .errors import UserError"),
        ("tokensieve.training.token_log", "from ..runs.layout import TOKEN_LOG"),
        ("tokensieve.pipeline.show", "from tokensieve.report.terminal import paint_tokens\nimport transformers"),
        ("tokensieve.cli", "from tokensieve.pipeline.train import run\nfrom tokensieve import __version__"),
        ("tokensieve", "from tokensieve.training import trainer"),
    ],
)
def test_the_reader_lets_the_allowed_through(module: str, source: str) -> None:
    names = list(imports(source, module, is_package=module == "tokensieve"))
    assert names
    assert [v for v in (violation(module, name) for name in names) if v] == []


def circle(needs: Mapping[str, set[str]]) -> list[str]:
    """The modules of one circle, in order; [] if there is none."""
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as e:
        return list(e.args[1])
    return []


def all_needs() -> dict[str, set[str]]:
    """module -> the modules of the package that it imports, wherever in its text."""
    paths = {module_of(path): path for path in PACKAGE.rglob("*.py")}
    needs: dict[str, set[str]] = {}
    for module, path in paths.items():
        names = imports(path.read_text(encoding="utf-8"), module, path.name == "__init__.py")
        found = {name if name in paths else name.rpartition(".")[0] for name in names}
        needs[module] = {name for name in found if name in paths and name != module}
    return needs


def test_no_module_needs_itself() -> None:
    """Where two modules import each other, one of them inside a function so that it works, neither can be read alone."""
    assert circle(all_needs()) == []


def test_imports_within_the_package_are_relative() -> None:
    absolute = [
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if "\nfrom tokensieve" in (text := path.read_text(encoding="utf-8")) or "\nimport tokensieve" in text
    ]
    assert absolute == []


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("from .b import x", "def f():\n    from .a import y"),
        ("from . import b", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .a import y"),
        ("from .b import x", "from .c import z"),
    ],
)
def test_a_circle_is_found(a: str, b: str) -> None:
    sources = {"p.a": a, "p.b": b, "p.c": "import p.a"}
    found = {m: {n for i in imports(s, m, False) for n in (i, i.rpartition(".")[0])} for m, s in sources.items()}
    needs = {m: {n for n in names if n in sources} for m, names in found.items()}
    assert {"p.a", "p.b"} <= set(circle(needs))
