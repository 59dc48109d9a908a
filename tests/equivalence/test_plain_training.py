"""Everything kept is plain training: the Hugging Face Trainer's own, on the same rows in the same order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import Trainer

from tokensieve.core import objective
from tokensieve.data.rows import Rows, collate

STEPS = 50


def plain_training(folder: Path, data: Any, args: Any) -> Any:
    """The model after the Trainer of transformers itself, which knows nothing of ours."""

    def labelled(items: list[dict[str, Any]]) -> dict[str, Any]:
        return {k: v for k, v in collate(items).items() if k in ("input_ids", "labels")}

    model = tiny.llama()
    Trainer(model, args, train_dataset=Rows(data), data_collator=labelled).train()
    return model


def arguments(folder: Path) -> Any:
    return tiny.arguments(folder, 2, 2, max_steps=STEPS, learning_rate=0.02, logging_steps=10)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("plain")
    data = tiny.rows(STEPS * 4)
    return data, tiny.weights(plain_training(folder, data, arguments(folder)))


@pytest.mark.parametrize(
    "made",
    [objective("clm"), objective("rho1", ratio=1.0), objective("rho1", ratio=1.0, scope="step")],
    ids=lambda o: f"{o.name}-{o.scope}",
)
def test_fifty_steps_are_the_trainers_own(tmp_path: Path, plain: Any, made: Any) -> None:
    """A wrong factor, denominator or shift anywhere shows after 50 steps of SGD in float32. Nothing is clipped:
    clipping would hide a factor."""
    data, wanted = plain
    model = tiny.llama()
    start = tiny.weights(model)
    tiny.train(model, arguments(tmp_path), data, made)
    found = tiny.weights(model)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=1e-6, msg=name)
    assert max(float((wanted[n] - start[n]).abs().max()) for n in wanted) > 0.1  # it went somewhere
