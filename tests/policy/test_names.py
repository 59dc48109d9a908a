"""One name for one thing: what is public at the top of a module is called so in no other module."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

from tokensieve.core import IGNORE_INDEX
from tokensieve.data.read.documents import NO_TARGET

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "tokensieve"
# What every stage's module has (docs/design.md, "Stages"), and aliases of types that are the same thing wherever they stand.
EVERY_VERB = {"KIND", "MANIFEST_KEYS", "NOT_WORK", "command", "estimate", "render", "run", "validate", "work"}
TYPES = {"Bools", "Float32", "Floats", "Int32", "Int64", "IntArray", "Ints", "T"}
# The same value twice, since workers that read text must not import torch, as core does.
ALSO_IN_CORE = {"WEIGHT": ("data/read/weight_values.py", "core/objectives/given.py")}


def names_in(source: str) -> set[str]:
    """Public functions, classes and variables of a module; what it imports is another's."""
    found: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
    return {name for name in found if not name.startswith("_")}


def test_no_name_means_two_things() -> None:
    """`Scope`, `Rows`, `Stage`, `Work`, `Block` ... meant two things each: who searched for one found the other."""
    homes = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for name in names_in(path.read_text(encoding="utf-8")) - EVERY_VERB - TYPES - set(ALSO_IN_CORE):
            homes[name].append(str(path.relative_to(PACKAGE)))
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}


def test_the_reader_sees_names() -> None:
    source = "A = B, C = 1, 2\nD: int = 3\n_E = 4\ndef f(): g = 1\nclass H:\n    i = 1\nfrom x import J"
    assert names_in(source) == {"A", "B", "C", "D", "f", "H"}


def test_no_target_is_core_s_value() -> None:
    """What reads text does not import torch, so the value stands there a second time."""
    assert NO_TARGET == IGNORE_INDEX
    for name, files in ALSO_IN_CORE.items():
        values = [re.search(rf"^{name} = (.*)", (PACKAGE / f).read_text(encoding="utf-8"), re.M) for f in files]
        assert len({m and m[1] for m in values}) == 1, name
