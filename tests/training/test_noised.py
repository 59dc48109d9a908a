"""Absorbing diffusion and masked language modelling: gradients by loops in float64, masks by definition, what is refused."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from tokensieve.core import objective
from tokensieve.data.rows import Rows, collate
from tokensieve.runs.errors import UserError
from tokensieve.training.noised import Noising
from tokensieve.training.options import Noise
from tokensieve.training.trainer import SelectiveTrainer

MASK = 1


def noising(noise: Noise, model: Any = None) -> Noising:
    args = tiny.arguments(Path("unused"))
    return Noising(noise, args, model or tiny.llama(), objective("clm"), {})


def batch_of(rows: Any, start: int = 0, count: int = 4) -> dict[str, Any]:
    return collate(Rows(rows).__getitems__(range(start, start + count)))


def truth(model: Any, rows: Any, of: Noising, micro: list[tuple[int, int]], seen_TT: Tensor) -> dict[str, Tensor]:
    """Gradients of sum over hidden tokens of (1 / t) nll, over their number, with the noise of step 0; the sum in loops."""
    model = copy.deepcopy(model).train()
    total, count = torch.zeros((), dtype=torch.float64), 0
    for start, size in micro:
        for row in range(start, start + size):
            ids_T, labels_T = (torch.tensor(rows[row][name]) for name in ("input_ids", "labels"))
            fed_T, hidden_T, t = of.of_row(row, ids_T, labels_T, 0)
            last = int((labels_T != -100).nonzero().max())
            shown = torch.tensor(
                [[(bool(seen_TT[i, j]) and j <= last) or i == j for j in range(len(ids_T))] for i in range(len(ids_T))]
            )
            logits = model(input_ids=fed_T[None], attention_mask=shown[None, None], use_cache=False).logits[0].double()
            for place in range(1, len(ids_T)):
                if hidden_T[place]:
                    weight = 1 / t if of.noise.name == "absorbing" else 1.0
                    total = total - weight * logits[place - 1].log_softmax(-1)[ids_T[place]]
                    count += 1
    (total / count).backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", ["absorbing", "masked"])
def test_gradients_by_hand(name: Any, tmp_path: Path) -> None:
    """t for 1 / t, a denominator of each micro-batch, a target without the shift, a mask that is not open: each is another."""
    rows, model = tiny.rows(6), tiny.llama(dtype=torch.float64)
    noise = Noise(MASK, name, share=0.4)
    before = tiny.weights(model)
    wanted = truth(
        model, rows, noising(noise), [(0, 2), (2, 2), (4, 2)], torch.ones(tiny.LENGTH, tiny.LENGTH, dtype=torch.bool)
    )
    tiny.train(model, tiny.arguments(tmp_path, 2, 3), rows, objective("clm"), noise=noise)
    found = {n: before[n] - w for n, w in tiny.weights(model).items()}
    assert tiny.gap(found, wanted) < 1e-6  # 1 / t is a float32


def test_the_draw() -> None:
    """t uniform in (0, 1] a row, each token hidden with that probability, BERT's shares; the same whatever the split."""
    ids_T = torch.arange(2000) % (tiny.VOCAB - 2) + 2
    absorbing, masked = (noising(Noise(MASK, name, share=0.3)) for name in ("absorbing", "masked"))  # type: ignore[arg-type]
    shares = [absorbing.of_row(row, ids_T, ids_T, 3) for row in range(200)]
    assert 0.42 < sum(t for *_, t in shares) / 200 < 0.58
    for fed_T, hidden_T, t in shares:
        assert abs(float(hidden_T.double().mean()) - t) < 0.06
        assert torch.equal(fed_T, torch.where(hidden_T, MASK, ids_T))
    fed_T, hidden_T, _ = masked.of_row(0, ids_T, ids_T, 3)
    there = [float(x.double().mean()) for x in ((fed_T == MASK)[hidden_T], (fed_T == ids_T)[hidden_T])]
    assert abs(float(hidden_T.double().mean()) - 0.3) < 0.05
    assert (abs(there[0] - 0.8) < 0.08, abs(there[1] - 0.1) < 0.06) == (True, True)
    assert torch.equal(fed_T[~hidden_T], ids_T[~hidden_T])
    other = absorbing.of_row(0, ids_T, ids_T, 4)[1]
    assert not torch.equal(other, shares[0][1])
    rows = tiny.rows(4)
    whole, half = absorbing.batches([batch_of(rows)], 5)[0], absorbing.batches([batch_of(rows, 2, 2)], 5)[0]
    for column in ("input_ids", "targets", "weight"):
        assert torch.equal(whole[column][2:], half[column])
    for row, item in enumerate(Rows(rows).__getitems__(range(4))):
        fed_T, hidden_T, share = absorbing.of_row(row, item["input_ids"], item["labels"], 5)
        assert torch.equal(whole["input_ids"][row], fed_T)
        assert torch.equal(whole["targets"][row, :-1], torch.where(hidden_T, item["labels"], -100)[1:])
        assert torch.equal(whole["weight"][row], torch.full_like(whole["weight"][row], 1 / torch.tensor(share)))


def test_attention_opens() -> None:
    """Causal at 0, all at 1, between them earlier tokens always and later ones by chance; never padding; sdpa as eager."""
    batch = batch_of(tiny.rows(4))
    of = noising(Noise(MASK, anneal_steps=10))
    assert [of.ratio(step) for step in (0, 4, 9, 50)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert noising(Noise(MASK)).ratio(0) == 1.0
    real_BT = torch.stack([torch.arange(tiny.LENGTH) <= int((row != -100).nonzero().max()) for row in batch["labels"]])
    before_TT, itself_TT = torch.ones(tiny.LENGTH, tiny.LENGTH).tril().bool(), torch.eye(tiny.LENGTH).bool()
    for ratio, wanted_TT in ((0.0, before_TT), (1.0, torch.ones_like(before_TT))):
        seen_BTT = of.attention(batch, ratio)[:, 0]
        assert torch.equal(seen_BTT, (wanted_TT & real_BT[:, None, :]) | itself_TT)
    half_TT = of.attention({"labels": torch.zeros(1, 64, dtype=torch.long)}, 0.5, 7)[0, 0]
    later = half_TT[~torch.ones(64, 64).tril().bool()]
    assert half_TT[torch.ones(64, 64).tril().bool()].all()
    assert 0.45 < float(later.double().mean()) < 0.55
    eager = tiny.llama()
    eager.set_attn_implementation("eager")
    added = noising(Noise(MASK), eager).attention(batch, 0.0)
    assert torch.equal(added == 0, of.attention(batch, 0.0))


def test_open_attention_is_the_library_s_own() -> None:
    """What is said of a trained model: is_causal False in its config is the attention that it ended with."""
    model, rows = tiny.llama().eval(), tiny.rows(2, uneven=False)
    batch = batch_of(rows, 0, 2)
    seen = noising(Noise(MASK)).attention(batch, 1.0)
    with torch.no_grad():
        ours = model(input_ids=batch["input_ids"], attention_mask=seen, use_cache=False).logits
        causal = model(input_ids=batch["input_ids"], use_cache=False).logits
        model.config.is_causal = False
        theirs = model(input_ids=batch["input_ids"], use_cache=False).logits
    torch.testing.assert_close(ours, theirs)
    assert float((ours - causal).abs().max()) > 0.1


def test_what_is_refused(tmp_path: Path) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    rows, noise, teacher = tiny.rows(4), Noise(MASK), tiny.llama()
    args = tiny.arguments(tmp_path)
    cases: list[tuple[str, dict[str, Any]]] = [
        ("none is 200", {"noise": Noise(200)}),
        ("the id of the mask", {"noise": Noise("<mask>")}),
        ("beside eval_dataset", {"eval_dataset": rows}),
        ("beside a teacher", {"teacher": teacher, "objective": objective("distill", teacher="x")}),
        ("beside backward: sparse", {"backward": "sparse"}),
        ("threshold over the corpus", {"objective": objective("rho1_low_ref", scope="corpus")}),
    ]
    for told, fields in cases:
        with pytest.raises(UserError, match=told):
            SelectiveTrainer(tiny.llama(), args, train_dataset=rows, **{"noise": noise, **fields})
    mamba = MambaForCausalLM(MambaConfig(vocab_size=tiny.VOCAB, hidden_size=16, num_hidden_layers=1, state_size=4))
    mamba.config._attn_implementation = "sdpa"
    with pytest.raises(UserError, match="does not look at what its attention mask shows"):
        tiny.train(mamba, args, rows, objective("clm"), noise=noise)
    for wrong in ({"share": 0.0}, {"anneal_steps": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            replace(noise, **wrong)


def test_from_the_command(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    """The command of docs/systems.md with a rule beside it; a token that is none, and an evaluation from left to right."""
    word = "e"
    steps = ("--training.max_steps", 2, "--training.save_strategy", "no", "--corpus", tiny.corpus, "--model", tiny.base)
    rule = ("--objective", "{name: entropy_top, ratio: 0.5}")
    run = ("train", *steps, "--noise.token", word, "--noise.anneal_steps", 2)
    done = tokensieve(*run, "--out", tmp_path / "run", *rule)
    assert done.code == 0, done.err
    assert "no token '<none>'" in tokensieve("train", *steps, "--noise.token", "<none>", "--out", tmp_path / "no").error
    assert (
        "eval_sets would be of rows without it"
        in tokensieve(*run, "--eval_sets.x", tiny.target, "--out", tmp_path / "no").error
    )
    assert (
        "leave objective.denominator out"
        in tokensieve(*run, "--objective", "{name: clm, denominator: valid}", "--out", tmp_path / "no").error
    )
