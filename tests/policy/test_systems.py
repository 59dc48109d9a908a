"""docs/systems.md: what it tells people to type is a command of this program, and what it calls verified has a test."""

from __future__ import annotations

import ast
import functools
import re
import shlex
from pathlib import Path

import pytest

from tokensieve.cli import given
from tokensieve.pipeline.verbs import VERBS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "systems.md"


def table_rows() -> list[list[str]]:
    """The cells of each row of the page's tables: system, command, works, verified by, does not."""
    lines = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [row for row in rows if row[0] != "system" and set(row[0]) - set("-: ")]


def commands(cell: str) -> list[list[str]]:
    """The words of each command in a cell: what stands in backticks and begins with a verb."""
    quoted = [shlex.split(text) for text in re.findall(r"`([^`]+)`", cell)]
    words = [q[1:] if q[0] == "tokensieve" else q for q in quoted]
    return [w for w in words if w[0] in VERBS]


@functools.cache
def functions(file: str) -> set[str]:
    return {node.name for node in ast.parse((ROOT / file).read_text("utf-8")).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", table_rows(), ids=lambda row: row[0])
def test_commands_are_commands(row: list[str]) -> None:
    """Every field is one of the verb's, of its type; what a row leaves out (`--out`) may be missing. A recipe exists."""
    assert len(row) == 5
    found = commands(row[1])
    assert found or row[1] == "none", f"{row[0]}: no command"
    for verb, *words in found:
        config = given(verb, words).config(partial=True)
        if verb == "run":
            assert (ROOT / "recipes" / f"{config.recipe}.yaml").is_file(), f"{row[0]}: no recipe {config.recipe}"


@pytest.mark.parametrize("row", table_rows(), ids=lambda row: row[0])
def test_tests_are_collected(row: list[str]) -> None:
    """Files and functions that the fourth cell names; `::name` stands for one of the file before it."""
    named = re.findall(r"(tests/[\w/]+\.py)?(?:::(\w+))?", row[3])
    file, count = "", 0
    for path, function in named:
        file = path or file
        if not (path or function):
            continue
        count += 1
        assert re.fullmatch(r"tests/(\w+/)*test_\w+\.py", file), f"{row[0]}: pytest does not collect {file or function}"
        assert (ROOT / file).is_file(), f"{row[0]}: {file} is not there"
        assert not function or (function.startswith("test_") and function in functions(file)), (
            f"{file} has no {function}"
        )
    assert count or row[1] == "none", f"{row[0]}: nothing verifies it"
