"""What ``tokensieve init`` is told: a model -> a model to begin with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

KIND = "start"
NOT_WORK = ("out", "model")
MANIFEST_KEYS = ("source_hash", "source_flops")


@dataclass(frozen=True)
class InitConfig:
    """Make a model to begin with out of another one: its first blocks, with the same embeddings, head and tokenizer."""

    out: str
    """Folder to write: model/."""
    model: str
    """A Hugging Face folder, or a folder that `train` wrote."""
    layers: int
    """How many of its blocks to keep, from the first on [Inheritune]. All of them: the model as it is."""
    rope: dict[str, Any] = field(default_factory=dict)
    """Rotary positions other than its own: rope_theta, rope_type, factor ... of the config's rope_parameters."""
    max_positions: int | None = None
    """The longest row it is then for (max_position_embeddings); its own if not given."""
