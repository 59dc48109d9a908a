"""Sources -> numbers of each document, in parts on the disk; then all documents in the order of the table.

    sources ──blocks──> units (several processes) ──measure──> parts.tmp/0000-000000.arrow ...   ──Measured──> judge

A unit's part is there or not: a run that was killed goes on where it stopped. What is held of a document, whatever its text, is
listed at :class:`Measured`; ids, places and what kinds measured stay on the disk.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ...runs.errors import UserError
from ...runs.files import atomic_file
from ..build.units import MAX_BAD_ROWS_LISTED, WorkUnit, read_table
from ..read.documents import Document, Item, Skipped
from ..read.readers import documents
from .table import Tables, document_key

Measurements = Mapping[str, Any]
"""Name -> numpy or Arrow array, an entry (or a row) a document."""
MeasureTexts = Callable[[Sequence[Document]], Measurements]
"""What a kind says of documents, each by itself. Pickled for workers, if there are several."""

_INFO = b"tokensieve"


@dataclass(frozen=True)
class UnitSetup:
    """What all units of a run share."""

    parts: Path
    measure: MeasureTexts
    skip_bad_rows: bool
    tables: Tables | None = None

    def path(self, unit: WorkUnit) -> Path:
        return self.parts / f"{unit.name}.arrow"


@dataclass
class Left:
    """What was read and is no document of the table."""

    skipped: dict[str, int] = field(default_factory=dict)
    num_bad_rows: int = 0
    bad_rows: list[dict[str, str]] = field(default_factory=list)

    def add(self, item: Item, skip: bool) -> None:
        if isinstance(item, Skipped):
            self.skipped[item.reason] = self.skipped.get(item.reason, 0) + 1
        elif not skip:
            raise UserError(f"{item.where}: {item.reason}")  # type: ignore[union-attr]
        else:
            self.num_bad_rows += 1
            if len(self.bad_rows) < MAX_BAD_ROWS_LISTED:
                self.bad_rows.append({"where": item.where, "reason": item.reason})  # type: ignore[union-attr]


def measure_unit(setup: UnitSetup, unit: WorkUnit) -> bool:
    """Measure one unit's documents and write its part. UserError for a bad row, unless these are to be skipped."""
    left, found = Left(), list[Document]()
    for block in unit.blocks:
        for item in documents(unit.source, block):
            if not isinstance(item, Document):
                left.add(item, setup.skip_bad_rows)
            elif setup.tables is None or setup.tables.takes(item):
                found.append(item)
            else:
                left.add(Skipped("filtered"), False)
    keys = np.array([document_key(d) for d in found], np.uint64).reshape(-1, 2)
    columns = {
        "text_hash": keys[:, 0],
        "key": keys[:, 1],
        "bytes": np.array([d.size for d in found], np.int64),
        "id": pa.array([d.id for d in found], pa.string()),
        "source": pa.array([d.source for d in found], pa.string()),
        "place": pa.array([d.place for d in found], pa.string()),
        **setup.measure(found),
    }
    table = pa.table({name: _arrow(values) for name, values in columns.items()})
    table = table.replace_schema_metadata({_INFO: json.dumps(vars(left))})
    with atomic_file(setup.path(unit)) as f, pa.ipc.new_stream(f, table.schema) as stream:
        stream.write_table(table)
    return True


def _arrow(values: Any) -> pa.Array:
    if isinstance(values, np.ndarray) and values.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    return values if isinstance(values, pa.Array) else pa.array(values)


class Measured:
    """All documents of a run, each once, in the order of text hash and key; parts are memory-mapped.

    Held of each: its key, text hash and bytes (8 each), its source and copies (4 each), where it lies (8). UserError where two
    documents cannot be told apart.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._parts = [read_table(path) for path in paths]
        self._starts = np.cumsum([0, *map(len, self._parts)])
        texts, keys = self._joined("text_hash", np.uint64), self._joined("key", np.uint64)
        order = np.lexsort((keys, texts))
        first = _where_new(texts[order], keys[order])
        self.copies = np.diff(np.append(first, len(keys))).astype(np.int32)
        self._rows = order[first]  # [N] of all rows of all parts
        self.repeated: dict[int, str] = {}
        """Index of a document that was read several times -> the place where it stands first."""
        for i in np.flatnonzero(self.copies > 1):
            self._choose_place(int(i), order[first[i] : first[i] + self.copies[i]])
        self.text_hash, self.key = texts[self._rows], keys[self._rows]
        self.bytes = self._joined("bytes", np.int64)[self._rows]
        names = [_whole(part["source"]).dictionary_encode() for part in self._parts]
        self.sources = sorted({name for part in names for name in part.dictionary.to_pylist()})
        codes = {name: i for i, name in enumerate(self.sources)}
        coded = [
            np.array([codes[n] for n in p.dictionary.to_pylist()], np.int32)[p.indices.to_numpy()]
            for p in names
            if len(p)
        ]
        self.source = (np.concatenate(coded) if coded else np.empty(0, np.int32))[self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def _joined(self, name: str, dtype: Any) -> np.ndarray:
        arrays = [part[name].to_numpy() for part in self._parts]
        return np.concatenate(arrays).astype(dtype, copy=False) if arrays else np.empty(0, dtype)

    def _choose_place(self, index: int, rows: np.ndarray) -> None:
        """Of equal documents the one whose place comes first, by name of the file and number."""
        places = [(_in_order(self._cell("place", row)), row) for row in rows.tolist()]
        (_, first), *_ = places = sorted(places)
        if len({place for place, _ in places}) < len(places):
            source, key, place = (self._cell(name, first) for name in ("source", "id", "place"))
            raise UserError(
                f"two documents of source {source!r} have one id ({key!r}), text and place ({place}): a file was read twice, "
                "or two folders hold files of one name; give the sources names of their own"
            )
        self._rows[index], self.repeated[index] = first, self._cell("place", first)

    def _cell(self, name: str, row: int) -> Any:
        part = int(np.searchsorted(self._starts, row, "right")) - 1
        return self._parts[part][name][row - int(self._starts[part])].as_py()

    def numbers(self, name: str) -> np.ndarray:
        """A column of numbers, [N]."""
        return np.asarray(self._joined(name, None)[self._rows])

    def take(self, name: str, indices: np.ndarray) -> pa.Array:
        """A column's entries for these documents, in their order; read from the disk."""
        rows = self._rows[indices]
        parts = np.searchsorted(self._starts, rows, "right") - 1
        taken, where = [], []
        for p in np.unique(parts):
            mine = np.flatnonzero(parts == p)
            taken.append(_whole(self._parts[p][name]).take(pa.array(rows[mine] - self._starts[p])))
            where.append(mine)
        if not taken:
            return _whole(self._parts[0][name]).slice(0, 0) if self._parts else pa.array([])
        back = np.empty(len(rows), np.int64)
        back[np.concatenate(where)] = np.arange(len(rows))
        return pa.concat_arrays(taken).take(pa.array(back))

    def matrix(self, name: str, indices: np.ndarray) -> np.ndarray:
        """Rows of a column of lists of one length, [len(indices), K]."""
        taken = self.take(name, indices)
        return np.asarray(taken.flatten().to_numpy()).reshape(len(taken), -1)

    def left(self) -> Left:
        """What was left out, over all parts."""
        total = Left()
        for part in self._parts:
            info = Left(**json.loads(part.schema.metadata[_INFO]))
            for reason, n in info.skipped.items():
                total.skipped[reason] = total.skipped.get(reason, 0) + n
            total.num_bad_rows += info.num_bad_rows
            total.bad_rows = (total.bad_rows + info.bad_rows)[:MAX_BAD_ROWS_LISTED]
        return total


def _where_new(*columns: np.ndarray) -> np.ndarray:
    """Of sorted rows the first of each that are equal in all columns."""
    changed = np.zeros(max(0, len(columns[0]) - 1), bool)
    for values in columns:
        changed |= values[1:] != values[:-1]
    return np.flatnonzero(np.append(True, changed)[: len(columns[0])])


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece: as it lies in the file, where it is in one there."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _in_order(place: str) -> tuple[str, int]:
    """``file:12`` after ``file:9``."""
    name, _, number = place.rpartition(":")
    return (name, int(number)) if number.isdigit() else (place, 0)


def chunks(size: int, step: int) -> Iterator[np.ndarray]:
    """0 ... size - 1 in arrays of at most ``step``."""
    yield from (np.arange(lo, min(size, lo + step)) for lo in range(0, size, step))
