"""Training and scoring where part of the vocabulary is masked by a bias of -inf: what is dropped harms nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from tokensieve.core import Objective
from tokensieve.data.rows import Rows
from tokensieve.runs.errors import UserError
from tokensieve.scoring.engine import Scorer
from tokensieve.training.guards import NonFinite
from tokensieve.training.trainer import SelectiveTrainer

MASKED = range(64)  # the first entries: a padded or restricted vocabulary, as a whole first slice of it


def phi(dtype: torch.dtype = torch.float32) -> Any:
    """A Phi, whose head has a bias."""
    from transformers import PhiConfig, PhiForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = PhiForCausalLM(PhiConfig(vocab_size=tiny.VOCAB, max_position_embeddings=64, **sizes)).to(dtype)
    with torch.no_grad():
        model.lm_head.bias[list(MASKED)] = -torch.inf
    return model.eval()


def data(row: int = 3, position: int = 5) -> Any:
    """Rows of tokens beyond the mask, but for one."""
    rng = np.random.default_rng(0)
    ids = rng.integers(len(MASKED), tiny.VOCAB, (4, tiny.LENGTH))
    ids[row, position] = 7
    return tiny.rows(4).remove_columns(["input_ids", "labels"]).add_column("input_ids", ids.tolist())


def dropping(**fields: Any) -> Objective:
    """Everything but the masked token."""
    return Objective("but one", lambda s: (s.need("input_ids") != 7).float(), frozenset({"input_ids"}), **fields)


CHOICES = {
    "counted afterwards": lambda: dropping(),
    "over the valid": lambda: dropping(denominator="valid"),
    "by sequence": lambda: dropping(scope="sequence", selects=True),
    "step": lambda: dropping(scope="step", denominator="nonzero"),
    "signed": lambda: dropping(signed=True, denominator="abs"),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_a_dropped_token_of_infinite_nll(choice: str, tmp_path: Path) -> None:
    """inf * 0: the loss was NaN, and the run stopped before its first update. Gradients are those of the other tokens."""
    model, truth = phi(), phi(torch.float64)
    before = tiny.weights(model)
    args = tiny.arguments(tmp_path, batch=2, accumulate=2)
    SelectiveTrainer(model, args, train_dataset=data(), objective=CHOICES[choice]()).train()
    ids = torch.tensor(data()["input_ids"])
    labels = ids.masked_fill(ids == 7, -100)
    log_p = truth(input_ids=ids).logits[:, :-1].log_softmax(-1)
    nll = -log_p.gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0].masked_fill(labels[:, 1:] == -100, 0)
    valid = ids.numel() - len(ids)
    kept = valid - 1
    (nll.sum() / (valid if choice == "over the valid" else kept)).backward()
    for name, parameter in truth.named_parameters():
        moved = before[name].double() - tiny.weights(model)[name].double()
        if name != "lm_head.bias":
            torch.testing.assert_close(moved, parameter.grad, rtol=1e-3, atol=2e-6)
    (line,) = tiny.log_lines(tmp_path)
    assert (line["valid"], line["kept"], line["dropped_nll"], line["nll"]) == (valid, kept, None, None)
    assert line["kept_nll"] == pytest.approx(float(nll.detach().sum()) / kept, rel=1e-5)
    assert not list(tmp_path.glob("nonfinite*"))


@pytest.mark.parametrize(("row", "position"), [(3, 5), (1, 15), (2, 1)])
def test_a_kept_token_of_infinite_nll_stops_the_run(row: int, position: int, tmp_path: Path) -> None:
    args = tiny.arguments(tmp_path, batch=2, accumulate=2)
    trainer = SelectiveTrainer(phi(), args, train_dataset=data(row, position))
    with pytest.raises(NonFinite, match=f"first of row {row} at position {position}"):
        trainer.train()
    (told,) = tmp_path.glob("nonfinite*.json")
    assert json.loads(told.read_text())["rows"] == [{"row": row, "position": position, "tokens": 1}]


def test_scores_of_a_masked_vocabulary() -> None:
    """Exact where the target is none of it; a target of probability 0 is refused, not stored as a large number."""
    ids = data().select([0, 1, 2])
    (found,) = Scorer(phi(), device="cpu", entropy=True).run(Rows(ids))
    logits = phi(torch.float64)(input_ids=torch.tensor(ids["input_ids"])).logits[:, :-1]
    log_p = logits.log_softmax(-1)
    nll = -log_p.gather(-1, torch.tensor(ids["input_ids"])[:, 1:, None])[..., 0]
    np.testing.assert_allclose(found.nll[:, 1:], nll.detach(), rtol=1e-5)
    assert found.entropy is not None
    np.testing.assert_allclose(found.entropy[:, 1:], torch.special.entr(log_p.exp()).sum(-1).detach(), rtol=1e-5)
    with pytest.raises(UserError, match="nll is not finite at row 3, position 5"):
        list(Scorer(phi(), device="cpu").run(Rows(data())))
