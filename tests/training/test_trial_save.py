"""What fails only in a save is met before the first step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from transformers import GenerationConfig

from tokensieve.core import objective
from tokensieve.modeling.load import load_causal_lm
from tokensieve.runs.errors import UserError
from tokensieve.training.trainer import SelectiveTrainer
from tokensieve.training.trial_save import _wrong


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        ({"temperature": 0.6, "top_p": 0.9, "do_sample": False}, {"temperature": None, "top_p": None}),
        ({"min_p": 0.1, "max_length": 77}, {"min_p": None, "max_length": 77}),
        ({"top_k": 5, "typical_p": 0.9, "repetition_penalty": 1.5}, {"top_k": None, "repetition_penalty": 1.5}),
        ({"early_stopping": True, "max_length": 77}, {"max_length": None}),  # nothing to put right: a new one
        ({"temperature": 0.6, "do_sample": True}, {"temperature": 0.6, "do_sample": True}),
    ],
)
def test_a_generation_config_ends_no_run(
    fields: dict[str, Any], left: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Released models have a temperature without do_sample: training ran to its first checkpoint and ended there."""
    model = tiny.llama()
    model.generation_config = GenerationConfig(**fields)
    is_wrong = _wrong(model.generation_config) is not None
    args = tiny.arguments(tmp_path, save_strategy="steps", save_steps=1)
    tiny.train(model, args, tiny.rows(8), objective("clm"))
    saved = GenerationConfig.from_pretrained(tmp_path / "checkpoint-1")
    assert {name: getattr(saved, name) for name in left} == left
    assert ("generation config cannot be saved" in capsys.readouterr().err) == is_wrong
    load_causal_lm(tmp_path / "checkpoint-1")
    assert not list(tmp_path.glob(".trial-*"))


def unsaved_config(model: Any, kwargs: dict[str, Any]) -> None:
    model.config.callback = object()


def unsaved_tokenizer(model: Any, kwargs: dict[str, Any]) -> None:
    class Tokenizer:
        def save_pretrained(self, folder: str) -> None:
            raise ImportError("sentencepiece is needed")

    kwargs["processing_class"] = Tokenizer()


def unsaved_arguments(model: Any, kwargs: dict[str, Any]) -> None:
    kwargs["args"].lr_scheduler_kwargs = {"gamma": lambda step: 1.0}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (unsaved_config, "the model's config cannot be saved, so that the run would end at its first checkpoint: "),
        (unsaved_tokenizer, "the tokenizer cannot be saved, so that .* first checkpoint: sentencepiece is needed"),
        (unsaved_arguments, "training arguments cannot be saved, so that the run would end at its first checkpoint: "),
    ],
)
def test_refused_before_the_first_step(spoil: Callable[[Any, dict[str, Any]], None], said: str, tmp_path: Path) -> None:
    model, kwargs = tiny.llama(), {"args": tiny.arguments(tmp_path)}
    spoil(model, kwargs)
    with pytest.raises(UserError, match=said):
        SelectiveTrainer(model, train_dataset=tiny.rows(8), **kwargs)
    assert not (tmp_path / "tokens.jsonl").exists()


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    """A file where the run's folder should be, or a folder that nobody may write into."""
    args = tiny.arguments(tmp_path / "run")
    model = tiny.llama()
    (tmp_path / "taken").write_text("")
    args.output_dir = str(tmp_path / "taken" / "run")
    with pytest.raises((UserError, OSError), match=r"nothing can be written into|Not a directory"):
        SelectiveTrainer(model, args, train_dataset=tiny.rows(8))
