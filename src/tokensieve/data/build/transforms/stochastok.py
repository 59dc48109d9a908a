"""StochasTok: some tokens of a text as two others that say the same, so that a model sees what tokens are made of.

tokens   "the" " straw" "berry"
split    "the" " st" "raw" "b" "erry"
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ....runs.errors import UserError
from ...read.documents import NO_TARGET
from ...tokenizer import Encoder
from ...tokenizer_state import state_of
from ..encoded import Encoded
from .kind import Transform

TokenPairs = Sequence[tuple[int, int]]
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_JOINING = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}  # decoders to which tokens, joined, are the text


@dataclass(frozen=True)
class StochasTok:
    """Some tokens as two others that say the same."""

    rate: float = 0.1
    """How often a token is drawn and split, as a share of the document's tokens, from 0 to 1."""


def stochastok(options: StochasTok, encoder: Encoder) -> Transform:
    """Tokens of a document split by :func:`split_tokens`, after it was encoded: its text, its bytes and which characters are
    targets of which weight stay as they were. Both halves of a token have its weight, and are targets where it is one. BOS,
    EOS and other control tokens are never split.
    """
    if not 0 <= options.rate <= 1:
        raise UserError(f"stochastok: rate is a share, from 0 to 1, not {options.rate}")
    pairs, begins = TokenSplits(encoder.backend, encoder.unknown_id), int(encoder.bos_id is not None)

    def change(document: Encoded, rng: np.random.Generator) -> Encoded:
        inner = document.ids[begins:-1].tolist()
        if int(len(inner) * options.rate) == 0:
            return document
        split, origin = split_tokens(inner, options.rate, pairs, random.Random(int(rng.integers(1 << 62))))
        if len(split) == len(inner):
            return document
        ids = np.array([*document.ids[:begins], *split, document.ids[-1]], np.int32)
        origin_T = np.array([*range(begins), *(begins + i for i in origin), len(document.ids) - 1])
        labels = None
        if document.labels is not None:
            labels = np.where(document.labels[origin_T] == NO_TARGET, np.int32(NO_TARGET), ids)
        weights = None if document.weights is None else document.weights[origin_T]
        target = int(np.searchsorted(origin_T, document.target))
        return replace(document, ids=ids, labels=labels, weights=weights, target=target)

    return Transform(encoded=change)


class TokenSplits:
    """The pairs of tokens that a token can be split into: ``first + second`` spells what it spells, all of the vocabulary.

    Added tokens, the unknown token and lone bytes (``<0xAB>``) are neither split nor parts. UserError for a vocabulary that
    writes the inside of a word otherwise than its beginning (WordPiece's ``##``): read one after the other, two tokens are not
    what they are joined.
    """

    def __init__(self, backend: Any, unknown_id: int | None = None) -> None:
        _check_decoder(state_of(backend)["decoder"])
        left_out = {unknown_id, *backend.get_added_tokens_decoder()}
        vocabulary = backend.get_vocab(with_added_tokens=False)
        self._ids = {t: i for t, i in vocabulary.items() if i not in left_out and not _BYTE.fullmatch(t)}
        self._tokens = {i: t for t, i in self._ids.items()}
        self._known: dict[
            int, TokenPairs
        ] = {}  # filled as tokens are met: all of 150,000 would take a second at the start

    def __call__(self, token: int) -> TokenPairs:
        """All pairs, the shortest first part first; none where there are none."""
        if (found := self._known.get(token)) is None:
            found = self._known[token] = self._pairs(self._tokens.get(token, ""))
        return found

    def _pairs(self, text: str) -> TokenPairs:
        halves = ((self._ids.get(text[:i]), self._ids.get(text[i:])) for i in range(1, len(text)))
        return [(a, b) for a, b in halves if a is not None and b is not None]


def _check_decoder(decoder: Any) -> None:
    found = [d["type"] for d in (decoder or {}).get("decoders", [decoder or {"type": "none"}])]
    each = "Strip" in found and "Fuse" not in found[: found.index("Strip")]  # it strips every token, not the text
    if found != ["ByteLevel"] and (each or not set(found) <= _JOINING):
        raise UserError(
            f"stochastok: by this tokenizer's decoder ({', '.join(found)}) two tokens are not read as what they are joined"
        )


def split_tokens(
    ids: Sequence[int], rate: float, pairs: Callable[[int], TokenPairs], rng: random.Random
) -> tuple[list[int], list[int]]:
    """(ids in which ``floor(rate len(ids))`` times a token was drawn and, if it can be, split; of each the index it is from).

    Each time a place of the sequence as it is by then is drawn evenly, then one of its token's pairs, evenly too: halves can be
    split again, and a token that cannot be split uses up its turn. Rate 0 gives ``ids``; the text is the same at any rate, and
    the ids by an equal ``rng``.

    StochasTok, Sims et al., arXiv 2506.01687, p = ``rate``; checked against the authors' code (anyasims/stochastok,
    stochastok_processor.py), which copies the list at each split: quadratic where this is linear.
    """
    leaves = list(ids)  # in another order than the text, which a uniform draw does not see
    following = [-1] * len(leaves)  # the leaf that stands behind a leaf, within what was one token
    for _ in range(int(len(ids) * rate)):
        at = int(rng.random() * len(leaves))
        if found := pairs(leaves[at]):
            leaves[at], second = found[int(rng.random() * len(found))]
            following.append(following[at])
            following[at] = len(leaves)
            leaves.append(second)
    split, origin = list[int](), list[int]()
    for i in range(len(ids)):
        at = i
        while at >= 0:
            split.append(leaves[at])
            origin.append(i)
            at = following[at]
    return split, origin
