"""Megatron's indexed datasets: ``tokens``, and beside it ``weight`` (float32) and ``labels`` (int32, for GPT-NeoX).

    NAME.idx    "MMIDIDX\\0\\0", version 1 (uint64), code of the dtype (uint8), sequences and documents + 1 (uint64 each), then
                of each sequence its length (int32), then its first byte in NAME.bin (int64), then the number of sequences
                before each document, and before the end (int64)
    NAME.bin    the sequences one after the other

A row of the corpus is a sequence and a document of its own, padding included, so that samples of ``seq_length`` tokens, which
Megatron and NeoX cut from documents laid end to end in any order, are rows. Entry t of ``weight`` and ``labels`` is of token t:
a sample takes ``[1:]`` of them as it takes its labels. A row's first token has weight 0: what predicts it is another row.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..runs.files import atomic_file
from .layout import Shape, labels_of
from .selection import RowBlock

CODES = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "float64": 6, "float32": 7, "uint16": 8}
"""What an index calls a dtype."""
MOST_OF_UINT16 = 65_500
"""Megatron takes int32 for a vocabulary from this size on."""


def write_megatron(folder: Path, blocks: Iterator[RowBlock], shape: Shape) -> list[str]:
    """Three pairs of files: names of the files written. Beside a block it holds 20 bytes a row, for the indices."""
    dtypes: dict[str, npt.DTypeLike] = {
        "tokens": np.uint16 if shape.vocab_size < MOST_OF_UINT16 else np.int32,
        "weight": np.float32,
        "labels": np.int32,
    }
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(atomic_file(folder / f"{name}.bin")) for name in dtypes}
        for block in blocks:
            values: dict[str, npt.NDArray[Any]] = {
                "tokens": block.ids_BT,
                "weight": block.weight_BT,
                "labels": labels_of(block.ids_BT, block.weight_BT),
            }
            for name, dtype in dtypes.items():
                files[name].write(values[name].astype(dtype).tobytes())
    for name, dtype in dtypes.items():
        with atomic_file(folder / f"{name}.idx") as f:
            f.write(_index(shape, np.dtype(dtype)))
    return [f"{name}.{part}" for name in dtypes for part in ("bin", "idx")]


def _index(shape: Shape, dtype: np.dtype[Any]) -> bytes:
    """Of rows of one length, each of them a document."""
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, CODES[dtype.name], shape.rows, shape.rows + 1)
    lengths = np.full(shape.rows, shape.length, np.int32)
    pointers = np.arange(shape.rows, dtype=np.int64) * shape.length * dtype.itemsize
    documents = np.arange(shape.rows + 1, dtype=np.int64)
    return head + lengths.tobytes() + pointers.tobytes() + documents.tobytes()
