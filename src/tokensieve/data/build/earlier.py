"""Rows of an earlier corpus for a new one: which there are, and as they are taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ...runs.errors import UserError
from ..corpus import OPTIONAL_COLUMNS, Corpus, open_corpus, rows_schema
from ..list_columns import list_values
from ..replay import ReplaySource
from .mixture import Pool, read_over

_TOKENS_AT_A_TIME = 1 << 22


class Supply(NamedTuple):
    """Rows, their documents, and the names of these documents' sources."""

    rows: pa.Table
    """``doc_ids`` are indices into ``documents``."""
    documents: pa.Table
    """``source`` is an index into ``sources``."""
    sources: Sequence[str]


@dataclass(frozen=True)
class Earlier:
    """The rows of an earlier corpus that may be taken, and how many are."""

    corpus: Corpus
    rows: npt.NDArray[np.int64]
    """Numbers of those that may be taken, ascending."""
    epochs: float
    taken: int = 0

    @classmethod
    def of(cls, replay: ReplaySource) -> Earlier:
        """Opened and read whole. UserError for names that are none of its sources, and where no row is of them alone."""
        corpus = open_corpus(replay.corpus, "full")
        if "doc_offsets" not in corpus.rows.column_names:
            raise UserError(
                f"replay: {replay.corpus} is of an early version, its rows lack doc_offsets: prepare it again"
            )
        rows = np.arange(corpus.num_rows)
        if replay.sources is not None:
            if unknown := [name for name in replay.sources if name not in corpus.sources]:
                raise UserError(
                    f"replay: {replay.corpus} has no source {unknown[0]!r}; it has {', '.join(corpus.sources)}"
                )
            rows = rows[_only_of(corpus, replay.sources)]
        return cls(corpus, rows, replay.epochs)

    @property
    def pool(self) -> Pool:
        return Pool(str(self.corpus.folder), len(self.rows), self.epochs)

    def supplies(self, key: Sequence[int]) -> Iterator[Supply]:
        """The rows taken, some millions of tokens at a time; no document is cut by that but by the rows that are left out."""
        step = max(1, _TOKENS_AT_A_TIME // self.corpus.length)
        for chosen in read_over(len(self.rows), self.taken, key):
            rows = self.rows[chosen]
            while len(rows):
                end = self._end(rows, step)
                yield self._supply(rows[:end])
                rows = rows[end:]

    def _end(self, rows: npt.NDArray[np.int64], step: int) -> int:
        """Where to cut: behind ``step`` rows, or the first row after them that begins with a new document."""
        end = min(step, len(rows))
        while end < len(rows):
            before, after = (self.corpus.rows[int(rows[i])]["doc_ids"] for i in (end - 1, end))
            if before[-1] != after[0]:
                break
            end += 1
        return end

    def _supply(self, rows: npt.NDArray[np.int64]) -> Supply:
        optional = [f for f in OPTIONAL_COLUMNS.items() if f[0] in self.corpus.rows.column_names]
        schema = pa.schema([*rows_schema(), *(pa.field(*f) for f in optional)])
        table = self.corpus.rows.select(rows).select_columns(schema.names).with_format("arrow")[:].cast(schema)
        pieces = table["doc_ids"].combine_chunks()
        values = pieces.flatten().to_numpy()
        kept = np.unique(values)
        offsets = pa.array(np.append(0, np.cumsum(pieces.value_lengths().to_numpy())).astype(np.int32))
        local = pa.ListArray.from_arrays(offsets, pa.array(np.searchsorted(kept, values), pa.int64()))
        index = table.schema.get_field_index("doc_ids")
        table = table.set_column(index, table.schema.field(index), local)
        docs = _documents_at(self.corpus.folder, kept)
        used, sources = np.unique(docs["source"].to_numpy(), return_inverse=True)
        docs = docs.set_column(docs.schema.get_field_index("source"), "source", pa.array(sources, pa.int16()))
        return Supply(table, docs, [self.corpus.sources[i] for i in used])


def check_apart(earlier: Sequence[Earlier]) -> None:
    """Raise UserError where two may take the same rows of one corpus: each draws by itself, so a row would come more often
    than ``epochs`` says."""
    for i, one in enumerate(earlier):
        for j, other in enumerate(earlier[:i]):
            if one.corpus.content_hash == other.corpus.content_hash and len(np.intersect1d(one.rows, other.rows)):
                raise UserError(
                    f"replay.{i}: the same rows as replay.{j}, of {one.corpus.folder}: name it once, with the share of both, "
                    "or with sources that differ"
                )


def _only_of(corpus: Corpus, sources: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Whether each row is of these sources alone. bool [rows]"""
    wanted = np.isin(np.arange(len(corpus.sources)), [corpus.sources.index(name) for name in sources])
    values, lengths = list_values(corpus.rows, "doc_sources", 0, corpus.num_rows)
    found: npt.NDArray[np.bool_] = np.bitwise_and.reduceat(wanted[values], np.append(0, np.cumsum(lengths)[:-1]))
    return found


def _documents_at(folder: Path, wanted: npt.NDArray[np.int64]) -> pa.Table:
    """These documents, ascending: of ``documents.parquet`` only the row groups that hold some are read."""
    found = []
    with pq.ParquetFile(folder / "documents.parquet") as file:
        start = 0
        for i in range(file.metadata.num_row_groups):
            end = start + file.metadata.row_group(i).num_rows
            lo, hi = np.searchsorted(wanted, [start, end])
            if hi > lo:
                found.append(file.read_row_group(i).take(wanted[lo:hi] - start))
            start = end
    return pa.concat_tables(found).combine_chunks()
