"""Samples as Arrow tables of ``input_ids``, ``attention_mask`` and ``labels``, for Parquet and for ``datasets``."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from .layout import labels_of
from .selection import RowBlock

SAMPLE_TYPES = {"input_ids": pa.int32(), "attention_mask": pa.int8(), "labels": pa.int32()}


def sample_schema() -> pa.Schema:
    return pa.schema([pa.field(name, pa.list_(kind)) for name, kind in SAMPLE_TYPES.items()])


def sample_table(block: RowBlock) -> pa.Table:
    """The samples of a block, a row each: lists of their own lengths."""
    samples = list(block.samples())
    ids = np.concatenate([np.empty(0, np.int64), *(ids_T for ids_T, _ in samples)])
    weight = np.concatenate([np.empty(0, np.float32), *(weight_T for _, weight_T in samples)])
    offsets = pa.array(np.cumsum([0, *(len(ids_T) for ids_T, _ in samples)]).astype(np.int32))
    values = (ids.astype(np.int32), np.ones(len(ids), np.int8), labels_of(ids, weight))
    arrays = [pa.ListArray.from_arrays(offsets, pa.array(v)) for v in values]
    return pa.Table.from_arrays(arrays, schema=sample_schema())
