"""Parts of a training that are asked for, as a config names them. Imports nothing heavy: help and parsing read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Mer:
    """Meta-experience replay over a corpus with old and new text."""

    every: int
    """Optimizer steps from one to the next."""
    epsilon: float
    """Share of the way since the last one that is kept, above 0 and at most 1; 1: nothing is done."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every must be at least 1, not {self.every}")
        if not 0 < self.epsilon <= 1:
            raise ValueError(f"epsilon must be above 0 and at most 1, not {self.epsilon}")


@dataclass(frozen=True)
class SubsetNormOptions:
    """An optimizer that stores a second moment for each row of a matrix; decay rates and epsilon are training.adam_*."""

    name: Literal["subset_norm"] = "subset_norm"
    """Which optimizer."""
    rank: int = 0
    """Subspace-Momentum: directions with a momentum; 0: plain momentum, of all."""
    gap: int = 200
    """Steps after which the directions are found anew, and momentum begins again."""

    def __post_init__(self) -> None:
        if self.rank < 0 or self.gap < 1:
            raise ValueError(f"rank must be at least 0 and gap at least 1, not {self.rank} and {self.gap}")


@dataclass(frozen=True)
class Mup:
    """Maximal update parametrisation: the learning rate that is best at one width is best at others."""

    base: int
    """The hidden size at which nothing changes: that of the model whose learning rate was found."""

    def __post_init__(self) -> None:
        if self.base < 1:
            raise ValueError(f"base must be at least 1, not {self.base}")


@dataclass(frozen=True)
class Noise:
    """Hidden tokens and an attention that opens: absorbing diffusion, or a masked language model, out of a causal one."""

    token: str | int
    """The mask, as the tokenizer spells it, or its id. One that is there already: `init --vocab` adds tokens."""
    name: Literal["absorbing", "masked"] = "absorbing"
    """absorbing: a share of its own for each row, weights of 1 / share; masked: one share."""
    share: float = 0.15
    """masked: of the tokens that are hidden."""
    anneal_steps: int = 0
    """Optimizer steps in which attention opens, from causal to all tokens; 0: open from the first."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, not {self.share}")
        if self.anneal_steps < 0:
            raise ValueError(f"anneal_steps must be at least 0, not {self.anneal_steps}")
