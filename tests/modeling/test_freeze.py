"""Frozen parameters and other rotary positions: what stays, what moves, what it costs, and what is refused."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from tokensieve.modeling.flops import token_flops
from tokensieve.modeling.freeze import freeze
from tokensieve.modeling.rope import with_rope
from tokensieve.runs.errors import UserError

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 32,
}


def llama(tied: bool = False) -> torch.nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, intermediate_size=24, max_position_embeddings=64, tie_word_embeddings=tied)
    return AutoModelForCausalLM.from_config(config).eval()  # type: ignore[no-any-return]


def test_what_is_frozen_does_not_move() -> None:
    model = freeze(llama(), ["model.embed_tokens.*", "*.layers.0.*"])
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in model.named_parameters() if "embed_tokens" in n or ".layers.0." in n}
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    ids = torch.arange(24).reshape(2, 12)
    model(input_ids=ids, labels=ids).loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1).step()
    assert {n for n, p in model.named_parameters() if torch.equal(p, before[n])} == frozen


def test_frozen_lower_blocks_cost_less() -> None:
    """Nothing below the lowest trained weight is gone back through."""
    whole, part = (token_flops(freeze(llama(), p), 8) for p in ([], ["model.embed_tokens.*", "*.layers.0.*"]))
    assert part.train(1, 1) < whole.train(1, 1)
    assert part.forward(1) == whole.forward(1)


def test_either_name_of_tied_weights_freezes_them() -> None:
    model = freeze(llama(tied=True), ["lm_head.*"])
    assert not model.get_input_embeddings().weight.requires_grad


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"no parameter's name matches 'model.embed_token.weight'; there is 'model.embed_tokens"
    ):
        freeze(llama(), ["model.embed_token.weight"])
    with pytest.raises(UserError, match="nothing is left to train"):
        freeze(llama(), ["*"])


def test_another_rope_changes_angles_and_no_weight() -> None:
    model, ids = llama(), torch.arange(24).reshape(2, 12)
    made = with_rope(model, {"rope_theta": 5e5}, 256)
    assert made.config.max_position_embeddings == 256
    assert all(torch.equal(p, model.state_dict()[n]) for n, p in made.state_dict().items())
    width, inverse = 8, made.model.rotary_emb.inv_freq
    assert inverse.tolist() == pytest.approx([5e5 ** (-2 * i / width) for i in range(width // 2)], rel=1e-6)
    assert not torch.equal(made(input_ids=ids).logits, model(input_ids=ids).logits)
    same = with_rope(model, {}, None)
    assert torch.equal(same(input_ids=ids).logits, model(input_ids=ids).logits)


def test_what_has_no_such_rope_is_refused() -> None:
    learned = AutoModelForCausalLM.from_config(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32))
    with pytest.raises(UserError, match="rotary positions of a gpt2 cannot be changed: it has none"):
        with_rope(learned, {"rope_theta": 1e6}, None)
    with pytest.raises(UserError, match="rope: a llama cannot be made so"):
        with_rope(llama(), {"rope_type": "nonsense", "factor": 2.0}, None)
