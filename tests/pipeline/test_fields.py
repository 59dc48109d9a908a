"""A mapping into a config: which values a type takes; what it does not take is named, and never turned into something else."""

from __future__ import annotations

import enum
import math
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from tokensieve import cli
from tokensieve.pipeline.config.fields import WrongFields, all_of, from_fields
from tokensieve.pipeline.config.help import objective_docs
from tokensieve.pipeline.verbs import make_config
from tokensieve.runs.errors import UserError


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Inner:
    size: int
    share: float = 0.5


@dataclass(frozen=True)
class Outer:
    whole: int = 0
    number: float = 0.0
    switch: bool = False
    text: str = "x"
    maybe: int | None = None
    either: str | dict[str, Any] = "x"
    word: Literal["a", "b"] = "a"
    mixed: Literal["auto"] | bool = "auto"
    colour: Colour | str = "green"
    only: list[Colour] = field(default_factory=list)
    pair: tuple[float, float] = (0.0, 1.0)
    pairs: list[tuple[int, int]] | None = None
    names: dict[str, str] = field(default_factory=dict)
    inner: Inner | None = None
    inners: list[Inner] = field(default_factory=list)
    anything: Any = None


@pytest.mark.parametrize(
    ("name", "value", "made"),
    [
        ("whole", 3, 3),
        ("whole", "3", 3),
        ("number", 3, 3.0),
        ("number", "3e-4", 3e-4),
        ("switch", True, True),
        ("switch", "true", True),
        ("maybe", None, None),
        ("maybe", 3, 3),
        ("either", "{a: 1}", "{a: 1}"),
        ("either", {"a": [1]}, {"a": [1]}),
        ("word", "b", "b"),
        ("mixed", False, False),
        ("mixed", "auto", "auto"),
        ("colour", "red", Colour.RED),
        ("colour", "pink", "pink"),
        ("only", ["red", Colour.BLUE], [Colour.RED, Colour.BLUE]),
        ("pair", [0, 1], (0.0, 1.0)),
        ("pairs", [[1, 2], (3, 4)], [(1, 2), (3, 4)]),
        ("names", {"a": "b"}, {"a": "b"}),
        ("inner", {"size": 3}, Inner(3)),
        ("inner", Inner(3), Inner(3)),
        ("inners", [{"size": 3, "share": 1}], [Inner(3, 1.0)]),
        ("anything", {"class_path": "os.system"}, {"class_path": "os.system"}),
    ],
)
def test_taken(name: str, value: Any, made: Any) -> None:
    found = getattr(from_fields(Outer, {name: value}), name)
    assert (found, type(found)) == (made, type(made))


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("whole", True, "whole: a whole number is needed, not true"),
        ("whole", 3.0, "whole: a whole number is needed, not 3.0"),
        ("whole", "3.0", "whole: a whole number is needed, not 3.0"),
        ("whole", None, "whole: a whole number is needed, not null"),
        ("whole", "", "whole: a whole number is needed, not ''"),
        ("number", True, "number: a number is needed, not true"),
        ("number", "nan", "number: a number is needed, not nan"),
        ("number", 10**400, "number: a number is needed, not 1000"),
        ("number", math.inf, "number: a finite number is needed, not inf"),
        ("number", "1e999", "number: a finite number is needed, not inf"),
        ("pair", [0, math.nan], "pair.1: a finite number is needed, not nan"),
        ("switch", 1, "switch: true or false is needed, not 1"),
        ("text", 3, "text: text is needed, not 3"),
        ("maybe", "x", "maybe: a whole number or null is needed, not x"),
        ("either", [1], "either: text or a mapping, as {name: value}, is needed, not [1]"),
        ("word", "c", "word: one of a, b is needed, not c"),
        ("mixed", 1, "mixed: auto or true or false is needed, not 1"),
        ("colour", 3, "colour: text is needed, not 3"),
        ("only", ["red", "pink"], "only.1: one of red, blue is needed, not pink"),
        ("pair", [0, 1, 2], "pair: a list of 2 is needed, not [0, 1, 2]"),
        ("pair", [0, "x"], "pair.1: a number is needed, not x"),
        ("pairs", [[1, 2], [3, None]], "pairs.1.1: a whole number is needed, not null"),
        ("names", {"a": 3}, "names.a: text is needed, not 3"),
        ("names", {3: "a"}, "names: text is needed for a name, not 3: put it in quotes"),
        ("inner", {"share": 1}, "inner: missing: size"),
        ("inner", 3, "inner: a mapping, as {name: value}, or null is needed, not 3"),
        (
            "inners",
            [{"size": 1}, {"size": "x", "sice": 1}],
            "inners.1.size: a whole number is needed, not x; inners.1: unknown",
        ),
        ("inners", "Inner", "inners: a list, as [a, b], is needed, not Inner"),
    ],
)
def test_refused(name: str, value: Any, says: str) -> None:
    with pytest.raises(WrongFields) as caught:
        from_fields(Outer, {name: value})
    assert str(caught.value).startswith(says)


def test_a_function_will_do() -> None:
    def factory(ratio: float, scope: Literal["batch", "step"] = "batch", **others: Any) -> tuple[float, str]:
        if ratio > 1:
            raise ValueError(f"ratio is {ratio},\n  above 1")
        return ratio, scope

    assert from_fields(factory, {"ratio": 1}) == (1.0, "batch")
    with pytest.raises(
        WrongFields, match=r"^objective: missing: ratio; objective.scope: one of batch, step|^objective.scope"
    ):
        from_fields(factory, {"scope": "x"}, "objective")
    with pytest.raises(WrongFields, match=r"^objective: ratio is 2.0, above 1$"):
        from_fields(factory, {"ratio": 2}, "objective")


def test_text_that_is_empty_or_that_no_file_system_holds() -> None:
    fields = {"text": "", "names": {"a": "x\0"}, "anything": "\udcff"}
    assert from_fields(Outer, fields).text == ""
    with pytest.raises(WrongFields) as caught:
        from_fields(Outer, fields, filled=True)
    assert str(caught.value) == (
        "text: a value is missing; names.a: 'x\\x00' holds a NUL character; anything: '\\udcff' is not valid UTF-8"
    )


def test_where_it_stands_is_told_with_each() -> None:
    with pytest.raises(WrongFields) as caught:
        make_config("train", {"out": "x", "seed": "y", "sed": 1}, "r.yaml: stage a")
    assert str(caught.value) == (
        "r.yaml: stage a: seed: a whole number is needed, not y; r.yaml: stage a: unknown field 'sed', did you mean 'seed'?; "
        "r.yaml: stage a: missing: corpus, model"
    )


def test_errors_of_several_checks_are_one() -> None:
    def fails(error: UserError) -> Any:
        raise error

    class Other(UserError):
        code = 7

    assert all_of(lambda: 1, lambda: None) == [1, None]
    with pytest.raises(Other):  # alone it stays what it is
        all_of(lambda: 1, lambda: fails(Other("a")))
    with pytest.raises(WrongFields, match=r"^a; whole: a whole number is needed, not true$"):
        all_of(lambda: fails(Other("a")), lambda: from_fields(Outer, {"whole": True}))


def test_a_value_of_thousands_of_digits_or_letters_is_not_printed_whole() -> None:
    for value in (10**5000, "x" * 5000):
        with pytest.raises(WrongFields) as caught:
            from_fields(Outer, {"word": value})
        assert len(str(caught.value)) < 300


# --- the objectives' help -------------------------------------------------------------------------------------------------


def test_objectives_and_their_first_lines() -> None:
    from tokensieve.core.objectives import OBJECTIVES

    docs = objective_docs()
    assert list(docs) == list(OBJECTIVES)
    for name, make in OBJECTIVES.items():
        assert docs[name] == (make.__doc__ or "").strip().split("\n")[0] != ""


def test_a_new_objective_is_in_the_help(tmp_path: Path) -> None:
    """In a copy of the tree: one function and its name in the dict, in its family's file and in the dict."""
    package = Path(cli.__file__).parent
    shutil.copytree(package, tmp_path / "tokensieve", ignore=shutil.ignore_patterns("__pycache__"))
    family = tmp_path / "tokensieve" / "core" / "objectives"
    with (family / "controls.py").open("a", encoding="utf-8") as f:
        f.write('\n\ndef other() -> Objective:\n    """Every other token.\n\n    More.\n    """\n    return clm()\n')
    names = (family / "__init__.py").read_text(encoding="utf-8")
    names = names.replace('    "rho1": ranked.rho1,', '    "rho1": ranked.rho1,\n    "other": controls.other,')
    (family / "__init__.py").write_text(names, encoding="utf-8")
    command = [sys.executable, "-m", "tokensieve", "train", "--help"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert "      other               Every other token.\n" in done.stdout, done.stderr
