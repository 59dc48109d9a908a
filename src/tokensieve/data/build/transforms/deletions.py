"""RefineX's deletion programs as a mask of the loss: what a program would delete stays in the text and is no target."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ....runs.errors import UserError
from ...read.documents import Document
from ...tokenizer import Encoder
from .kind import Transform


@dataclass(frozen=True)
class Deletions:
    """What a document's program would delete is no target (`program: COLUMN` in its source)."""

    rate: float = 1.0
    """Share of the documents with a program, from 0 to 1, of which it is heeded."""


def deletions(options: Deletions, encoder: Encoder) -> Transform:
    """The characters that a document's program would delete (``data/read/programs.py``) are no targets, whatever weights and
    rules say of them. Its tokens are what they were: later tokens still see what was deleted, as they do not in RefineX, where
    it goes. A document whose program deletes nothing stays as it is.
    """
    if not 0 <= options.rate <= 1:
        raise UserError(f"deletions: rate is a share, from 0 to 1, not {options.rate}")

    def change(document: Document, rng: np.random.Generator) -> Iterable[Document]:
        if not document.program or rng.random() >= options.rate:
            return [document]
        return [document._replace(deleted=(*document.deleted, *document.program))]

    return Transform(documents=change)
