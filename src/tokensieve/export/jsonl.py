"""JSON lines of ``input_ids``, ``attention_mask`` and ``labels``: what TRL and axolotl train on as it is.

    {"input_ids": [5, 9, 7], "attention_mask": [1, 1, 1], "labels": [-100, 9, -100]}

A line is a row of the corpus without its padding or, of isolated documents, a piece of one. ``labels`` stand at their own
tokens and the model shifts them. A file a shard of the corpus.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..runs.files import atomic_file
from .layout import Shape, labels_of
from .selection import RowBlock

SampleIds = npt.NDArray[np.int64]
SampleWeights = npt.NDArray[np.float32]


def write_jsonl(folder: Path, blocks: Iterator[RowBlock], shape: Shape) -> list[str]:
    """``train-00000.jsonl`` ...: names of the files written."""
    return write_lines(folder, blocks, _line)


def _line(ids_T: SampleIds, weight_T: SampleWeights) -> dict[str, Any]:
    labels = labels_of(ids_T, weight_T).tolist()
    return {"input_ids": ids_T.tolist(), "attention_mask": [1] * len(ids_T), "labels": labels}


def write_lines(
    folder: Path, blocks: Iterator[RowBlock], line: Callable[[SampleIds, SampleWeights], dict[str, Any]]
) -> list[str]:
    """``line(ids, weights)`` of every sample as JSON, a file a shard of the corpus: names of the files written."""
    names = []
    for shard, part in groupby(blocks, key=lambda block: block.shard):
        names.append(f"train-{shard:05d}.jsonl")
        with atomic_file(folder / names[-1], "w") as f:
            for block in part:
                for ids_T, weight_T in block.samples():
                    f.write(json.dumps(line(ids_T, weight_T), separators=(",", ":")) + "\n")
    return names
