"""A unit of work: a block of a source, or short ones of several files, read, encoded, packed, and written as a part.

parts.tmp/0002-000017.rows.arrow    packed rows; documents and sources numbered within the unit
parts.tmp/0002-000017.docs.arrow    its documents
parts.tmp/0002-000017.json          counts; written last, so that its presence means the unit is done
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from ...runs.errors import UserError
from ...runs.files import atomic_file, read_json, write_json
from ..corpus import DOCUMENT_COLUMNS, rows_table
from ..read.documents import NO_TARGET, BadRow, Block, Document, Skipped
from ..read.readers import documents
from ..read.source import Source
from ..tokenizer import Encoder
from .pack import pack

PART_FORMAT = 3  # parts of another one (1 had no doc_offsets, 2 ended with each file) are made again
MAX_BAD_ROWS_LISTED = 100
_BATCH_CHARS = 1 << 20


class WorkUnit(NamedTuple):
    """Unit ``number`` of source ``source_index``."""

    source_index: int
    number: int
    source: Source
    blocks: tuple[Block, ...]

    @property
    def name(self) -> str:
        return f"{self.source_index:04d}-{self.number:06d}"

    @property
    def cost(self) -> int:
        """Bytes of input, for progress."""
        return sum(block.cost for block in self.blocks)


@dataclass(frozen=True)
class Setup:
    """What all units of a run share."""

    parts: Path
    encoder: Encoder
    length: int
    pad_id: int
    skip_bad_rows: bool


@dataclass
class Counts:
    """What a unit found, as its JSON file says it."""

    rows: int = 0
    tokens: int = 0
    sources: list[str] = field(default_factory=list)  # names, in the order of their first document
    labels: bool = False  # whether its rows have a column of labels
    token_bytes_exact: bool = True
    unknown: int = 0  # tokens that stand for text which the vocabulary cannot say, and characters that became none
    skipped: dict[str, int] = field(default_factory=dict)  # reason -> documents
    num_bad_rows: int = 0
    bad_rows: list[dict[str, str]] = field(default_factory=list)  # the first of them


class Encoded(NamedTuple):
    """A document as token ids."""

    id: str
    source: str
    ids: npt.NDArray[np.int32]  # with BOS, where the corpus has one, and EOS
    target: int  # index of the solution's first token; 0 for plain text
    num_bytes: int
    text_hash: int


class _Given(NamedTuple):
    """What a document's row said of its targets."""

    first: int  # its first token
    labels: npt.NDArray[np.int32]


def run_unit(unit: WorkUnit, setup: Setup) -> Counts:
    """Do one unit and write its part. :class:`UserError` for a bad row, unless these are to be skipped."""
    counts = Counts()
    items = (item for block in unit.blocks for item in documents(unit.source, block))
    given: list[_Given | None] = []
    found = list(_encode(_noted(_good(items, counts, setup), given), counts, setup))
    counts.labels = any(g is not None for g in given)
    labels = [_labels(d.ids, g) for d, g in zip(found, given, strict=True)] if counts.labels else None
    _write_part(found, labels, counts, setup, unit.name)
    return counts


def _noted(documents: Iterable[Document], given: list[_Given | None]) -> Iterator[Document]:
    """The documents, with their labels kept aside: encoding keeps their order."""
    for document in documents:
        tokens, labels = document.tokens, document.labels
        given.append(_Given(tokens[0], np.array(labels, np.int32)) if tokens and labels is not None else None)
        yield document


def _labels(ids: npt.NDArray[np.int32], given: _Given | None) -> npt.NDArray[np.int32]:
    """Labels of a document as encoded: a BOS put before it is no target, an EOS put behind it is one if its last token is."""
    if given is None:
        return ids
    labels = np.full(len(ids), NO_TARGET, np.int32)
    first = int(ids[0] != given.first)
    labels[first : first + len(given.labels)] = given.labels
    if first + len(given.labels) < len(ids) and given.labels[-1] != NO_TARGET:
        labels[-1] = ids[-1]
    return labels


def read_counts(parts: Path, name: str) -> Counts | None:
    """The counts of a unit that was done before; None if it was not."""
    path = parts / f"{name}.json"
    found = read_json(path) if path.is_file() else {}
    return Counts(**found) if found.pop("part_format", None) == PART_FORMAT else None


def _good(items: Iterable[Any], counts: Counts, setup: Setup) -> Iterator[Document]:
    """The documents; everything else is counted here, or ends the run."""
    for item in items:
        if isinstance(item, Document) and item.tokens is not None:
            outside = [i for i in item.tokens if not 0 <= i < setup.encoder.vocab_size]
            if outside:
                what = f"token id {outside[0]} is outside the vocabulary of {setup.encoder.vocab_size}"
                item = BadRow(item.where, what)
        if isinstance(item, Document):
            yield item
        elif isinstance(item, Skipped):
            counts.skipped[item.reason] = counts.skipped.get(item.reason, 0) + 1
        elif setup.skip_bad_rows:
            counts.num_bad_rows += 1
            if len(counts.bad_rows) < MAX_BAD_ROWS_LISTED:
                counts.bad_rows.append({"where": item.where, "reason": item.reason})
        else:
            raise UserError(f"{item.where}: {item.reason}")


def _encode(documents: Iterable[Document], counts: Counts, setup: Setup) -> Iterator[Encoded]:
    """Plain documents go to the tokenizer a megabyte at a time; order is kept."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= _BATCH_CHARS:
            yield from _encode_batch(batch, counts, setup)
            batch, size = [], 0
    yield from _encode_batch(batch, counts, setup)


def _encode_batch(batch: list[Document], counts: Counts, setup: Setup) -> Iterator[Encoded]:
    encoder = setup.encoder
    marked = [d for d in batch if d.tokens is None and d.solution]
    plain = iter(encoder.encode([d.text for d in batch if d.tokens is None and not d.solution]))
    solved = iter(encoder.encode_from([d.text for d in marked], [d.solution for d in marked]))
    for d in batch:
        if d.tokens is not None:
            yield (encoded := _already_encoded(d, d.tokens, encoder))
            counts.unknown += encoder.num_unknown(encoded.ids)
            continue
        ids, target = next(solved) if d.solution else (next(plain), 0)
        text = d.text.encode()
        counts.unknown += encoder.num_unknown(ids) + encoder.num_lost(d.text)
        if encoder.num_bytes(ids) != len(text):
            counts.token_bytes_exact = False
        yield Encoded(d.id, d.source, ids, target, len(text), xxhash.xxh3_64_intdigest(text))


def _already_encoded(document: Document, tokens: list[int], encoder: Encoder) -> Encoded:
    """Its text is not known: bytes come from the table, the hash from what the tokens decode to, BOS and EOS left out."""
    ids = encoder.framed(tokens)
    text = encoder.decode(ids[int(encoder.bos_id is not None) : -1].tolist()).encode()
    return Encoded(document.id, document.source, ids, 0, encoder.num_bytes(ids), xxhash.xxh3_64_intdigest(text))


def _write_part(
    found: list[Encoded], labels: list[npt.NDArray[np.int32]] | None, counts: Counts, setup: Setup, name: str
) -> None:
    numbers: dict[str, int] = {}
    doc_sources = np.array([numbers.setdefault(d.source, len(numbers)) for d in found], np.int16)
    packed = pack([d.ids for d in found], [d.target for d in found], setup.length, setup.pad_id, labels)
    columns = {
        "doc_id": range(len(found)),
        "id": [d.id for d in found],
        "source": doc_sources,
        "num_bytes": [d.num_bytes for d in found],
        "num_tokens": [len(d.ids) for d in found],
        "text_hash": [d.text_hash for d in found],
    }
    arrays = {k: pa.array(v, DOCUMENT_COLUMNS[k]) for k, v in columns.items()}
    _write_table(setup.parts / f"{name}.docs.arrow", pa.table(arrays))
    _write_table(setup.parts / f"{name}.rows.arrow", rows_table(packed, doc_sources))
    counts.rows, counts.tokens, counts.sources = len(packed.num_tokens), int(packed.num_tokens.sum()), list(numbers)
    write_json(setup.parts / f"{name}.json", {"part_format": PART_FORMAT, **asdict(counts)})


def _write_table(path: Path, table: pa.Table) -> None:
    with atomic_file(path) as f, pa.ipc.new_stream(f, table.schema) as stream:
        stream.write_table(table)


def read_table(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as f, pa.ipc.open_stream(f) as stream:
        return stream.read_all()
