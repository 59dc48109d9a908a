"""FLOPs by hand for models small enough to count."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import MixtralConfig, MixtralForCausalLM

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
