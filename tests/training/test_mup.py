"""The coordinate check of maximal update parametrisation, and which parameter has which learning rate."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM

from tokensieve.core import objective
from tokensieve.pipeline.configs.train import TrainConfig
from tokensieve.pipeline.train import check_optimizer
from tokensieve.runs.errors import UserError
from tokensieve.training.mup import roles, scale_new_weights, scale_rates
from tokensieve.training.options import Mer, Mup, SubsetNormOptions
from tokensieve.training.schedules import PowerSchedule
from tokensieve.training.trainer import SelectiveTrainer

WIDTHS = (32, 64, 128, 256)


def model_of(width: int, **fields: Any) -> Any:
    """Heads of 16 at every width, layers between of twice the width."""
    heads = width // 16
    shape = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
    }
    return tiny.llama(**{**shape, "initializer_range": 0.1, **fields})


def moved(width: int, base: int | None) -> float:
    """Mean absolute change of the logits by a few steps of Adam."""
    model, ids = model_of(width), torch.randint(0, tiny.VOCAB, (4, 16), generator=torch.Generator().manual_seed(0))
    if base is not None:
        scale_new_weights(model, base)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    if base is not None:
        scale_rates(optimizer, model, base)
    with torch.no_grad():
        before = model(input_ids=ids).logits
    for _ in range(3):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return float((model(input_ids=ids).logits - before).abs().mean())


def slope(values: list[float]) -> float:
    """Of log2 of the values, which double in width from one to the next."""
    y = [math.log2(v) for v in values]
    x = [i - (len(y) - 1) / 2 for i in range(len(y))]
    return sum(a * b for a, b in zip(x, y, strict=True)) / sum(a * a for a in x)


def test_the_coordinate_check() -> None:
    """How far logits move does not grow with the width, as it does with one learning rate for all. (It falls a little: the part
    that the new head's own weights have in it goes with 1 / sqrt(m), and is large in so few steps.)"""
    plain, scaled = ([moved(w, base) for w in WIDTHS] for base in (None, WIDTHS[0]))
    assert scaled[0] == plain[0]  # at the base nothing changes
    assert -0.5 < slope(scaled) < 0.1
    assert slope(plain) > 0.4


def test_groups_of_the_trainer(tmp_path: Path) -> None:
    """SGD at a rate of 1: a step moves each weight by its gradient, matrices and head by an m-th of it."""
    steps = {}
    for name, mup in (("plain", None), ("mup", Mup(base=16))):
        model = model_of(64)
        before = tiny.weights(model)
        made = SelectiveTrainer(
            model, tiny.arguments(tmp_path / name), train_dataset=tiny.rows(4), objective=objective("clm"), mup=mup
        )
        try:
            made.train()
        finally:
            made.seam.close()
        steps[name] = {n: before[n] - w for n, w in tiny.weights(model).items()}
    for name, step in steps["mup"].items():
        over = 4 if step.dim() == 2 and "embed" not in name else 1
        assert torch.allclose(step * over, steps["plain"][name], rtol=1e-3, atol=1e-5), name


def test_tables_of_positions_are_embeddings() -> None:
    """GPT-2's table of positions was taken for a matrix within: scaled, and learned an m-th as fast as tokens'."""
    config = GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=16, n_positions=8, tie_word_embeddings=False)
    model = GPT2LMHeadModel(config)
    scaled = roles(model)
    assert model.transformer.wpe.weight not in scaled
    assert model.transformer.wte.weight not in scaled
    assert (scaled[model.lm_head.weight], scaled[model.transformer.h[0].attn.c_attn.weight]) == ("head", "within")


def test_what_is_no_linear_layer_is_refused() -> None:
    """A convolution, a state space and a router were scaled as if both of their sides grew."""
    shape = {"vocab_size": 16, "hidden_size": 32, "num_hidden_layers": 1, "tie_word_embeddings": False}
    with pytest.raises(UserError, match=r"backbone\.layers\.0\.mixer\.\S+ \[.*\] is no linear layer's"):
        roles(MambaForCausalLM(MambaConfig(**shape, state_size=4)))
    with pytest.raises(UserError, match="a mixtral has num_local_experts"):
        roles(tiny.mixtral())


def test_what_would_not_be_reached(tmp_path: Path) -> None:
    """An optimizer or schedule of the caller's own: muP, MER, Subset-Norm and rates by tokens were silently left out."""
    optimizer = torch.optim.SGD(tiny.llama().parameters(), lr=0.1)
    parts: list[tuple[str, Any]] = [("mup", Mup(16)), ("mer", Mer(2, 0.5)), ("optimizer", SubsetNormOptions())]
    for name, part in parts:
        with pytest.raises(UserError, match=f"{name}: it would not reach"):
            made(tmp_path, optimizers=(optimizer, None), **{name: part})
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    with pytest.raises(UserError, match="two schedules"):
        made(tmp_path, optimizers=(optimizer, scheduler), schedule=PowerSchedule())
    with pytest.raises(UserError, match="two optimizers"):
        made(tmp_path, optimizer_cls_and_kwargs=(torch.optim.SGD, {}), optimizer=SubsetNormOptions())
    adapted = get_peft_model(model_of(32), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(UserError, match="an adapter has none"):
        made(tmp_path, adapted, mup=Mup(16))


def made(folder: Path, model: Any = None, **fields: Any) -> Any:
    args = tiny.arguments(folder)
    return SelectiveTrainer(model or tiny.llama(), args, train_dataset=tiny.rows(4), **fields)


def test_rates_of_other_optimizers() -> None:
    """muP of Subset-Norm or SGD went through, at rates that are no transfer; MER beside a layerwise optimizer did nothing."""
    config = TrainConfig(corpus="c", model="m", out="o", mup=Mup(16))
    check_optimizer(config)
    check_optimizer(replace(config, training={"optim": "adamw_torch_fused"}))
    for fields in ({"optimizer": SubsetNormOptions()}, {"training": {"optim": "sgd"}}):
        with pytest.raises(UserError, match="its learning rates are Adam's"):
            check_optimizer(replace(config, **fields))
    with pytest.raises(UserError, match=r"mer: training\.optim galore_adamw_layerwise"):
        check_optimizer(replace(config, mup=None, mer=Mer(2, 0.5), training={"optim": "galore_adamw_layerwise"}))


def test_a_tied_head_is_refused() -> None:
    with pytest.raises(UserError, match="the head is tied"):
        scale_new_weights(model_of(32, tie_word_embeddings=True), 16)


def test_from_the_command(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    """At its own width a model is what it is without; at another base its new weights and its steps are others."""
    steps = ("--training.max_steps", 1, "--training.save_strategy", "no")
    runs = {}
    for base in (None, 32, 8):
        out = tmp_path / str(base)
        more = () if base is None else ("--mup.base", base)
        done = tokensieve("train", "--corpus", tiny.corpus, "--model", tiny.model, "--out", out, *steps, *more)
        assert done.code == 0, done.err
        runs[base] = (out / "model" / "model.safetensors").read_bytes()
    assert runs[None] == runs[32] != runs[8]
