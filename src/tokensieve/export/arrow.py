"""A folder that ``datasets.load_from_disk`` opens, as LLaMA-Factory's ``tokenized_path``: the columns of jsonl.py.

A DatasetDict of one split, as LLaMA-Factory writes it there itself. ``labels`` stand at their own tokens: the model shifts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pyarrow as pa

from ..data.corpus import write_load_from_disk
from ..runs.files import atomic_file
from .layout import Shape
from .selection import RowBlock
from .tables import sample_schema, sample_table

_SPLIT = "train"


def write_llama_factory(folder: Path, blocks: Iterator[RowBlock], shape: Shape) -> list[str]:
    """``train/`` and ``dataset_dict.json``: names of the files written."""
    from datasets import Features

    features = Features.from_arrow_schema(sample_schema())
    names = []
    for shard, part in groupby(blocks, key=lambda block: block.shard):
        names.append(f"data-{shard:05d}.arrow")
        with (
            atomic_file(folder / _SPLIT / names[-1]) as f,
            pa.ipc.new_stream(f, features.arrow_schema) as stream,
        ):
            for block in part:
                stream.write_table(sample_table(block).cast(features.arrow_schema))
    names += write_load_from_disk(folder / _SPLIT, features, names, "exported")
    with atomic_file(folder / "dataset_dict.json", "w") as f:
        json.dump({"splits": [_SPLIT]}, f)
    return [*(f"{_SPLIT}/{name}" for name in names), "dataset_dict.json"]
