"""A model with other rotary positions: the same weights, read at other angles."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from ..runs.errors import UserError
from .folder import told_by_library


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
