"""A recipe that extends others: joined mappings, what null takes away, the order of stages, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tokensieve.pipeline.recipe.extends import laid_over, read_recipe
from tokensieve.pipeline.recipe.load import RecipeConfig, find_recipe, load
from tokensieve.runs.errors import UserError

PREPARE = {"verb": "prepare", "vocab_size": 257, "length": 4, "sources": [{"path": "t.jsonl"}]}
TRAIN = {"verb": "train", "model": "${base}", "corpus": "@text"}
BELOW = {
    "name": "below",
    "out": "runs/below",
    "settings": {"base": "models/base", "seed": 0},
    "stages": {"text": PREPARE, "student": {**TRAIN, "seed": "${seed}", "training": {"max_steps": 3}}},
}


def written(folder: Path, **recipes: dict[str, Any]) -> Path:
    """The recipes as files; the path of the last."""
    for name, recipe in recipes.items():
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def read(path: Path) -> dict[str, Any]:
    return read_recipe(path, find_recipe)


@pytest.mark.parametrize(
    ("under", "over", "made"),
    [
        ({"a": 1}, {}, {"a": 1}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"c": 3, "d": 4}}, {"a": {"b": 1, "c": 3, "d": 4}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": {"b": 1}}, {"a": 2}, {"a": 2}),
        ({"a": 1}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": None}}, {"a": {"c": 2}}),
        ({"a": 1}, {"b": None}, {"a": 1, "b": None}),  # nothing is there to take away: a field may well be null
    ],
)
def test_one_laid_over_another(under: dict[str, Any], over: dict[str, Any], made: dict[str, Any]) -> None:
    assert laid_over(under, over) == made


def test_stages_come_behind_what_they_read(tmp_path: Path) -> None:
    """What the other recipe reads from elsewhere becomes a stage, named by a setting; name and out are each recipe's own."""
    base = {"verb": "train", "model": {"model_type": "llama"}, "corpus": "@text"}
    above = {"extends": "below.yaml", "settings": {"base": "@base"}, "stages": {"base": base, "last": PREPARE}}
    path = written(tmp_path, below=BELOW, above=above)
    source = read(path)
    assert list(source["stages"]) == ["text", "base", "student", "last"]
    assert {"name", "out", "extends"} & set(source) == set()
    made = load(RecipeConfig(str(path)))
    assert (made.name, str(made.out)) == ("above", "runs/above")
    assert made.stages[2].fields["model"] == "runs/above/base"
    assert load(RecipeConfig(str(path), set={"base": "elsewhere"})).stages[2].fields["model"] == "elsewhere"


def test_several_are_laid_one_over_the_other(tmp_path: Path) -> None:
    small = {"settings": {"seed": 5}, "stages": {"student": {"training": {"max_steps": 1}}}}
    above = {"extends": ["below", "small.yaml"], "stages": {"text": {"length": 8}}}
    (tmp_path / "below").write_text(yaml.safe_dump(BELOW))  # a file beside it, whatever its name
    made = load(RecipeConfig(str(written(tmp_path, small=small, above=above))))
    assert made.stages[0].fields["length"] == 8
    assert (made.stages[1].fields["seed"], made.stages[1].fields["training"]) == (5, {"max_steps": 1})


@pytest.mark.parametrize(
    ("above", "said"),
    [
        ({"extends": "above.yaml"}, "above.yaml: extends goes round in a circle"),
        ({"extends": "belwo"}, "above.yaml: extends: belwo is no recipe file; shipped recipes: demo"),
        ({"extends": []}, r"above.yaml: extends: the name of a recipe, or a list of names, is needed, not \[\]"),
        ({"extends": {"a": 1}}, "extends: the name of a recipe, or a list of names, is needed"),
        ({"extends": "below.yaml", "stages": {"text": None}}, "@text refers to no earlier stage"),
        ({"extends": "below.yaml", "settings": {"base": "@student"}}, "@student refers to no earlier stage"),
        ({"extends": "below.yaml", "stages": {"student": {"lenght": 3}}}, "unknown field 'lenght'"),
        # A KeyError, or nothing at all where it stood last.
        ({"extends": "below.yaml", "stages": {"studnet": None}}, "unknown stage 'studnet', did you mean 'student'?"),
        ({"extends": "below.yaml", "inputs": {"web": None}}, "above.yaml: inputs: null takes away what"),
        ({"stages": {"text": None, "next": {**PREPARE}}}, "stage text: verb is missing: one of"),
    ],
)
def test_faults(above: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = written(tmp_path, below=BELOW, above=above)
    with pytest.raises(UserError, match=said):
        load(RecipeConfig(str(path)))


def test_settings_that_are_no_mapping_are_refused_by_name(tmp_path: Path) -> None:
    """In a recipe that extends another, a list under `settings:` ended in an AttributeError."""
    path = written(tmp_path, below=BELOW, above={"extends": "below.yaml", "name": "above", "settings": [1]})
    with pytest.raises(UserError, match="settings"):
        load(RecipeConfig(str(path)))
