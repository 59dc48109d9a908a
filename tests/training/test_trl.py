"""SelectiveSFTTrainer beside TRL's SFTTrainer: the same text, the same settings, and what a column of weights does to it.

Equality is a matter of float64. TRL's fused head computes in float32 whatever it is given, so here it has another kernel, a few
lines of torch; the one test without it is as near as float32 lets it be.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import tiny
import torch
import trl
import trl.trainer.utils
import words
from torch import Tensor
from trl import SFTConfig, SFTTrainer

import tokensieve as ts
from tokensieve.data.rows import collate

TOKENIZER = words.tokenizer()
WORDS = words.sentences(12, 5, 20)
ANSWERS = words.sentences(12, 2, 9, seed=1)
IDS = [TOKENIZER(text).input_ids for text in WORDS]
DATA: dict[str, dict[str, Any]] = {
    "text": {"text": WORDS},
    "completion": {"prompt": [f"{w} " for w in WORDS], "completion": ANSWERS},
    "chat": {
        "messages": [
            [{"role": "user", "content": w}, {"role": "assistant", "content": a}, {"role": "user", "content": a}]
            for w, a in zip(WORDS, ANSWERS, strict=True)
        ]
    },
    "ids": {"input_ids": IDS},
}
BFD = {"packing": True, "packing_strategy": "bfd", "max_length": 24}
SPLIT = {"packing": True, "packing_strategy": "bfd_split", "max_length": 10}
WRAPPED = {"packing": True, "packing_strategy": "wrapped", "max_length": 24}


class Head64:
    """TRL's kernel, in float64."""

    @staticmethod
    def apply(hidden: Tensor, weight: Tensor, bias: Any, targets: Tensor, *rest: Any) -> tuple[Any, ...]:
        logp = (hidden @ weight.T).log_softmax(-1)
        picked = logp.gather(-1, targets[:, None]).squeeze(-1)
        return picked, -(logp.exp() * logp).sum(-1), None, None, logp.argmax(-1) == targets


@pytest.fixture(autouse=True)
def float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trl.trainer.utils, "_ChunkedLogProbFunction", Head64)


def settings(folder: Path, **fields: Any) -> SFTConfig:
    given = {k: v for k, v in tiny.arguments(folder, 2, 2).to_dict().items() if k in SGD}
    return SFTConfig(str(folder), **{**given, "bf16": False, "max_steps": 2, "learning_rate": 0.1, **fields})


SGD = (
    *("per_device_train_batch_size", "gradient_accumulation_steps", "optim", "lr_scheduler_type", "max_grad_norm"),
    *("train_sampling_strategy", "report_to", "save_strategy", "logging_steps", "disable_tqdm", "use_cpu", "seed"),
)


def made(kind: Any, folder: Path, rows: Any, model: Any = None, *, peft: Any = None, **fields: Any) -> Any:
    """A trainer of TRL (``kind`` None), or of ours with the objective ``kind``."""
    model = tiny.llama(dtype=torch.float64) if model is None else model
    rows = datasets.Dataset.from_dict(rows) if isinstance(rows, dict) else rows
    given = {"train_dataset": rows, "processing_class": TOKENIZER, "peft_config": peft}
    if kind is None:
        return SFTTrainer(model, settings(folder, **fields), **given)
    return ts.SelectiveSFTTrainer(model, settings(folder, **fields), objective=kind, **given)


def moved(trainer: Any) -> dict[str, Tensor]:
    """What training subtracts from the weights."""
    before = tiny.weights(trainer.model)
    trainer.train()
    if hasattr(trainer, "seam"):
        trainer.seam.close()
    return {n: before[n] - w for n, w in tiny.weights(trainer.model).items()}


def with_weight(rows: dict[str, Any], weight: Any = None) -> dict[str, Any]:
    """One weight a row beside text, one a token beside ids."""
    ones = [[1.0] * len(ids) for ids in IDS] if "input_ids" in rows else [1.0] * len(IDS)
    return {**rows, "weight": ones if weight is None else weight}


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ids": ("ids", {}),
    "ids, shuffled": ("ids", {"shuffle_dataset": True, "max_length": 9, "truncation_mode": "keep_end"}),
    "text, wrapped": ("text", WRAPPED),
    "completion": ("completion", {"max_length": 12, "completion_only_loss": True}),  # five are all prompt, and dropped
    "completion, all, bfd": ("completion", {"completion_only_loss": False, **BFD}),
    "completion, split": ("completion", SPLIT),
    "chat, bfd": ("chat", {"assistant_only_loss": True, "shuffle_dataset": True, **BFD}),
}


@pytest.mark.parametrize("name", CASES)
def test_weights_of_one_are_trls_own_training(tmp_path: Path, name: str) -> None:
    """Two steps of two micro-batches: a mean of means, a label too many at a boundary or a column cut elsewhere shows."""
    kind, fields = CASES[name]
    wanted_run = made(None, tmp_path / "trl", DATA[kind], **fields)
    wanted = moved(wanted_run)
    run = made(ts.objective("clm"), tmp_path / "ours", with_weight(DATA[kind]), **fields)
    assert run.objective.multiplied
    assert tiny.gap(moved(run), wanted) < 1e-9
    losses = [[line["loss"] for line in r.state.log_history if "loss" in line] for r in (run, wanted_run)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("theirs", [Head64, None], ids=["float64", "as it is"])
def test_without_weights_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, theirs: Any) -> None:
    """Without an objective at all, and beside TRL's own kernel in float32."""
    if theirs is None:
        monkeypatch.undo()
    wanted = moved(made(None, tmp_path / "trl", DATA["chat"], **BFD))
    run = ts.SelectiveSFTTrainer(
        tiny.llama(dtype=torch.float64),
        settings(tmp_path / "ours", **BFD),
        train_dataset=datasets.Dataset.from_dict(DATA["chat"]),
        processing_class=TOKENIZER,
    )
    assert tiny.gap(moved(run), wanted) < (1e-9 if theirs else 1e-5)


def test_dft_is_trls(tmp_path: Path) -> None:
    wanted = moved(made(None, tmp_path / "trl", DATA["ids"], loss_type="dft"))
    found = moved(made(ts.objective("dft", denominator="valid"), tmp_path / "ours", DATA["ids"]))
    assert tiny.gap(found, wanted) < 1e-6  # our nll is told in float32


def test_lora(tmp_path: Path) -> None:
    """TRL wraps the model; its adapters take the steps that they take in TRL."""
    from peft import LoraConfig

    def run(kind: Any, rows: Any) -> dict[str, Tensor]:
        peft = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        trainer = made(kind, tmp_path / str(kind is None), rows, peft=peft, **BFD)
        trainer.model.double()
        return {n: w for n, w in moved(trainer).items() if "lora" in n}

    wanted = run(None, DATA["completion"])
    assert len(wanted) == 8
    assert tiny.gap(run(ts.objective("clm"), with_weight(DATA["completion"])), wanted) < 1e-9


def test_router_losses(tmp_path: Path) -> None:
    """The coefficient of TRL's settings stands for the model's own, which models read once, when they are made."""
    fields = {"router_aux_loss_coef": 0.5, "gradient_checkpointing": False}
    wanted = moved(made(None, tmp_path / "trl", DATA["ids"], tiny.mixtral(), **fields))
    found = moved(made(ts.objective("clm"), tmp_path / "ours", with_weight(DATA["ids"]), tiny.mixtral(), **fields))
    assert tiny.gap(found, wanted) < 1e-9


# --- weights ----------------------------------------------------------------------------------------------------------------


def drawn() -> list[list[float]]:
    """0 or 1 for each token."""
    g = torch.Generator().manual_seed(0)
    return [(torch.rand(len(ids), generator=g) < 0.6).double().tolist() for ids in IDS]


@pytest.mark.parametrize("fields", [{}, BFD], ids=["rows", "bfd"])
def test_a_weight_of_0_is_a_label_of_minus_100(tmp_path: Path, fields: dict[str, Any]) -> None:
    """Beside TRL itself: dropping by a weight is ignoring by a label, where the denominator says so."""
    labels = [
        [i if w else -100 for i, w in zip(ids, weight, strict=True)] for ids, weight in zip(IDS, drawn(), strict=True)
    ]
    wanted = moved(made(None, tmp_path / "trl", {"input_ids": IDS, "labels": labels}, **fields))
    rule = ts.objective("clm", denominator="nonzero")
    assert tiny.gap(moved(made(rule, tmp_path / "ours", with_weight(DATA["ids"], drawn()), **fields)), wanted) < 1e-9


def test_a_power_of_two_scales_the_update_and_nothing_else(tmp_path: Path) -> None:
    """Weights of 1/64, one for each row, in packed rows: a 64th of TRL's own step."""
    wanted = moved(made(None, tmp_path / "trl", DATA["text"], max_steps=1, **BFD))
    rule = ts.objective("clm", denominator="valid")
    less = moved(made(rule, tmp_path / "64", with_weight(DATA["text"], [1 / 64] * len(IDS)), max_steps=1, **BFD))
    assert tiny.gap({n: 64 * g for n, g in less.items()}, wanted) < 1e-9


@pytest.mark.parametrize(
    "fields",
    [BFD, SPLIT, WRAPPED, {"max_length": 8}, {"max_length": 8, "truncation_mode": "keep_end"}],
    ids=["bfd", "bfd_split", "wrapped", "keep_start", "keep_end"],
)
def test_columns_stay_with_their_tokens(tmp_path: Path, fields: dict[str, Any]) -> None:
    """TRL's packing leaves ids and labels, its truncation cuts only these, its collator knows no other column."""
    rows = {
        "input_ids": IDS,
        "weight": [[i / 8 for i in ids] for ids in IDS],
        "ref_nll": [[i / 4 for i in ids] for ids in IDS],
    }
    fields = {"shuffle_dataset": True, **fields}
    run = made(ts.objective("rho1"), tmp_path / "ours", rows, **fields)
    theirs = made(None, tmp_path / "trl", DATA["ids"], **fields).train_dataset
    assert [r["input_ids"].tolist() for r in run.train_dataset] == theirs["input_ids"]
    loader = run.get_train_dataloader()
    assert len(loader) > 2
    for batch in loader:
        torch.testing.assert_close(batch["weight"], batch["input_ids"] / 8, rtol=0, atol=0, check_dtype=False)
        torch.testing.assert_close(batch["ref_nll"], batch["input_ids"] / 4, rtol=0, atol=0, check_dtype=False)


def test_one_number_for_a_row_however_rows_are_cut(tmp_path: Path) -> None:
    """A rule's column of one number a row was that of all its tokens where rows were cut or packed, and refused elsewhere."""
    numbers = [i / 4 for i in range(len(IDS))]
    rule = ts.objective("rho1_low_ref", ratio=0.5)
    for place, fields in enumerate(({}, {"max_length": None}, {"max_length": 8})):
        run = made(rule, tmp_path / str(place), {**DATA["text"], "ref_nll": numbers}, tiny.llama(), **fields)
        rows = collate([run.train_dataset[i] for i in range(len(IDS))])
        for values, targets, number in zip(rows["ref_nll"], rows["targets"], numbers, strict=True):
            assert set(values[1:][targets[:-1] != -100].tolist()) == {number}
        run.seam.close()


def test_an_empty_data_set_is_a_sentence(tmp_path: Path) -> None:
    """TRL looks at its first row: it ended in a StopIteration without a word."""
    with pytest.raises(ts.UserError, match="there is nothing to train on: the data set is empty"):
        made(ts.objective("clm"), tmp_path, {"text": []}, tiny.llama())


def test_evaluation_and_saving(tmp_path: Path) -> None:
    """TRL prepares a data set that is given to ``evaluate`` as well; TRL writes its model card beside a checkpoint."""
    rows = datasets.Dataset.from_dict(DATA["chat"])
    model, args = (
        tiny.llama(dtype=torch.float64),
        settings(tmp_path, save_strategy="steps", save_steps=1, max_steps=1, **BFD),
    )
    run = ts.SelectiveSFTTrainer(model, args, train_dataset=rows, eval_dataset=rows, processing_class=TOKENIZER)
    run.train()
    assert (tmp_path / "README.md").exists()
    nll = run.evaluate()["eval_loss"]
    assert run.evaluate(rows)["eval_loss"] == nll
    batches = [collate([row]) for row in run.eval_dataset]
    total = count = 0.0
    for batch in batches:
        logits = model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
        ).logits.double()
        valid = batch["targets"] != -100
        picked = logits.log_softmax(-1).gather(-1, batch["targets"].clamp(min=0)[..., None])[..., 0]
        total, count = total - float(picked[valid].sum()), count + int(valid.sum())
    assert nll == pytest.approx(total / count, rel=1e-6)


# --- what is refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"use_liger_kernel": True}, "use_liger_kernel: True is not supported"),
        ({"loss_type": "dft"}, "loss_type: dft is not supported.*objective 'dft'"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor: 0.1 is not supported"),
        ({"padding_free": True, "max_length": None}, "padding_free: rows are padded here"),
        ({"padding_free": True, **WRAPPED}, "padding_free: rows are padded here"),
        ({"pad_to_multiple_of": 8}, "pad_to_multiple_of: 8 is not supported"),
        ({"activation_offloading": True}, "activation_offloading: True is not supported"),
        ({"truncation_mode": "middle"}, "truncation_mode: middle is not supported: keep_start or keep_end"),
        ({"packing": True, "max_length": None}, "packing needs max_length"),
    ],
)
def test_settings_that_would_be_passed_over(tmp_path: Path, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ts.UserError, match=says):
        made(ts.objective("clm"), tmp_path, DATA["ids"], tiny.llama(), **fields)


@pytest.mark.parametrize(
    ("rows", "fields", "says"),
    [
        ({**DATA["ids"], "weight": [[1.0] * 3] * 12}, BFD, r"row 0: column 'weight' has 3 entries for \d+ tokens"),
        ({**DATA["text"], "weight": [[1.0, 0.5]] * 12}, {}, r"row \d+: column 'weight' has 2 entries for \d+ tokens"),
        (
            {**DATA["ids"], "advantage": [[1.0] * len(i) for i in IDS]},
            BFD,
            "column 'advantage' has an entry for each token",
        ),
        (
            {**DATA["ids"], "seq_lengths": [[len(i)] for i in IDS]},
            BFD,
            "column 'seq_lengths' says how a row is divided",
        ),
        ({**DATA["ids"], "images": [["x"]] * 12}, {}, "column 'images': rows with images"),
    ],
)
def test_rows_that_would_be_misread(tmp_path: Path, rows: Any, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ts.UserError, match=says):
        made(ts.objective("clm"), tmp_path, rows, tiny.llama(), **fields).train()


def test_a_stream_is_refused(tmp_path: Path) -> None:
    stream = datasets.Dataset.from_dict(DATA["ids"]).to_iterable_dataset()
    with pytest.raises(ts.UserError, match="not IterableDataset"):
        made(ts.objective("clm"), tmp_path, stream, tiny.llama())


def test_keywords_of_another_loss(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict(DATA["ids"])
    with pytest.raises(ts.UserError, match="compute_loss_func"):
        ts.SelectiveSFTTrainer(tiny.llama(), settings(tmp_path), train_dataset=rows, compute_loss_func=len)
    with pytest.raises(ts.UserError, match="data_collator"):
        ts.SelectiveSFTTrainer(tiny.llama(), settings(tmp_path), train_dataset=rows, data_collator=len)
