"""Everything kept is plain training: the Hugging Face Trainer's own, on the same rows in the same order.

Equality is a matter of float64, where both differ by rounding alone. In float32 two right answers differ by what the order of
a sum, and so the processor, makes of it: there the truth is the Trainer's own run in float64, and ours may be as far from it
as the Trainer's run in float32 is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Trainer

from tokensieve.core import objective
from tokensieve.data.rows import Rows, collate

STEPS = 25
KEEP_ALL = [objective("clm"), objective("rho1", ratio=1.0), objective("rho1", ratio=1.0, scope="step")]


def cross_entropy(outputs: Any, labels: Tensor, num_items_in_batch: Any) -> Tensor:
    """The model's own loss, without its cast of the logits to float32."""
    logits_TV, targets_T = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return F.cross_entropy(logits_TV, targets_T, reduction="sum") / num_items_in_batch


def plain_training(folder: Path, data: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights after the Trainer of transformers itself, which knows nothing of ours."""

    def labelled(items: list[dict[str, Any]]) -> dict[str, Any]:
        return {k: v for k, v in collate(items).items() if k in ("input_ids", "labels")}

    model = tiny.llama(dtype=dtype)
    loss = cross_entropy if dtype == torch.float64 else None
    args = arguments(folder)
    Trainer(model, args, train_dataset=Rows(data), data_collator=labelled, compute_loss_func=loss).train()
    return tiny.weights(model)


def arguments(folder: Path) -> Any:
    return tiny.arguments(folder, 2, 2, max_steps=STEPS, learning_rate=0.04, logging_steps=10)


def our_training(folder: Path, data: Any, made: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    model = tiny.llama(dtype=dtype)
    tiny.train(model, arguments(folder), data, made)
    return tiny.weights(model)


def distance(found: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    """Root of the summed squares of all differences, over all weights."""
    return float(sum(((found[n].double() - truth[n]) ** 2).sum() for n in truth) ** 0.5)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[torch.dtype, dict[str, Tensor]]]:
    """(rows, dtype -> weights of the plain Trainer)."""
    data, folder = tiny.rows(STEPS * 4), tmp_path_factory.mktemp("plain")
    return data, {dtype: plain_training(folder, data, dtype) for dtype in (torch.float64, torch.float32)}


@pytest.mark.parametrize("made", KEEP_ALL, ids=lambda o: f"{o.name}-{o.scope}")
def test_its_steps_are_the_trainers_own(tmp_path: Path, plain: Any, made: Any) -> None:
    """A wrong factor, denominator or shift anywhere shows after 25 steps of SGD. Nothing is clipped: clipping would hide a
    factor. It was compared in float32 to 1e-6, and an AMD EPYC's sums came out at 1.06e-6."""
    data, wanted = plain[0], plain[1][torch.float64]
    start = tiny.weights(tiny.llama(dtype=torch.float64))
    found = our_training(tmp_path, data, made, torch.float64)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=1e-12, msg=name)
    assert max(float((wanted[n] - start[n]).abs().max()) for n in wanted) > 0.1  # it went somewhere


@pytest.mark.parametrize("made", KEEP_ALL, ids=lambda o: f"{o.name}-{o.scope}")
def test_in_float32_no_further_from_the_truth(tmp_path: Path, plain: Any, made: Any) -> None:
    """A cast too many. The two distances are two draws of the same rounding: 0.7 to 1.2 of each other from one instruction set
    to the next, where gradients of logits rounded to bfloat16 give 400."""
    data, truth, of_trainer = plain[0], plain[1][torch.float64], plain[1][torch.float32]
    found = our_training(tmp_path, data, made, torch.float32)
    assert distance(found, truth) <= 3 * distance(of_trainer, truth)
