"""A look through a data set before training: a row that will be refused is refused before hours are spent on others."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .row_checks import IGNORE_INDEX
from .rows import Rows

MAX_TOKENS = 1 << 28  # a few seconds; rows behind them are looked at when they are read
_BLOCK_ROWS = 1024


def look_through(rows: Rows, max_tokens: int = MAX_TOKENS) -> None:
    """Raise the UserError that reading a row would raise, for its ids, labels, masks, positions and scores.

    Looks at whole columns in blocks, and reads row by row only where one of them looks wrong. A prepared corpus has hashes
    instead, and what a transform makes is seen when it is made: neither is looked through.
    """
    if rows.whole_rows or rows.transformed:
        return
    table, tokens = rows.dataset.with_format("arrow"), 0
    for start in range(0, len(rows), _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, len(rows))
        block = table[start:stop]
        if _looks_wrong(block, rows):
            rows.__getitems__(range(start, stop))
        tokens += len(block["input_ids"].combine_chunks().flatten())
        if tokens >= max_tokens:
            return


def _looks_wrong(block: Any, rows: Rows) -> bool:
    columns = {n: block[n].combine_chunks() for n in _NAMES if n in rows.read}
    scores = {n: block[n].combine_chunks() for n in rows.scores}
    lengths = [c.value_lengths().to_numpy(zero_copy_only=False) for c in (*columns.values(), *scores.values())]
    if any(c.null_count or c.flatten().null_count for c in columns.values()):
        return True
    if not all(np.array_equal(lengths[0], other) for other in lengths[1:]):
        return True
    flat = {n: np.asarray(c.flatten().to_numpy(zero_copy_only=False)) for n, c in columns.items()}
    if any(_out_of_range(name, values, rows.vocab_size) for name, values in flat.items() if values.size):
        return True
    target = flat.get("labels", flat["input_ids"]) != IGNORE_INDEX
    if "attention_mask" in flat:
        target &= flat["attention_mask"] != 0
    target[(np.cumsum(lengths[0]) - lengths[0])[lengths[0] > 0]] = False  # the first token of a row is nobody's target
    values = (c.flatten().to_numpy(zero_copy_only=False).astype(np.float32) for c in scores.values())
    return any(bool((~np.isfinite(v) & target).any()) for v in values)


_NAMES = ("input_ids", "labels", "attention_mask", "position_ids")


def _out_of_range(name: str, values: npt.NDArray[Any], vocab_size: int | None) -> bool:
    if values.dtype.kind not in "iu":
        return name != "attention_mask"
    if name in ("input_ids", "labels") and vocab_size is not None and values.max() >= vocab_size:
        return True
    return bool((values[values != IGNORE_INDEX] < 0).any()) if name == "labels" else bool(values.min() < 0)
