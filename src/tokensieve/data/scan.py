"""A look through a data set before training: a row that will be refused is refused before hours are spent on others."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..core import IGNORE_INDEX
from .pieces import CUMULATIVE, LENGTHS, NUMBERED
from .rows import Rows

MAX_SCANNED = 1 << 28  # a few seconds; rows behind them are looked at when they are read
ROWS_READ = 1024  # whether two columns tell of the same pieces shows only row by row, a third of a second
_BLOCK_ROWS = 1024


def look_through(rows: Rows, max_tokens: int = MAX_SCANNED) -> None:
    """Raise the UserError that reading a row would raise, for its ids, labels, masks, positions and scores.

    Looks at whole columns in blocks, and reads row by row only where one of them looks wrong, and, of rows that say in more
    than one way where pieces begin, the first ROWS_READ. A prepared corpus has hashes instead, and what a transform makes is
    seen when it is made: neither is looked through.
    """
    if rows.whole_rows or rows.transformed:
        return
    table, tokens = rows.arrow, 0
    for start in range(0, len(rows), _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, len(rows))
        block = table[start:stop]
        if (start < ROWS_READ and _may_disagree(block, rows)) or _looks_wrong(block, rows):
            rows.__getitems__(range(start, stop))
        tokens += len(block["input_ids"].combine_chunks().flatten())
        if tokens >= max_tokens:
            return


def _may_disagree(block: Any, rows: Rows) -> bool:
    """Whether rows say in more than one way where pieces begin, or where padding is beside that."""
    ways = {*NUMBERED, *LENGTHS, *CUMULATIVE, "position_ids"} & rows.read
    if len(ways) != 1 or "attention_mask" not in rows.read:
        return len(ways) > 1
    mask = np.asarray(block["attention_mask"].combine_chunks().flatten().to_numpy(zero_copy_only=False))
    return not bool((mask == 1).all())


def _looks_wrong(block: Any, rows: Rows) -> bool:
    columns = {n: block[n].combine_chunks() for n in (*_NAMES, *NUMBERED, *rows.loss_masks) if n in rows.read}
    sizes = {n: block[n].combine_chunks() for n in (*LENGTHS, *CUMULATIVE) if n in rows.read}
    scores = {
        n: block[n].combine_chunks() for n in rows.scores if hasattr(block[n].type, "value_type")
    }  # else one a row
    lengths = [c.value_lengths().to_numpy(zero_copy_only=False) for c in (*columns.values(), *scores.values())]
    if any(c.null_count or c.flatten().null_count for c in columns.values()):
        return True
    if not all(np.array_equal(lengths[0], other) for other in lengths[1:]):
        return True
    if any(_beyond(name, values, lengths[0]) for name, values in sizes.items()):
        return True
    flat = {n: np.asarray(c.flatten().to_numpy(zero_copy_only=False)) for n, c in columns.items()}
    if any(_out_of_range(name, values, rows.vocab_size) for name, values in flat.items() if values.size):
        return True
    target = flat.get("labels", flat["input_ids"]) != IGNORE_INDEX
    if "attention_mask" in flat:
        target &= flat["attention_mask"] != 0
    target[(np.cumsum(lengths[0]) - lengths[0])[lengths[0] > 0]] = False  # the first token of a row is nobody's target
    if any(bool(((flat[n] == 0) & target).any()) for n in rows.loss_masks):
        return True
    values = (c.flatten().to_numpy(zero_copy_only=False).astype(np.float32) for c in scores.values())
    return any(bool((~np.isfinite(v) & target).any()) for v in values)


_NAMES = ("input_ids", "labels", "attention_mask", "position_ids")


def _beyond(name: str, values: Any, lengths: npt.NDArray[Any]) -> bool:
    """Whether lengths of pieces, or their ends, may not fit the rows."""
    if values.null_count or values.flatten().null_count:
        return True
    numbers, counts = (
        values.flatten().to_numpy(zero_copy_only=False),
        values.value_lengths().to_numpy(zero_copy_only=False),
    )
    ends = np.concatenate([[0], np.cumsum(numbers, dtype=np.int64)])
    starts = np.cumsum(counts, dtype=np.int64) - counts
    if name in LENGTHS:
        return bool((numbers < 0).any() or (ends[starts + counts] - ends[starts] > lengths).any())
    return bool((counts == 0).any() or (numbers[starts] != 0).any() or (numbers[starts + counts - 1] > lengths).any())


def _out_of_range(name: str, values: npt.NDArray[Any], vocab_size: int | None) -> bool:
    if values.dtype.kind not in "iu":
        return name in _NAMES and name != "attention_mask"
    if name not in _NAMES:  # ids of documents and masks may be any number
        return False
    if name in ("input_ids", "labels") and vocab_size is not None and values.max() >= vocab_size:
        return True
    return bool((values[values != IGNORE_INDEX] < 0).any()) if name == "labels" else bool(values.min() < 0)
