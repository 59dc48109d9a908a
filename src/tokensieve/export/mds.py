"""MosaicML streaming shards (MDS): ``input_ids``, ``labels`` and ``weight`` of a sample.

    index.json        version 2, and of each shard its file, bytes, samples and columns
    shard.00000.mds   samples (uint32), where each begins and the last ends (uint32 each), the columns as JSON, the samples

A sample is the sizes of its columns (uint32 each, in alphabetical order), then the columns: ``ndarray:DTYPE`` with its number
of dimensions and shape in front. ``labels`` and ``weight`` stand at their own tokens: the model shifts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..runs.files import atomic_file
from .layout import Shape, labels_of
from .selection import RowBlock

ENCODINGS = {"input_ids": "ndarray:int32", "labels": "ndarray:int32", "weight": "ndarray:float32"}
SIZE_LIMIT = 1 << 26
"""Bytes of a shard, which is held until it is written: its offsets stand in front."""
CONFIG = {
    "column_encodings": list(ENCODINGS.values()),
    "column_names": list(ENCODINGS),
    "column_sizes": [None] * len(ENCODINGS),
    "compression": None,
    "format": "mds",
    "hashes": [],
    "size_limit": SIZE_LIMIT,
    "version": 2,
}


def write_mds(folder: Path, blocks: Iterator[RowBlock], shape: Shape) -> list[str]:
    """Shards of at most 64 MiB and their index: names of the files written."""
    shards: list[dict[str, Any]] = []
    waiting: list[bytes] = []
    size = 0
    for sample in _samples(blocks):
        if waiting and size + len(sample) + 4 > SIZE_LIMIT - 1024:
            shards.append(_write_shard(folder, len(shards), waiting))
            waiting, size = [], 0
        waiting.append(sample)
        size += len(sample) + 4
    if waiting:
        shards.append(_write_shard(folder, len(shards), waiting))
    with atomic_file(folder / "index.json", "w") as f:
        json.dump({"shards": shards, "version": 2}, f, sort_keys=True)
    return [*(s["raw_data"]["basename"] for s in shards), "index.json"]


def _samples(blocks: Iterator[RowBlock]) -> Iterator[bytes]:
    for block in blocks:
        for ids_T, weight_T in block.samples():
            parts = [_array(ids_T.astype(np.int32)), _array(labels_of(ids_T, weight_T)), _array(weight_T)]
            yield np.array([len(p) for p in parts], "<u4").tobytes() + b"".join(parts)


def _array(values: npt.NDArray[Any]) -> bytes:
    """A one-dimensional array with its length in as few bytes as it takes: 4 * dimensions + log2 of those bytes in front."""
    code = 0 if len(values) < 1 << 8 else 1 if len(values) < 1 << 16 else 2
    length = np.array([len(values)], ("<u1", "<u2", "<u4")[code])
    return bytes([1 << 2 | code]) + length.tobytes() + values.tobytes()


def _write_shard(folder: Path, number: int, samples: list[bytes]) -> dict[str, Any]:
    name = f"shard.{number:05d}.mds"
    config = json.dumps(CONFIG, sort_keys=True).encode()
    begins = np.array([0, *map(len, samples)], np.int64).cumsum() + 4 + 4 * (len(samples) + 1) + len(config)
    with atomic_file(folder / name) as f:
        f.write(np.array([len(samples), *begins], "<u4").tobytes())
        f.write(config)
        f.writelines(samples)
    raw = {"basename": name, "bytes": int(begins[-1]), "hashes": {}}
    return {**CONFIG, "raw_data": raw, "samples": len(samples), "zip_data": None}
