"""Folders that ``datasets.load_from_disk`` opens: LLaMA-Factory's ``tokenized_path`` and ms-swift's ``cached_dataset``.

    LLaMA-Factory   input_ids, attention_mask, labels
    ms-swift        input_ids, labels, loss_scale, lengths

``labels`` and ``loss_scale`` stand at their own tokens: both trainers shift the two together (ms-swift by
``torch.roll(loss_scale, shifts=-1)``, then ``loss = sum(nll * loss_scale) / labels``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..data.corpus import write_load_from_disk
from ..runs.files import atomic_file
from .layout import Shape
from .selection import RowBlock
from .tables import ATTENTION_MASK, INPUT_IDS, LABELLED, LOSS_SCALE, sample_table, schema_of

FACTORY = {"input_ids": INPUT_IDS, "attention_mask": ATTENTION_MASK, "labels": LABELLED}
SWIFT = {"input_ids": INPUT_IDS, "labels": LABELLED, "loss_scale": LOSS_SCALE}


def write_llama_factory(folder: Path, blocks: Iterator[RowBlock], shape: Shape) -> list[str]:
    """``train/``, one split of a DatasetDict: names of the files written."""
    names = _write(folder, "train", blocks, FACTORY, None)
    with atomic_file(folder / "dataset_dict.json", "w") as f:
        json.dump({"splits": ["train"]}, f)
    return [*names, "dataset_dict.json"]


def write_swift(folder: Path, blocks: Iterator[RowBlock], shape: Shape) -> list[str]:
    """``train/``: names of the files written."""
    return _write(folder, "train", blocks, SWIFT, "lengths")


def _write(
    folder: Path, split: str, blocks: Iterator[RowBlock], columns: Mapping[str, Any], lengths: str | None
) -> list[str]:
    from datasets import Features

    features = Features.from_arrow_schema(schema_of(columns, lengths))
    names = []
    for shard, part in groupby(blocks, key=lambda block: block.shard):
        names.append(f"data-{shard:05d}.arrow")
        with (
            atomic_file(folder / split / names[-1]) as f,
            pa.ipc.new_stream(f, features.arrow_schema) as stream,
        ):
            for block in part:
                stream.write_table(sample_table(block, columns, lengths).cast(features.arrow_schema))
    names += write_load_from_disk(folder / split, features, names, "exported")
    return [f"{split}/{name}" for name in names]
