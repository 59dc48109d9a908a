"""A run that was killed and goes on is the run that was not: whatever an objective remembers of the steps before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from tokensieve.core import objective
from tokensieve.training.trainer import SelectiveTrainer

STEPS, SAVED = 4, 2
OVER_STEPS = {"name": "schedule", "of": {"name": "random"}, "option": "ratio", "points": [[0, 1.0], [4, 0.3]]}
OVER_TOKENS = {
    "name": "schedule", "of": {"name": "rho1"}, "option": "ratio", "points": [[0, 1.0], [120, 0.2]], "over": "tokens",
}  # fmt: skip
# What has a history: by the steps, by the tokens, and by the model as it was when training began.
CASES: dict[str, dict[str, Any]] = {
    "masks over steps, similar tokens": {"name": "smooth", "share": 0.5, "of": OVER_STEPS},
    "ratio over tokens, share over steps": {
        "name": "schedule", "of": {"name": "distill", "of": OVER_TOKENS}, "option": "share", "points": [[0, 1.0], [4, 0.0]],
    },
}  # fmt: skip


def trainer(folder: Path, case: dict[str, Any]) -> SelectiveTrainer:
    """AdamW with dropout, a checkpoint in the middle, rows in another order each epoch."""
    fields = {"optim": "adamw_torch", "learning_rate": 0.01, "max_steps": STEPS, "lr_scheduler_type": "linear"}
    saved = {"save_strategy": "steps", "save_steps": SAVED, "train_sampling_strategy": "random"}
    args = tiny.arguments(folder, 2, 2, **{**fields, **saved})
    model = tiny.llama(attention_dropout=0.2)
    data = tiny.rows(10, **tiny.topk_columns(10))
    return SelectiveTrainer(model, args, train_dataset=data, objective=objective(**case))


def train(made: SelectiveTrainer, **fields: Any) -> dict[str, torch.Tensor]:
    try:
        made.train(**fields)
    finally:
        made.seam.close()
    return tiny.weights(made.model)


@pytest.mark.parametrize("name", CASES)
def test_goes_on_as_if_nothing_had_been(name: str, tmp_path: Path) -> None:
    """A schedule that begins again, masks of the first steps drawn anew, similar tokens of a model that has moved on."""
    whole, case = tmp_path / "whole", CASES[name]
    wanted = train(trainer(whole, case))
    killed = shutil.copytree(whole, tmp_path / "killed")
    shutil.rmtree(killed / f"checkpoint-{STEPS}")  # a step was done that no checkpoint remembers
    log = (whole / "tokens.jsonl").read_bytes()
    (killed / "tokens.jsonl").write_bytes(b"".join(log.splitlines(keepends=True)[:-1]))
    found = train(trainer(killed, case), resume_from_checkpoint=True)
    assert all(torch.equal(found[n], wanted[n]) for n in wanted)
    assert (killed / "tokens.jsonl").read_bytes() == log
    lines = [json.loads(line) for line in log.splitlines()]
    assert len(lines) == STEPS
    ratios = [line["ratio"] for line in lines]
    assert ratios[0] > ratios[SAVED - 1] > ratios[-1]  # it did move, before the kill and after it
