"""A family whose FLOPs nobody can count goes through every verb: an estimate ends no run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from experiment import ONE_STEP as TRAINING

from tokensieve.analysis.folders import Arm, total_flops
from tokensieve.pipeline import compare, evaluate, score, train
from tokensieve.pipeline.recipe.cost import Known
from tokensieve.runs.manifest import read_manifest

SHAPE = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize("model_type", ["diffllama"])
def test_it_is_trained_scored_and_compared(model_type: str, tiny: Any, tmp_path: Path) -> None:
    """score ended after its last shard, every time; train before its first step."""
    model = {"model_type": model_type, **SHAPE}
    made = train.TrainConfig(str(tmp_path / "clm"), str(tiny.corpus), model, training=TRAINING)
    assert train.estimate(made, Known()).flops != train.estimate(made, Known()).flops  # NaN, which a plan shows as ?
    train.run(made)
    score.run(score.ScoreConfig(out=str(tmp_path / "scores"), corpus=str(tiny.corpus), model=str(tmp_path / "clm")))
    manifest = read_manifest(tmp_path / "scores")
    assert (manifest["flops"], manifest["reference_flops"]) == (None, None)
    chosen = train.TrainConfig(
        str(tmp_path / "rho1"),
        str(tiny.corpus),
        str(tmp_path / "clm"),
        objective={"name": "rho1", "ratio": 0.5},
        scores=[str(tmp_path / "scores")],
        training=TRAINING,
    )
    summary = json.loads((train.run(chosen) / "summary.json").read_text())
    assert [summary[key] for key in ("flops_student", "flops_scoring", "flops_reference")] == [None] * 3
    arms = {"clm": str(tmp_path / "clm"), "rho1": str(tmp_path / "rho1")}
    evaluate.run(evaluate.EvaluateConfig(str(tmp_path / "eval"), models=arms, sets={"t": str(tiny.target)}))
    compare.run(compare.CompareConfig(str(tmp_path / "table"), str(tmp_path / "eval"), arms, "t"))
    lines = (tmp_path / "table" / "table.txt").read_text().splitlines()
    assert lines[3].split().count("?") == 4
    assert "a total compute that is not known" in lines[-1]
    steps = [json.loads(line) for line in (tmp_path / "rho1" / "tokens.jsonl").read_text().splitlines()]
    assert total_flops(Arm("rho1", tmp_path, {}, steps), 1) != total_flops(Arm("rho1", tmp_path, {}, steps), 1)
