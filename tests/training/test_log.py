"""tokens.jsonl and tokens/: equal runs write equal files, sums add up, and a resumed run is the uninterrupted one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from transformers import TrainerCallback

from tokensieve.core import objective
from tokensieve.modeling.flops import TokenFlops, token_flops
from tokensieve.training.price import StepFlops
from tokensieve.training.token_log import FlopsSpent, TokenLog, TokenLogConfig, logged_rows

EVERY = TokenLogConfig(every=3, rows=2, seed=1)


def run(folder: Path, model: Any = None, data: Any = None, **fields: Any) -> Any:
    given = {"max_steps": 8, "learning_rate": 0.05, "train_sampling_strategy": "random", **fields}
    args = tiny.arguments(folder, 2, 2, **given)
    data = tiny.rows(13) if data is None else data
    return tiny.train(model or tiny.llama(), args, data, objective("rho1"), token_log=EVERY)


def written(folder: Path) -> dict[str, bytes]:
    names = ["tokens.jsonl", *sorted(str(p.relative_to(folder)) for p in (folder / "tokens").iterdir())]
    return {name: (folder / name).read_bytes() for name in names}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "tokens.jsonl").read_text(encoding="utf-8").splitlines()]


def test_equal_runs_write_equal_files(tmp_path: Path) -> None:
    """A clock in a log line, or a set's order, makes two equal runs differ in every line."""
    for name in "ab":
        run(tmp_path / name, logging_steps=3 if name == "b" else 1)  # how often lines are flushed does not count either
    found = written(tmp_path / "a")
    assert found == written(tmp_path / "b")
    assert set(found) == {"tokens.jsonl"} | {f"tokens/step-{s:08d}.parquet" for s in (1, 3, 6)}
    assert [line["step"] for line in lines(tmp_path / "a")] == list(range(1, 9))
    assert (tmp_path / "a" / "times.jsonl").is_file()


def test_running_sums(tmp_path: Path) -> None:
    """Tokens seen are valid targets, tokens trained are those kept: two axes, and padding on neither."""
    trainer = run(tmp_path)
    seen = trained = 0
    for line in lines(tmp_path):
        seen, trained = seen + line["valid"], trained + line["kept"]
        assert (line["tokens_seen"], line["tokens_trained"]) == (seen, trained)
        assert line["ratio"] == line["kept"] / line["valid"]
        assert line["loss"] == pytest.approx(line["kept_nll"])
        total = line["kept_nll"] * line["kept"] + line["dropped_nll"] * (line["valid"] - line["kept"])
        assert line["nll"] == pytest.approx(total / line["valid"])
    flops = token_flops(trainer.seam.model, tiny.LENGTH)
    positions = 8 * 4 * tiny.LENGTH
    assert lines(tmp_path)[-1]["flops_student"] == pytest.approx(flops.train(positions, trained))
    # each epoch of 13 rows is 4 steps, the last with 3 ignored rows: two epochs
    assert seen == 2 * int(tiny.valid_targets(tiny.rows(13).to_dict()).sum())


def test_counts_by_source_add_up(tmp_path: Path) -> None:
    """Counted by the source of the token before it, every document's first token is booked to its neighbour."""
    starts = [[0, 5], [0], [0, 9], [0]]
    sources = [[0, 1], [1], [2, 0], [2]]
    data = tiny.rows(4, doc_starts=starts, doc_sources=sources)
    args = tiny.arguments(tmp_path, 2, 2)
    tiny.train(tiny.llama(), args, data, objective("rho1"), token_log=EVERY, sources=["web", "books", "code"])
    (line,) = lines(tmp_path)
    places = tiny.valid_targets(data.to_dict()).nonzero().tolist()
    owners = [sources[b][sum(s <= t for s in starts[b]) - 1] for b, t in places]
    assert line["valid_by_source"] == {n: owners.count(i) for i, n in enumerate(["web", "books", "code"])}
    assert sum(line["kept_by_source"].values()) == line["kept"]
    assert all(line["kept_by_source"][n] <= line["valid_by_source"][n] for n in line["valid_by_source"])


def test_spent_flops_are_fields_of_their_own(tmp_path: Path) -> None:
    args = tiny.arguments(tmp_path)
    tiny.train(tiny.llama(), args, tiny.rows(4), objective("rho1"), flops_spent=FlopsSpent(3e9, 5e9))
    (line,) = lines(tmp_path)
    assert (line["flops_scoring"], line["flops_reference"]) == (3e9, 5e9)


def test_sampled_rows_do_not_depend_on_the_split() -> None:
    """The sample of a step is the same rows whether it came in one batch or in four; ignored rows are never in it."""
    config = TokenLogConfig(every=1, rows=3)
    rows = torch.tensor([7, -1, 3, 9, 12, -1, 4, 1])
    whole = set(rows[logged_rows(config, 5, rows)].tolist())
    picked = torch.cat([part[logged_rows(config, 5, part)] for part in rows.split(2)])
    assert set(picked[logged_rows(config, 5, picked)].tolist()) == whole
    assert len(whole) == 3
    assert -1 not in whole
    assert whole != set(rows[logged_rows(config, 6, rows)].tolist())
    assert logged_rows(config, 5, torch.tensor([-1, -1])).tolist() == []


class StopAt(TrainerCallback):
    """Ends training after a step as a kill would: nothing more is saved or logged."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("saved_at", "killed_after"), [(3, 5), (4, 7), (5, 7)])
def test_resume_is_the_uninterrupted_run(tmp_path: Path, saved_at: int, killed_after: int) -> None:
    """Killed after a checkpoint within an epoch, at its end, or in the second: lines and samples of steps that were lost
    must go, sums come back, and weights, row order and every byte of the log be those of a run that was never stopped."""
    from tokensieve.training.trainer import SelectiveTrainer

    settings = {
        "save_strategy": "steps",
        "save_steps": saved_at,
        "optim": "adamw_torch",
        "lr_scheduler_type": "cosine",
        "learning_rate": 0.01,
        "logging_steps": 1,
    }
    whole = run(tmp_path / "whole", **settings)
    folder = tmp_path / "killed"
    args = tiny.arguments(folder, 2, 2, max_steps=8, train_sampling_strategy="random", **settings)
    stop = [StopAt(killed_after)]
    with pytest.raises(KeyboardInterrupt):
        tiny.train(tiny.llama(), args, tiny.rows(13), objective("rho1"), token_log=EVERY, callbacks=stop)
    assert len(lines(folder)) > saved_at or (folder / "tokens" / "step-00000006.parquet").exists()
    args = tiny.arguments(folder, 2, 2, max_steps=8, train_sampling_strategy="random", **settings)
    data = tiny.rows(13)
    trainer = SelectiveTrainer(
        tiny.llama(seed=5), args, train_dataset=data, objective=objective("rho1"), token_log=EVERY
    )
    trainer.train(resume_from_checkpoint=True)
    for name, value in tiny.weights(whole.model).items():
        assert torch.equal(tiny.weights(trainer.model)[name], value), name
    assert written(folder) == written(tmp_path / "whole")


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path: Path) -> None:
    """json.loads on half a line: the run could not be resumed at all."""
    log = TokenLog(tmp_path, TokenLogConfig(), StepFlops(TokenFlops(1, 1)), FlopsSpent())
    names = {"valid": 10, "kept": 4, "kept_nll": 8.0, "dropped_nll": 12.0, "weighted_nll": 8.0, "denominator": 4}
    sums = np.array([[float(n) for n in names.values()]] * 2)
    for step in (1, 2):
        log.add(step, {name: torch.zeros(()) for name in names}, torch.zeros(()), 16)
    log.write(log.lines(sums, np.array([0.5, np.inf]), np.array([16, 16])))
    with open(tmp_path / "tokens.jsonl", "a", encoding="utf-8") as f:
        f.write('{"step": 3, "tok')
    assert lines_of(tmp_path)[1]["threshold"] is None
    late = [tmp_path / "tokens" / f"step-{step:08d}.parquet" for step in (2, 3)]
    late[0].parent.mkdir()
    for path in late:
        path.touch()
    log.rewind(2, write=True)
    assert [path.exists() for path in late] == [True, False]
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]
    assert (log.tokens_seen, log.tokens_trained) == (20, 8)
    log.rewind(1, write=True)
    assert (log.tokens_seen, log.tokens_trained, log.flops_student) == (10, 4, log.flops.of(16, 4))
    log.rewind(0, write=True)
    assert (log.tokens_seen, log.tokens_trained, log.flops_student) == (0, 0, 0)
    assert lines(tmp_path) == []


def lines_of(folder: Path) -> list[dict[str, Any]]:
    whole = (folder / "tokens.jsonl").read_text(encoding="utf-8").rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def test_training_again_starts_the_count_again(tmp_path: Path) -> None:
    """A second ``train()`` of one Trainer went on counting from the first."""
    from tokensieve.training.trainer import SelectiveTrainer

    trainer = SelectiveTrainer(tiny.llama(), tiny.arguments(tmp_path, 4), train_dataset=tiny.rows(4))
    trainer.train()
    first = lines(tmp_path)
    trainer.train()
    (line,) = lines(tmp_path)
    assert line["tokens_seen"] == first[0]["tokens_seen"] == line["valid"]
