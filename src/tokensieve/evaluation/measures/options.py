"""What each measure of ``evaluate --measures`` may be told. Imports nothing heavy: help and parsing read it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...data.read.source import SourceConfig


@dataclass(frozen=True)
class SurprisalOptions:
    """Surprisal of words, and how much it adds to what else predicts how long they were read."""

    words: str = ""
    """A .csv, .tsv or .jsonl file, a row a word, in order of the text."""
    text: str = "text"
    """Column that says which text a word stands in; without it all words are one text."""
    word: str = "word"
    """Column of the word as it was shown, punctuation with it."""
    time: str = "time"
    """Column of its reading time, empty where it has none; without it there are surprisals alone."""
    predictors: list[str] = field(default_factory=list)
    """Further columns of numbers that predict the time without a model: a logarithm of frequency, a position."""
    length: int = 1024
    """Most tokens of a context; longer texts are read in windows that share half."""


@dataclass(frozen=True)
class ProbeOptions:
    """What a model makes of text that stands there already."""

    rows: int = 32
    """Sequences of each kind."""
    tokens: int = 32
    """Tokens that are repeated."""
    copies: int = 3
    """How often they stand there, at least 2."""
    heads: float = 0.05
    """Share of heads whose mean induction score is told, at least one: those of the highest."""
    seed: int = 0
    """Of the random tokens."""


@dataclass(frozen=True)
class QuantisationOptions:
    """What rounding the weights to few bits does."""

    bits: list[int] = field(default_factory=lambda: [8, 4, 3])
    """Bits a weight, each by itself; 2 to 16."""
    group: int = 0
    """Weights of a row that share a scale; 0: the whole row."""


@dataclass(frozen=True)
class SignalOptions:
    """What metrics say of training while it runs."""

    of: list[str] = field(default_factory=list)
    """Folders that `evaluate` wrote with checkpoints, of sets, tasks or measures; beside the measures of this command."""


@dataclass(frozen=True)
class ContaminationOptions:
    """Test items in the training text: what they gained by it, and what is left of that."""

    seen: list[SourceConfig] = field(default_factory=list)
    """Items as they were put into the training text: one that stands there n times was seen n times."""
    unseen: list[SourceConfig] = field(default_factory=list)
    """Items of the same kind that were kept out of it."""
    until: int = 0
    """The optimizer step after which none was seen any more: the bound of forgetting counts from there."""
