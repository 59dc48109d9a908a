"""Real transformers classes with tiny random weights, by name."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

V = 97
COMMON = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts_per_tok": 2, "output_router_logits": True, "router_aux_loss_coef": 0.5}
# name -> (config class, fields beside the common ones)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": False}),
    "llama-tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", {}),
    "gemma2-softcap": ("Gemma2Config", {"head_dim": 16, "final_logit_softcapping": 3.0}),
    "gemma3-softcap": ("Gemma3TextConfig", {"head_dim": 16, "final_logit_softcapping": 3.0}),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}),
    "mixtral-router": ("MixtralConfig", {"num_local_experts": 4, **EXPERTS}),
    "qwen3moe-router": (
        "Qwen3MoeConfig",
        {"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 16, "decoder_sparse_step": 1, **EXPERTS},
    ),
    "mamba2": (
        "Mamba2Config",
        {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "expand": 2, "chunk_size": 8},
    ),
    "olmo2": ("Olmo2Config", {}),
    "cohere-scale": ("CohereConfig", {"logit_scale": 0.25}),
    "granite-scale": ("GraniteConfig", {"logits_scaling": 3.0}),
    "phi-bias": ("PhiConfig", {}),
}


def build(name: str) -> Any:
    kind, fields = MODELS[name]
    shared = {} if name == "gpt2" else {k: v for k, v in COMMON.items() if not (name == "mamba2" and "num_a" in k)}
    config = getattr(transformers, kind)(**{**shared, "vocab_size": V, "bos_token_id": 0, "eos_token_id": 0, **fields})
    torch.manual_seed(0)
    # The grouped matmul that experts use by default has no float64.
    eager = {"experts_implementation": "eager"} if "router" in name else {}
    model = AutoModelForCausalLM.from_config(config, **eager).eval()
    if name == "phi-bias":
        torch.nn.init.normal_(model.lm_head.bias)
    return model.double()
