"""The list of mutants does not rot: every bug can still be put in, and every test named for one exists."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def load_runner() -> ModuleType:
    path = Path(__file__).with_name("run.py")
    spec = importlib.util.spec_from_file_location("mutants_run", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutants_run"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


runner = load_runner()
MUTANTS = runner.load()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_mutant_applies(mutant: Any) -> None:
    """A refactoring moved the line, the replacement replaces nothing, and the mutant is the original."""
    text = runner.mutated(mutant)
    assert mutant.new != mutant.old
    ast.parse(text)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_named_tests_exist(mutant: Any) -> None:
    assert mutant.tests
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert f"\ndef {name}(" in (runner.ROOT / file).read_text(encoding="utf-8")


def test_names_are_unique() -> None:
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)


def test_an_old_text_that_is_not_there_is_refused() -> None:
    mutant = runner.Mutant("x", "", "core/scores.py", "no such text", "", ())
    with pytest.raises(ValueError, match="occurs 0 times"):
        runner.mutated(mutant)


@pytest.mark.parametrize(
    ("cases", "on_mutant", "word"),
    [
        ([("PASSED", "")], False, None),
        ([("PASSED", ""), ("FAILED", "assert 1 == 2")], False, "fails without"),
        ([], False, "did not run"),
        ([("PASSED", ""), ("FAILED", "assert 1 == 2")], True, None),
        ([("PASSED", "")], True, "still passes"),
        ([], True, "did not run"),
        ([("FAILED", "NameError: name 'x' is not defined")], True, "broken"),
        ([("ERROR", "")], True, "broken"),
    ],
)
def test_a_mutant_is_killed_by_a_failure_only(cases: list[tuple[str, str]], on_mutant: bool, word: str | None) -> None:
    """A runner that takes any exit code but 0 for a kill: a typo in a test's name kills every mutant."""
    text = runner.complaint(cases, on_mutant=on_mutant)
    assert (text is None) if word is None else (word in text)
