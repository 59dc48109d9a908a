"""A unit of work: a block of a source, or short ones of several files, read, encoded, packed, and written as a part.

parts.tmp/0002-000017.rows.arrow    packed rows; documents and sources numbered within the unit
parts.tmp/0002-000017.docs.arrow    its documents
parts.tmp/0002-000017.json          counts; written last, so that its presence means the unit is done
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash

from ...runs.errors import UserError
from ...runs.files import atomic_file, read_json, write_json
from ..corpus import DOCUMENT_COLUMNS, rows_table
from ..filter.table import Tables
from ..read.documents import BadRow, Block, Document, Item, Skipped
from ..read.readers import documents
from ..read.source import Source
from ..tokenizer import Encoder
from ..weight_rules import WeightRule
from .chat import Template, as_text
from .encoded import Encoded, Int32, Int64, already_encoded, of_tokens, weighed
from .pack import pack
from .transforms import Transforms

PART_FORMAT = 3  # parts of another one (1 had no doc_offsets, 2 ended with each file) are made again
MAX_BAD_ROWS_LISTED = 100
_BATCH_CHARS = 1 << 20  # of text that goes to the tokenizer at a time


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
    rules: tuple[WeightRule, ...] = ()
    template: Template | None = None
    tables: Tables | None = None
    transforms: Transforms | None = None


@dataclass
class Counts:
    """What a unit found, as its JSON file says it."""

    rows: int = 0
    tokens: int = 0
    sources: list[str] = field(default_factory=list)  # names, in the order of their first document
    labels: bool = False  # whether its rows have a column of labels
    weight: bool = False  # likewise
    transforms: list[list[int]] = field(
        default_factory=list
    )  # of each: documents it changed, and those cut by a row's end
    chats: int = 0  # documents that are conversations; how many of them a row's end cuts
    cut_chats: int = 0
    rule_documents: list[int] = field(default_factory=list)  # of each rule for weights, the documents it spoke of
    token_bytes_exact: bool = True
    unknown: int = 0  # tokens that stand for text which the vocabulary cannot say, and characters that became none
    skipped: dict[str, int] = field(default_factory=dict)  # reason -> documents
    taken: dict[str, int] = field(default_factory=dict)  # pattern of ``only`` -> documents that it is the first to name
    num_bad_rows: int = 0
    bad_rows: list[dict[str, str]] = field(default_factory=list)  # the first of them


def run_unit(unit: WorkUnit, setup: Setup) -> Counts:
    """Do one unit and write its part. :class:`UserError` for a bad row, unless these are to be skipped."""
    counts = Counts()
    items: Iterator[Item] = (item for block in unit.blocks for item in documents(unit.source, block))
    if setup.tables is not None:
        items = setup.tables.chosen(items)
    counts.rule_documents = [0] * len(setup.rules)
    good = _good(items, counts, setup)
    if setup.transforms is not None:
        good = setup.transforms.documents(good)
    found = list(encode(good, setup.encoder, setup.rules))
    if setup.transforms is not None:
        found = list(setup.transforms.encoded(found))
    for d in found:
        counts.unknown += d.unknown
        counts.token_bytes_exact &= d.exact
        for i in d.spoke:
            counts.rule_documents[i] += 1
    counts.labels = any(d.labels is not None for d in found)
    counts.weight = any(d.weights is not None for d in found)
    _write_part(found, counts, setup, unit.name)
    return counts


def encode(documents: Iterable[Document], encoder: Encoder, rules: Sequence[WeightRule]) -> Iterator[Encoded]:
    """Texts go to the tokenizer a megabyte at a time; order is kept."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= _BATCH_CHARS:
            yield from _encode_batch(batch, encoder, rules)
            batch, size = [], 0
    yield from _encode_batch(batch, encoder, rules)


def _encode_batch(batch: list[Document], encoder: Encoder, rules: Sequence[WeightRule]) -> Iterator[Encoded]:
    texts = [weighed(d, rules) for d in batch if d.tokens is None]
    whole = [w for w in texts if not w.document.parts]
    solved = [w.document for w in whole if w.document.solution]
    placed = [w for w in whole if w.weights_C is not None]
    plain = iter(encoder.encode([w.document.text for w in whole if w.weights_C is None and not w.document.solution]))
    marked = iter(encoder.encode_from([d.text for d in solved], [d.solution for d in solved]))
    places: dict[int, tuple[Int32, Int64]] = {
        id(w): encoder.encode_parts(w.document.text, w.document.parts) for w in texts if w.document.parts
    }
    for parses in (False, True):
        some = [w for w in placed if (w.document.control or encoder.parses) == parses]
        found = encoder.encode_placed([w.document.text for w in some], parses)
        places |= {id(w): each for w, each in zip(some, found, strict=True)}
    known = iter(texts)
    for d in batch:
        if d.tokens is not None:
            yield already_encoded(d, d.tokens, encoder, rules)
            continue
        w = next(known)
        solved_here = d.solution and not d.parts
        ids, target = next(marked) if solved_here else (places[id(w)][0] if id(w) in places else next(plain), 0)
        labels, weights = (None, None) if w.weights_C is None else of_tokens(*places[id(w)], w.weights_C)
        text = d.text.encode()
        made = Encoded(d.id, d.source, ids, len(text), xxhash.xxh3_64_intdigest(text), target, labels, weights, w.spoke)
        made.touched, made.chat, made.unknown = d.touched, d.masked, encoder.num_unknown(ids) + encoder.num_lost(d.text)
        if d.control:
            made.exact = encoder.num_spelled(ids[places[id(w)][1] >= 0]) == len(text)
            made.num_bytes = encoder.num_bytes(ids)
        else:
            made.exact = encoder.num_bytes(ids) == len(text)
        yield made


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
        if isinstance(item, Document) and item.chat is not None:
            if setup.template is None:
                raise UserError(
                    f"{item.where}: a conversation needs a chat template, and the tokenizer has none: put a "
                    "chat_template.jinja beside its tokenizer.json"
                )
            item = as_text(item, setup.template, parses=setup.encoder.parses)
        if isinstance(item, Document):
            if item.taken_by:
                counts.taken[item.taken_by] = counts.taken.get(item.taken_by, 0) + 1
            yield item
        elif isinstance(item, Skipped):
            counts.skipped[item.reason] = counts.skipped.get(item.reason, 0) + 1
        elif setup.skip_bad_rows:
            counts.num_bad_rows += 1
            if len(counts.bad_rows) < MAX_BAD_ROWS_LISTED:
                counts.bad_rows.append({"where": item.where, "reason": item.reason})
        else:
            raise UserError(f"{item.where}: {item.reason}")


def _write_part(found: list[Encoded], counts: Counts, setup: Setup, name: str) -> None:
    numbers: dict[str, int] = {}
    doc_sources = np.array([numbers.setdefault(d.source, len(numbers)) for d in found], np.int16)
    labels = [d.ids if d.labels is None else d.labels for d in found] if counts.labels else None
    weights = [np.ones(len(d.ids), np.float32) if d.weights is None else d.weights for d in found]
    packed = pack(
        [d.ids for d in found],
        [d.target for d in found],
        setup.length,
        setup.pad_id,
        labels,
        weights if counts.weight else None,
    )
    columns = {
        "doc_id": range(len(found)),
        "id": [d.id for d in found],
        "source": doc_sources,
        "num_bytes": [d.num_bytes for d in found],
        "num_tokens": [len(d.ids) for d in found],
        "text_hash": [d.text_hash for d in found],
    }
    pieces = np.bincount(packed.doc_ids, minlength=len(found))
    chats = np.array([d.chat for d in found], bool)
    counts.chats, counts.cut_chats = int(chats.sum()), int((pieces[chats] > 1).sum())
    for i in range(len(setup.transforms.given) if setup.transforms is not None else 0):
        changed = np.array([i in d.touched for d in found], bool)
        counts.transforms.append([int(changed.sum()), int((pieces[changed] > 1).sum())])
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
