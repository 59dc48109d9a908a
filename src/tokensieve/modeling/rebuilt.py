"""A model put together of a config and weights that were made of another model's, and the proof that both compute the same."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..runs.errors import UserError
from .cut import random_logits
from .folder import told_by_library

# Families whose blocks are known by the names of their weights: norms, q, k, v, o, a gated MLP, and nothing scaled by width.
WIDTH_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
# Largest difference of logits, in parts of the largest one, between two ways to round the same sums.
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def check_width_family(kind: str, done: str) -> None:
    """Refuse (UserError) a family whose widths cannot be changed here."""
    if kind not in WIDTH_FAMILIES:
        raise UserError(f"a {kind} cannot be {done} in its width: that is known for {', '.join(WIDTH_FAMILIES)}")


def rebuilt(config: Any, weights: Mapping[str, Tensor], like: Any, done: str) -> Any:
    """The causal LM of ``config`` with ``weights``, in eval mode, in the dtype of ``like``.

    Costs one more copy of the weights, drawn at random first. UserError where a name or a shape is not the config's.
    """
    from transformers import AutoModelForCausalLM

    kind = config.model_type
    try:
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=like.dtype, trust_remote_code=False)
    except Exception as e:  # whatever a model or config class raises
        raise UserError(f"a {kind} cannot be {done}: {told_by_library(e)}") from None
    there = {name: w.shape for name, w in model.state_dict().items()}
    shapes = {name: w.shape for name, w in weights.items()}
    if wrong := sorted(name for name in {*there, *shapes} if there.get(name) != shapes.get(name)):
        raise UserError(f"a {kind} cannot be {done}: {wrong[0]} would be another than its config says")
    model.load_state_dict({name: w.to(like.dtype) for name, w in weights.items()})
    if model.can_generate() and _ids_of(config) == _ids_of(like.config):
        model.generation_config = copy.deepcopy(like.generation_config)
    return model.eval()


def _ids_of(config: Any) -> list[Any]:
    """What ids mean, as far as a config says: with others, how the model generates is the new config's to say."""
    text = config.get_text_config()
    return [getattr(text, f, None) for f in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")]


def largest_difference(one: Any, other: Any) -> float:
    """Of the logits of a batch of random ids, in parts of the largest logit of ``one``."""
    first, second = random_logits(one).double(), random_logits(other).double()
    width = min(first.shape[-1], second.shape[-1])
    return float((first[..., :width] - second[..., :width]).abs().max() / first.abs().max().clamp(min=1e-30))


def check_same_function(one: Any, other: Any, done: str) -> None:
    """Refuse (UserError) two models that do not give a batch of random ids the same logits, up to the rounding of sums."""
    if (gap := largest_difference(one, other)) > _ROUNDING.get(one.dtype, 1e-4):
        raise UserError(
            f"a {one.config.model_type} cannot be {done}: logits that ought to stay differ by {gap:.2g} of the largest one"
        )
