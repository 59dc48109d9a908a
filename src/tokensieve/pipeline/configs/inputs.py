"""What a recipe says of what it reads and does not bring, under ``inputs:``; and where that is found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class InputConfig:
    """Something that a recipe reads and does not bring along: its place is the recipe's setting of the same name."""

    what: str
    """What it is, in a few words."""
    hub: str | None = None
    """owner/name on the Hugging Face hub: of it, or of what comes nearest to it."""
    tokens: float | None = None
    """Of text: how many tokens it has. A plan counts with these while it is not here."""
    model: dict[str, Any] | None = None
    """Of a model: its config, model_type and shapes. A plan counts with these while it is not here."""

    def __post_init__(self) -> None:
        if self.tokens is not None and self.model is not None:
            raise ValueError("tokens are those of a text, and model is the config of a model: it cannot be both")
        if self.tokens is not None and not self.tokens > 0:
            raise ValueError(f"tokens must be above 0, not {self.tokens:g}")
