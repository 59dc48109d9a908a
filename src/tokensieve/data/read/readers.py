"""Formats: how a source is cut into blocks, and how a block is read into documents.

    source ──blocks──> Block, Block, ...      in the parent: cheap, in order, bounded memory
    Block ──documents──> Document | BadRow | Skipped      in a worker: parsing

A block is about ``size`` bytes of input and carries what a worker needs: lines, rows, or names of files. What a block holds
depends on the input and ``size`` only, so that a run that is resumed cuts the same blocks.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

from ...runs.errors import UserError
from . import row_files, text_files
from .compressed import RATIO
from .documents import BadRow, Block, Document, Item
from .source import Source, sample_position
from .sources import ONE_DOCUMENT_A_FILE, packs_across, text_bytes

_READ_BYTES = 2 << 30  # what a tokenizer's training sample is taken from
_KEEP_TEXTS_BYTES = 64 << 20  # sampling docstrings keeps what it extracted up to here, past it they are extracted again


class Reader(NamedTuple):
    blocks: Callable[[Source, int], Iterator[Block]]
    documents: Callable[[Source, Block], Iterator[Item]]


READERS: dict[str, Reader] = {
    "jsonl": Reader(row_files.jsonl_blocks, row_files.jsonl_documents),
    "parquet": Reader(row_files.parquet_blocks, row_files.parquet_documents),
    "datasets": Reader(row_files.datasets_blocks, row_files.datasets_documents),
    "hub": Reader(row_files.hub_blocks, row_files.hub_documents),
    "text": Reader(text_files.file_blocks, text_files.file_documents),
    "python": Reader(text_files.file_blocks, text_files.file_documents),
    "docstrings": Reader(text_files.file_blocks, text_files.file_documents),
}


def blocks(source: Source, size: int) -> Iterator[Block]:
    """Cut a source into blocks of about ``size`` bytes, in order."""
    return READERS[_container(source)].blocks(source, size)


def groups(source: Source, size: int) -> Iterator[tuple[Block, ...]]:
    """Blocks that make a unit together: short ones of several files, up to ``size`` bytes; any other block is one alone."""
    if not packs_across(source, size):
        yield from ((block,) for block in blocks(source, size))
        return
    group: list[Block] = []
    filled = 0
    for block in blocks(source, size):
        if group and filled + block.size > size:
            yield tuple(group)
            group, filled = [], 0
        group.append(block)
        filled += block.size
    if group:
        yield tuple(group)


def documents(source: Source, block: Block) -> Iterator[Item]:
    """The documents of a block that the source admits, and whatever else the block holds."""
    for item in READERS[_container(source)].documents(source, block):
        if isinstance(item, Document):
            bad = _not_unicode(item)
            if bad is not None:
                yield bad
            elif source.admits(item.id):
                yield item
        else:
            yield item


def _not_unicode(document: Document) -> BadRow | None:
    """JSON may spell half of a surrogate pair ("\\ud800"), which is no text and has no UTF-8."""
    try:
        document.text.encode()
    except UnicodeEncodeError:
        return BadRow(document.where, "the text holds half of a surrogate pair, which is not valid Unicode")
    return None


def _container(source: Source) -> str:
    """``tokens`` and ``chat`` say what a row means, not how rows are stored."""
    if source.format not in ("tokens", "chat"):
        return source.format
    return "parquet" if source.files[0].name.lower().endswith(".parquet") else "jsonl"


# ---- sampling ----


Placed = tuple[float, int]  # a document's sampling position and its bytes


def sample(source: Source, size: int, placed: Iterable[Placed] | None = None) -> Source:
    """The source cut down to ``max_bytes``: documents in the order of their sampling hash, up to the first that is too much.

    ``placed``: :func:`placements` of all groups of a format of rows, in any order; read here if they are not given.
    """
    if source.config.max_bytes is None:
        return source
    if source.format == "docstrings":
        return _sample_docstrings(source, source.config.max_bytes)
    if source.format in ONE_DOCUMENT_A_FILE:
        spans = text_files.spans(source, size)
        placed = ((sample_position(s.name, source.seed), s.hi - s.lo) for s in spans)
    elif placed is None:
        placed = (p for group in groups(source, size) for p in placements(source, group))
    return replace(source, limit=_limit(placed, source.config.max_bytes))


def placements(source: Source, group: Iterable[Block]) -> list[Placed]:
    """Where the documents of a unit that lie in the split stand in the sample's order, and their bytes."""
    found = (item for block in group for item in documents(source, block))
    return [(sample_position(d.id, source.seed), d.size) for d in found if isinstance(d, Document)]


def _limit(placed: Iterable[Placed], max_bytes: int) -> float:
    """Position of the first document, in hash order, that does not fit into ``max_bytes``; 1.0 if all do.

    One pass in any order, and memory for the sample only: what lies past the limit known so far is never held.
    """
    heap: list[tuple[float, int]] = []
    total, limit = 0, 1.0
    for position, size in placed:
        if position >= limit:
            continue
        heapq.heappush(heap, (-position, size))
        total += size
        while total > max_bytes:
            negative, dropped = heapq.heappop(heap)
            total, limit = total - dropped, -negative
    return limit


def _sample_docstrings(source: Source, max_bytes: int) -> Source:
    """Extract in hash order and stop at the cap, so that 140 MB of code are not parsed to take 3 MB."""
    files = [f for f in source.files if source.in_split(f.name)]
    texts: dict[str, str] = {}
    total, limit = 0, 1.0
    for file in sorted(files, key=lambda f: (sample_position(f.name, source.seed), f.name)):
        text = text_files.read_docstrings(text_files.read_bytes(file.path, 0, file.size))
        total += len(text.encode("utf-8", "replace")) if isinstance(text, str) else 0
        if total > max_bytes:
            limit = sample_position(file.name, source.seed)
            break
        if isinstance(text, str) and max_bytes <= _KEEP_TEXTS_BYTES:
            texts[file.name] = text
    return replace(source, limit=limit, texts=texts)


def training_texts(
    source: Source, share: int, size: int, takes: Callable[[Document], bool] | None = None
) -> Iterator[str]:
    """A seeded sample of about ``share`` bytes of a source's text, from its first 2 GB, to train a tokenizer on.

    ``takes``: of these documents only; the sample is then smaller by what is left out.
    """
    lo, hi = source.config.split
    expected = min(input_bytes(source) * (hi - lo), source.config.max_bytes or float("inf"), _READ_BYTES)
    chance = share / max(1.0, expected)
    read = taken = 0
    for block in blocks(source, size):
        for item in documents(source, block):
            if not isinstance(item, Document):
                continue
            read += item.size
            # Not the seed that max_bytes samples with: the sample within a sample would be all of it.
            if sample_position(item.id, source.seed + 1) < chance and (takes is None or takes(item)):
                taken += item.size
                yield item.text
            if taken >= share or read >= _READ_BYTES:
                return


def input_bytes(source: Source) -> int:
    """About how much text a source's files hold: compressed ones hold about three times their size."""
    return round(sum(f.size * RATIO if f.name.lower().endswith(".parquet") else text_bytes(f) for f in source.files))


def sampled_documents(source: Source, unit_bytes: int) -> Iterator[Document]:
    """The documents of a source, of its sample where it has ``max_bytes``. UserError at a row that cannot be read."""
    source = sample(source, unit_bytes)
    for block in blocks(source, unit_bytes):
        for item in documents(source, block):
            if isinstance(item, BadRow):
                raise UserError(f"{item.where}: {item.reason}")
            if isinstance(item, Document):
                yield item
