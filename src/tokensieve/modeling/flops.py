"""Floating-point operations of a causal LM, counted from its parameters and config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from .seam import base_model


@dataclass(frozen=True)
class TokenFlops:
    """Forward FLOPs of one token; a backward costs twice its forward."""

    body: float
    """Everything below the head: 2 * active parameters + causal attention 2 * layers * heads * head width * length."""
    head: float
    """The vocabulary head: 2 * D * V."""

    def forward(self, tokens: float) -> float:
        """One forward of ``tokens`` tokens, head included."""
        return tokens * (self.body + self.head)

    def train(self, tokens: float, trained: float) -> float:
        """A training step: body forward and backward over all tokens, head backward only over those ``trained``.

        What an ideal implementation must do (the convention of MFU): recomputation is not counted.
        """
        return tokens * (3 * self.body + self.head) + trained * 2 * self.head


def token_flops(model: nn.Module, length: int) -> TokenFlops:
    """FLOPs a token at rows of ``length``. Of mixtures, only the experts a token visits count."""
    base = base_model(model)
    head: Any = base.get_output_embeddings()
    config: Any = base.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    outside = {id(p) for m in base.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    outside |= {id(p) for p in head.parameters()}
    share = _active_share(config)
    active = sum(
        p.numel() * (share if ".experts." in name else 1) for name, p in base.named_parameters() if id(p) not in outside
    )
    heads = getattr(config, "num_attention_heads", 0) or 0
    width = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    attention = 2 * config.num_hidden_layers * heads * width * length
    return TokenFlops(body=float(2 * active + attention), head=float(2 * head.weight.numel()))


def _active_share(config: Any) -> float:
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    return config.num_experts_per_tok / experts if experts else 1.0
