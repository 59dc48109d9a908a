"""The self-test: it passes what is right, under every kind of objective, and names a loss that is silently wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import corpora
import pytest
import tiny
import torch

from tokensieve import cli
from tokensieve.core import LinearNLL, Objective, objective
from tokensieve.pipeline import train
from tokensieve.runs.errors import UserError
from tokensieve.training.self_test import WeightTable, chosen_rows, run_self_test
from tokensieve.training.trainer import SelectiveTrainer


def trainer(folder: Path, made: Objective, batch: int = 4, **fields: Any) -> SelectiveTrainer:
    model = fields.pop("model", None) or tiny.llama()
    return SelectiveTrainer(model, tiny.arguments(folder, batch, **fields), train_dataset=tiny.rows(), objective=made)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("clm", {}),
        ("rho1", {"ratio": 0.5}),
        ("rho1", {"ratio": 0.5, "scope": "step", "denominator": "valid"}),
        ("dft", {}),
        ("high_loss", {"denominator": "nonzero"}),
        ("influence", {"column": "ref_nll"}),
    ],
)
def test_what_is_right_passes(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    made = trainer(tmp_path, objective(name, **options), 1 if name == "clm" else 4, gradient_accumulation_steps=2)
    before = tiny.weights(made.model)
    said = run_self_test(made)
    assert said.startswith(
        f"self-test of {name} on one process: equal steps give equal gradients (to the last bit); weights x"
    )
    assert "weights x 1/64 give gradients x 1/64 (to the last bit)" in said
    assert "dropping is ignoring" in said
    assert "two micro-batches are one" in said
    assert all(torch.equal(before[n], p) and p.grad is None for n, p in made.model.named_parameters())
    assert not list(tmp_path.iterdir())
    assert made.objective.name == name
    assert not made.token_log.pending


def test_dropout_and_a_router_loss_do_not_stand_in_the_way(tmp_path: Path) -> None:
    """Masks of dropout differ from one step to the next; a router loss follows no weight."""
    model = tiny.llama(attention_dropout=0.5)
    assert "to the last bit" in run_self_test(trainer(tmp_path, objective("clm"), model=model))
    assert model.model.layers[0].self_attn.attention_dropout == 0.5
    mixture = tiny.mixtral()
    assert "two micro-batches are one" in run_self_test(trainer(tmp_path, objective("clm"), model=mixture))
    assert mixture.config.output_router_logits is True


def mean_of_own(self: LinearNLL, weight: torch.Tensor, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """A loss of each micro-batch's own mean, as most forks have it."""
    total, weight_sum = right(self, weight)
    return total / weight_sum.clamp(min=1), weight_sum


def as_mask(self: LinearNLL, weight: torch.Tensor, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Any weight that is not 0 counts as 1."""
    return right(self, (weight != 0).float())


def leaking(self: LinearNLL, weight: torch.Tensor, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What is dropped pulls a little all the same."""
    return right(self, weight.clamp(min=0.1))


right = LinearNLL.weighted_sum


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (mean_of_own, r"two micro-batches give 2 times the gradients of the one .* with gradient accumulation"),
        (
            as_mask,
            "weights x 1/64 give gradients x 1/1 where valid tokens are divided by: the loss counts or normalises",
        ),
        (leaking, r"tokens of weight 0 leave gradients \d.*% apart from those without these tokens"),
    ],
)
def test_what_is_silently_wrong_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: Any, says: str) -> None:
    monkeypatch.setattr(LinearNLL, "weighted_sum", wrong)
    with pytest.raises(UserError, match=f"^self-test failed: .*{says}"):
        run_self_test(trainer(tmp_path, objective("rho1", ratio=0.5)))


def test_a_model_that_is_random_is_told(tmp_path: Path) -> None:
    model = tiny.llama()
    model.model.norm.register_forward_hook(lambda m, args, out: out + torch.randn_like(out) if m.training else out)
    with pytest.raises(
        UserError, match=r"two equal steps give gradients that are .* apart: something in the model is random"
    ):
        run_self_test(trainer(tmp_path, objective("clm"), model=model))


def test_an_objective_that_says_what_is_not_so_is_told(tmp_path: Path) -> None:
    made = Objective("mine", lambda s: s.valid.float() * 2, known_count=lambda known: known.valid.sum())
    with pytest.raises(UserError, match=r"'mine' counts .* as its denominator"):
        run_self_test(trainer(tmp_path, made))


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The same words as for the run, and one more: exit code 0 or 2, a line, and no folder."""
    corpus = corpora.corpus(tmp_path / "corpus", corpora.write_text(tmp_path / "text", num_files=3))
    model = corpora.model_folder(tmp_path / "model")
    before = sorted(tmp_path.iterdir())
    fields = {
        "out": tmp_path / "run",
        "corpus": corpus,
        "model": model,
        "objective.name": "random",
        "self_test": "true",
    }
    fields |= {"training.max_steps": 3, "training.per_device_train_batch_size": 2, "training.use_cpu": "true"}
    words = [f"--{name}={value}" for name, value in fields.items()]
    assert cli.main(["train", *words]) == 0
    assert capsys.readouterr().out.startswith("self-test of random on one process: equal steps give")
    monkeypatch.setattr(LinearNLL, "weighted_sum", leaking)
    assert cli.main(["train", *words]) == 2
    assert "tokensieve train: error: self-test failed: " in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(UserError, match="it writes no folder, so it is no stage"):
        train.run(train.TrainConfig(out="x", corpus="y", model="z", self_test=True))


def test_rows_are_spread_and_weights_are_found_by_place() -> None:
    assert chosen_rows(range(9), 3) == [0, 4, 8]
    assert chosen_rows(range(2), 4) == [0, 1, -1, -1]
    table = WeightTable.made([(7, torch.tensor([1.0, 2.0]).numpy()), (3, torch.tensor([5.0]).numpy())])
    found = table.of(torch.tensor([[3], [7], [4], [-1]]), torch.tensor([1, 2, 3]))
    assert found.tolist() == [[5.0, 0.0, 0.0], [1.0, 2.0, 0.0], [0.0] * 3, [0.0] * 3]
