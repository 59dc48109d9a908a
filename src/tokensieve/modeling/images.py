"""What a vision-language model takes of images, by its forward and its config."""

from __future__ import annotations

import inspect
from typing import Any

from ..data.images import PER_IMAGE, PER_TOKEN, PIXELS, ImageInputs
from .seam import base_model

_PLACEHOLDERS = ("image_token_id", "video_token_id")


def image_inputs(model: Any) -> ImageInputs | None:
    """The image columns that the forward of ``model``, PEFT-wrapped or not, has; None for a model of text, or its name."""
    if isinstance(model, str):
        return None
    base = base_model(model)
    takes = inspect.signature(type(base).forward).parameters
    config = getattr(base, "config", None)
    ids = [getattr(config, name, None) for name in _PLACEHOLDERS]
    known = tuple(i for i in ids if isinstance(i, int))
    if PIXELS not in takes or not known:
        return None
    return ImageInputs(type(base).__name__, tuple(n for n in (*PER_IMAGE, *PER_TOKEN) if n in takes), known)
