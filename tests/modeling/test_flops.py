"""FLOPs by hand for models small enough to count."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from tokensieve.modeling.flops import TokenFlops, token_flops

D, M, LAYERS = 32, 48, 2  # of tiny.llama: width, MLP width; 2 heads of 16, 1 key-value head


@pytest.mark.parametrize("tied", [False, True])
def test_llama_by_hand(tied: bool) -> None:
    """Embeddings counted as matmuls, or a tied head counted as none: at a small scale the vocabulary is most of it."""
    flops = token_flops(tiny.llama(tie_word_embeddings=tied), length=16)
    matmuls = LAYERS * (D * D + 2 * D * 16 + D * D + 3 * D * M)
    norms = (2 * LAYERS + 1) * D
    assert flops.body == 2 * (matmuls + norms) + 2 * LAYERS * D * 16
    assert flops.head == 2 * D * tiny.VOCAB


def test_forward_is_what_torch_counts() -> None:
    """Against torch's own counter, which counts the matmuls that are done: attention there is not halved for causality."""
    model, length = tiny.llama(attn_implementation="eager"), 16
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.zeros(1, length, dtype=torch.long))
    ours = token_flops(model, length).forward(length)
    causal_half = 2 * LAYERS * D * length * length
    assert ours + causal_half == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_a_dropped_token_saves_the_heads_backward_only() -> None:
    flops = TokenFlops(body=10.0, head=4.0)
    assert flops.forward(100) == 1400
    assert flops.train(100, 100) == 3 * flops.forward(100)
    assert flops.train(100, 60) == 3 * flops.forward(100) - 40 * 2 * 4


def test_experts_that_are_not_visited_do_not_count() -> None:
    """A mixture of 8 experts that visits 2: counted in full, it would seem to cost four times what it does."""

    def of(experts: int) -> float:
        config = MixtralConfig(
            vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, num_local_experts=experts, num_experts_per_tok=2,
        )  # fmt: skip
        return token_flops(MixtralForCausalLM(config), length=8).body

    router = 2 * 16 * 4  # the router has a row for each expert
    assert of(8) - of(4) == pytest.approx(router)
    assert of(4) > 2 * 2 * 3 * 16 * 32


# --- what trains, and families, against the matmuls that torch counts ------------------------------------------------------


def counted(model: Any, length: int, *, backward: bool = True) -> float:
    """FLOPs a token of the matmuls of a forward, and a backward; eager attention does the half above the diagonal, too."""
    ids = torch.randint(1, 90, (1, length), generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        if backward:
            loss.backward()
    return float(counter.get_total_flops()) / length


def ours(model: Any, length: int, *, backward: bool = True) -> float:
    """The same from ``token_flops``, with that half put in: attention is what grows with the length."""
    here, none = token_flops(model, length), token_flops(model, 0)
    if not backward:
        return 2 * here.forward(1) - none.forward(1)
    return 2 * here.train(1, 1) - none.train(1, 1)


def frozen(but: str) -> Any:
    model = tiny.llama(num_hidden_layers=4, attn_implementation="eager")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(but in name)
    return model


def adapted(**fields: Any) -> Any:
    peft = pytest.importorskip("peft", reason="LoRA needs peft, which is not installed")
    model = tiny.llama(num_hidden_layers=4, attn_implementation="eager")
    return peft.get_peft_model(model, peft.LoraConfig(r=4, task_type="CAUSAL_LM", **fields))


@pytest.mark.parametrize(
    "made",
    [
        lambda: frozen(""),
        lambda: frozen("lm_head"),
        lambda: frozen("layers.2"),
        lambda: frozen("layers.3.mlp"),
        lambda: frozen("layers"),
        lambda: adapted(target_modules=["q_proj", "v_proj"]),
        lambda: adapted(target_modules=["down_proj"]),
        lambda: adapted(target_modules=["embed_tokens", "q_proj"]),
        lambda: adapted(target_modules=["q_proj"], layers_to_transform=[3]),
        lambda: adapted(target_modules=["q_proj"], modules_to_save=["norm"], use_dora=True),
    ],
)
def test_a_step_costs_what_trains(made: Any) -> None:
    """LoRA and frozen weights were counted as three forwards and a gradient to the head: 1.5 times what is done."""
    model = made()
    assert ours(model, 16) == pytest.approx(counted(model, 16), rel=0.06)


SMALL = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
FOUR = {"num_local_experts": 4, "num_experts_per_tok": 2}
GEMMA = {"head_dim": 16, "global_head_dim": 32, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}
LATENT = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 16}
DEEPSEEK = {
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}


def of_family(model_type: str, **fields: Any) -> Any:
    config = AutoConfig.for_model(model_type, **{**SMALL, **fields})
    config._experts_implementation = "eager"  # a grouped product is nothing that torch counts
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("gemma4_text", GEMMA),
        (
            "gemma4_text",
            {**GEMMA, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16},
        ),
        ("granitemoeshared", {**FOUR, "shared_intermediate_size": 16}),
        ("hunyuan_v1_moe", {"num_experts": 4, "moe_topk": 2, "head_dim": 16}),
        ("deepseek_v2", {**LATENT, **DEEPSEEK, "num_experts_per_tok": 2, "head_dim": 8}),
        ("bloom", {"n_head": 2, "n_layer": 2}),
    ],
)
def test_families(model_type: str, fields: dict[str, Any]) -> None:
    """Widths that differ by layer, and a name for visited experts that not every family has: Gemma 4 could not be scored."""
    if model_type == "bloom":
        fields = {**fields, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = of_family(model_type, **fields)
    assert ours(model, 16, backward=False) == pytest.approx(counted(model, 16, backward=False), rel=0.04)


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("mamba", {}),
        ("diffllama", {}),
        ("jetmoe", {"kv_channels": 16, **FOUR}),
        ("deepseek_v2", {**LATENT, **DEEPSEEK, "num_experts_per_tok": None, "head_dim": 8}),
    ],
)
def test_a_family_that_is_not_known(model_type: str, fields: dict[str, Any]) -> None:
    """A scan or experts that do not say how many of them are visited: unknown, where a wrong number or a TypeError stood."""
    flops = token_flops(of_family(model_type, **fields), 16)
    assert math.isnan(flops.forward(1))
    assert math.isnan(flops.train(1, 1))
