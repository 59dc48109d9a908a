"""What a transform is: what is done to the documents of a corpus before they are encoded, or to their tokens after."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ...read.documents import Document
from ...tokenizer import Encoder
from ..encoded import Encoded

RngOf = Callable[[str, str], np.random.Generator]  # source, id -> a generator of its own


class Transform(NamedTuple):
    """One of three functions, or several. Each is given a generator of its own for each document, so that what it does to one
    depends on the seed and on that document only: not on its neighbours, nor on how many processes there are. What it leaves
    alone it gives back as the very object it was given."""

    documents: Callable[[Document, np.random.Generator], Iterable[Document]] | None = None
    """A document (text, its weights and turns) -> those in its place. ``parts`` are for an order of its own, with control
    tokens between."""
    encoded: Callable[[Encoded, np.random.Generator], Encoded] | None = None
    """A document as token ids (BOS and EOS among them), with labels and weights as long -> another such."""
    unit: Callable[[Iterable[Document], RngOf], Iterator[Document]] | None = None
    """All documents of a unit of work -> those in their place."""


def no_tokens(options: Any) -> Sequence[str]:
    return ()


class TransformKind(NamedTuple):
    """What stands in ``TRANSFORMS``."""

    options: type
    """A frozen dataclass: what it may be told, beside ``sources``."""
    make: Callable[[Any, Encoder], Transform]
    """The options and the corpus's encoder -> the transform, once a process; ``UserError`` where they do not fit."""
    control_tokens: Callable[[Any], Sequence[str]] = no_tokens
    """The options -> control tokens that a tokenizer trained for the corpus has to have."""


@dataclass(frozen=True)
class NamedTransform:
    """A transform as a config has it."""

    name: str
    options: Any
    sources: tuple[str, ...] | None = None
    """Only documents of these sources; None: all."""
