"""Objectives from a config: every place of an error, and no code in a corner of it."""

from __future__ import annotations

from typing import Any

import pytest

from tokensieve.core.objectives import NOT_SERVED
from tokensieve.pipeline.objectives import objective_of
from tokensieve.runs.errors import UserError

CODE = {"name": "os:getcwd"}


@pytest.mark.parametrize(
    "fields",
    [
        CODE,
        {"name": "intersect", "of": [{"name": "rho1"}, CODE]},
        {"name": "union", "of": [{"name": "intersect", "of": [CODE]}]},
        {"name": "distill", "of": CODE},
        {"name": "schedule", "of": CODE, "option": "x", "points": [[0, 1]]},
        {"name": "schedule", "of": {"name": "intersect", "of": [CODE]}, "option": "x", "points": [[0, 1]]},
    ],
)
def test_code_is_found_however_deep(fields: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="'os:getcwd' is code to be imported and called"):
        objective_of(fields, allow_code=False)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"name": "rho1", "ratio": "much"}, "objective.ratio"),
        ({"name": "intersect", "of": [{"name": "rho1"}, {"name": "dft", "power": []}]}, "objective.of.1.power"),
        ({"name": "intersect", "of": [{"name": "rho1"}, "dft"]}, "objective.of.1: a mapping"),
        ({"name": "intersect"}, "objective: .*of"),
        ({"name": "distill", "of": "rho1"}, "objective.of: a mapping"),
        ({"name": "distill", "of": {"name": "rho1", "ratio": "much"}}, "objective.of.ratio"),
        ({"name": "schedule"}, "objective: missing: of, option, points"),
        (
            {"name": "schedule", "of": {"name": "rho1"}, "option": "rato", "points": [[0, 1]]},
            "objective.of: unknown field 'rato'",
        ),
        ({"name": "schedule", "of": {"name": "rho1"}, "option": "ratio", "points": 5}, "objective.points: a list"),
        ({"name": "by_source", "of": {"name": "rho1"}, "instead": ["web"]}, "objective.instead: a mapping"),
        (
            {"name": "by_source", "of": {"name": "rho1"}, "instead": {"web": {"rato": 0.4}}},
            "objective.instead.web: unknown field 'rato'",
        ),
        ({"name": "goldfish", "exempt": ["a"]}, "objective.exempt.0: a whole number"),
        ({"name": "goldfish", "exempt": "12"}, "objective.exempt"),
        (
            {"name": "distill", "of": {"name": "position_ramp", "scale": float("inf")}},
            "objective.of.scale: a finite number",
        ),
        ({"name": "smooth", "share": 2}, "objective: share is 2"),
        ({"name": "tsallis", "exponent": [1]}, "objective.exponent"),
        ({"name": "blade"}, "objective: .*is not served: its reference"),
        ({"name": 3}, "objective: name: text is needed"),
    ],
)
def test_errors_have_their_place(fields: dict[str, Any], says: str) -> None:
    """The bugs: ``instead`` as a list and an infinite option were unexpected errors; in a schedule and under by_source a
    misspelled option was ``rho1() got an unexpected keyword argument``; text was taken for a list of token ids."""
    with pytest.raises(UserError, match=says):
        objective_of(fields, allow_code=False)


@pytest.mark.parametrize("name", NOT_SERVED)
def test_rules_that_are_not_served_have_a_sentence(name: str) -> None:
    with pytest.raises(UserError, match=f"{name}.*is not served"):
        objective_of({"name": name}, allow_code=False)


def test_text_is_taken_for_the_number_it_says() -> None:
    fields = {"name": "schedule", "of": {"name": "rho1"}, "option": "ratio", "points": [[0, 1], [10, 0.6]]}
    assert objective_of(fields, allow_code=False).name == "schedule"
    assert objective_of({"name": "rho1", "ratio": "6e-1"}, allow_code=False).options["ratio"] == 0.6
