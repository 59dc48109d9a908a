"""The text of each token of many documents, as indices into one table of strings.

Joined, a document's strings are its text; a character whose bytes lie in several tokens stands whole with the first of them.
What a page would obey or hide (controls, bidirectional formats) is in the table as a visible escape, so it can do neither.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np

from ..data.text import REPLACEMENT, decode, token_pieces, visible

JOINERS = "\u200c\u200d"  # emoji, Persian and Indic scripts are spelled with them, and they move nothing


class PieceTable:
    """Strings by index, shared by all documents of a page. ``strings[0]`` is ""."""

    def __init__(self) -> None:
        self.strings: list[str] = [""]
        self._index = {"": 0}
        self._tables: dict[int, tuple[Any, np.ndarray[Any, Any], np.ndarray[Any, Any]]] = {}

    def add(self, text: str) -> int:
        """The index of ``text``, made visible."""
        shown = text if text.isprintable() else shown_text(text)
        if shown not in self._index:
            self._index[shown] = len(self.strings)
            self.strings.append(shown)
        return self._index[shown]

    def encode(self, tokenizer: Any, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Table indices of a document's tokens, int32 ``[tokens]``.

        Tokens of a byte-level vocabulary that are whole characters are looked up; only runs of tokens that are parts of
        characters are decoded in their context, as is everything where the decoder minds what stands before a token.
        """
        if type(tokenizer.backend_tokenizer.decoder).__name__ != "ByteLevel":
            return np.array([self.add(p) for p in token_pieces(tokenizer, ids)], np.int32)
        whole, partial = self._vocabulary(tokenizer, ids)
        out = whole[ids]
        broken = np.flatnonzero(partial[ids])
        for _, group in groupby(enumerate(broken.tolist()), key=lambda pair: pair[1] - pair[0]):
            run = [i for _, i in group]
            out[run] = [self.add(p) for p in token_pieces(tokenizer, ids[run])]
        return np.asarray(out)

    def _vocabulary(self, tokenizer: Any, ids: np.ndarray[Any, Any]) -> Any:
        """(index of each id's own text or -1 if not seen yet, whether the id is a part of a character), by id."""
        size = len(tokenizer)
        _, whole, partial = self._tables.setdefault(
            id(tokenizer), (tokenizer, np.full(size, -1, np.int32), np.zeros(size, bool))
        )
        new = np.unique(ids[whole[ids] < 0]).tolist()
        for i in new:
            text = decode(tokenizer, [i])
            partial[i] = REPLACEMENT in text
            whole[i] = self.add(text)
        return whole, partial


def shown_text(text: str) -> str:
    """``text`` with everything that is not to be seen, but newline, tab and joiners, as a symbol or ``<U+202E>``."""
    return "".join(c if c in "\n\t" + JOINERS else visible(c) for c in text)
