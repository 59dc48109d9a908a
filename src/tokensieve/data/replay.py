"""Rows of an earlier corpus among those of a new one: as a config has them. What is done with them is in ``build/``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ReplaySource:
    """Rows of an earlier corpus among those of a new one."""

    corpus: str
    """A folder that `prepare` wrote with this tokenizer and length."""
    share: float
    """Share of the new corpus's rows, above 0 and below 1."""
    sources: list[str] | None = None
    """Only rows of these of its sources; none: all."""
    epochs: float = 1.0
    """How often its rows may be taken to fill the share."""
