"""A recipe: what is done is skipped, what changed is done again, nothing else is touched, and typos are found first."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tokensieve.pipeline.recipe.estimate import costs_of, states_of
from tokensieve.pipeline.recipe.load import RecipeConfig, load
from tokensieve.runs.errors import UserError
from tokensieve.runs.files import MANIFEST, write_json
from tokensieve.runs.manifest import read_manifest

RECIPE = """
name: small
out: {out}
settings: {{seed: 0, rate: 1e-3, eval_text: {text}/target.jsonl}}
templates:
  training: &training {{max_steps: 4, save_steps: 2, logging_steps: 1, learning_rate: "${{rate}}"}}
stages:
  corpus: {{verb: prepare, sources: [{{path: {text}/corpus.jsonl}}], vocab_size: 290, length: 32}}
  target: {{verb: prepare, sources: [{{path: "${{eval_text}}"}}], tokenizer: "@corpus", length: 32}}
  disjoint: {{verb: check, disjoint: true, folders: ["@corpus", "@target"]}}
  base: {{verb: train, corpus: "@corpus", model: {model}, seed: "${{seed}}", training: {{<<: *training, save_strategy: no}}}}
  scores: {{verb: score, model: "@base", corpus: "@corpus"}}
  rho1:
    verb: train
    corpus: "@corpus"
    model: "@base"
    scores: ["@scores"]
    objective: {{name: rho1, ratio: 0.6}}
    training: *training
  evaluation: {{verb: evaluate, models: {{base: "@base", rho1: "@rho1"}}, sets: {{target: "@target"}}}}
  table: {{verb: compare, evaluation: "@evaluation", runs: {{rho1: "@rho1"}}, target: target, baseline: rho1}}
"""
STAGES = ("corpus", "target", "base", "scores", "rho1", "evaluation", "table")


@pytest.fixture(scope="session")
def finished(tiny: Any, tokensieve: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recipe.yaml and its finished run."""
    here = tmp_path_factory.mktemp("recipe")
    (here / "recipe.yaml").write_text(RECIPE.format(out="run", text=tiny.text, model=tiny.model))
    with contextlib.chdir(here):
        done = tokensieve("run", "recipe.yaml")
    assert done.code == 0, done.err
    return here


@pytest.fixture
def copied(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it that a test may change, as the working directory."""
    shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def times(run: Path) -> dict[str, int]:
    return {name: (run / name / MANIFEST).stat().st_mtime_ns for name in STAGES}


def redone(run: Path, before: dict[str, int]) -> list[str]:
    return [name for name, time in times(run).items() if time != before[name]]


def small(tmp_path: Path, **changes: Any) -> Path:
    """A recipe of one stage that needs nothing but the text, with ``changes`` at its top level."""
    (tmp_path / "t.jsonl").write_text('{"text": "a b c"}\n')
    stage = {"verb": "prepare", "sources": [{"path": str(tmp_path / "t.jsonl")}], "vocab_size": 257, "length": 4}
    recipe = {"name": "one", "out": str(tmp_path / "run"), "stages": {"corpus": stage}, **changes}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return tmp_path / "recipe.yaml"


# --- done, skipped, done again ------------------------------------------------------------------------------------------


def test_run_folder_says_what_it_holds(finished: Path, tokensieve: Any) -> None:
    manifest = read_manifest(finished / "run", "run")
    assert list(manifest["stages"]) == list(STAGES)
    for name, stage in manifest["stages"].items():
        assert stage["fingerprint"] == read_manifest(finished / "run" / name)["fingerprint"]
    written = yaml.safe_load((finished / "run" / "recipe.yaml").read_text())
    assert (written["name"], written["settings"]["rate"]) == ("small", 1e-3)
    checked = tokensieve("check", finished / "run")
    assert checked.code == 0
    assert f"{finished}/run/scores: scores, whole, 1 files, fit {finished}/run/corpus\n" in checked.out
    assert len(checked.out.splitlines()) == 1 + len(STAGES)


def test_what_is_done_is_skipped(copied: Path, tokensieve: Any) -> None:
    before = times(copied / "run")
    files = {p: p.stat().st_mtime_ns for p in (copied / "run").rglob("*")}
    done = tokensieve("run", copied / "recipe.yaml")
    assert done.code == 0, done.err
    assert done.out.count("done already") == len(STAGES)
    assert redone(copied / "run", before) == []
    changed = [p for p, t in files.items() if p.stat().st_mtime_ns != t]
    # Inputs are read and hashed, and that is remembered beside them.
    remembered = {q for p in (copied / "run").rglob(".verified.json") for q in (p, p.parent)}
    assert {p.relative_to(copied / "run").as_posix() for p in changed if p not in remembered} <= {".", MANIFEST}
    assert "rho1 nll" not in done.out
    assert "target nll" in done.out  # the comparison, at the end


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (["--set.rate", "2e-3"], ["base", "scores", "rho1", "evaluation", "table"]),
        (["--set.eval_text", "{text}/other.jsonl"], ["target", "evaluation", "table"]),
    ],
)
def test_what_changed_and_what_follows_from_it_is_done_again(
    change: list[str], again: list[str], copied: Path, tiny: Any, tokensieve: Any
) -> None:
    lines = (tiny.text / "target.jsonl").read_text().splitlines()
    (copied / "other.jsonl").write_text("\n".join(lines[:6]))
    before = times(copied / "run")
    done = tokensieve("run", copied / "recipe.yaml", "--redo", "all", *(c.format(text=copied) for c in change))
    assert done.code == 0, done.err
    assert redone(copied / "run", before) == again
    assert tokensieve("check", copied / "run").code == 0


def test_only(copied: Path, tokensieve: Any) -> None:
    before = times(copied / "run")
    done = tokensieve("run", copied / "recipe.yaml", "--set.rate", "2e-3", "--only", "rho1", "--redo", "rho1")
    assert done.code == 0, done.err
    assert redone(copied / "run", before) == ["rho1"]
    assert not (copied / "run" / MANIFEST).exists()  # the run is no more what its manifest said
    assert "unknown stage 'rho', did you mean 'rho1'?" in tokensieve("run", copied / "recipe.yaml", "--only", "rho").err


def test_a_run_is_not_done_while_a_stage_is_not(tmp_path: Path, tokensieve: Any) -> None:
    """The recipe is the same, the text behind it is not: a run killed after this stage would still say that it is done."""
    path = small(tmp_path)
    assert tokensieve("run", path).code == 0
    (tmp_path / "t.jsonl").write_text('{"text": "a b d"}\n')
    assert tokensieve("run", path, "--only", "corpus").code == 0
    assert not (tmp_path / "run" / MANIFEST).exists()


def test_only_without_its_inputs(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(out=tmp_path / "run", text=tiny.text, model=tiny.model))
    done = tokensieve("run", tmp_path / "recipe.yaml", "--only", "scores")
    assert (done.code, done.error) == (2, f"tokensieve run: error: {tmp_path}/run/corpus does not exist")


def test_a_killed_stage_goes_on_from_its_checkpoint(copied: Path, finished: Path, tokensieve: Any) -> None:
    stage = copied / "run" / "rho1"
    write_json(stage / "work.json", {"fingerprint": read_manifest(stage)["fingerprint"]})
    for name in (MANIFEST, "summary.json", "metrics.jsonl"):
        (stage / name).unlink()
    shutil.rmtree(stage / "checkpoint-4")
    shutil.rmtree(stage / "model")
    kept = (stage / "checkpoint-2" / "trainer_state.json").stat().st_mtime_ns
    done = tokensieve("run", copied / "recipe.yaml")
    assert done.code == 0, done.err
    assert (stage / "checkpoint-2" / "trainer_state.json").stat().st_mtime_ns == kept
    for name in ("tokens.jsonl", "metrics.jsonl", "model/model.safetensors"):
        assert (stage / name).read_bytes() == (finished / "run" / "rho1" / name).read_bytes()


def test_unfinished_work_of_another_config_is_done_again(copied: Path, tokensieve: Any) -> None:
    """With checkpoints it is not: hours of training were thrown away for a changed recipe, with a line on stdout."""
    stage = copied / "run" / "rho1"
    write_json(stage / "work.json", {"fingerprint": "sha256:other"})
    (stage / MANIFEST).unlink()
    done = tokensieve("run", copied / "recipe.yaml")
    assert (done.code, "run/rho1 has checkpoints of another config or other inputs" in done.error) == (2, True)
    assert len(list(stage.glob("checkpoint-*"))) == 2
    for checkpoint in stage.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    done = tokensieve("run", copied / "recipe.yaml")
    assert done.code == 0, done.err
    assert "done again: run/rho1 holds unfinished work of another config or other inputs\n" in done.out
    assert json.loads((stage / "summary.json").read_text())["steps"] == 4


def test_a_stage_that_became_another_verb_is_done_again(tmp_path: Path, tiny: Any, tokensieve: Any) -> None:
    path = small(tmp_path)
    assert tokensieve("run", path).code == 0
    small(tmp_path, stages={"corpus": {"verb": "score", "model": str(tiny.base), "corpus": str(tiny.corpus)}})
    assert tokensieve("run", path).code == 0
    assert read_manifest(tmp_path / "run" / "corpus")["kind"] == "scores"


# --- nothing else is touched --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../outside", "/tmp/outside", "..", ".", "a/b", ".hidden", "", "manifest.json", "recipe.yaml"]
)
def test_a_stage_cannot_leave_the_run_folder(name: str, tmp_path: Path, tokensieve: Any) -> None:
    """A stage's folder is removed when its config changes: a name with .. in it would remove what is not ours."""
    (tmp_path / "outside").mkdir()
    stages = yaml.safe_load(small(tmp_path).read_text())["stages"]
    done = tokensieve("run", small(tmp_path, stages={name: stages["corpus"]}))
    assert done.code == 2
    assert "a stage's name is its folder's" in done.error
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_stage_folder_that_is_a_link_is_not_removed(tmp_path: Path, tokensieve: Any) -> None:
    path = small(tmp_path)
    assert tokensieve("run", path).code == 0
    os.rename(tmp_path / "run" / "corpus", tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", tmp_path / "run" / "corpus")
    stage = yaml.safe_load(path.read_text())["stages"]["corpus"]
    done = tokensieve("run", small(tmp_path, stages={"corpus": {**stage, "length": 8}}))
    assert done.code == 2
    assert "is done, but from other inputs" in done.error
    assert (tmp_path / "elsewhere" / MANIFEST).is_file()


def test_a_folder_that_no_recipe_wrote_is_not_removed(tmp_path: Path, tokensieve: Any) -> None:
    """``--out runs/x`` where runs/x/corpus was made by hand: the stage of that name was removed as out of date."""
    path = small(tmp_path)
    source = f"[{{path: {tmp_path}/t.jsonl}}]"
    by_hand = ("prepare", "--out", tmp_path / "run" / "corpus", "--sources", source, "--vocab_size", 257, "--length", 8)
    assert tokensieve(*by_hand).code == 0
    done = tokensieve("run", path)
    assert done.code == 2
    assert "is there already, but no run of a recipe wrote it" in done.error
    assert read_manifest(tmp_path / "run" / "corpus")["length"] == 8


def test_the_folder_of_something_else_is_refused(tmp_path: Path, tokensieve: Any) -> None:
    path = small(tmp_path)
    assert tokensieve("run", path).code == 0
    before = (tmp_path / "run" / "corpus" / MANIFEST).read_bytes()
    done = tokensieve("run", path, "--out", tmp_path / "run" / "corpus")
    assert "holds 'corpus', 'run' is needed here" in done.error
    done = tokensieve("run", small(tmp_path, name="two"))
    assert "is a run of the recipe 'one': choose another out" in done.error
    assert (tmp_path / "run" / "corpus" / MANIFEST).read_bytes() == before


# --- what is wrong ------------------------------------------------------------------------------------------------------

PREPARE = {"verb": "prepare", "sources": []}
TRAIN = {"verb": "train", "corpus": "c", "model": "m"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stagse": {}}, "unknown key 'stagse', did you mean 'stages'?"),
        ({"stages": None}, "stages: a mapping of stage name to verb and fields is needed"),
        ({"stages": []}, "stages: a mapping of stage name to verb and fields is needed"),
        ({"stages": {"a": None}}, "stage a: verb is missing"),
        ({"stages": {"a": {"verb": "trian"}}}, "stage a: unknown verb 'trian', did you mean 'train'?"),
        (
            {"stages": {"a": {"verb": "run"}}},
            "stage a: unknown verb 'run'; there are prepare, filter, init, train, score",
        ),
        ({"stages": {False: PREPARE}}, "stage False: YAML reads this name as bool: put it in quotes"),
        ({"stages": {"a": {**PREPARE, "out": "x"}}}, "stage a: out: a stage's folder is named after it"),
        ({"stages": {"a": {**PREPARE, "lenght": 3}}}, "stage a: unknown field 'lenght', did you mean 'length'?"),
        ({"stages": {"a": {**PREPARE, "length": "x"}}}, "stage a: length: a whole number is needed, not x"),
        ({"stages": {"a": {"verb": "train"}}}, "stage a: missing: corpus, model"),
        (
            {"stages": {"a": {**TRAIN, "corpus": "@b"}, "b": PREPARE}},
            "stage a: @b refers to no earlier stage; there are none",
        ),
        (
            {"stages": {"b": {**PREPARE, "sources": [{"path": "x"}]}, "a": {**TRAIN, "corpus": "@a"}}},
            "stage a: @a refers to no earlier stage; there are b",
        ),
        (
            {"stages": {"a": {"verb": "check", "folders": []}, "b": {**TRAIN, "corpus": "@a"}}},
            "@a refers to no earlier stage",
        ),
        ({"stages": {"a": {**TRAIN, "training": {"max_step": 1}}}}, "stage a: training: unknown field 'max_step'"),
        ({"stages": {"a": {**TRAIN, "objective": {"name": "rho2"}}}}, "stage a: objective: unknown objective 'rho2'"),
        ({"stages": {"a": {**TRAIN, "model": {"model_type": "lama"}}}}, "stage a: model: 'lama' is no type of causal"),
        ({"stages": {"a": {**TRAIN, "lora": {"rank": 8}}}}, "stage a: lora: unknown field 'rank'"),
        ({"stages": {"a": {**TRAIN, "dtype": "float8"}}}, "stage a: unknown dtype 'float8'"),
        (
            {"stages": {"a": {**PREPARE, "seed": "${sed}"}}, "settings": {"seed": 0}},
            "${sed}: unknown setting 'sed', did you",
        ),
        ({"stages": {"a": {**PREPARE, "seed": "${my-seed}"}}}, "${my-seed}: unknown setting 'my-seed'"),
        ({"settings": [1]}, "settings: a mapping of name to value is needed"),
        ({"requires": [{"path": "x"}]}, "requires: a list of {path: ..., message: ...} is needed"),
        (
            {"requires": [{"path": "/no/such/data", "message": "put it there"}]},
            "/no/such/data is not here: put it there",
        ),
    ],
)
def test_faulty_recipes(changes: dict[str, Any], said: str, tmp_path: Path, tokensieve: Any) -> None:
    done = tokensieve("run", small(tmp_path, **changes))
    assert (done.code, done.out) == (2, "")
    assert said in done.error
    assert done.error.startswith("tokensieve run: error: ")
    assert not (tmp_path / "run").exists()


def test_a_setting_that_is_not_there(tmp_path: Path, tokensieve: Any) -> None:
    path = small(tmp_path, settings={"seed": 0})
    assert "unknown setting 'sed', did you mean 'seed'?" in tokensieve("run", path, "--set.sed", 1).error


def test_a_double_stage_is_refused(tmp_path: Path, tokensieve: Any) -> None:
    """YAML readers keep the later of two equal keys: the first stage of that name is silently gone."""
    path = small(tmp_path)
    path.write_text(path.read_text() + "  corpus: {verb: check, folders: []}\n")
    assert f"line {len(path.read_text().splitlines())}: 'corpus' is given twice" in tokensieve("run", path).error


def test_settings_keep_their_type_and_fill_strings(tmp_path: Path) -> None:
    stage = {
        "verb": "prepare",
        "seed": "${seed}",
        "length": "${length}",
        "sources": [{"path": "${dir}/x-${seed}.jsonl"}],
    }
    path = small(tmp_path, stages={"a": stage}, settings={"seed": 3, "length": 8, "dir": "d"}, out="runs/${seed}")
    fields = load(RecipeConfig(str(path), set={"length": 16})).stages[0].fields
    assert (fields["seed"], fields["length"], fields["sources"]) == (3, 16, [{"path": "d/x-3.jsonl"}])
    assert fields["out"] == "runs/3/a"


def test_references_are_folders(finished: Path) -> None:
    stages = {s.name: s for s in load(RecipeConfig(str(finished / "recipe.yaml"), out="elsewhere")).stages}
    assert stages["rho1"].fields["scores"] == ["elsewhere/scores"]
    assert stages["disjoint"].fields["folders"] == ["elsewhere/corpus", "elsewhere/target"]


def test_dry_run_does_nothing(finished: Path, tokensieve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)
    done = tokensieve("run", finished / "recipe.yaml", "--dry-run", "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert [line.split()[:4] for line in done.out.splitlines() if line.startswith("base ")] == [
        ["base", "train", "to", "do"]
    ]
    assert not (tmp_path / "run").exists()
    done = tokensieve("run", finished / "recipe.yaml", "--dry-run")
    assert [line.split()[:3] for line in done.out.splitlines() if line.startswith("base ")] == [
        ["base", "train", "done"]
    ]


def states(done: Any) -> dict[str, str]:
    """stage -> what the dry run says of it."""
    assert done.code == 0, done.err
    rows = [line for line in done.out.splitlines() if line.split(" ")[0] in (*STAGES, "disjoint")]
    return {
        row.split()[0]: next(s for s in ("to be redone", "to do", "done", "?") if f" {s} " in f"{row} ") for row in rows
    }


def test_dry_run_says_what_is_done_again(copied: Path, tokensieve: Any) -> None:
    """It said done of every folder with a manifest, and then hours of training were removed and done again."""
    told = states(tokensieve("run", "recipe.yaml", "--dry-run"))
    assert [name for name, state in told.items() if state != "done"] == ["disjoint"]
    done = tokensieve("run", "recipe.yaml", "--dry-run", "--set.rate", "2e-3")
    again = ["base", "scores", "rho1", "evaluation", "table"]
    assert [name for name, state in states(done).items() if state == "to be redone"] == again
    assert "finished training is done again only if told to: --redo base rho1" in done.out
    shutil.rmtree("run/corpus")  # what reads it is done again: nobody knows what it will be
    told = states(tokensieve("run", "recipe.yaml", "--dry-run"))
    assert (told["corpus"], told["target"], told["table"]) == ("to do", "to be redone", "to be redone")
    assert "done" not in told.values()
    (copied / "run" / "base" / MANIFEST).write_text("{")
    (copied / "run" / "scores" / MANIFEST).write_text("{}")
    told = states(tokensieve("run", "recipe.yaml", "--dry-run"))
    assert (told["base"], told["scores"], told["table"]) == ("?", "?", "to be redone")


def test_a_plan_of_what_nobody_knows(tmp_path: Path, tokensieve: Any) -> None:
    """An estimate that could not be made ended the dry run, and a run of which only other stages were asked for."""
    (tmp_path / "code").mkdir()
    auto = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}}
    (tmp_path / "code" / "config.json").write_text(json.dumps(auto))
    (tmp_path / "code" / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    models = {"b": str(tmp_path / "code"), "c": str(tmp_path / "gone")}
    stages = yaml.safe_load(small(tmp_path).read_text())["stages"]
    stages |= {name: {"verb": "score", "model": model, "corpus": "@corpus"} for name, model in models.items()}
    stages["d"] = {"verb": "train", "model": str(tmp_path / "code"), "corpus": str(tmp_path / "gone")}
    done = tokensieve("run", small(tmp_path, stages=stages), "--dry-run")
    assert done.code == 0, done.err
    rows = {line.split()[0]: line.split() for line in done.out.splitlines() if line.startswith(("b ", "c ", "d "))}
    assert {name: row.count("?") for name, row in rows.items()} == {"b": 3, "c": 1, "d": 3}
    assert not (tmp_path / "ran").exists()


def test_the_checkpoints_that_training_will_leave(tmp_path: Path, tiny: Any, tokensieve: Any) -> None:
    """The plan repeated a default of train, and took any save_steps above 1 for one checkpoint."""
    train = {"verb": "train", "corpus": str(tiny.corpus), "model": yaml.safe_load(tiny.model)}
    evaluate = {"verb": "evaluate", "sets": {"target": str(tiny.target)}, "checkpoints": True}
    cases = {
        "fifths": {},
        "tens": {"save_steps": 10},
        "two": {"save_steps": 10, "save_total_limit": 2},
        "none": {"save_strategy": "no"},
    }
    stages = {}
    for name, training in cases.items():
        stages[name] = {**train, "training": {"max_steps": 35, **training}}
        stages[f"e-{name}"] = {**evaluate, "models": {"m": f"@{name}"}}
    recipe = load(RecipeConfig(str(small(tmp_path, stages=stages))))
    costs = costs_of(recipe, states_of(recipe))
    assert {name: costs[name].checkpoints for name in cases} == {"fifths": 5, "tens": 4, "two": 2, "none": 1}
    tokens = costs["e-none"].tokens
    assert [costs[f"e-{name}"].tokens / tokens for name in cases] == [5, 4, 2, 1]
    assert costs["fifths"].flops == costs["tens"].flops > 0


# --- what took long is not thrown away ----------------------------------------------------------------------------------


def test_finished_training_is_done_again_only_if_told_to(copied: Path, tokensieve: Any) -> None:
    """A changed line of a recipe removed finished models, with a line on stdout."""
    before = times(copied / "run")
    run = ("run", "recipe.yaml", "--set.rate", "2e-3")
    done = tokensieve(*run)
    assert done.code == 2
    assert (
        "stage base: run/base holds a finished run of other work (training.learning_rate 0.001 -> 0.002): --redo base "
        in (done.error)
    )
    assert tokensieve(*run, "--redo", "rho1").error == done.error
    assert "redo: unknown stage 'bas', did you mean 'base'?" in tokensieve(*run, "--redo", "bas").error
    assert redone(copied / "run", before) == []
    done = tokensieve(*run, "--redo", "base", "--only", "base")
    assert done.code == 0, done.err
    assert redone(copied / "run", before) == ["base"]
    stamp = times(copied / "run")["base"]
    done = tokensieve(*run, "--redo", "base")
    assert "stage rho1: run/rho1 holds a finished run of other work" in done.error
    assert times(copied / "run")["base"] == stamp  # what is the work asked for is done already, told to or not


def test_a_trained_folder_is_no_place_for_another_verb(copied: Path, tokensieve: Any) -> None:
    recipe = yaml.safe_load((copied / "recipe.yaml").read_text())
    recipe["stages"]["base"] = {"verb": "score", "model": "run/rho1", "corpus": "@corpus"}
    recipe["stages"] = {name: recipe["stages"][name] for name in ("corpus", "base")}
    (copied / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    assert "stage base: run/base holds a finished run of other work ('model')" in tokensieve("run", "recipe.yaml").error
    assert (copied / "run" / "base" / MANIFEST).is_file()


def test_shipped_recipes_load() -> None:
    assert [s.name for s in load(RecipeConfig("demo")).stages][-1] == "table"
    with pytest.raises(
        UserError, match="nope is no recipe file; shipped recipes: demo, dmt-tiny, docstrings, math-tiny"
    ):
        load(RecipeConfig("nope"))
