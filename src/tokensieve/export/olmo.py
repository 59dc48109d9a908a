"""OLMo-core's token files, and a boolean ``label_mask`` beside each.

    tokens-00000.npy       uint16 or uint32, one id after the other, no header (in spite of the name)
    label_mask-00000.npy   bool, one byte a token: false takes the token's label away

``NumpyFSLDataset`` cuts the tokens of each file into pieces of ``sequence_length``: with that of the corpus every instance is a
row of it, padding included. ``get_labels`` masks ``input_ids`` by the mask and shifts afterwards, so the mask speaks of the
token that it stands at.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from ..runs.files import atomic_file
from .layout import Shape
from .selection import RowBlock


def write_olmo(folder: Path, blocks: Iterator[RowBlock], shape: Shape) -> list[str]:
    """A pair of files a shard of the corpus: names of the files written."""
    names = []
    for shard, part in groupby(blocks, key=lambda block: block.shard):
        pair = [f"tokens-{shard:05d}.npy", f"label_mask-{shard:05d}.npy"]
        with atomic_file(folder / pair[0]) as tokens, atomic_file(folder / pair[1]) as mask:
            for block in part:
                tokens.write(block.ids_BT.astype(shape.token_dtype).tobytes())
                mask.write((block.weight_BT != 0).tobytes())
        names += pair
    return names
