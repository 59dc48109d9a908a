"""Models, keeps and gradients for tests of the token-sparse backward, and an oracle that knows nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tiny
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from tokensieve.modeling.sparse import SparseBackward, gated

Gradients = dict[str, Tensor]
ROWS, LENGTH = 3, 24
COMMON = {
    "vocab_size": tiny.VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
DROPOUT = {"resid_pdrop": 0.2, "attn_pdrop": 0.0, "embd_pdrop": 0.0}
# name -> (model_type, fields)
SERVED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, one key head": ("llama", {"num_key_value_heads": 1}),
    "llama, a key head each, biases": ("llama", {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 8}),
    "mistral, window": ("mistral", {"sliding_window": 7}),
    "gemma2, window and soft cap": ("gemma2", {"head_dim": 8, "sliding_window": 7, "attn_logit_softcapping": 2.0}),
    "phi3, fused": ("phi3", {}),
    "gpt_neox, parallel": ("gpt_neox", {}),
    "olmo2, norms behind": ("olmo2", {}),
    "gpt2, dropout": ("gpt2", {**GPT2, **DROPOUT}),
}


def build(model_type: str, *, attention: str | None = None, **fields: Any) -> Any:
    """In float64 throughout, in training mode."""
    shared = {k: v for k, v in COMMON.items() if model_type != "gpt2" or "_token_id" in k or k == "vocab_size"}
    config = AutoConfig.for_model(model_type, **{**shared, **fields})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, **({"attn_implementation": attention} if attention else {}))
    return wide_norms(model.double()).train()


class WideNorm(nn.Module):
    """RMSNorm in the dtype that comes in; Gemma's weights are added to 1."""

    def __init__(self, norm: Any, added: float) -> None:
        super().__init__()
        self.weight, self.eps, self.added = norm.weight, getattr(norm, "eps", 0) or norm.variance_epsilon, added

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * (self.added + self.weight)


def wide_norms(model: Any) -> Any:
    """transformers' norms compute in float32 whatever comes in, and sum their weights' gradients in it."""
    for name, norm in list(model.named_modules()):
        if type(norm).__name__.endswith("RMSNorm") and getattr(norm, "weight", None) is not None:
            model.set_submodule(name, WideNorm(norm, float("Gemma" in type(norm).__name__)))
    return model


def some(share: float = 0.5, seed: int = 0) -> Tensor:
    """[B, T] bool"""
    return torch.rand(ROWS, LENGTH, generator=torch.Generator().manual_seed(seed)) < share


def ids() -> Tensor:
    return torch.randint(1, tiny.VOCAB, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))


def loss(model: Any, keep: Tensor, **inputs: Any) -> Tensor:
    """Sum over kept positions of the nll of the token after (the first one after the last); 0 where nothing is kept."""
    logits = model(input_ids=ids(), use_cache=False, **inputs).logits
    nll = -logits.log_softmax(-1).gather(-1, ids().roll(-1, 1).unsqueeze(-1)).squeeze(-1)
    return torch.where(keep, nll, 0).sum()


def backward(model: Any, made: Callable[[], Tensor]) -> Gradients:
    """Gradients of what ``made`` returns; the same dropout each time."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(7)
    made().backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def by_gate(sparse: SparseBackward, model: Any, keep: Tensor, **inputs: Any) -> Gradients:
    with gated(sparse.blocks, keep, sparse.switch, strict=sparse.strict):
        return backward(model, lambda: loss(model, keep, **inputs))


def by_fast_path(sparse: SparseBackward, model: Any, keep: Tensor, store: Any = "all", **inputs: Any) -> Gradients:
    def made() -> Tensor:
        with sparse.forward(keep=keep if store == "kept" else None, store=store) as selection:
            value = loss(model, keep, **inputs)
            if store != "kept":
                selection.choose(keep)
        return value

    return backward(model, made)


def chain_of_blocks(model: Any, keep: Tensor, *, strict: bool = False) -> Gradients:
    """A Llama's gradients by the definition, block by block from the top: what reaches a block's input at a dropped position
    goes no further. Imports nothing of what it is compared with."""
    parameters = dict(model.named_parameters())
    total = {n: torch.zeros_like(p) for n, p in parameters.items()}

    def add(value: Tensor, outer: Tensor, inputs: list[Tensor]) -> list[Tensor | None]:
        found = torch.autograd.grad(value, [*parameters.values(), *inputs], outer, allow_unused=True)
        for name, grad in zip(parameters, found[: len(parameters)], strict=True):
            if grad is not None:
                total[name] += grad
        return list(found[len(parameters) :])

    body = model.model
    embedded = body.embed_tokens(ids())
    rotary = body.rotary_emb(embedded, torch.arange(LENGTH)[None])
    states = [embedded]
    for block in body.layers:
        states.append(block(states[-1].detach(), position_embeddings=rotary))
    top = states[-1].detach().requires_grad_()
    nll = -model.lm_head(body.norm(top)).log_softmax(-1).gather(-1, ids().roll(-1, 1).unsqueeze(-1)).squeeze(-1)
    (grad,) = add((nll * keep).sum(), torch.ones((), dtype=nll.dtype), [top])
    for block, below in zip(reversed(body.layers), reversed(states[:-1]), strict=True):
        start = below.detach().requires_grad_()
        hooks = [p.register_forward_hook(_constant(keep)) for p in _keys_and_values(block) if strict]
        output = block(start, position_embeddings=rotary)
        for hook in hooks:
            hook.remove()
        assert grad is not None
        (grad,) = add(output, grad, [start])
        assert grad is not None
        grad = grad * keep.unsqueeze(-1)
    assert grad is not None
    add(embedded, grad, [])
    return total


def _keys_and_values(block: Any) -> list[nn.Module]:
    return [block.self_attn.k_proj, block.self_attn.v_proj]


def _constant(keep: Tensor) -> Any:
    return lambda module, args, output: torch.where(keep.unsqueeze(-1), output, output.detach())
