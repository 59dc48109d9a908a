"""Heads that look back: found by their attention weights, and masked by an even one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny import VOCAB, in_float64, llama

from tokensieve.runs.errors import UserError
from tokensieve.scoring.retrieval import PROBE_ROWS, RetrievalHeads


def without_query(model: Any, heads: list[tuple[int, int]]) -> Any:
    """The model with the query of these heads set to 0: all scores are then equal, and so are the weights."""
    for layer, head in heads:
        attention = model.model.layers[layer].self_attn
        size = attention.head_dim
        with torch.no_grad():
            attention.q_proj.weight[head * size : (head + 1) * size] = 0
    return model


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
def test_a_masked_head_is_one_without_a_query(share: float, groups: int) -> None:
    fields = {"num_attention_heads": 4, "num_key_value_heads": groups}
    model = llama(dtype=torch.float64, **fields)
    heads = RetrievalHeads(model, share)
    assert len(heads.heads) == max(1, int(share * 8 + 0.5))
    expected = without_query(llama(dtype=torch.float64, **fields), heads.heads)
    ids = torch.randint(VOCAB, (3, 20), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(20) < torch.tensor([[20], [13], [1]])
    with torch.no_grad():
        for given in ({}, {"attention_mask": mask.long()}):
            plain = model(input_ids=ids, **given).logits
            with heads.masked():
                masked = model(input_ids=ids, **given).logits
            other = expected(input_ids=ids, **given).logits
            real = mask if given else torch.ones_like(mask)
            assert float((masked - other)[real].abs().max()) < 1e-10
            assert float((masked - plain)[real].abs().max()) > 1e-3
            assert torch.equal(model(input_ids=ids, **given).logits, plain)  # outside, nothing is left of it
    heads.close()


def test_the_probe_is_the_weight_on_what_followed() -> None:
    """Off by one, the probe finds heads that look at the same token, which copy nothing."""
    model = in_float64(llama())
    heads = RetrievalHeads(model, 0.3, seed=5)
    length = model.config.max_position_embeddings // 2
    once = torch.randint(VOCAB, (PROBE_ROWS, length), generator=torch.Generator().manual_seed(5))
    eager = llama(attn_implementation="eager").double()
    with torch.no_grad():
        attentions = eager(input_ids=torch.cat([once, once], 1), output_attentions=True).attentions
    expected = np.zeros((2, 2))
    for layer, weights in enumerate(attentions):
        for head in range(2):
            found = [
                float(weights[b, head, t, t - length + 1]) for b in range(PROBE_ROWS) for t in range(length, 2 * length)
            ]
            expected[layer, head] = sum(found) / len(found)
    assert np.abs(heads.score.numpy() - expected).max() < 1e-5
    best = sorted((-expected[at], at) for at in np.ndindex(2, 2))
    assert heads.heads == [at for _, at in best[:1]]
    heads.close()


def test_a_model_without_attention_is_refused() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(vocab_size=VOCAB, hidden_size=8, num_hidden_layers=1, state_size=4))
    with pytest.raises(UserError, match=r"no attention heads that could be masked|attn_implementation"):
        RetrievalHeads(model, 0.1)
