"""What used to go wrong without a word: each of these once gave a number, and the wrong one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from datasets import Dataset
from transformers import Trainer

from tokensieve.core import Objective, TokenStats, objective
from tokensieve.data.rows import EpochSampler, Rows, collate
from tokensieve.runs.errors import UserError
from tokensieve.training.guards import NonFinite
from tokensieve.training.trainer import SelectiveTrainer

ROWS = tiny.rows()


def trainer(folder: Path, model: Any = None, dataset: Any = ROWS, **kwargs: Any) -> SelectiveTrainer:
    model = tiny.llama() if model is None else model
    return SelectiveTrainer(model, tiny.arguments(folder, 4, 2), train_dataset=dataset, **kwargs)


def test_a_resumed_epoch_has_its_own_order_on_several_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate's skipping loader passes set_epoch on to no sampler below a rank's shard: a run of two ranks resumed in its
    second epoch went through the first one's order again, and saw rows twice. The trainer tells the sampler itself."""
    from accelerate import PartialState
    from accelerate.data_loader import BatchSamplerShard, DataLoaderShard, skip_first_batches
    from torch.utils.data import BatchSampler

    PartialState(cpu=True)
    sampler = EpochSampler(8, 0, multiple=4)
    shard = BatchSamplerShard(BatchSampler(sampler, 2, False), 2, 0)
    skipping = skip_first_batches(DataLoaderShard(list(range(8)), batch_sampler=shard), 1)
    skipping.set_epoch(1)
    assert sampler.epoch == 0, "accelerate passes it on by now: _run_epoch need not"

    # Epochs that do nothing: here too nobody but the trainer could tell the sampler.
    seen: list[int] = []
    monkeypatch.setattr(Trainer, "_run_epoch", lambda self, *args, **kwargs: seen.append(self._sampler.epoch))
    args = tiny.arguments(tmp_path, 4, 2, max_steps=-1, num_train_epochs=3)
    SelectiveTrainer(tiny.llama(), args, train_dataset=ROWS).train()
    assert seen == [0, 1, 2]


def test_a_data_collator_of_its_own_is_refused(tmp_path: Path) -> None:
    """DataCollatorForLanguageModeling makes labels from input_ids: prompt masks were gone, ignored rows were trained on."""
    with pytest.raises(UserError, match="data_collator"):
        trainer(tmp_path, data_collator=lambda items: collate(items))


@pytest.mark.parametrize(
    ("given", "says"), [({"compute_metrics": len}, "compute_metrics"), ({"model_init": len}, "model_init")]
)
def test_what_needs_logits_is_refused(tmp_path: Path, given: dict[str, Any], says: str) -> None:
    """compute_metrics was handed logits of shape [7, 0, 97]."""
    with pytest.raises(UserError, match=says):
        trainer(tmp_path, **given)
    with pytest.raises(UserError, match="predict"):
        trainer(tmp_path).predict(ROWS)


def test_a_data_set_given_to_evaluate_is_read_like_the_others(tmp_path: Path) -> None:
    """It went past the row reader: an ignored row's index -1 took the last row, which then counted twice."""
    made = trainer(tmp_path, eval_dataset=ROWS)
    seven = ROWS.select(range(7))
    assert made.evaluate(seven)["eval_loss"] == made.evaluate(Rows(seven))["eval_loss"]
    assert made.evaluate(ROWS)["eval_loss"] == made.evaluate()["eval_loss"]


def test_padding_of_a_users_data_set_is_no_target() -> None:
    """A tokenizer's attention_mask was dropped: padding was attended to and trained on."""
    data = Dataset.from_dict({"input_ids": [[5, 6, 7, 0, 0]], "attention_mask": [[1, 1, 1, 0, 0]]})
    row = Rows(data)[0]
    assert row["labels"].tolist() == [5, 6, 7, -100, -100]
    assert collate([row])["attention_mask"].tolist() == [[1, 1, 1, 0, 0]]


def test_a_loss_mask_that_is_not_read_is_refused() -> None:
    """trl's completion_mask was ignored, and prompts were trained on."""
    data = Dataset.from_dict({"input_ids": [[5, 6]], "completion_mask": [[0, 1]]})
    with pytest.raises(UserError, match="completion_mask"):
        Rows(data)
    assert Rows(data.add_column("labels", [[-100, 6]]))[0]["labels"].tolist() == [-100, 6]


def test_isolated_rows_of_unequal_length_get_no_attention_mask() -> None:
    """With a mask beside them, restarting positions no longer stop attention, and pieces saw each other."""
    items = [
        {"input_ids": torch.arange(n), "labels": torch.arange(n), "position_ids": torch.arange(n) % 3} for n in (6, 4)
    ]
    assert "attention_mask" not in collate(items)


def test_weights_where_there_is_no_target_reach_no_sum(tmp_path: Path) -> None:
    """0 / 0 at an ignored place made the weight sum NaN, NaN passed for 1, and gradients came out sixty times too large."""

    def weigh(stats: TokenStats) -> torch.Tensor:
        return torch.where(stats.valid, 1.0, float("nan"))

    found = tiny.step_gradients(tmp_path / "nan", ROWS, Objective("nan", weigh), 4, 2)
    assert tiny.gap(found, tiny.step_gradients(tmp_path / "clm", ROWS, objective("clm"), 4, 2)) < 1e-6


def test_nan_weights_on_targets_are_seen(tmp_path: Path) -> None:
    """A NaN weight sum was taken for 1: training went on with raw sums for gradients, and a logged loss of 0."""
    broken = Objective("nan", lambda stats: stats.valid * float("nan"))
    with pytest.raises(
        NonFinite, match="objective 'nan' gives 8 rows weights that are not finite, first row 0 at position"
    ):
        tiny.step_gradients(tmp_path, ROWS, broken, 4, 2)


def test_step_scope_counts_its_first_pass(tmp_path: Path) -> None:
    """scope: step forwards twice, and its FLOPs were those of batch. The random control needs no nll, and no first pass."""
    spent = {}
    for name in ("rho1", "random"):
        for scope in ("batch", "step"):
            made = trainer(tmp_path / name / scope, objective=objective(name, ratio=0.5, scope=scope))
            made.train()
            spent[name, scope] = made.token_log.flops_student
    forward = made.token_log.flops.student.forward(8 * tiny.LENGTH)
    assert spent["rho1", "step"] == pytest.approx(spent["rho1", "batch"] + forward, rel=1e-3)
    assert spent["random", "step"] == pytest.approx(spent["random", "batch"], rel=1e-3)


def test_an_interrupted_trainer_starts_its_log_again(tmp_path: Path) -> None:
    """Steps that waited to be written when training was interrupted were written by the next train() of the same Trainer."""
    made = trainer(tmp_path)
    made.token_log.add(7, torch.zeros(6), torch.zeros(()), torch.zeros(()))  # type: ignore[arg-type]
    made.train()
    assert [line["step"] for line in tiny.log_lines(tmp_path)] == [1]
