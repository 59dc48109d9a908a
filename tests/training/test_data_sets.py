"""Data sets of other tools through the trainer: the loss of the right tokens, or a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from datasets import Dataset, DatasetDict

from tokensieve.core import objective
from tokensieve.runs.errors import UserError
from tokensieve.training.trainer import SelectiveTrainer

T = 16
IDS = [[(7 * i + 3 * t * t) % 96 + 1 for t in range(T)] for i in range(4)]
LABELLED = [[-100 if t in (0, 8) else x for t, x in enumerate(ids)] for ids in IDS]


def trained(folder: Path, columns: Any, **fields: Any) -> dict[str, Any]:
    """The first line of the log of a step over four rows."""
    data = columns if isinstance(columns, Dataset) else Dataset.from_dict(columns)
    tiny.train(tiny.llama(), tiny.arguments(folder, 4, 1, **fields), data, objective("clm"))
    return tiny.log_lines(folder)[-1]


def evaluated(folder: Path, columns: dict[str, Any]) -> float:
    """Mean nll of fresh weights, through the same reader."""
    args = tiny.arguments(folder, per_device_eval_batch_size=4)
    made = SelectiveTrainer(tiny.llama(), args, eval_dataset=Dataset.from_dict(columns))
    return float(made.evaluate()["eval_nll"])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A step over IDS, nothing beside them."""
    return trained(tmp_path_factory.mktemp("plain"), {"input_ids": IDS})


WAYS: dict[str, dict[str, Any]] = {
    "positions": {"position_ids": [[*range(8), *range(8)]] * 4},
    "positions-and-ones": {"position_ids": [[*range(8), *range(8)]] * 4, "attention_mask": [[1] * T] * 4},
    "positions-ones-labels": {
        "position_ids": [[*range(8), *range(8)]] * 4,
        "attention_mask": [[1] * T] * 4,
        "labels": LABELLED,
    },
    "lengths": {"seq_lengths": [[8, 8]] * 4},
    "numbered-mask": {"attention_mask": [[1] * 8 + [2] * 8] * 4},
    "cumulative": {"cu_seqlens": [[0, 8, 16]] * 4},
}


@pytest.mark.parametrize("way", WAYS)
def test_packed_rows_are_their_pieces(tmp_path: Path, way: str) -> None:
    """Attention crossed documents, or each one's first token was predicted from another's end."""
    pieces = torch.tensor([ids[i : i + 8] for ids in IDS for i in (0, 8)])
    wanted = tiny.llama()(input_ids=pieces, labels=pieces).loss.item()
    data = {"input_ids": IDS, **WAYS[way]}
    assert evaluated(tmp_path, data) == pytest.approx(wanted, abs=1e-5)
    if way in ("positions-and-ones", "numbered-mask"):
        line = trained(tmp_path, data)
        assert line["valid"] == 4 * 14
        assert line["loss"] == pytest.approx(wanted, abs=1e-5)


def test_a_transforms_labels_are_trained_on(tmp_path: Path) -> None:
    """The transform was never called, and every token was a target."""
    data = Dataset.from_dict({"input_ids": IDS})
    made = data.with_transform(lambda b: {**b, "labels": [[-100] * 10 + ids[10:] for ids in b["input_ids"]]})
    assert trained(tmp_path, made)["valid"] == 4 * 6


# Rows that say nothing, behind the four that do.
NOTHING: dict[str, dict[str, Any]] = {
    "one-token": {"input_ids": [*IDS, [5]]},
    "empty": {"input_ids": [*IDS, []]},
    "a-batch-of-empty": {"input_ids": [*IDS, [], [], [], []]},
    "all-masked": {"input_ids": [*IDS, [0] * T], "attention_mask": [[1] * T] * 4 + [[0] * T]},
    "padded-on-the-left": {
        "input_ids": [*IDS[:3], [0, 0, *IDS[3]]],
        "attention_mask": [[1] * T] * 3 + [[0, 0] + [1] * T],
    },
}


@pytest.mark.parametrize("what", NOTHING)
def test_rows_without_targets_change_nothing(tmp_path: Path, what: str, plain: dict[str, Any]) -> None:
    """One empty row among good ones was an IndexError."""
    assert evaluated(tmp_path, NOTHING[what]) == pytest.approx(plain["loss"], rel=1e-5)
    if what in ("one-token", "a-batch-of-empty", "all-masked"):
        line = trained(tmp_path, NOTHING[what], gradient_accumulation_steps=2)
        assert line["valid"] == 4 * (T - 1)
        assert line["loss"] == pytest.approx(plain["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("columns", "fields", "says"),
    [
        ({"input_ids": IDS}, {"dataloader_drop_last": True, "gradient_accumulation_steps": 2}, "4 rows, 8 a step"),
        (
            {"input_ids": IDS},
            {"dataloader_drop_last": True, "per_device_train_batch_size": 5, "max_steps": -1, "num_train_epochs": 3},
            "4 rows, 5 a step",
        ),
        ({"input_ids": IDS}, {"max_steps": 0}, "leave no step to do"),
        ({"input_ids": IDS}, {"max_steps": -1, "num_train_epochs": 0}, "leave no step to do"),
        ({"input_ids": IDS, "labels": [[-100] * T] * 4}, {}, "nothing to predict"),
        ({"input_ids": [[1], [], [2]]}, {}, "nothing to predict"),
    ],
)
def test_no_step_can_be_done(tmp_path: Path, columns: Any, fields: dict[str, Any], says: str) -> None:
    """The trainer did nothing, returned, and the untrained model was saved as a trained one."""
    with pytest.raises(UserError, match=says):
        trained(tmp_path, columns, **fields)
    assert not list(tmp_path.iterdir()), "nothing is written before"


@pytest.mark.parametrize(
    "columns",
    [
        {"input_ids": [[*ids[:3], 97] for ids in IDS]},
        {"input_ids": IDS, "labels": [[-1, *ids[1:]] for ids in IDS]},
        {"input_ids": IDS, "labels": [[97, *ids[1:]] for ids in IDS]},
    ],
)
def test_the_model_says_which_ids_there_are(tmp_path: Path, columns: Any) -> None:
    with pytest.raises(UserError, match=f"row 0: column .* a token id of a vocabulary of {tiny.VOCAB}"):
        trained(tmp_path, columns)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (DatasetDict(train=Dataset.from_dict({"input_ids": IDS})), "DatasetDict of train: give one of them"),
        ([{"input_ids": ids} for ids in IDS], "not list: Dataset.from_list"),
        ({"input_ids": IDS}, "not dict: Dataset.from_dict"),
        (Dataset.from_dict({"input_ids": IDS}).to_iterable_dataset(), "not IterableDataset"),
        (torch.utils.data.TensorDataset(torch.tensor(IDS)), "not TensorDataset"),
    ],
)
def test_what_is_no_data_set(tmp_path: Path, data: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        SelectiveTrainer(tiny.llama(), tiny.arguments(tmp_path), train_dataset=data)


def test_columns_are_ignored_where_that_is_said(tmp_path: Path) -> None:
    """In the data sets of evaluations too."""
    data = Dataset.from_dict({"input_ids": IDS, "user_weight": [[0.5] * T] * 4})
    for given in ({"train_dataset": data}, {"eval_dataset": data}, {"eval_dataset": {"x": data}}):
        with pytest.raises(UserError, match="column 'user_weight' has an entry for each token"):
            SelectiveTrainer(tiny.llama(), tiny.arguments(tmp_path), **given)
    made = SelectiveTrainer(
        tiny.llama(), tiny.arguments(tmp_path), train_dataset=data, eval_dataset=data, ignore_columns=["user_weight"]
    )
    assert made.evaluate()["eval_nll"] > 0
    made.train()


# --- arguments -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"train_sampling_strategy": "group_by_length"},
        {"train_sampling_strategy": "batch_rebalance"},
        {"label_names": ["targets"]},
        {"average_tokens_across_devices": False},
        {"dataloader_in_order": False},
        {"accelerator_config": {"split_batches": True}},
        {"accelerator_config": {"dispatch_batches": True}},
        {"auto_find_batch_size": True},
        {"use_liger_kernel": True},
        {"label_smoothing_factor": 0.1},
    ],
)
def test_arguments_that_are_not_kept_to_are_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    """group_by_length and others were passed over without a word: our sampler, denominator and loss know nothing of them."""
    data = Dataset.from_dict({"input_ids": IDS})
    with pytest.raises(UserError, match=f"^{next(iter(fields))}.* is not supported: "):
        SelectiveTrainer(tiny.llama(), tiny.arguments(tmp_path, **fields), train_dataset=data)


def test_arguments_that_change_no_number(tmp_path: Path, plain: dict[str, Any]) -> None:
    fields = {
        "remove_unused_columns": False,
        "include_num_input_tokens_seen": "all",
        "torch_empty_cache_steps": 1,
        "accelerator_config": {"even_batches": False, "use_seedable_sampler": False},
        "label_names": ["labels"],
    }
    assert trained(tmp_path, {"input_ids": IDS}, **fields)["loss"] == plain["loss"]
