"""Learning rates by tokens: what the formula says, at the tokens that the log counts, however long the run was to be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import pytest
import tiny
import torch

from tokensieve.core import objective
from tokensieve.runs.errors import UserError
from tokensieve.training.schedules import PowerSchedule
from tokensieve.training.trainer import SelectiveTrainer

LR_MAX, ROWS = 0.02, 4


@pytest.mark.parametrize(
    ("n", "lr"),
    [
        (0, 0.02),  # nothing seen: n^b has no bound, the maximum counts
        (10_000, 0.02),  # 4 * 4 / 100 is above it
        (10**8, 4 * 4 / 10**4),  # 16 / sqrt(10^8)
        (4 * 10**10, 4 * 4 / 200_000),
    ],
)
def test_the_formula(n: int, lr: float) -> None:
    """A beta of tokens in place of rows, a sign of the exponent, a maximum that multiplies."""
    schedule = PowerSchedule(a=4.0, b=-0.5)
    assert schedule.rate(n, LR_MAX, ROWS) == pytest.approx(lr, rel=1e-15)
    assert PowerSchedule(b=-0.5, beta=ROWS).rate(n, LR_MAX, 999) == schedule.rate(n, LR_MAX, ROWS)


def test_the_warm_up_ends_on_the_curve() -> None:
    """n / N of what the rule says at N: one that rises to the maximum instead would fall off a step at N."""
    warm, plain = PowerSchedule(b=-0.5, warmup_tokens=10**8), PowerSchedule(b=-0.5)
    assert warm.rate(0, LR_MAX, ROWS) == 0
    assert warm.rate(25_000_000, LR_MAX, ROWS) == pytest.approx(0.25 * 16 / 10**4, rel=1e-15)
    assert warm.rate(10**8, LR_MAX, ROWS) == plain.rate(10**8, LR_MAX, ROWS)
    assert warm.rate(10**9, LR_MAX, ROWS) == plain.rate(10**9, LR_MAX, ROWS)


@pytest.mark.parametrize("wrong", [{"a": 0.0}, {"b": 0.1}, {"beta": -1.0}, {"warmup_tokens": -1}])
def test_numbers_that_make_no_schedule(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PowerSchedule(**wrong)


def trainer(folder: Path, count: Literal["seen", "trained"], steps: int, accumulate: int = 2) -> SelectiveTrainer:
    fields = {
        "optim": "adamw_torch",
        "learning_rate": LR_MAX,
        "max_steps": steps,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    args = tiny.arguments(folder, ROWS // accumulate, accumulate, **fields, train_sampling_strategy="random")
    schedule = PowerSchedule(a=0.02, b=-0.5, count=count, warmup_tokens=20)
    rule = objective("rho1", ratio=0.4)
    return SelectiveTrainer(tiny.llama(), args, train_dataset=tiny.rows(10), objective=rule, schedule=schedule)


def train(made: SelectiveTrainer, **fields: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    """(the learning rate that each step was done with, the weights after the last)."""
    try:
        made.train(**fields)
    finally:
        made.seam.close()
    return [x["learning_rate"] for x in made.state.log_history if "learning_rate" in x], tiny.weights(made.model)


@pytest.mark.parametrize("count", ["seen", "trained"])
def test_rates_follow_the_log_and_no_plan(count: Literal["seen", "trained"], tmp_path: Path) -> None:
    """n of the step before; tokens trained where they are asked for; the same first steps of a run of any length."""
    rates, _ = train(trainer(tmp_path / "six", count, 6))
    n = [0, *(line[f"tokens_{count}"] for line in tiny.log_lines(tmp_path / "six"))]
    wanted = [min(LR_MAX, ROWS * 0.02 * x**-0.5) if x >= 20 else ROWS * 0.02 * 20**-0.5 * x / 20 for x in n[:6]]
    assert rates == pytest.approx(wanted, rel=1e-14)
    assert len(set(rates)) == 6
    assert rates[-1] < LR_MAX
    assert train(trainer(tmp_path / "three", count, 3))[0] == rates[:3]
    assert train(trainer(tmp_path / "split", count, 3, accumulate=1))[0] == pytest.approx(rates[:3], rel=0.3)


def test_it_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    """n that begins again after a kill, or a step that is not counted."""
    whole = tmp_path / "whole"
    rates, wanted = train(trainer(whole, "trained", 5))
    killed = shutil.copytree(whole, tmp_path / "killed")
    for late in ("checkpoint-4", "checkpoint-5"):
        shutil.rmtree(killed / late, ignore_errors=True)
    log = (whole / "tokens.jsonl").read_bytes()
    (killed / "tokens.jsonl").write_bytes(b"".join(log.splitlines(keepends=True)[:3]))
    again, found = train(trainer(killed, "trained", 5), resume_from_checkpoint=True)
    assert again == rates
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert (killed / "tokens.jsonl").read_bytes() == log


def test_a_checkpoint_from_elsewhere(tmp_path: Path) -> None:
    """In another folder there is no log of its tokens: n began again, and the rate with it, without a word."""
    train(trainer(tmp_path / "run", "seen", 3))
    with pytest.raises(UserError, match="go on in the folder of the checkpoint, or copy its tokens"):
        train(trainer(tmp_path / "other", "seen", 4), resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))


def learning_rates(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["learning_rate"] for line in lines if "learning_rate" in line]


def test_from_a_config(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    """The command of docs/systems.md; two schedules of one learning rate are refused, as is one that is none."""
    steps = ("--training.max_steps", 3, "--training.save_strategy", "no", "--training.logging_steps", 1)
    command = ("train", "--corpus", tiny.corpus, "--model", tiny.model, "--out", tmp_path / "run", *steps)
    power = ("--schedule.name", "power", "--schedule.a", 0.001, "--schedule.b", -0.5)
    by_steps = tokensieve(*command, *power, "--training.warmup_steps", 2)
    assert by_steps.code == 2
    assert "training.warmup_steps is a schedule by steps" in by_steps.error
    assert "b at most 0" in tokensieve(*command, "--schedule.b", 2).error
    done = tokensieve(*command, *power, "--training.learning_rate", 0.01)
    assert done.code == 0, done.err
    log = [json.loads(line) for line in (tmp_path / "run" / "tokens.jsonl").read_text().splitlines()]
    n = [line["tokens_seen"] for line in log[:2]]
    assert learning_rates(tmp_path / "run") == pytest.approx([0.01, *(8 * 0.001 * x**-0.5 for x in n)], rel=1e-12)


def test_warm_up_stable_decay(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    """transformers' own, with its own fields, from a config file; what it does not know is told before a step is done."""
    file = tmp_path / "wsd.yaml"
    kwargs = "{num_decay_steps: 2, decay_type: linear, min_lr_ratio: 0.1}"
    file.write_text(
        f"corpus: {tiny.corpus}\nmodel: {tiny.model}\ntraining:\n  max_steps: 6\n  save_strategy: no\n  logging_steps: 1\n"
        f"  learning_rate: 0.01\n  warmup_steps: 2\n  lr_scheduler_type: warmup_stable_decay\n  lr_scheduler_kwargs: {kwargs}\n"
    )
    done = tokensieve("train", "--config", file, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    wanted = [0.001, 0.0055, 0.01, 0.01, 0.01, 0.0055]  # from a tenth up in two steps, two at the top, down in two
    assert learning_rates(tmp_path / "run") == pytest.approx(wanted, rel=1e-12)
    file.write_text(file.read_text().replace("decay_type: linear", "decay_type: steep"))
    wrong = tokensieve("train", "--config", file, "--out", tmp_path / "no")
    assert wrong.code == 2
    assert "training: Unknown decay type: steep" in wrong.error
