"""Subset-Norm and Subspace-Momentum against loops, and at work beside AdamW."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import tiny as tiny_models
import torch

from tokensieve.pipeline.configs.train import TrainConfig
from tokensieve.pipeline.training_parts import state_bytes
from tokensieve.runs.errors import UserError
from tokensieve.training.optimizers import SubsetNorm, directions
from tokensieve.training.options import Mer, SubsetNormOptions
from tokensieve.training.trainer import SelectiveTrainer

GRADIENTS = [torch.randn(4, 3, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(4)]
LR, BETA1, BETA2, EPS, DECAY = 0.1, 0.8, 0.9, 1e-3, 0.5


def steps(optimizer: Any, weight: torch.nn.Parameter, turned: bool = False) -> None:
    for gradient in GRADIENTS:
        weight.grad = gradient.T.contiguous() if turned else gradient.clone()
        optimizer.step()


def made(shape: tuple[int, ...], **fields: Any) -> tuple[Any, torch.nn.Parameter]:
    weight = torch.nn.Parameter(torch.ones(shape, dtype=torch.float64))
    return SubsetNorm([weight], LR, (BETA1, BETA2), EPS, DECAY, **fields), weight


@pytest.mark.parametrize("turned", [False, True])
def test_one_second_moment_a_row(turned: bool) -> None:
    """A mean for the sum, a column for a row of a tall matrix, no bias correction: each is another step."""
    optimizer, weight = made((3, 4) if turned else (4, 3))
    steps(optimizer, weight, turned)
    w, m, v = [[1.0] * 3 for _ in range(4)], [[0.0] * 3 for _ in range(4)], [0.0] * 4
    for t, gradient in enumerate(GRADIENTS, 1):
        for i, row in enumerate(gradient.tolist()):
            v[i] = BETA2 * v[i] + (1 - BETA2) * sum(g * g for g in row)
            for j, g in enumerate(row):
                m[i][j] = BETA1 * m[i][j] + (1 - BETA1) * g
                size = LR * math.sqrt(1 - BETA2**t) / (1 - BETA1**t)
                w[i][j] -= size * m[i][j] / (math.sqrt(v[i]) + EPS)
                w[i][j] *= 1 - LR * DECAY
    expected = torch.tensor(w, dtype=torch.float64)
    assert torch.allclose(weight.detach(), expected.T if turned else expected, rtol=0, atol=1e-12)
    assert optimizer.state[weight]["exp_avg_sq"].numel() == 4


def test_momentum_in_a_subspace() -> None:
    """Without momentum it is plain Subset-Norm; of a gradient within the subspace it is the momentum's own."""
    plain, a = made((4, 3))
    sub, b = made((4, 3), rank=1, gap=100)
    for gradient in GRADIENTS:
        low = gradient[:, :1] @ torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)  # all in one direction
        a.grad, b.grad = low.clone(), low.clone()
        plain.step()
        sub.step()
    assert torch.allclose(a.detach(), b.detach(), rtol=0, atol=1e-5)  # its directions are found in float32
    assert sub.state[b]["exp_avg"].shape == (4, 1)
    basis = directions(GRADIENTS[0], 2)
    assert torch.allclose(basis.T @ basis, torch.eye(2, dtype=torch.float64), atol=1e-6)
    # What is outside the directions is taken as it is: one step of a gradient across them has no momentum's factor.
    across, c = made((4, 3), rank=1, gap=100)
    c.grad = low.clone()
    across.step()
    before, other = (
        c.detach().clone(),
        torch.tensor([[3.0, 0.0, -1.0]], dtype=torch.float64).repeat(4, 1),
    )  # at right angles
    momentum, squares = across.state[c]["exp_avg"] * BETA1 @ across.state[c]["basis"].T, across.state[c]["exp_avg_sq"]
    squares = BETA2 * squares + (1 - BETA2) * other.square().sum(1, keepdim=True)
    c.grad = other.clone()
    across.step()
    size = LR * math.sqrt(1 - BETA2**2) / (1 - BETA1**2)
    wanted = (before - size * (momentum + other) / (squares.sqrt() + EPS)) * (1 - LR * DECAY)
    assert torch.allclose(c.detach(), wanted, rtol=0, atol=1e-5)


def test_vectors_have_adamw_of_their_own() -> None:
    optimizer, weight = made((5,))
    twin = torch.nn.Parameter(torch.ones(5, dtype=torch.float64))
    adam = torch.optim.AdamW([twin], LR, (BETA1, BETA2), 1e-12, weight_decay=0.0)
    optimizer.param_groups[0].update(weight_decay=0.0, eps=1e-12)
    for gradient in GRADIENTS:
        weight.grad = twin.grad = gradient.flatten()[:5].clone()
        optimizer.step()
        adam.step()
    assert torch.allclose(weight.detach(), twin.detach(), rtol=0, atol=1e-8)


def test_second_moments_of_bfloat16() -> None:
    """Rounded to bfloat16 a moment stops at 256 times what is added to it; and a resumed run read back a rounded one."""
    optimizer, weight = made((4, 3))
    low = torch.nn.Parameter(torch.ones(4, 3, dtype=torch.bfloat16))
    rounded = SubsetNorm([low], LR, (BETA1, BETA2), EPS, DECAY)
    for gradient in GRADIENTS:
        low.grad = gradient.to(torch.bfloat16)
        weight.grad = low.grad.double()
        optimizer.step()
        rounded.step()
    v, wanted = rounded.state[low]["exp_avg_sq"], optimizer.state[weight]["exp_avg_sq"]
    assert v.dtype == torch.float32
    assert torch.allclose(v.double(), wanted, rtol=1e-6)
    again = SubsetNorm([low], LR, (BETA1, BETA2), EPS, DECAY)
    again.load_state_dict(rounded.state_dict())
    assert torch.equal(again.state[low]["exp_avg_sq"], v)
    assert again.state[low]["exp_avg_sq"] is not v


def test_a_subspace_of_no_momentum(tmp_path: Path) -> None:
    """rank was passed over without a word where adam_beta1 is 0."""
    args = tiny_models.arguments(tmp_path, adam_beta1=0.0)
    with pytest.raises(UserError, match="no momentum to keep in a subspace"):
        SelectiveTrainer(
            tiny_models.llama(), args, train_dataset=tiny_models.rows(4), optimizer=SubsetNormOptions(rank=2)
        )


@pytest.mark.parametrize(
    ("fields", "each"),
    [
        ({}, 8),
        ({"training": {"optim": "sgd"}}, 0),
        ({"training": {"optim": "adamw_8bit"}}, 2),
        ({"optimizer": SubsetNormOptions()}, 4),
        ({"optimizer": SubsetNormOptions(rank=8), "mer": Mer(2, 0.5)}, 4),
        ({"mer": Mer(2, 1.0)}, 8),
    ],
)
def test_what_a_plan_counts_of_its_state(fields: dict[str, Any], each: int) -> None:
    """12 bytes a parameter were taken for every optimizer: sgd's checkpoints are a third of that."""
    config = TrainConfig(corpus="c", model="m", out="o", **fields)
    assert state_bytes(config, str(config.training.get("optim", "adamw_torch_fused"))) == each


def test_against_adamw_by_compare(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    """The commands of docs/systems.md: two arms that differ by the optimizer, MER beside them, one evaluation, one table."""
    steps = (
        "--training.max_steps",
        4,
        "--training.logging_steps",
        1,
        "--training.save_steps",
        2,
        "--corpus",
        tiny.corpus,
    )
    train = ("train", *steps, "--model", tiny.base)
    arms = {
        "subset-norm": ("--optimizer.name", "subset_norm", "--optimizer.rank", 4, "--training.learning_rate", 1e-3),
        "mer": ("--mer.every", 2, "--mer.epsilon", 0.3),
    }
    models = ["--models.adamw", tiny.clm]
    for name, fields in arms.items():
        done = tokensieve(*train, "--out", tmp_path / name, *fields)
        assert done.code == 0, done.err
        models += [f"--models.{name}", tmp_path / name]
    assert (
        tokensieve("evaluate", "--out", tmp_path / "eval", *models, "--sets.target", tiny.target, "--checkpoints").code
        == 0
    )
    runs = [word.replace("models", "runs") if isinstance(word, str) else word for word in models]
    done = tokensieve("compare", "--out", tmp_path / "table", "--evaluation", tmp_path / "eval", *runs, "--target", "target",
                      "--baseline", "adamw")  # fmt: skip
    assert done.code == 0, done.err
    rows = {r["arm"]: r for r in json.loads((tmp_path / "table" / "comparison.json").read_text())}
    assert {"adamw", *arms} <= set(rows)
    assert len({rows[arm]["nll"] for arm in rows}) == len(rows)
    both = tokensieve(*train, "--out", tmp_path / "no", "--optimizer.name", "subset_norm", "--training.optim", "sgd")
    assert "training.optim is an optimizer, and optimizer gives another one" in both.error
    galore = tokensieve(
        *train, "--out", tmp_path / "no", "--training.optim", "galore_adamw", "--training.optim_target_modules", "[mlp]"
    )
    assert galore.code == 2
    assert "galore_torch" in galore.error
    assert (
        "epsilon must be above 0"
        in tokensieve(*train, "--out", tmp_path / "no", "--mer", "{every: 2, epsilon: 0}").error
    )


def test_options_out_of_range() -> None:
    with pytest.raises(ValueError, match="gap at least 1"):
        SubsetNormOptions(gap=0)
