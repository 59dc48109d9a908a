"""A small model of a large one's family: what of the large one stays, what shrinks, and that it is a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tokensieve.modeling.load import model_config, new_causal_lm, spelled_out
from tokensieve.runs.errors import UserError

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize(
    "like",
    [
        {"model_type": "llama", "num_key_value_heads": 8, "tie_word_embeddings": True, "hidden_act": "gelu"},
        {"model_type": "qwen3", "head_dim": 128},
        {"model_type": "qwen2", "num_key_value_heads": 4},
        {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "activation_function": "relu"},
        {"model_type": "gpt_neox"},
        {"model_type": "gemma2"},
        {"model_type": "gemma3_text"},
        {"model_type": "phi3"},
        {"model_type": "olmo2"},
        {"model_type": "mixtral"},
        {"model_type": "deepseek_v2", "num_experts_per_tok": 6},
        {"model_type": "qwen3_moe"},
    ],
    ids=lambda like: str(like["model_type"]),
)
def test_a_small_one_of_its_family_is_a_model(like: dict[str, Any]) -> None:
    """Sizes that no longer fit each other would be found by the first training, after all text was prepared."""
    model = new_causal_lm({"like": like, **SIZES}, seed=0, vocab_size=64, bos_token_id=0, eos_token_id=0)
    assert model.config.model_type == like["model_type"]
    assert (model.config.hidden_size, model.config.num_hidden_layers, model.config.num_attention_heads) == (32, 2, 4)
    assert model.get_output_embeddings().weight.shape == (64, 32)
    assert sum(p.numel() for p in model.parameters()) < 1_000_000  # of gpt2 32k are positions
    for key in ("hidden_act", "activation_function", "tie_word_embeddings"):
        if key in like:
            assert getattr(model.config, key) == like[key]


def test_proportions() -> None:
    llama = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32}
    rope = {"rope_type": "default", "rope_theta": 5e5}
    small = spelled_out({"like": {**llama, "num_key_value_heads": 8, "rope_parameters": rope}, **SIZES})
    assert small["intermediate_size"] == 88  # 11008 / 128 = 86, to a multiple of 8
    assert small["num_key_value_heads"] == 1
    assert model_config(small).rope_parameters["rope_theta"] == 5e5
    six = {**SIZES, "hidden_size": 48, "num_attention_heads": 6}
    assert spelled_out({"like": {**llama, "num_key_value_heads": 16}, **six})["num_key_value_heads"] == 3
    assert spelled_out({"like": llama, **SIZES, "intermediate_size": 40})["intermediate_size"] == 40
    layers = {"model_type": "gemma3_text", "num_hidden_layers": 12}
    kinds = model_config(layers).layer_types
    assert spelled_out({"like": layers, **SIZES})["layer_types"] == kinds[:2]


def test_a_folder_is_read_without_weights(tmp_path: Path) -> None:
    said = {"model_type": "qwen2", "vocab_size": 151_936, "eos_token_id": 151_643, "dtype": "bfloat16", "made_up": 3}
    (tmp_path / "config.json").write_text(
        json.dumps({**said, "architectures": ["Qwen2ForCausalLM"], "rms_norm_eps": 1e-5})
    )
    small = spelled_out({"like": str(tmp_path), **SIZES})
    assert small["model_type"] == "qwen2"
    assert small["rms_norm_eps"] == 1e-5
    assert not {"vocab_size", "eos_token_id", "dtype", "made_up"} & set(small)
    assert model_config({"like": str(tmp_path), **SIZES}, vocab_size=77).vocab_size == 77


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"like": {"model_type": "llama"}, "hidden_size": 32, "num_attention_heads": 2},
            "num_hidden_layers is missing",
        ),
        ({"like": {"model_type": "llama"}, **SIZES, "hidden_size": 30}, "30 cannot be shared out over 4 heads"),
        (
            {"like": {"model_type": "llama"}, **SIZES, "num_hidden_layers": 0},
            "num_hidden_layers must be a whole number",
        ),
        ({"like": {"model_type": "lama"}, **SIZES}, "did you mean 'llama'"),
        ({"like": {"model_type": "llama"}, **SIZES, "hiden_act": "relu"}, "has no field 'hiden_act'"),
        ({"like": {"model_type": "mamba"}, **SIZES}, "does not say its num_attention_heads"),
        ({"like": "nowhere", **SIZES}, "nowhere does not exist"),
        ({"like": 3, **SIZES}, "a model's folder or a config is needed, not 3"),
    ],
)
def test_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as e:
        model_config(config)
    assert said in str(e.value)
