"""What the trainer proves of a model before step one: of its rows and of every evaluation set, as it feeds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from architectures import V, build
from datasets import Dataset

from tokensieve.core import objective
from tokensieve.runs.errors import UserError
from tokensieve.training.trainer import SelectiveTrainer

ROWS = tiny.rows(8, uneven=False).remove_columns("ref_nll")
STARTS = [[0, 7], [0], [0, 3, 4, 10], [0, 12]] * 2
ISOLATED = Dataset.from_dict({"input_ids": ROWS["input_ids"], "doc_starts": STARTS, "isolated": [True] * 8})


def trainer(folder: Path, model: Any, data: Any = ROWS, evals: Any = None, **fields: Any) -> SelectiveTrainer:
    given = {"eval_strategy": "steps", "per_device_eval_batch_size": 2, **fields} if evals is not None else fields
    return SelectiveTrainer(model, tiny.arguments(folder, 4, **given), train_dataset=data, eval_dataset=evals)


def crossing(model: Any) -> Any:
    """Sees the token before it, whatever document that belongs to. Nothing is wrong with it on plain rows."""
    shift = (0, 0, 1, 0)
    model.model.layers[0].register_forward_hook(
        lambda module, args, out: out + 0.1 * torch.nn.functional.pad(out[:, :-1], shift)
    )
    return model


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3-softcap", "gpt2"])
def test_a_cache_does_not_turn_isolation_off(tmp_path: Path, name: str) -> None:
    """training.use_cache: true: the probe ran without it and passed, and attention crossed documents (5.0650 for 5.1478)."""
    found = []
    for cache in (False, True):
        model = build(name)
        before = tiny.weights(model)
        tiny.train(model, tiny.arguments(tmp_path / str(cache), 4, use_cache=cache), ISOLATED, objective("clm"))
        found.append({n: before[n] - p for n, p in tiny.weights(model).items()})
    assert V == tiny.VOCAB
    assert tiny.gap(found[1], found[0]) < 1e-12


@pytest.mark.parametrize("evals", [ISOLATED, {"plain": ROWS, "isolated": ISOLATED}], ids=["one", "several"])
def test_every_evaluation_set_is_proved_before_training(tmp_path: Path, evals: Any) -> None:
    """Only the training rows were: the nll of isolated sets was of another model, for the whole run."""
    with pytest.raises(UserError, match="looks across document boundaries"):
        trainer(tmp_path, crossing(tiny.llama()), evals=evals).train()
    assert not (tmp_path / "tokens.jsonl").exists() or not tiny.log_lines(tmp_path)


def test_a_set_given_to_evaluate_is_proved(tmp_path: Path) -> None:
    made = trainer(tmp_path, crossing(tiny.llama()))
    assert made.evaluate(ROWS)["eval_loss"] > 0
    with pytest.raises(UserError, match="looks across document boundaries"):
        made.evaluate(ISOLATED)


def test_forwards_of_a_start(tmp_path: Path) -> None:
    """Three for each set, of micro-batches as they are fed; then the step, and the evaluation, which proves nothing again."""
    model, sizes = tiny.llama(), []
    model.model.register_forward_pre_hook(lambda module, args, kw: sizes.append(len(kw["input_ids"])), with_kwargs=True)
    trainer(tmp_path, model, evals={"a": ROWS, "b": ISOLATED}, eval_steps=1).train()
    assert sizes == [4, 4, 2] + [2, 2, 1] * 2 + [4] + [2] * 8


@pytest.mark.parametrize("first", [[], [5], [5, 6]])
def test_a_short_first_row_is_no_wrong_head(tmp_path: Path, first: list[int]) -> None:
    """A first row of one token was blamed on the head, an empty one an IndexError."""
    data = Dataset.from_dict({"input_ids": [first, *ROWS["input_ids"][:3]]})
    trainer(tmp_path, tiny.llama(), data).train()
    assert tiny.log_lines(tmp_path)[0]["valid"] == 3 * (tiny.LENGTH - 1) + max(0, len(first) - 1)


@pytest.mark.parametrize("fields", [{}, {"bf16": True}, {"gradient_checkpointing": True}])
def test_a_broken_model_is_told_before_step_one(tmp_path: Path, fields: dict[str, Any]) -> None:
    """A NaN was blamed on the head, a bidirectional model was trained to copy."""
    model = tiny.llama()
    model.model.layers[1].self_attn.o_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"the first in model\.layers\.1\.self_attn\.o_proj\.weight"):
        trainer(tmp_path, model, **fields).train()
    model = tiny.llama()
    model.model.layers[0].register_forward_hook(lambda module, args, out: out + out.mean(1, keepdim=True))
    with pytest.raises(UserError, match="sees later tokens"):
        trainer(tmp_path, model, **fields).train()


def test_a_compiled_model_is_proved_without_a_graph(tmp_path: Path) -> None:
    model, calls = tiny.llama(), []
    model.model.register_forward_pre_hook(lambda *_: calls.append(torch.compiler.is_compiling()))
    made = trainer(tmp_path, model)
    made.before_training(torch.compile(made.model, backend="eager"))
    assert calls == [False] * 3
