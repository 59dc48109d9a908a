"""The shipped recipes of the paper: planned with nothing here, refused without their inputs, and small twins that run."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import made_solutions
import pytest
import yaml

from tokensieve.pipeline.recipe.estimate import costs_of, describe_plan, states_of
from tokensieve.pipeline.recipe.load import Recipe, RecipeConfig, find_recipe, load

SHIPPED = Path(find_recipe("demo")).parent
FULL = ("rho1-math-1b", "rho1-math-7b", "rho1-general-1b", "rho1-self-reference", "rho1-weak-to-strong", "rho1-sft",
        "sft-selection")  # fmt: skip
# Stages that only a twin has: it makes the models that the full recipe is given.
MADE_HERE = {"base_text", "base", "weak_base"}
NOT_IN_TWINS = {"tasks", "sft_tasks"}  # models of their size solve nothing
# (recipe, stage) -> tokens seen, of the paper: arXiv 2404.07965v4, section 3 and Tables 1, 3 and 5.
SEEN = {
    ("rho1-math-1b", "clm"): 15e9,
    ("rho1-math-1b", "rho1"): 15e9,
    ("rho1-math-1b", "rho1_50b"): 50e9,
    ("rho1-math-1b", "reference"): 3 * 0.5e9,
    ("rho1-math-7b", "rho1"): 15e9,
    ("rho1-general-1b", "rho1"): 80e9,
    ("rho1-general-1b", "reference"): 3 * 1.9e9,
    ("rho1-self-reference", "intersection"): 15e9,
    ("rho1-self-reference", "ppile_clm"): 52e9,
    ("rho1-weak-to-strong", "rho1"): 15e9,
}


@pytest.fixture(scope="module")
def loaded() -> dict[str, Recipe]:
    return {name: load(RecipeConfig(name)) for full in FULL for name in (full, f"{full}-tiny")}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is here, and what is written stays in a folder of its own."""
    monkeypatch.chdir(tmp_path)


def fields(recipe: Recipe, name: str) -> Any:
    return next(s.fields for s in recipe.stages if s.name.split("-seed")[0] == name)


@pytest.mark.parametrize("name", FULL)
def test_a_plan_with_nothing_here(name: str, loaded: dict[str, Recipe], tmp_path: Path) -> None:
    """No token count, FLOP or hour is unknown, and every input is told with a way to point at it."""
    recipe = loaded[name]
    plan = describe_plan(recipe)
    costs = costs_of(recipe, states_of(recipe))
    assert all(c.tokens is None or c.tokens > 0 or stage == "tasks" for stage, c in costs.items()), plan
    rows = [line.split() for line in plan.split("\n\n")[1].splitlines() if line.split()[0] in costs]
    assert len(rows) == len(recipe.stages)
    unknown = [row[0] for row in rows if "?" in row]
    assert unknown == (["tasks"] if name == "rho1-general-1b" else []), (
        plan
    )  # the harness alone knows its general tasks
    for given in recipe.inputs.values():
        assert f"--set.{given.name} FOLDER" in plan
    for (other, stage), tokens in SEEN.items():
        if other == name:
            assert costs[stage].tokens == pytest.approx(tokens, rel=0.011), stage
    assert list(tmp_path.iterdir()) == []


def test_the_steps_are_of_a_million_tokens(loaded: dict[str, Recipe]) -> None:
    for name in FULL[:-1]:
        recipe = loaded[name]
        assert recipe.hardware is not None
        for stage in (s for s in recipe.stages if s.verb == "train" and not s.name.startswith("sft_")):
            t = stage.fields["training"]
            rows = t["per_device_train_batch_size"] * t["gradient_accumulation_steps"] * recipe.hardware.gpus
            assert rows * recipe.source["settings"]["length"] == 1 << 20, (name, stage.name)


def test_students_of_a_recipe_differ_by_their_objective_alone(loaded: dict[str, Recipe]) -> None:
    """Fields that are written twice, since anchors of one file are unknown in another, would drift apart."""
    one = fields(loaded["rho1-math-1b"], "clm")["training"]
    other = loaded["rho1-self-reference"]
    assert {**fields(other, "clm")["training"]} == {**one}
    for name in ("low_ref", "low_entropy", "intersection"):
        assert fields(other, name)["training"] == one, name
    for name in ("ppile_clm", "ppile_intersection"):
        free = {"max_steps": None, "save_steps": None}
        assert {**fields(other, name)["training"], **free} == {**one, **free}, name


@pytest.mark.parametrize("name", FULL)
def test_a_twin_has_the_same_stages(name: str, loaded: dict[str, Recipe]) -> None:
    full, twin = loaded[name], loaded[f"{name}-tiny"]
    cells = {s.name.split("-seed")[0] for s in full.stages} - NOT_IN_TWINS
    assert {s.name.split("-seed")[0] for s in twin.stages} - MADE_HERE == cells
    for cell in cells:
        assert fields(twin, cell).get("objective") == fields(full, cell).get("objective"), cell
    assert not twin.inputs
    assert (twin.hardware, twin.paper) == (None, None)
    last = fields(twin, [s for s in full.stages if s.verb == "compare"][-1].name)
    assert set(last["runs"]) == set(fields(full, [s for s in full.stages if s.verb == "compare"][-1].name)["runs"])


def test_run_refuses_what_is_not_here(tokensieve: Any, tmp_path: Path) -> None:
    done = tokensieve("run", "rho1-math-1b")
    said = (
        "rho1-math-1b: not here: base (models/TinyLlama-1.1B), curated (data/math-curated), web (data/openwebmath), tasks "
        "(data/tasks); "
        "--dry-run says what each is and how to point at it"
    )
    assert (done.code, done.error) == (2, f"tokensieve run: error: {said}")
    assert list(tmp_path.iterdir()) == []


def test_the_shipped_solutions_are_what_the_script_makes() -> None:
    assert (SHIPPED / "tool-solutions.jsonl").read_text("utf-8") == made_solutions.as_lines()


def made_text(path: Path, seed: str) -> list[dict[str, str]]:
    """Sources of the twins are installed packages, whose files cost more to read than the twin to train."""
    rng = random.Random(seed)
    words = [a + b + c for a in "bdfglm" for b in "aeiou" for c in "nrst"]
    texts = [" ".join(rng.choices(words, k=40)) for _ in range(220)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return [{"path": str(path), "name": path.stem}]


def test_a_twin_runs_to_its_last_table(tokensieve: Any, tmp_path: Path) -> None:
    """The longest of them, on less text and in few steps: pretraining, then fine-tuning on conversations."""
    few: dict[str, float] = {"base_steps": 6, "steps": 4, "reference_epochs": 0.5, "sft_epochs": 0.3, "save_steps": 0.9}
    few |= {"curated_rows": 64, "web_rows": 64, "heldout_rows": 8}
    names = ("base_text", "web", "curated", "web_heldout", "curated_heldout")
    less: dict[str, Any] = {name: {"sources": made_text(tmp_path / f"{name}.jsonl", name)} for name in names}
    less |= {"heldout_scores": None, "dynamics": None}
    small = {"extends": "rho1-sft-tiny", "out": "run", "settings": few, "report": None, "stages": less}
    (tmp_path / "few.yaml").write_text(yaml.safe_dump(small))
    done = tokensieve("run", "few.yaml")
    assert done.code == 0, done.err
    rows = json.loads((tmp_path / "run" / "sft_table" / "comparison.json").read_text())
    assert [r["arm"] for r in rows] == ["clm", "rho1", "sft_clm", "sft_rho1"]
    nll = {r["arm"]: r["nll"] for r in rows}
    assert all(0 < value < 10 for value in nll.values())
    assert nll["sft_clm"] < nll["clm"]  # what was fine-tuned on conversations knows more of them
    assert nll["sft_rho1"] < nll["rho1"]
    assert "sft_rho1" in done.out
