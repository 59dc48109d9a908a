"""List columns of Arrow tables and of ``datasets``, read and written as numpy arrays, without Python lists."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..runs.files import atomic_file

# What an entry of a list column is: a number of that type, or a list of so many.
EntryType = str | tuple[str, int]
MOST_VALUES = 2**31 - 1  # of one Arrow list array, whose offsets are int32: a table holds longer columns in several


def list_column(values_NT: np.ndarray[Any, Any]) -> pa.ChunkedArray:
    """[rows, length] as a column of lists, [rows, length, K] as one of lists of lists of K.

    From 2^31 values on in several arrays: int32 offsets would begin again below 0.
    """
    num_rows, length = values_NT.shape[:2]
    step = max(1, MOST_VALUES // max(1, values_NT[:1].size))
    parts = [values_NT[first : first + step] for first in range(0, max(1, num_rows), step)]
    grids = [np.arange(len(part) + 1, dtype=np.int64) * length for part in parts]
    arrays = [
        pa.ListArray.from_arrays(pa.array(grid.astype(np.int32)), _entries(part))
        for grid, part in zip(grids, parts, strict=True)
    ]
    return pa.chunked_array(arrays)


def _entries(part: np.ndarray[Any, Any]) -> pa.Array:
    """The rows' entries laid end to end: numbers, or lists of K of them."""
    values = pa.array(part.reshape(-1))
    return values if part.ndim == 2 else pa.FixedSizeListArray.from_arrays(values, part.shape[2])


def list_features(types: Mapping[str, EntryType]) -> Any:
    """``datasets.Features`` of list columns: name -> what the entries are."""
    from datasets import Features, Sequence, Value

    def entry(kind: EntryType) -> Any:
        return Value(kind) if isinstance(kind, str) else Sequence(Value(kind[0]), length=kind[1])

    return Features({name: Sequence(entry(kind)) for name, kind in types.items()})


def _type_of(values: np.ndarray) -> EntryType:
    return str(values.dtype) if values.ndim == 2 else (str(values.dtype), values.shape[2])


def write_columns(path: Path, blocks: Iterable[Mapping[str, np.ndarray]]) -> None:
    """Write blocks of rows, [rows, length] arrays of float16, float32 or int8, as list columns of an Arrow file, atomically.
    Of [rows, length, K] arrays each entry is a list of K.

    No more than a block is held.
    """
    blocks = iter(blocks)
    first = next(blocks)
    schema = list_features({name: _type_of(values) for name, values in first.items()}).arrow_schema
    with atomic_file(path) as f, pa.ipc.new_stream(f, schema) as stream:
        for block in chain([first], blocks):
            arrays = [list_column(values) for values in block.values()]
            stream.write_table(pa.Table.from_arrays(arrays, schema=schema), max_chunksize=1024)


def column_block(dataset: Any, name: str, start: int, stop: int) -> np.ndarray:
    """Rows ``start`` to ``stop`` of a column whose lists are all of one length, [rows, length], without Python lists."""
    values: np.ndarray = list_values(dataset, name, start, stop)[0]
    return values.reshape(stop - start, -1)


def is_plain(kind: pa.DataType) -> bool:
    """Whether :func:`row_arrays` reads such a column: numbers, truth values, or lists of numbers."""

    def is_number(one: pa.DataType) -> bool:
        return bool(pa.types.is_integer(one) or pa.types.is_floating(one))

    return is_number(kind) or bool(pa.types.is_boolean(kind)) or (pa.types.is_list(kind) and is_number(kind.value_type))


def row_arrays(table: pa.Table) -> list[dict[str, Any]] | None:
    """The rows of a table of plain columns as ``datasets`` gives them in the format numpy, lists as int64 or float32; None
    where something is null.

    ``datasets`` makes an array of each entry by itself: of 4 columns, .7 ms a row, four fifths of what a row takes.
    """
    columns: list[Sequence[Any]] = []
    for column in table.columns:
        if column.null_count:
            return None
        whole = pa.concat_arrays(column.chunks)
        if not pa.types.is_list(whole.type):
            columns.append(whole.to_numpy(zero_copy_only=False))
            continue
        values = whole.flatten()
        if values.null_count:
            return None
        kind = np.int64 if pa.types.is_integer(values.type) else np.float32
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf, and is refused where it is a target
            numbers = values.to_numpy(zero_copy_only=False).astype(
                kind
            )  # a copy: rows are changed, and the file is not
        columns.append(np.split(numbers, np.cumsum(whole.value_lengths().to_numpy())[:-1]))
    return [dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True)]


def list_values(dataset: Any, name: str, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """(values laid end to end, entries of each row) of a list column."""
    column = dataset.with_format("arrow")[start:stop][name].combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False), column.value_lengths().to_numpy()
