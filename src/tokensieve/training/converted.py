"""Weights of checkpoints that have another form there than in the model: experts one by one, where the model has them joined.

``save_pretrained`` writes what was published for a class, ``from_pretrained`` converts it. The Trainer reads a checkpoint by
``load_state_dict(strict=False)``, which does not: what has another name is left as it is, with a warning in its log. A mixture
that was gone on with had its trained attention and the experts that it began with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.conversion_mapping import get_model_conversion_mapping

from ..modeling.cut import stored_dtype
from ..modeling.seam import base_model
from ..runs.errors import UserError


def load_converted(model: Any, checkpoint: Path) -> bool:
    """Give ``model`` the weights of a checkpoint through its class's own conversion; False, and nothing, where it has none.

    Reads a second copy of the model on the CPU, in the precision it is stored in. UserError where the checkpoint lacks weights.
    """
    base = base_model(model)
    if base is not getattr(model, "_orig_mod", model) or not is_converted(base):
        return False  # an adapter's weights are saved as they are
    made, told = type(base).from_pretrained(
        checkpoint,
        dtype=stored_dtype(checkpoint),
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
    )
    if missing := sorted(told["missing_keys"]):
        raise UserError(f"{checkpoint} lacks the weights of {missing[0]}: it cannot be gone on from")
    base.load_state_dict(made.state_dict())
    return True


def is_converted(base: Any) -> bool:
    """Whether a transformers model is saved in another form than it has in memory."""
    used = getattr(
        base, "_weight_conversions", None
    )  # of a model that came out of a folder; else what its class would use
    return bool(get_model_conversion_mapping(base, add_legacy=False) if used is None else used)
