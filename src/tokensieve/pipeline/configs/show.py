"""What ``tokensieve show`` is told: tokens as coloured text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

By = Literal["kept", "excess", "nll", "ref_nll", "class"]
# What to colour by, if not said: the first there is.
COLUMN_ORDER: tuple[By, ...] = ("kept", "excess", "class", "nll", "ref_nll")


@dataclass(frozen=True)
class ShowConfig:
    """Show rows of a corpus: which tokens a run kept, their nll, scores and classes."""

    corpus: str
    """The corpus that all else named here belongs to."""
    run: str | None = None
    """A folder that `train` wrote with token_log_every: shows the rows that it logged token by token."""
    scores: str | None = None
    """Scores of that corpus: adds ref_nll, and excess where a nll is known."""
    dynamics: str | None = None
    """A dynamics folder of that corpus: adds class, and nll at a checkpoint."""
    by: By | None = None
    """What to colour by: kept, excess, class, nll or ref_nll; if not given, the first of these that is known."""
    row: int | None = None
    """The corpus row; all logged rows, or the first one, if not given."""
    step: int | None = None
    """The logged step to look at; the last one if not given."""
    checkpoint: int | None = None
    """The checkpoint of the dynamics whose nll to take, counted from 0; the last one if not given."""
    numbers: bool = False
    """A line a token with its numbers, and its nll over the checkpoints as a curve, instead of running text."""
    lines: int = 30
    """Lines of text at most."""
    width: int = 0
    """Columns; 0 for the terminal's."""
    color: bool | None = None
    """Colours or brackets; colours if this is a terminal and NO_COLOR is not set. --no-color for brackets."""
