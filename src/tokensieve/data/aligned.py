"""Numbers a token that were made elsewhere, brought beside a corpus: a Parquet or .npy file, checked before any of it is used.

    .npy       [rows, length], or flat with one number a token that is no padding, in row order
    .parquet   a column of lists, one a row, of ``length`` or of as many numbers as the row has tokens; or a flat one

That the numbers are this corpus's is said by its content hash: in the Parquet file's metadata (``corpus_hash``) or in
FILE.json beside it, as {"corpus_hash": "..."}; or shown by a Parquet column ``input_ids``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from ..runs.errors import UserError
from ..runs.files import file_hash
from .corpus import Corpus
from .half import LARGEST
from .list_columns import list_values

HASH = "corpus_hash"
SMALLEST = 2.0**-24  # of float16: half of it is rounded to 0


class AlignedFile:
    """``AlignedFile(path, corpus).read(name, start, stop)`` is a column's numbers at some rows of the corpus.

    UserError naming the file for one that cannot be read, of another corpus, or whose columns do not have its tokens.
    """

    def __init__(self, path: Path | str, corpus: Corpus, columns: Sequence[str]) -> None:
        self.path, self.corpus = Path(path), corpus
        self.counts_N = corpus.row_tokens().astype(np.int64)
        self.flat_N = np.concatenate([[0], np.cumsum(self.counts_N)])
        """Where each row begins in a flat column."""
        if not self.path.is_file():
            raise UserError(f"{self.path} does not exist")
        if self.path.suffix not in (".npy", ".parquet"):
            raise UserError(f"{self.path} is no .npy and no .parquet file")
        try:
            self._columns = self._npy(columns) if self.path.suffix == ".npy" else self._parquet(columns)
        except (OSError, ValueError, EOFError) as e:
            if isinstance(e, UserError):
                raise
            raise UserError(f"{self.path} cannot be read: {' '.join(str(e).split())}") from None

    @property
    def identity(self) -> str:
        """The hash of the file's bytes."""
        return file_hash(self.path)

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """float32 [rows, length] of a column; NaN where it has no number."""
        values, counts = self._columns[name], self.counts_N[start:stop]
        found = np.full((stop - start, self.corpus.length), np.nan, np.float32)
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused on a target
            if isinstance(values, np.ndarray) and values.ndim == 2:
                return values[start:stop].astype(np.float32)
            here = np.arange(self.corpus.length) < counts[:, None]
            if isinstance(values, np.ndarray):
                found[here] = values[self.flat_N[start] : self.flat_N[stop]]
                return found
            numbers, lengths = list_values(values, name, start, stop)
            here = np.arange(self.corpus.length) < lengths[:, None]
            found[here] = numbers.astype(np.float32)
        return found

    # --- .npy -----------------------------------------------------------------------------------------------------------

    def _npy(self, columns: Sequence[str]) -> dict[str, Any]:
        if len(columns) != 1:
            raise UserError(f"columns: {self.path} holds one column, and {len(columns)} are named")
        values = np.load(self.path, mmap_mode="r", allow_pickle=False)
        self._check_hash(None)
        self._check_numbers(columns[0], values.dtype)
        return {columns[0]: self._shaped(values, columns[0])}

    def _shaped(self, values: np.ndarray, name: str) -> np.ndarray:
        rows, length, tokens = len(self.counts_N), self.corpus.length, int(self.flat_N[-1])
        if values.shape in ((rows, length), (tokens,)):
            return values
        shown = " x ".join(map(str, values.shape))
        raise UserError(
            f"{self.path}: {name} has {shown} numbers, {rows} x {length} (rows x their length) or {tokens} (tokens without "
            f"padding) are needed for {self.corpus.folder}"
        )

    # --- Parquet --------------------------------------------------------------------------------------------------------

    def _parquet(self, columns: Sequence[str]) -> dict[str, Any]:
        try:
            schema = pq.read_schema(self.path)
            if missing := [c for c in columns if c not in schema.names]:
                raise UserError(f"{self.path} has no column {missing[0]!r}, only {', '.join(schema.names)}")
            known = "input_ids" in schema.names
            table = pq.read_table(self.path, columns=[*columns, *(["input_ids"] if known else [])])
        except pa.ArrowException as e:
            raise UserError(f"{self.path} cannot be read: {' '.join(str(e).split())}") from None
        made = {name: self._column(table, name) for name in columns}
        told = (schema.metadata or {}).get(HASH.encode())
        if known and told is None:
            self._check_ids(table)
        else:
            self._check_hash(None if told is None else told.decode(errors="replace"))
        return made

    def _column(self, table: Any, name: str) -> Any:
        """A flat column as an array, one of lists as a data set of it."""
        column = table[name]
        if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
            if column.null_count:
                raise UserError(f"{self.path}: column {name!r} has nulls")
            self._check_numbers(name, column.type.to_pandas_dtype())
            return self._shaped(column.to_numpy(), name)
        self._check_numbers(name, column.type.value_type.to_pandas_dtype())
        if len(column) != len(self.counts_N):
            raise UserError(f"{self.path} has {len(column)} rows, {self.corpus.folder} {len(self.counts_N)}")
        if column.null_count:
            raise UserError(f"{self.path}: column {name!r} has nulls")
        lengths = column.combine_chunks().value_lengths().to_numpy()
        wrong = (lengths != self.corpus.length) & (lengths != self.counts_N)
        if wrong.any():
            row = int(wrong.argmax())
            raise UserError(
                f"{self.path}: row {row} of {name!r} has {lengths[row]} numbers for {self.counts_N[row]} tokens"
            )
        return Dataset(pa.table({name: column.cast(pa.list_(column.type.value_type))}))

    def _check_ids(self, table: Any) -> None:
        """Its ``input_ids`` are the corpus's, row by row."""
        mine, theirs = self.corpus.rows.with_format("arrow")[:]["input_ids"], table["input_ids"]
        for row, (a, b) in enumerate(zip(mine, theirs, strict=False)):
            count = int(self.counts_N[row])
            ids = b.as_py() or []
            if ids[:count] != a.as_py()[:count]:
                raise UserError(f"{self.path}: input_ids of row {row} are not those of {self.corpus.folder}")

    # --- checks ---------------------------------------------------------------------------------------------------------

    def _check_numbers(self, name: str, dtype: Any) -> None:
        if np.dtype(dtype).kind not in "fiu":
            raise UserError(f"{self.path}: {name} holds {np.dtype(dtype)}, numbers are needed")

    def _check_hash(self, told: str | None) -> None:
        """The corpus that the file says it belongs to is this one."""
        note = self.path.with_name(f"{self.path.name}.json")
        if told is None and note.is_file():
            try:
                told = json.loads(note.read_text(encoding="utf-8"))[HASH]
            except (ValueError, KeyError, TypeError, RecursionError):
                raise UserError(f"{note} has no {HASH!r}") from None
        if told is None:
            raise UserError(
                f"{self.path} does not say whose numbers they are: write {json.dumps({HASH: self.corpus.content_hash})} into "
                f"{note}, if they were made for the rows of {self.corpus.folder}"
            )
        if told != self.corpus.content_hash:
            raise UserError(
                f"{self.path} was made for another corpus: its {HASH} is {told}, that of {self.corpus.folder} "
                f"{self.corpus.content_hash}"
            )


def check_values(values_BT: np.ndarray, target_BT: np.ndarray, what: str, start: int, *, half: bool) -> np.ndarray:
    """The same with NaN where there is no target. UserError for a number that is not finite on one, or is lost in float16."""
    broken_BT = target_BT & ~np.isfinite(values_BT)
    if broken_BT.any():
        row, position = (int(i[0]) for i in broken_BT.nonzero())
        kind = "NaN" if np.isnan(values_BT[row, position]) else "infinite"
        raise UserError(f"{what} is {kind} at row {start + row}, position {position}, which is a target")
    made: np.ndarray = np.where(target_BT, values_BT, np.float32(np.nan))
    if half:
        size = np.abs(made)
        lost = (size > LARGEST) | ((size > 0) & (size <= SMALLEST / 2))
        if lost.any():
            row, position = (int(i[0]) for i in lost.nonzero())
            raise UserError(
                f"{what} is {made[row, position]:g} at row {start + row}, position {position}, which float16 cannot hold: "
                "set dtype: float32"
            )
    return made
