"""datatrove's token files: ``.ds``, with ``.ds.loss`` and ``.ds.index`` beside it.

    00000.ds         ids one after the other, little-endian, 2 bytes each (4 where the vocabulary is larger than 65,536)
    00000.ds.loss    a byte a token: 1 where it is trained
    00000.ds.index   uint64: where each piece of a document ends, in tokens from the beginning of the file

``DatatroveFileDataset`` reads ``seq_len + 1`` tokens an item: with ``seq_len`` one less than a row of the corpus an item is a
row, padding included. The byte stands at its own token, as ``DocumentTokenizer`` writes it for ``no_loss_ranges``; a reader
that trains on ``tokens[1:]`` takes ``loss[1:]``.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np

from ..runs.files import atomic_file
from .layout import Shape
from .selection import RowBlock


def write_datatrove(folder: Path, blocks: Iterator[RowBlock], shape: Shape) -> list[str]:
    """Three files a shard of the corpus: names of the files written."""
    names = []
    for shard, part in groupby(blocks, key=lambda block: block.shard):
        three = [f"{shard:05d}.ds{suffix}" for suffix in ("", ".loss", ".index")]
        before = 0
        with (
            atomic_file(folder / three[0]) as tokens,
            atomic_file(folder / three[1]) as loss,
            atomic_file(folder / three[2]) as index,
        ):
            for block in part:
                tokens.write(block.ids_BT.astype(np.dtype(shape.token_dtype).newbyteorder("<")).tobytes())
                loss.write((block.weight_BT != 0).tobytes())
                index.write(_ends(block, before).astype("<u8").tobytes())
                before += block.ids_BT.size
        names += three
    return names


def _ends(block: RowBlock, before: int) -> np.ndarray:
    """Where pieces end, the padding of a row being one, counted from the beginning of the file. int64 [pieces]"""
    length = block.ids_BT.shape[1]
    ends = [
        np.unique(np.append(np.concatenate([starts[1:], [count]]), length)) + before + row * length
        for row, (starts, count) in enumerate(zip(block.pieces, block.num_tokens_B, strict=True))
    ]
    return np.concatenate([np.empty(0, np.int64), *ends])
