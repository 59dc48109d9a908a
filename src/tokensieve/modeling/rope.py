"""A model with other rotary positions: the same weights, read at other angles."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from ..runs.errors import UserError
from .folder import told_by_library

_OF_ALL = ("rope_theta", "rope_type", "partial_rotary_factor")
_LENGTH = "original_max_position_embeddings"
# What each type reads; transformers takes any other key, and does nothing with it.
_OF_TYPE = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor", _LENGTH),
    "yarn": (
        *("factor", _LENGTH, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
        "truncate",
    ),
    "longrope": ("factor", _LENGTH, "attention_factor", "short_factor", "long_factor"),
    "llama3": ("factor", _LENGTH, "low_freq_factor", "high_freq_factor"),
}


def with_rope(model: Any, rope: Mapping[str, Any], positions: int | None) -> Any:
    """The model with ``rope`` laid over its config's ``rope_parameters`` and, if given, ``max_position_embeddings``; weights as
    they are, dimension i at the angle position * rope_theta^(-2i / d) in pairs i of a head of width d.

    A larger ``rope_theta`` for longer rows is what Qwen2.5-Coder (10,000 -> 1,000,000, arXiv 2409.12186) and project-level
    completion with OpenCoder (10,000 -> 500,000, arXiv 2510.13697) train on from; ``rope_type: yarn`` with ``factor`` stretches
    without training. UserError for a model without rotary positions, or with different ones a kind of layer, and for what its
    class does not know.
    """
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(model.config)
    text = config.get_text_config()
    known = getattr(text, "rope_parameters", None)
    if not known or any(isinstance(value, Mapping) for value in known.values()):
        why = "has none" if not known else f"has different ones for {', '.join(known)}"
        raise UserError(f"rope: rotary positions of a {config.model_type} cannot be changed: it {why}")
    _check_read(rope, str(rope.get("rope_type", known.get("rope_type", "default"))))
    try:
        text.rope_parameters = {**known, **rope}
        if positions is not None:
            text.max_position_embeddings = positions
        text.validate()
        made = AutoModelForCausalLM.from_config(config, dtype=model.dtype, trust_remote_code=False)
        made.load_state_dict(model.state_dict(), strict=True)
    except Exception as e:  # whatever a config or model class raises for a type or factor that it does not know
        raise UserError(f"rope: a {config.model_type} cannot be made so: {told_by_library(e)}") from None
    made.generation_config = model.generation_config
    return made.eval()


def _check_read(rope: Mapping[str, Any], kind: str) -> None:
    """Refuse (UserError) a key that nothing reads, and a base that gives no angles."""
    read = (*_OF_ALL, *_OF_TYPE.get(kind, rope))
    if unread := [key for key in rope if key not in read]:
        raise UserError(f"rope: {unread[0]!r} says nothing with rope_type {kind!r}, which reads {', '.join(read)}")
    base = rope.get("rope_theta", 1.0)
    if isinstance(base, bool) or not isinstance(base, int | float) or not 0 < base < float("inf"):
        raise UserError(f"rope: rope_theta must be a number above 0, not {base!r}")
