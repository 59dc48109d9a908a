"""Transforms of documents at ``prepare``, by name. One is a function in a module here, and a line in ``TRANSFORMS``.

documents ──documents(document, rng)──> documents ──encode──> token ids ──encoded(ids, rng)──> token ids ──pack──> rows
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xxhash

from ...read.documents import Document
from ...tokenizer import Encoder
from ..encoded import Encoded
from . import deletions, fim, repository, stochastok, tipa
from .kind import NamedTransform, RngOf, Transform, TransformKind

TRANSFORMS: Mapping[str, TransformKind] = {
    "fim": TransformKind(fim.FillInTheMiddle, fim.fill_in_the_middle, fim.control_tokens),
    "repository": TransformKind(repository.Repository, repository.repository, repository.repository_tokens),
    "stochastok": TransformKind(stochastok.StochasTok, stochastok.stochastok),
    "deletions": TransformKind(deletions.Deletions, deletions.deletions),
    "tipa": TransformKind(tipa.Tipa, tipa.tipa),
}


class Transforms:
    """The transforms of a corpus, in their order, made anew in each process. UserError where one does not fit the tokenizer."""

    def __init__(self, given: Sequence[NamedTransform], encoder: Encoder, seed: int) -> None:
        self.given, self.encoder, self.seed = tuple(given), encoder, seed
        self._made: list[Transform] = [TRANSFORMS[g.name].make(g.options, encoder) for g in given]

    def __reduce__(self) -> Any:
        return Transforms, (self.given, self.encoder, self.seed)

    def documents(self, found: Iterable[Document]) -> Iterator[Document]:
        """Documents of a unit of work as the transforms leave them."""
        for i, (given, made) in enumerate(zip(self.given, self._made, strict=True)):
            if made.documents is not None:
                found = self._each(i, given, made.documents, found)
            if made.unit is not None:
                found = self._all(i, given, made.unit, found)
        yield from found

    def _all(
        self,
        index: int,
        given: NamedTransform,
        change: Callable[[Iterable[Document], RngOf], Iterator[Document]],
        found: Iterable[Document],
    ) -> Iterator[Document]:
        """Documents of other sources stand before those that come of it."""
        mine: list[Document] = []
        for document in found:
            if given.sources is not None and document.source not in given.sources:
                yield document
            else:
                mine.append(document)
        there = {id(document) for document in mine}
        for made in change(mine, lambda source, key: self._rng(index, source, key, Counter())):
            yield made if id(made) in there else made._replace(touched=(*made.touched, index))

    def _each(
        self,
        index: int,
        given: NamedTransform,
        change: Callable[[Document, np.random.Generator], Iterable[Document]],
        found: Iterable[Document],
    ) -> Iterator[Document]:
        times = Counter[tuple[str, str]]()
        for document in found:
            if given.sources is not None and document.source not in given.sources:
                yield document
                continue
            for made in change(document, self._rng(index, document.source, document.id, times)):
                yield made if made is document else made._replace(touched=(*made.touched, index))

    def encoded(self, found: Iterable[Encoded]) -> Iterator[Encoded]:
        """The same documents as token ids as the transforms leave them."""
        times = [Counter[tuple[str, str]]() for _ in self.given]
        for document in found:
            for i, (given, made) in enumerate(zip(self.given, self._made, strict=True)):
                if made.encoded is None or (given.sources is not None and document.source not in given.sources):
                    continue
                changed = made.encoded(document, self._rng(i, document.source, document.id, times[i]))
                if changed is not document:
                    document = replace(changed, touched=(*changed.touched, i))
            yield document

    def _rng(self, index: int, source: str, key: str, times: Counter[tuple[str, str]]) -> np.random.Generator:
        """Keyed by seed, transform, document and, of one that a table takes several times, which time it is."""
        name = f"{source}\n{key}\n{times[source, key]}"
        times[source, key] += 1
        return np.random.default_rng(
            [self.seed, index, xxhash.xxh3_64_intdigest(name.encode("utf-8", "surrogatepass"))]
        )
