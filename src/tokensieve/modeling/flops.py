"""Floating-point operations of a causal LM, counted from its modules; unknown (NaN) for a family that is not known.

An estimate: it never raises, so that no run ends for it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .seam import base_model

# Modules whose work is neither 2 FLOPs a weight nor one softmax attention: scans, linear attention, index scores, two
# attentions in one, a prompt of their own before the row, heads that are visited like experts.
_OTHER_MIXERS = re.compile(
    r"Mamba|Mixer$|Recurrent|Delta|Lightning|LinearAttention|CrossAttention|ShortConv|Rwkv|[a-z]LSTM|Indexer|Compressor"
    r"|Retention|LSH|^DiffLlama|^CpmAnt|^JetMoe"
)
# Names that a token's number of experts goes by.
_VISITED = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "top_k", "moe_topk", "moe_top_k", "moe_k")
# What keys and values are made by, alone or together with queries.
_KEYS_AND_VALUES = re.compile(r"(^|[._])(k|v|kv|qkv|wqkv|key|value|query_key_value|c_attn)(_|\.|$)", re.IGNORECASE)
# Of PEFT: looked up, or kept beside a trained copy and not computed with.
_NO_MATMUL = ("lora_embedding_A", "trainable_tokens", "original_module")


@dataclass(frozen=True)
class TokenFlops:
    """FLOPs of one token. NaN: not known."""

    body: float
    """Forward below the head: 2 * active parameters + causal attention, heads * (key + value width) * length a layer."""
    head: float
    """Forward of the vocabulary head: 2 * D * V."""
    body_backward: float | None = None
    """Backward below the head; None: all of it trains, 2 * body."""
    head_backward: float | None = None
    """Backward of the head; None: 2 * head, to the hidden states and to its weight."""
    body_backward_kept: float = 0.0
    """Of ``body_backward`` what is done for trained tokens only: 0, but for a sparse backward."""

    def forward(self, tokens: float) -> float:
        """One forward of ``tokens`` tokens, head included."""
        return tokens * (self.body + self.head)

    def train(self, tokens: float, trained: float) -> float:
        """``tokens * (body + head + body_backward - kept) + trained * (head_backward + kept)``: a training step, of whose
        tokens only those ``trained`` go back through the head, and through what is ``kept`` of the body's backward.

        What an ideal implementation must do (the convention of MFU): recomputation is not counted.
        """
        body_backward = 2 * self.body if self.body_backward is None else self.body_backward
        head_backward = 2 * self.head if self.head_backward is None else self.head_backward
        kept = self.body_backward_kept
        return tokens * (self.body + self.head + body_backward - kept) + trained * (head_backward + kept)


def known_or_none(flops: float) -> float | None:
    """For JSON, which has no NaN: None where a number of FLOPs is not known."""
    return None if math.isnan(flops) else flops


def token_flops(model: nn.Module, length: float, *, sparse: bool = False, strict: bool = False) -> TokenFlops:
    """FLOPs a token at rows of ``length``, as ``model`` trains now (``requires_grad``), PEFT-wrapped or not.

    A backward costs 2 FLOPs a weight for the gradient to the weight, if that trains, and 2 more for the gradient to the
    weight's input, if something below it trains; attention's costs twice its forward under the same condition. Below is what
    comes earlier in the order of modules. Of mixtures only the experts count that a token visits; tables count nothing. A
    sliding window is counted as the whole row. ``sparse``: backward of blocks for trained tokens only, but for keys and
    values (and what they are fused with), which ``strict`` leaves out too.

    NaN in every field where the model has layers that are no softmax attention (state spaces, linear attention), several
    attentions a layer, or experts that do not say how many of them a token visits; and where anything fails.
    """
    try:
        return _counted(model, length, sparse, strict)
    except Exception:  # whatever a config class or a module of an unknown family raises for a name it does not have
        return TokenFlops(math.nan, math.nan)


def _counted(model: nn.Module, length: float, sparse: bool, strict: bool) -> TokenFlops:
    base = base_model(model)
    config = base.config.get_text_config()
    body = base if config is base.config else base.get_decoder()  # without towers of images and sound
    head: Any = base.get_output_embeddings()
    embeddings = [m for m in body.modules() if isinstance(m, nn.Embedding)]
    tables = {id(p) for m in embeddings for p in m.parameters()}
    outside = tables | {id(p) for p in head.parameters()}
    weights = list(_weights(body, config, outside))
    trains = [i for i, (_, weight, _) in enumerate(weights) if weight.requires_grad]
    lowest = -1.0 if any(p.requires_grad for m in embeddings for p in m.parameters()) else min(trains, default=math.inf)
    attention, attention_backward = _attention(body, config, length, [name for name, *_ in weights], lowest)
    forward = math.fsum(flops for *_, flops in weights)
    back = [flops * ((i > lowest) + weight.requires_grad) for i, (_, weight, flops) in enumerate(weights)]
    kept = [b for b, (name, *_) in zip(back, weights, strict=True) if strict or not _KEYS_AND_VALUES.search(name)]
    own = 2 * head.weight.numel()
    head_backward = own * (math.isfinite(lowest) + head.weight.requires_grad)
    return TokenFlops(
        forward + attention,
        float(own),
        math.fsum(back) + attention_backward,
        float(head_backward),
        math.fsum(kept) + attention_backward if sparse else 0.0,
    )


def _weights(body: nn.Module, config: Any, outside: set[int]) -> Iterator[tuple[str, Tensor, float]]:
    """(name, weight, forward FLOPs a token) in order, each where it is used: layers may share one. Raises for what it cannot
    read."""
    visited = dict(_shares(body, config))
    for path, module in body.named_modules(remove_duplicate=False):
        for own, weight in module.named_parameters(recurse=False):
            name = f"{path}.{own}"
            if id(weight) in outside or any(word in name for word in _NO_MATMUL):
                continue
            share = next((s for experts, s in visited.items() if name.startswith(f"{experts}.")), None)
            if share is None and weight.dim() > 2 and not isinstance(module, nn.Conv1d):
                raise ValueError(f"{name} has {weight.dim()} dimensions: nobody knows how much of it a token visits")
            yield name, weight, 2 * weight.numel() * (1.0 if share is None else share)


def _shares(body: nn.Module, config: Any) -> Iterator[tuple[str, float]]:
    """(path of experts, share of them that a token visits). Raises where a mixture does not say."""
    for path, module in body.named_modules(remove_duplicate=False):
        kind = type(module).__name__
        name = path.rpartition(".")[2]
        if name != "experts" and (not kind.endswith("Experts") or "shared" in name):
            continue
        block = body.get_submodule(path.rpartition(".")[0])
        number = _number_of(module)
        visits = {v for part in (module, block, *block.children(), config) for v in _numbers(part, _VISITED)}
        if len(visits) != 1 or not 0 < (k := visits.pop()) <= number or bool(getattr(config, "zero_expert_num", None)):
            raise ValueError(f"{path}: {number} experts, and nobody knows how many a token visits")
        yield path, k / number


def _number_of(experts: nn.Module) -> int:
    if isinstance(experts, nn.ModuleList):
        return len(experts)
    sizes = {weight.shape[0] for weight in experts.parameters() if weight.dim() == 3}
    sizes = sizes or {_numbers(experts, ("num_experts",))[0]}
    if len(sizes) != 1:
        raise ValueError("experts of several sizes")
    return int(sizes.pop())


def _numbers(part: Any, names: tuple[str, ...]) -> list[int]:
    """The first of ``part``'s attributes that is a number, if there is one: a list of one or none."""
    found = (getattr(part, name, None) for name in names)
    return [v for v in found if isinstance(v, int) and not isinstance(v, bool)][:1]


def _attention(body: nn.Module, config: Any, length: float, names: list[str], lowest: float) -> tuple[float, float]:
    """FLOPs a token of all layers' attention, forward and backward. Raises unless every layer has one that we know."""
    modules = dict(body.named_modules(remove_duplicate=False))
    if other := [m for m in modules.values() if _OTHER_MIXERS.search(type(m).__name__)]:
        raise ValueError(f"{type(other[0]).__name__} is no softmax attention")
    there = [path for path, m in modules.items() if type(m).__name__.endswith("Attention")]
    found = [path for path in there if not any(other.startswith(f"{path}.") for other in there)]
    if len(found) != config.num_hidden_layers:
        raise ValueError(f"{len(found)} attentions in {config.num_hidden_layers} layers")
    forward = backward = 0.0
    for path in found:
        each = _heads(modules[path], config) * sum(_widths(modules[path], config)) * length
        last = max((i for i, name in enumerate(names) if name.startswith(f"{path}.")), default=-1)
        forward += each
        backward += 2 * each * (lowest < last)
    return forward, backward


def _heads(attention: Any, config: Any) -> int:
    own = _numbers(attention, ("num_heads", "num_attention_heads", "n_heads", "n_head"))
    return own[0] if own else int(config.num_attention_heads)


def _widths(attention: Any, config: Any) -> tuple[int, int]:
    """(key, value) width of a head; of latent attention they differ."""
    key = _numbers(attention, ("qk_head_dim", "head_dim", "attention_head_size", "head_size", "dim_head"))
    width = key[0] if key else config.hidden_size // config.num_attention_heads
    return width, (_numbers(attention, ("v_head_dim",)) or [width])[0]
