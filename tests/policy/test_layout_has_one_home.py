"""What files of a run are called is known to `runs/layout.py` alone."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "tokensieve"
NAME = re.compile(r"(tokens|times|metrics)\.jsonl|(?:^|[/ ])(step|checkpoint|nll)-(?:$|[\d*/])")


def names_in(source: str) -> list[str]:
    """Names of a run's files in the strings of ``source``. Docstrings and the help of fields are for people: left out."""
    tree = ast.parse(source)
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    strings = [
        n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in prose
    ]
    return [node.value for node in strings if NAME.search(node.value)]


def test_no_other_module_spells_them() -> None:
    """Seven files knew the layout, three of them by `split("-")[1]` and one by `name[11:]`; a rename would miss some."""
    found = {
        str(path.relative_to(PACKAGE)): names
        for path in sorted(PACKAGE.rglob("*.py"))
        if (names := names_in(path.read_text(encoding="utf-8")))
    }
    assert list(found) == ["runs/layout.py"], found


@pytest.mark.parametrize(
    "source",
    [
        'open(run / "tokens.jsonl")',
        'run.glob("checkpoint-*")',
        'f"checkpoint-{step}"',
        'f"{run}/tokens/step-{step:08d}.parquet"',
        'f"nll-{i:05d}.arrow"',
        'PREFIX = "checkpoint-"',
        'name.startswith("nll-00000")',
    ],
)
def test_the_reader_sees_a_name(source: str) -> None:
    assert names_in(source)


@pytest.mark.parametrize(
    "source", ['"""Writes tokens.jsonl."""', 'x = "step-by-step"', 'raise UserError("rho1 of checkpoint 3")']
)
def test_the_reader_lets_prose_through(source: str) -> None:
    assert not names_in(source)
