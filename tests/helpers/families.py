"""Families of causal LMs in transformers with tiny random configs: the matrix of docs/families.md."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tiny import VOCAB

COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "attention_dropout": 0.0,
    "residual_dropout": 0.0,
}
ROUTER = {"output_router_logits": True, "router_aux_loss_coef": 0.5}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
DELTA = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
BOTH = {"layer_types": ["linear_attention", "full_attention"]}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 7}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
# What a BitNet model folder says of itself where its weights are to be ternary in every forward, and trained.
ONLINE = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}


@dataclass(frozen=True)
class Family:
    """One row of the matrix."""

    model_type: str
    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Of the config, beside those of COMMON that its class knows."""
    suite: bool = False
    """In `make test`; the others in `make families` only."""
    dtype: torch.dtype = torch.float64
    """float32 where the class has its router, or a decay, in it when it is read from a folder, whatever was saved."""


DENSE, WINDOW, CAP, MOE, MLA, SSM, HYBRID, RECURRENT, DIFFERENTIAL, TERNARY, HALF = (
    "dense",
    "sliding window",
    "soft-capped",
    "mixture",
    "latent attention",
    "state space",
    "hybrid",
    "recurrent",
    "differential attention",
    "ternary",
    "text half",
)
FAMILIES: dict[str, Family] = {
    "Llama": Family("llama", DENSE),
    "Qwen2.5": Family("qwen2", DENSE, suite=True),
    "Qwen3": Family("qwen3", DENSE),
    "Apertus": Family("apertus", DENSE, suite=True),
    "OLMo 2": Family("olmo2", DENSE),
    "Phi-2": Family("phi", DENSE),
    "Phi-3": Family("phi3", DENSE),
    "GPT-2": Family("gpt2", DENSE, NO_DROPOUT),
    "GPT-Neo": Family("gpt_neo", DENSE, {"attention_types": [[["global", "local"], 1]], "window_size": 7}),
    "GPT-NeoX, Pythia": Family("gpt_neox", DENSE),
    "GPT-J": Family("gptj", DENSE, {**NO_DROPOUT, "rotary_dim": 4}),
    "StarCoder, one key head": Family("gpt_bigcode", DENSE, NO_DROPOUT),
    "StarCoder2": Family("starcoder2", DENSE),
    "OPT": Family("opt", DENSE, {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0}),
    "BLOOM, ALiBi": Family("bloom", DENSE),
    "MPT, ALiBi": Family("mpt", DENSE),
    "Falcon": Family("falcon", DENSE),
    "StableLM": Family("stablelm", DENSE),
    "SmolLM3": Family("smollm3", DENSE),
    "Nemotron": Family("nemotron", DENSE),
    "GLM-4": Family("glm4", DENSE),
    "ERNIE 4.5": Family("ernie4_5", DENSE),
    "Seed-OSS": Family("seed_oss", DENSE),
    "EXAONE 4": Family("exaone4", DENSE),
    "Helium": Family("helium", DENSE),
    "Granite, scaled logits": Family("granite", DENSE, {"logits_scaling": 3.0}),
    "HyperCLOVA X, scaled logits": Family("hyperclovax", DENSE, {"logits_scaling": 0.5}),
    "Cohere, scaled logits": Family("cohere", DENSE, {"logit_scale": 0.25}),
    "Mistral": Family("mistral", WINDOW, {"sliding_window": 7}, suite=True),
    "Cohere2": Family("cohere2", WINDOW, SLIDING),
    "OLMo 3": Family("olmo3", WINDOW, SLIDING),
    "Gemma 2": Family(
        "gemma2", CAP, {**SLIDING, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}, suite=True
    ),
    "VaultGemma": Family("vaultgemma", CAP, {"final_logit_softcapping": 3.0}),
    "NanoChat": Family("nanochat", CAP, {"final_logit_softcapping": 3.0}),
    "Mixtral": Family("mixtral", MOE, ROUTER, suite=True),
    "Qwen2-MoE": Family("qwen2_moe", MOE, {**ROUTER, "shared_expert_intermediate_size": 16}),
    "Qwen3-MoE": Family("qwen3_moe", MOE, ROUTER),
    "OLMoE": Family("olmoe", MOE, ROUTER),
    "FlexOlmo": Family("flex_olmo", MOE, ROUTER),
    "Phi-3.5-MoE": Family("phimoe", MOE, ROUTER),
    "Granite MoE": Family("granitemoe", MOE, {**ROUTER, "logits_scaling": 3.0}),
    "JetMoE": Family("jetmoe", MOE, {"output_router_logits": True, "aux_loss_coef": 0.5, "kv_channels": 8}),
    "ERNIE 4.5 MoE": Family(
        "ernie4_5_moe", MOE, {**ROUTER, "moe_layer_start_index": 0, "moe_k": 2}, dtype=torch.float32
    ),
    "DBRX": Family(
        "dbrx",
        MOE,
        {
            "output_router_logits": True,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
            "ffn_config": {
                "hidden_size": 32,
                "ffn_hidden_size": 16,
                "moe_top_k": 2,
                "moe_loss_weight": 0.5,
                "ffn_act_fn": {"name": "silu"},
            },
        },
    ),
    "gpt-oss, attention sinks": Family("gpt_oss", MOE, {**ROUTER, **SLIDING}),
    "MiniMax-M2": Family("minimax_m2", MOE, ROUTER),
    "GLM-4.5": Family("glm4_moe", MOE, {"first_k_dense_replace": 1}, suite=True),
    "dots.llm1": Family("dots1", MOE, {"n_shared_experts": 1, "first_k_dense_replace": 1}),
    "Hunyuan-A13B": Family("hunyuan_v1_moe", MOE, {"moe_topk": 2}, dtype=torch.float32),
    "DeepSeek-V2": Family("deepseek_v2", MLA, {**LATENT, "num_key_value_heads": 4, "first_k_dense_replace": 1}),
    "DeepSeek-V3": Family(
        "deepseek_v3",
        MLA,
        {**LATENT, "num_key_value_heads": 4, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
        suite=True,
    ),
    "GLM-4.7-Flash": Family("glm4_moe_lite", MLA, {**LATENT, "num_key_value_heads": 4}),
    "MiniCPM3": Family("minicpm3", MLA, {**LATENT, "num_key_value_heads": 4, "dim_model_base": 16}),
    "Youtu-LLM": Family("youtu", MLA, {**LATENT, "num_key_value_heads": 4}),
    "Mamba": Family("mamba", SSM, {"state_size": 8}, suite=True),
    "Falcon-Mamba": Family("falcon_mamba", SSM, {"state_size": 8}),
    "Mamba-2": Family(
        "mamba2", SSM, {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "expand": 2, "chunk_size": 8}
    ),
    "Jamba": Family(
        "jamba", HYBRID, {**ROUTER, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False}
    ),
    "Bamba": Family("bamba", HYBRID, {**MAMBA, "attn_layer_indices": [1]}),
    "Zamba2": Family(
        "zamba2",
        HYBRID,
        {
            "layers_block_type": ["linear_attention", "hybrid"],
            "n_mamba_heads": 8,
            "mamba_d_state": 8,
            "chunk_size": 8,
            "num_key_value_heads": 4,
            "adapter_rank": 8,
        },
    ),
    "Falcon-H1": Family(
        "falcon_h1", HYBRID, {**MAMBA, "mamba_d_ssm": 64, "mamba_expand": 2, "lm_head_multiplier": 0.5}
    ),
    "Granite 4 hybrid": Family("granitemoehybrid", HYBRID, {**ROUTER, **MAMBA, **BOTH, "shared_intermediate_size": 16}),
    "Nemotron-H": Family(
        "nemotron_h",
        HYBRID,
        {
            "layers_block_type": ["linear_attention", "moe", "full_attention"],
            "num_hidden_layers": 3,
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "ssm_state_size": 8,
            "n_groups": 1,
            "chunk_size": 8,
            "moe_shared_expert_intermediate_size": 16,
        },
    ),
    "LFM2": Family("lfm2", HYBRID, {"layer_types": ["conv", "full_attention"], "block_multiple_of": 16}),
    "LFM2-MoE": Family("lfm2_moe", HYBRID, {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1}),
    "Qwen3-Next": Family(
        "qwen3_next", HYBRID, {**ROUTER, **DELTA, **BOTH, "shared_expert_intermediate_size": 16}, suite=True
    ),
    "OLMo Hybrid": Family("olmo_hybrid", HYBRID, BOTH, dtype=torch.float32),
    "Kimi Linear": Family(
        "kimi_linear",
        HYBRID,
        {
            **LATENT,
            "q_lora_rank": None,
            "num_key_value_heads": 4,
            "linear_head_dim": 8,
            "linear_num_heads": 4,
            **BOTH,
            "mlp_layer_types": ["dense", "sparse"],
        },
    ),
    "MiniMax-01": Family("minimax", RECURRENT, {**ROUTER, **BOTH, "block_size": 8}, suite=True),
    "RecurrentGemma, Griffin": Family(
        "recurrent_gemma",
        RECURRENT,
        {
            "block_types": ["recurrent", "attention"],
            "lru_width": 32,
            "attention_window_size": 7,
            "logits_soft_cap": 3.0,
        },
        suite=True,
    ),
    "RWKV": Family("rwkv", RECURRENT, {"attention_hidden_size": 32}),
    "xLSTM": Family("xlstm", RECURRENT, {"num_heads": 2, "chunk_size": 8, "output_logit_soft_cap": 3.0}),
    "Differential Transformer": Family("diffllama", DIFFERENTIAL, suite=True),
    "BitNet b1.58": Family("bitnet", TERNARY, {"quantization_config": ONLINE}, suite=True),
    "Gemma 3": Family("gemma3_text", HALF, SLIDING, suite=True),
    "Gemma 3n": Family(
        "gemma3n_text",
        HALF,
        {
            **SLIDING,
            "num_kv_shared_layers": 0,
            "vocab_size_per_layer_input": VOCAB,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 8,
            "activation_sparsity_pattern": [0.0, 0.0],
        },
    ),
    "Gemma 4": Family(
        "gemma4_text",
        HALF,
        {**SLIDING, "vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 8, "global_head_dim": 8},
    ),
    "Llama 4": Family("llama4_text", HALF, {"intermediate_size_mlp": 48, "num_experts_per_tok": 1, "moe_layers": [1]}),
    "Qwen3.5": Family("qwen3_5_text", HALF, {**DELTA, **BOTH}),
    "Aria": Family("aria_text", HALF, {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1}),
}


def build(family: Family, seed: int = 0) -> Any:
    """A model of the family in its dtype, in eval mode, with random weights of the seed."""
    from transformers import AutoConfig, AutoModelForCausalLM

    default = AutoConfig.for_model(family.model_type)
    names: Mapping[str, str] = getattr(type(default), "attribute_map", {})
    known = default.to_dict()
    given = {names.get(k, k): v for k, v in COMMON.items() if k in known or k in names}
    fields = {**given, **family.fields}
    ternary = fields.pop("quantization_config", None)
    config = AutoConfig.for_model(family.model_type, **fields)
    torch.manual_seed(seed)
    # The grouped matmul that experts use by default has no float64.
    experts = {"experts_implementation": "eager"} if _has_experts(known) else {}
    model = AutoModelForCausalLM.from_config(config, **experts)
    if ternary is not None:
        model = _quantised(model, ternary)
    bias = model.get_output_embeddings().bias
    if bias is not None:
        torch.nn.init.normal_(bias)
    return model.to(family.dtype).eval()


def _has_experts(known: Mapping[str, Any]) -> bool:
    return any("expert" in key or key == "ffn_config" for key in known)


def _quantised(model: Any, settings: Mapping[str, Any]) -> Any:
    """The model as it comes out of a folder whose config.json names its quantisation."""
    import json

    from tokensieve.modeling.load import load_causal_lm

    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        path = Path(folder) / "config.json"
        said = json.loads(path.read_text("utf-8"))
        path.write_text(json.dumps({**said, "quantization_config": dict(settings)}), "utf-8")
        return load_causal_lm(folder)


def takes(model: Any, name: str) -> bool:
    """Whether the model's forward has this argument, or any."""
    given = inspect.signature(type(model).forward).parameters
    return name in given or any(p.kind is p.VAR_KEYWORD for p in given.values())


def class_of(family: Family) -> str:
    """The name of the family's class in transformers."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    return str(CAUSAL[family.model_type])


SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
SMALL_T5 = {"vocab_size": VOCAB, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2}
# name -> (class, class of its config, fields): what is no causal language model, one of them only by its config.
NOT_CAUSAL: dict[str, tuple[str, str, dict[str, Any]]] = {
    "BERT with a head for causal modelling, `is_decoder: false`": ("BertLMHeadModel", "BertConfig", SMALL),
    "T5, an encoder with a decoder": ("T5ForConditionalGeneration", "T5Config", SMALL_T5),
    "BERT that classifies": ("BertForSequenceClassification", "BertConfig", SMALL),
}
