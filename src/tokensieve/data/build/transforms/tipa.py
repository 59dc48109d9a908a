"""TIPA: documents that spell tokens backwards, beside those they are of, so that a model learns which characters a token has.

straw = {"5": "w", "4": "a", "3": "r", "2": "t", "1": "s"}
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ....runs.errors import UserError
from ...read.documents import Document
from ...tokenizer import Encoder
from .kind import Transform


@dataclass(frozen=True)
class Tipa:
    """Beside some documents another one, that spells tokens of theirs backwards."""

    rate: float = 0.1
    """Share of the documents beside which there is one, from 0 to 1."""
    tokens: int = 8
    """Different tokens of the document that it spells, drawn; all where there are fewer."""


def tipa(options: Tipa, encoder: Encoder) -> Transform:
    """Behind a document one more, of a line for each of some of its tokens: ``token = reversed_characters(token)``. What stands
    before the equals sign, and the sign, are no targets. The document itself stays as it is; conversations get none.

    Token Internal Position Awareness, Xu et al., arXiv 2411.17679. What is spelled, and how, is checked against the authors'
    code (FloatFrank/TIPA, tipa.py): a token decoded by itself, without spaces around, unless nothing is left or it is part of a
    character. There every token of the vocabulary is spelled once, as a conversation whose prompt asks for it in Chinese; here
    tokens that a corpus has, as often as it has them, which its README advises for one language, and in plain lines.
    """
    if not 0 <= options.rate <= 1:
        raise UserError(f"tipa: rate is a share, from 0 to 1, not {options.rate}")
    if options.tokens < 1:
        raise UserError(f"tipa: tokens must be at least 1, not {options.tokens}")

    def change(document: Document, rng: np.random.Generator) -> Iterable[Document]:
        if document.masked or rng.random() >= options.rate:
            return [document]
        ids = document.tokens if document.tokens is not None else encoder.encode([document.text])[0].tolist()
        pieces = spellable(ids, encoder)
        some = [pieces[i] for i in sorted(rng.permutation(len(pieces))[: options.tokens])]
        return [document, *([_spelling(document, some)] if some else [])]

    return Transform(documents=change)


def spellable(ids: Iterable[int], encoder: Encoder) -> Sequence[str]:
    """What the different ``ids`` say, each by itself and without spaces around, in their order; control tokens, and those that
    are spaces or parts of a character, left out."""
    control = encoder.backend.get_added_tokens_decoder()
    texts = (encoder.decode([i]).strip() for i in dict.fromkeys(ids) if i not in control)
    return [t for t in dict.fromkeys(texts) if t and "\ufffd" not in t]


def reversed_characters(text: str) -> str:
    """The characters of ``text`` by their places, counted from 1, the last first, as JSON: of "ab" ``{"2": "b", "1": "a"}``."""
    return json.dumps({str(i): text[i - 1] for i in range(len(text), 0, -1)}, ensure_ascii=False)


def _spelling(document: Document, pieces: Sequence[str]) -> Document:
    text, told = "", list[tuple[int, int]]()
    for piece in pieces:
        told.append((len(text), len(text) + len(piece) + 2))  # up to the space, which belongs to what follows
        text += f"{piece} = {reversed_characters(piece)}\n"
    return Document(f"{document.id} tipa", document.source, document.where, text, deleted=tuple(told))
