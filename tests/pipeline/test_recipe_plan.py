"""A plan of what is not here: stated tokens and shapes, what is missing, hours on named hardware beside those of a paper."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from tokensieve.pipeline.configs.hardware import PEAK_FLOPS, HardwareConfig, PaperConfig
from tokensieve.pipeline.recipe.estimate import costs_of, describe_plan, states_of
from tokensieve.pipeline.recipe.load import RecipeConfig, load
from tokensieve.runs.errors import UserError

SHAPES = {"model_type": "llama", "vocab_size": 100, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
          "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}  # fmt: skip
INPUTS = {
    "base": {"what": "the base", "hub": "someone/base", "model": SHAPES},
    "web": {"what": "rows with text", "hub": "someone/web", "tokens": 1e9},
}
STEP = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "save_strategy": "no"}


def recipe(tmp_path: Path, **changes: Any) -> Path:
    stages = {
        "web": {
            "verb": "prepare",
            "tokenizer": "${base}",
            "length": 64,
            "sources": [{"path": "${web}", "split": [0, 0.5]}],
        },
        "clm": {"verb": "train", "corpus": "@web", "model": "${base}", "training": {**STEP, "max_steps": 1000}},
        "once": {"verb": "train", "corpus": "@web", "model": "${base}", "training": {**STEP, "num_train_epochs": 1}},
        "scores": {"verb": "score", "model": "@clm", "corpus": "@web"},
    }
    source = {
        "out": str(tmp_path / "run"),
        "settings": {"base": "models/nowhere", "web": "data/nowhere", "gpus": 8},
        "inputs": INPUTS,
        "hardware": {"gpus": "${gpus}", "kind": "H100", "mfu": 0.5},
        "paper": {"source": "a paper", "gpus": 2, "kind": "A100", "hours": {"clm": 0.01}},
        "stages": stages,
        **changes,
    }
    (tmp_path / "planned.yaml").write_text(yaml.safe_dump(source, sort_keys=False))
    return tmp_path / "planned.yaml"


def test_a_plan_counts_with_what_is_stated(tmp_path: Path) -> None:
    """Oracle: 2 FLOPs a weight and token forward, four back, and attention's products, written out for the two layers."""
    made = load(RecipeConfig(str(recipe(tmp_path))))
    costs = costs_of(made, states_of(made))
    assert costs["web"].tokens == 0.5e9
    step = 4 * 2 * 8 * 64  # of 8 GPUs, though this is one process
    assert costs["clm"].tokens == 1000 * step
    assert costs["once"].tokens == pytest.approx(0.5e9)
    layer = 16 * 16 + 2 * 16 * 8 + 16 * 16 + 3 * 16 * 32 + 2 * 16
    forward = 2 * (2 * layer + 16 + 100 * 16) + 2 * 2 * (8 + 8) * 64
    assert costs["clm"].flops == pytest.approx(3 * forward * 1000 * step, rel=1e-9)
    assert costs["scores"].flops == pytest.approx(forward * 0.5e9, rel=1e-9)
    assert costs["scores"].disk == 2 * 0.5e9


def test_the_plan_in_words(tmp_path: Path, tokensieve: Any) -> None:
    path = recipe(tmp_path)
    done = tokensieve("run", path, "--dry-run")
    assert done.code == 0, done.err
    assert not (tmp_path / "run").exists()
    rows = [line.split() for line in done.out.splitlines()]
    head = next(row for row in rows if row[:1] == ["stage"])
    assert head == ["stage", "verb", "state", "tokens", "FLOP", "disk", "hours", "paper"]
    assert "hours: on 8 H100, 50% (mfu) of 989 TFLOP/s each" in done.out
    assert "paper: hours on 2 A100 (a paper), which is an mfu of clm " in done.out
    assert (
        "  base  models/nowhere: the base (hf download someone/base --local-dir FOLDER, then --set.base FOLDER)"
        in done.out
    )
    assert "  web   data/nowhere: rows with text (--set.web FOLDER or --set.web hub:someone/web)" in done.out
    done = tokensieve("run", path, "--dry-run", "--set.web", "hub:someone/web")
    assert "read over the network, and not looked at:\n  web   hub:someone/web: rows with text" in done.out
    assert "data/nowhere" not in done.out


def test_run_refuses_in_one_sentence(tmp_path: Path, tokensieve: Any) -> None:
    """Only what the chosen stages read: a stage whose own text is here can be done."""
    path = recipe(tmp_path)
    done = tokensieve("run", path)
    said = "planned: not here: base (models/nowhere), web (data/nowhere); --dry-run says what each is and how to point at it"
    assert (done.code, done.error) == (2, f"tokensieve run: error: {said}")
    assert not (tmp_path / "run").exists()
    (tmp_path / "web.jsonl").write_text('{"text": "a b c"}\n')
    done = tokensieve("run", path, "--set.web", tmp_path / "web.jsonl")
    assert "not here: base (models/nowhere); --dry-run" in done.error


def test_what_is_here_is_counted_and_not_stated(tmp_path: Path) -> None:
    (tmp_path / "web.jsonl").write_text('{"text": "a b c"}\n' * 100)
    made = load(RecipeConfig(str(recipe(tmp_path)), set={"web": str(tmp_path / "web.jsonl")}))
    assert costs_of(made, states_of(made))["web"].tokens < 1000
    assert "rows with text" not in describe_plan(made)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"inputs": [1]}, "inputs: a mapping of name to"),
        ({"inputs": {"web": {"what": "x", "tokns": 3}}}, "inputs.web: unknown field 'tokns', did you mean 'tokens'"),
        ({"inputs": {"web": {"tokens": 3}}}, "inputs.web: missing: what"),
        ({"inputs": {"web": {"what": "x", "tokens": 1, "model": {}}}}, "inputs.web: tokens are those of a text"),
        ({"inputs": {"web": {"what": "x", "tokens": 0}}}, "inputs.web: tokens must be above 0, not 0"),
        ({"inputs": {"wbe": {"what": "x"}}}, "inputs: wbe needs a setting of this name"),
        ({"hardware": 3}, "hardware: a mapping of fields to values is needed"),
        ({"hardware": {"gpus": 0, "kind": "H100", "mfu": 0.4}}, "hardware: gpus must be at least 1, not 0"),
        (
            {"hardware": {"gpus": 1, "kind": "H10", "mfu": 0.4}},
            "hardware: kind: the peak of 'H10' is not known; there are",
        ),
        (
            {"hardware": {"gpus": 1, "kind": "H100", "mfu": 40}},
            "hardware: mfu is a share of the peak, above 0 and at most 1",
        ),
        ({"hardware": {"gpus": 1, "kind": "H100"}}, "hardware: missing: mfu"),
        (
            {"paper": {"source": "p", "gpus": 1, "kind": "H100", "hours": {"cml": 1}}},
            "paper: hours: unknown stage 'cml', did you mean 'clm'?",
        ),
        (
            {"paper": {"source": "p", "gpus": 1, "kind": "H100", "hours": {"clm": 0}}},
            "paper: hours: clm must be above 0",
        ),
    ],
)
def test_faults(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as e:
        load(RecipeConfig(str(recipe(tmp_path, **changes))))
    assert said in str(e.value)
    assert "planned.yaml" in str(e.value)


def test_hours_and_mfu_are_each_other_s_inverse() -> None:
    hardware = HardwareConfig(32, "H100", 0.4)
    flops = 1.1e20
    assert hardware.hours(flops) == pytest.approx(flops / (32 * 989e12 * 0.4) / 3600)
    paper = PaperConfig("p", 32, "H100", {"rho1": hardware.hours(flops)})
    assert paper.mfu(flops, "rho1") == pytest.approx(0.4)
    assert math.isnan(hardware.hours(math.nan))
    assert all(1e14 < peak < 1e16 for peak in PEAK_FLOPS.values())


def test_a_stage_beside_a_cut_one_begins_with_the_whole_model(tmp_path: Path) -> None:
    """The estimate of `init` cut the shapes that all stages share: what began with the whole was charged as the cut one."""
    train = {"verb": "train", "corpus": "@web", "training": {**STEP, "max_steps": 1000}}
    web = {"verb": "prepare", "tokenizer": "${base}", "length": 64, "sources": [{"path": "${web}"}]}
    stages = {
        "web": web,
        "small": {"verb": "init", "model": "${base}", "layers": 1},
        "of_small": {**train, "model": "@small"},
        "clm": {**train, "model": "${base}"},
    }
    made, alone = (load(RecipeConfig(str(recipe(tmp_path, **changes)))) for changes in ({"stages": stages}, {}))
    costs = costs_of(made, states_of(made))
    assert costs["clm"].flops == costs_of(alone, states_of(alone))["clm"].flops
    assert costs["of_small"].flops < costs["clm"].flops
