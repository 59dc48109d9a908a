"""A model's vocabulary head, as numbers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LinearHead:
    """What turns hidden states into logits: ``cap * tanh(scale * (h @ weight.T + bias) / cap)``; no cap, no tanh.

    Takes the place of a plain ``head_weight`` wherever a model has more than that.
    """

    weight: Tensor  # [V, D]
    bias: Tensor | None = None  # [V]
    logit_scale: float = 1.0
    """Factor on the logits (Cohere's ``logit_scale``, one over Granite's ``logits_scaling``)."""
    softcap: float | None = None
    """Gemma's ``final_logit_softcapping``; None for none."""

    @staticmethod
    def of(head: Tensor | LinearHead) -> LinearHead:
        return head if isinstance(head, LinearHead) else LinearHead(head)
