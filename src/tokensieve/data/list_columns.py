"""List columns of Arrow tables and of ``datasets``, read and written as numpy arrays, without Python lists."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..runs.files import atomic_file

MOST_VALUES = 2**31 - 1  # of one Arrow list array, whose offsets are int32: a table holds longer columns in several


def list_column(values_NT: np.ndarray[Any, Any]) -> pa.ChunkedArray:
    """[rows, length] as a column of lists. From 2^31 values on in several arrays: int32 offsets would begin again below 0."""
    num_rows, length = values_NT.shape
    step = max(1, MOST_VALUES // max(1, length))
    parts = [values_NT[first : first + step] for first in range(0, max(1, num_rows), step)]
    grids = [np.arange(len(part) + 1, dtype=np.int64) * length for part in parts]
    arrays = [
        pa.ListArray.from_arrays(pa.array(grid.astype(np.int32)), pa.array(part.reshape(-1)))
        for grid, part in zip(grids, parts, strict=True)
    ]
    return pa.chunked_array(arrays)


def list_features(dtypes: Mapping[str, str]) -> Any:
    """``datasets.Features`` of list columns: name -> dtype of the values."""
    from datasets import Features, Sequence, Value

    return Features({name: Sequence(Value(dtype)) for name, dtype in dtypes.items()})


def write_columns(path: Path, blocks: Iterable[Mapping[str, np.ndarray]]) -> None:
    """Write blocks of rows, [rows, length] arrays of float16, float32 or int8, as list columns of an Arrow file, atomically.

    No more than a block is held.
    """
    blocks = iter(blocks)
    first = next(blocks)
    schema = list_features({name: str(values.dtype) for name, values in first.items()}).arrow_schema
    with atomic_file(path) as f, pa.ipc.new_stream(f, schema) as stream:
        for block in chain([first], blocks):
            arrays = [list_column(values) for values in block.values()]
            stream.write_table(pa.Table.from_arrays(arrays, schema=schema), max_chunksize=1024)


def column_block(dataset: Any, name: str, start: int, stop: int) -> np.ndarray:
    """Rows ``start`` to ``stop`` of a column whose lists are all of one length, [rows, length], without Python lists."""
    values: np.ndarray = list_values(dataset, name, start, stop)[0]
    return values.reshape(stop - start, -1)


def list_values(dataset: Any, name: str, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """(values laid end to end, entries of each row) of a list column."""
    column = dataset.with_format("arrow")[start:stop][name].combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False), column.value_lengths().to_numpy()
