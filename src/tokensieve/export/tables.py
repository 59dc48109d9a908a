"""Samples as Arrow tables of list columns: for Parquet, and for folders that ``datasets.load_from_disk`` opens."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .layout import labels_of
from .selection import RowBlock

Column = Callable[[npt.NDArray[np.int64], npt.NDArray[np.float32]], npt.NDArray[np.generic]]

# name -> (type, values of a sample's tokens, by its ids and weights laid end to end)
INPUT_IDS: tuple[pa.DataType, Column] = (pa.int32(), lambda ids, weight: ids.astype(np.int32))
ATTENTION_MASK: tuple[pa.DataType, Column] = (pa.int8(), lambda ids, weight: np.ones(len(ids), np.int8))
LABELLED: tuple[pa.DataType, Column] = (pa.int32(), labels_of)
LOSS_SCALE: tuple[pa.DataType, Column] = (pa.float32(), lambda ids, weight: weight)


def schema_of(columns: Mapping[str, tuple[pa.DataType, Column]], lengths: str | None = None) -> pa.Schema:
    """Of list columns and, under the name ``lengths``, the number of tokens of each sample."""
    fields = [pa.field(name, pa.list_(kind)) for name, (kind, _) in columns.items()]
    return pa.schema([*fields, *([pa.field(lengths, pa.int32())] if lengths else [])])


def sample_table(
    block: RowBlock, columns: Mapping[str, tuple[pa.DataType, Column]], lengths: str | None = None
) -> pa.Table:
    """The samples of a block, a row each."""
    samples = list(block.samples())
    counts = np.array([len(ids_T) for ids_T, _ in samples], np.int32)
    offsets = pa.array(np.concatenate([[0], counts.cumsum()]).astype(np.int32))
    ids = np.concatenate([np.empty(0, np.int64), *(ids_T for ids_T, _ in samples)])
    weight = np.concatenate([np.empty(0, np.float32), *(weight_T for _, weight_T in samples)])
    arrays = [pa.ListArray.from_arrays(offsets, pa.array(make(ids, weight), kind)) for kind, make in columns.values()]
    return pa.Table.from_arrays([*arrays, *([pa.array(counts)] if lengths else [])], schema=schema_of(columns, lengths))
