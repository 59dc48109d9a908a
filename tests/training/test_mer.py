"""Meta-experience replay: Reptile over stretches of steps, by hand; epsilon 1 is plain; a kill changes nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from tokensieve.core import objective
from tokensieve.training.options import Mer
from tokensieve.training.trainer import SelectiveTrainer


def trained(
    folder: Path, mer: Mer | None, steps: int = 5, resume: bool = False, **fields: Any
) -> dict[str, torch.Tensor]:
    args = tiny.arguments(folder, 2, **{"learning_rate": 0.1, "max_steps": steps, **fields})
    made = SelectiveTrainer(
        tiny.llama(dtype=torch.float64), args, train_dataset=tiny.rows(10), objective=objective("clm"), mer=mer
    )
    try:
        made.train(resume_from_checkpoint=resume or None)
    finally:
        made.seam.close()
    return tiny.weights(made.model)


def test_stretches_by_hand(tmp_path: Path) -> None:
    """Of 5 SGD steps and stretches of 2: twice a fifth of the way is kept, and the fifth step as it is. A weight at which a
    stretch began that is not that of the last meta-step would go too far back."""
    found = trained(tmp_path / "mer", Mer(every=2, epsilon=0.2))
    model = tiny.llama(dtype=torch.float64)
    batches = [{k: v[i : i + 2] for k, v in tiny.rows(10)[:].items()} for i in range(0, 10, 2)]
    start = tiny.weights(model)
    for step, batch in enumerate(batches, 1):
        gradients = tiny.truth_gradients(model, batch, lambda nll: torch.ones_like(nll))
        with torch.no_grad():
            for name, p in model.named_parameters():
                p -= 0.1 * gradients[name]
                if step % 2 == 0:
                    p.copy_(start[name] + 0.2 * (p - start[name]))
        if step % 2 == 0:
            start = tiny.weights(model)
    for name, weight in tiny.weights(model).items():
        assert torch.allclose(found[name], weight, rtol=0, atol=1e-10), name


def test_epsilon_1_is_plain_replay(tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain", None)
    for epsilon, same in ((1.0, True), (0.5, False)):
        found = trained(tmp_path / str(epsilon), Mer(every=2, epsilon=epsilon))
        assert all(torch.equal(found[name], plain[name]) for name in plain) is same


def test_it_goes_on_within_a_stretch(tmp_path: Path) -> None:
    """A checkpoint after 2 steps of 3: the weights at the stretch's beginning were lost, and the count began again. Of AdamW,
    whose own state must not be taken for there because of them."""
    fields = {"optim": "adamw_torch", "learning_rate": 0.01, "save_strategy": "steps", "save_steps": 2}
    whole = tmp_path / "whole"
    wanted = trained(whole, Mer(3, 0.3), **fields)
    killed = shutil.copytree(whole, tmp_path / "killed")
    for late in ("checkpoint-4", "checkpoint-5"):
        shutil.rmtree(killed / late, ignore_errors=True)
    log = (whole / "tokens.jsonl").read_bytes().splitlines(keepends=True)
    (killed / "tokens.jsonl").write_bytes(b"".join(log[:2]))
    found = trained(killed, Mer(3, 0.3), resume=True, **fields)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    "wrong", [{"every": 0, "epsilon": 0.5}, {"every": 2, "epsilon": 0.0}, {"every": 2, "epsilon": 1.5}]
)
def test_numbers_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"every|epsilon"):
        Mer(**wrong)
