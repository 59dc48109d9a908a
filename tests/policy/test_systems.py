"""docs/systems.md: what it tells people to type is a command of this program, and what it calls verified has a test."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest
from system_rows import RUN_AS_PRINTED, commands, table_rows

from tokensieve.cli import given

ROOT = Path(__file__).resolve().parents[2]
THE_TEST = "command: `tests/pipeline/test_systems.py::test_commands_of_the_table_run`"


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


@pytest.mark.parametrize("row", table_rows(RUN_AS_PRINTED), ids=lambda row: row[0])
def test_commands_that_run_as_printed(row: list[str]) -> None:
    """The page says so of its first table, and names the test that does it, which takes its commands from there: a row beside
    it, or a command that it could not run, would be told as tried and was not."""
    if row[1] == "none":
        return
    quoted = re.findall(r"`([^`]+)`", row[1])
    found = commands(row[1])
    assert len(found) == len(quoted), f"{row[0]}: what stands in backticks is a whole command"
    assert row[3].endswith(THE_TEST), f"{row[0]}: which test runs its commands?"
    for words in found:
        assert "--out" in words, f"{row[0]}: {' '.join(words)} says not where it writes"
        assert not [w for w in words if re.search(r"\b[A-Z]{2,}\b", w)], f"{row[0]}: a name to be filled in"
