"""What ``tokensieve check`` is told: whether folders are whole and fit together."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CheckConfig:
    """Verify folders: every file against its hash, scores against their corpus, corpora against each other."""

    folders: list[str]
    """Corpus, scores, model, evaluation or run folders."""
    corpus: str | None = None
    """The corpus that score folders must fit."""
    disjoint: bool = False
    """No document may stand in two of the corpora named: the same text, or nearly so under the same id."""
