"""Models from folders and from configs, and the hash that names their weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from tokensieve.modeling.folder import model_folder, model_hash
from tokensieve.modeling.load import check_length, check_vocabulary, load_causal_lm, model_config, new_causal_lm
from tokensieve.runs.errors import UserError

CONFIG = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny.llama().save_pretrained(folder)
    return folder


def test_a_saved_model_comes_back(saved: Path) -> None:
    model = load_causal_lm(saved)
    assert not model.training
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), tiny.llama().parameters(), strict=True))
    assert load_causal_lm(saved, dtype="bfloat16").lm_head.weight.dtype == torch.bfloat16
    with pytest.raises(UserError, match="unknown dtype 'half'"):
        load_causal_lm(saved, dtype="half")


def test_a_training_runs_model_is_found(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(saved)
    assert model_folder(tmp_path) == tmp_path / "model"
    with pytest.raises(UserError, match=r"it has no config\.json"):
        model_folder(saved.parent)
    with pytest.raises(UserError, match="does not exist"):
        model_folder(tmp_path / "nothing")


def test_hash_names_the_weights(saved: Path, tmp_path: Path) -> None:
    """Scores of an old reference model are recognised by its bytes: not by its path, and not by its training log."""
    copy = tmp_path / "copy"
    tiny.llama().save_pretrained(copy)
    (copy / "README.md").write_text("a model card", encoding="utf-8")
    assert model_hash(copy) == model_hash(saved)
    tiny.llama(seed=1).save_pretrained(copy)
    assert model_hash(copy) != model_hash(saved)
    tiny.llama().save_pretrained(copy)
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    (copy / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}), encoding="utf-8")
    assert model_hash(copy) != model_hash(saved)
    (copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no \.safetensors weights"):
        model_hash(copy)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    with pytest.raises(UserError, match="cannot be loaded as a causal language model"):
        load_causal_lm(tmp_path)


def test_new_models_are_a_matter_of_the_seed() -> None:
    """Arms that start from other weights compare weights, not objectives."""
    first, again, other = (new_causal_lm(CONFIG, seed=s, vocab_size=50).lm_head.weight for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (50, 16)
    assert new_causal_lm({**CONFIG, "vocab_size": 64}, seed=1, vocab_size=50).config.vocab_size == 64


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"hidden_size": 16}, "needs the field model_type"),
        ({**CONFIG, "hiden_size": 32}, "LlamaConfig has no field 'hiden_size'"),
        ({"model_type": "lama"}, "model: .*lama"),
    ],
)
def test_configs_that_say_something_else_are_refused(config: dict[str, Any], says: str) -> None:
    """A misspelt field is taken by transformers without a word, and the model has its default size."""
    with pytest.raises(UserError, match=says):
        new_causal_lm(config, seed=0, vocab_size=50)


def test_vocabulary_and_length_are_checked() -> None:
    model = new_causal_lm(CONFIG, seed=0, vocab_size=50)
    check_vocabulary(model, 50, "x")
    check_vocabulary(model, 40, "x")
    with pytest.raises(UserError, match="x has a vocabulary of 50, the corpus one of 51"):
        check_vocabulary(model, 51, "x")
    check_length(model.config, 32, "x")
    with pytest.raises(UserError, match="rows of 33 tokens are longer than x's max_position_embeddings of 32"):
        check_length(model.config, 33, "x")


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e4}
LLAMA3 = {**YARN, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("fields", "longest"),
    [
        ({"max_position_embeddings": 32, "rope_parameters": YARN}, 128),  # as model cards say to do
        (
            {"max_position_embeddings": 128, "rope_parameters": YARN},
            128,
        ),  # the stretched length stands there: not twice
        ({"max_position_embeddings": 32, "rope_parameters": {**YARN, "original_max_position_embeddings": 16}}, 64),
        (
            {
                "max_position_embeddings": 32,
                "rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 1e4},
            },
            80,
        ),
        (
            {
                "max_position_embeddings": 32,
                "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
            },
            64,
        ),
        ({"max_position_embeddings": 500, "rope_parameters": {**LLAMA3, "factor": 8.0}}, 500),
        ({"max_position_embeddings": 32, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, 32),
        ({"model_type": "gpt2", "n_embd": 8, "n_positions": 32}, 32),  # learned positions: there are no more
    ],
)
def test_stretched_positions_count(fields: dict[str, Any], longest: int) -> None:
    """YaRN with max_position_embeddings at the old length, as Qwen2.5's cards have it, was refused within its context."""
    made = model_config({**({} if "model_type" in fields else CONFIG), **fields}, vocab_size=50)
    check_length(made, longest, "x")
    with pytest.raises(UserError, match=rf"^rows of {longest + 1} tokens are longer than x's max_position_emb") as e:
        check_length(made, longest + 1, "x")
    assert ("rope_parameters" in str(e.value)) == ("gpt2" not in fields.values())
    assert (f"stretches to {longest}" in str(e.value)) == (longest > made.max_position_embeddings)


def test_missing_weights_are_refused(saved: Path, tmp_path: Path) -> None:
    """A folder without a head loads with a random one, and the warning was muted: two loads scored differently."""
    from transformers import AutoModel

    AutoModel.from_pretrained(saved).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"lacks the weights of lm_head.weight"):
        load_causal_lm(tmp_path)
