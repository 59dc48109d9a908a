"""Where the pieces (segments) of a packed row begin: from positions that restart, and every other way in which packers say it.

ids            a a a b b p       p: padding
position_ids   0 1 2 0 1 0       a piece begins where a position is not the one before it plus 1
attention_mask 1 1 1 2 2 0       numbered: a piece begins where the number changes; 0 is padding
segment_ids    0 0 0 1 1 1       likewise
seq_lengths    3 2               lengths of the pieces; what they leave over is padding
cu_seqlens     0 3 5             the same, summed up
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..runs.errors import UserError
from .row_checks import as_long, integers

IntArray = npt.NDArray[np.int64]
_HOLE = (
    "row {}: attention_mask is 0 at position {}, inside a document of a packed batch, which is not supported: leave these "
    "tokens out"
)


@dataclass(frozen=True)
class Pieces:
    """The pieces of one row."""

    starts: IntArray
    """First token of each, ascending, the first is 0; a run of padding is a piece of its own."""
    positions_T: IntArray
    """Positions for the model: they do not go on across a boundary."""
    packed: bool
    """Whether the positions say where attention stops: no attention mask may then stand beside them."""
    covered: int
    """Tokens that the column speaks of: what stands behind them is padding, and must have no label."""


def read_pieces(row: Mapping[str, Any], length: int, mask_T: IntArray | None, index: int) -> Pieces | None:
    """The pieces that a row's columns tell, or None if they tell of no boundary and no position. ``mask_T``: 0 is padding.

    UserError where two columns tell of different boundaries, where a column does not fit the row, or where padding stands
    inside a piece of a packed row, which positions alone cannot say.
    """
    told: dict[str, IntArray] = {}
    covered = length
    if "doc_starts" in row and bool(row.get("isolated", False)):
        told["doc_starts"] = row["doc_starts"]
    for name in (n for n in PACKING if n in row):
        values = integers(row[name], name, index)
        try:
            told[name], here = PACKING[name](values, length)
        except ValueError as e:
            raise UserError(f"row {index}: column {name!r} {e}") from None
        covered = min(covered, here)
    if mask_T is not None and int(mask_T.max(initial=0)) > 1:
        told["attention_mask"] = _changes(mask_T)
    if not told and "position_ids" not in row:
        return None
    if mask_T is None and covered == length and list(told) == ["doc_starts"] and "position_ids" not in row:
        return Pieces(
            row["doc_starts"], piece_positions(row["doc_starts"], length), True, length
        )  # a corpus: no detours
    real_T = np.ones(length, bool) if mask_T is None else mask_T != 0
    real_T[covered:] = False
    positions_T = None
    if "position_ids" in row:
        positions_T = positions(row["position_ids"], length, index)
        restarts = restarts_of(positions_T)
        if not told or len(_inside(restarts, real_T)):  # positions that just count on say nothing beside other columns
            told["position_ids"] = restarts
    _check_agreement(told, real_T, index)
    starts = np.unique(np.concatenate(list(told.values())))
    if positions_T is None or "position_ids" not in told:
        positions_T = piece_positions(starts, length)
    packed = "position_ids" not in told or len(_inside(starts, real_T)) > 0
    if packed:
        _check_numbered(told, mask_T, index)
        positions_T = cut_off_padding(positions_T, real_T, index)
    return Pieces(np.unique(np.concatenate([starts, _changes(real_T)])), positions_T, packed, covered)


def _check_numbered(told: Mapping[str, IntArray], mask_T: IntArray | None, index: int) -> None:
    """The numbers of a mask must rise: one that comes back is no numbering, or a document with padding inside it."""
    if mask_T is None or "attention_mask" not in told:
        return
    starts = _changes(mask_T)
    starts = starts[mask_T[starts] != 0]
    back = np.diff(mask_T[starts]) <= 0
    if back.any():
        at = int(starts[1:][back][0])
        raise UserError(
            f"row {index}: column 'attention_mask' comes back to {mask_T[at]} at position {at}: where it numbers documents, "
            "the numbers rise"
        )


def positions(values: Any, length: int, index: int) -> IntArray:
    """``position_ids`` of a row, checked: whole numbers from 0, one a token."""
    positions_T = as_long(integers(values, "position_ids", index), "position_ids", length, index)
    if (positions_T < 0).any():
        at = int((positions_T < 0).argmax())
        raise UserError(
            f"row {index}: column 'position_ids' is {positions_T[at]} at position {at}, 0 or more is needed"
        )
    return positions_T


def doc_starts(values: Any, length: int, index: int) -> IntArray:
    """``doc_starts`` of a row, checked: ascending from 0, within the row."""
    starts = integers(values, "doc_starts", index)
    if length and (not len(starts) or starts[0] != 0 or starts[-1] >= length or (np.diff(starts) <= 0).any()):
        raise UserError(f"row {index}: column 'doc_starts' does not rise from 0 within {length} tokens")
    return starts


def restarts_of(positions_T: IntArray) -> IntArray:
    """Where a position is not the one before it plus 1; the row's first token too. What transformers goes by."""
    return np.flatnonzero(np.diff(positions_T, prepend=-7) != 1).astype(np.int64)


def cut_off_padding(positions_T: IntArray, real_T: npt.NDArray[np.bool_], index: int) -> IntArray:
    """Positions that keep padding apart from the token behind it without a mask: a run of padding takes that token's position.

    Padding inside a piece cannot be kept out in this way and raises UserError.
    """
    made_T = positions_T.copy()
    before = -1  # position of the last token that is none of the padding
    for start, end in _runs(real_T):
        if real_T[start]:
            before = int(positions_T[end - 1])
        elif end < len(real_T):
            if before >= 0 and positions_T[end] > before:
                raise UserError(_HOLE.format(index, start))
            made_T[start:end] = positions_T[end]
    return made_T


def _runs(values_T: npt.NDArray[Any]) -> list[tuple[int, int]]:
    starts = _changes(values_T).tolist()
    return list(zip(starts, [*starts[1:], len(values_T)], strict=True))


def _changes(values_T: npt.NDArray[Any]) -> IntArray:
    """First index of each run of equal values. [T] -> [runs]"""
    there = np.ones(len(values_T), bool)
    there[1:] = values_T[1:] != values_T[:-1]
    return np.flatnonzero(there).astype(np.int64)


def _inside(starts: IntArray, real_T: npt.NDArray[np.bool_]) -> IntArray:
    """The boundaries between two tokens: neither the row's first, nor one beside padding."""
    return starts[(starts > 0) & real_T[starts] & real_T[starts - 1]] if len(starts) else starts


def _check_agreement(told: Mapping[str, IntArray], real_T: npt.NDArray[np.bool_], index: int) -> None:
    first, *others = told
    wanted = _inside(told[first], real_T)
    for name in others:
        found = _inside(told[name], real_T)
        if not np.array_equal(wanted, found):
            at = int(np.setxor1d(wanted, found)[0])
            one, other = (first, name) if at in wanted else (name, first)
            raise UserError(
                f"row {index}: {one!r} has a document begin at position {at}, {other!r} has not: list the wrong one in "
                "ignore_columns"
            )


def _from_numbers(values: IntArray, length: int) -> tuple[IntArray, int]:
    """A number for each token. Where a row ends in 0 or less after greater numbers, that is padding."""
    if len(values) != length:
        raise ValueError(f"has {len(values)} entries for {length} tokens")
    starts = _changes(values)
    padded = len(starts) > 1 and values[-1] <= 0 and values[-1] < values[starts[-1] - 1]
    return starts, int(starts[-1]) if padded else length


def _from_lengths(lengths: IntArray, length: int) -> tuple[IntArray, int]:
    if (lengths < 0).any():
        raise ValueError(f"has a length of {int(lengths.min())}")
    return _from_ends(np.concatenate([[0], np.cumsum(lengths)]), length, f"sums to {int(lengths.sum())}")


def _from_cumulative(ends: IntArray, length: int) -> tuple[IntArray, int]:
    if not len(ends) or ends[0] != 0 or (np.diff(ends) < 0).any():
        raise ValueError("does not rise from 0")
    return _from_ends(ends, length, f"ends at {int(ends[-1])}")


def _from_ends(ends: IntArray, length: int, says: str) -> tuple[IntArray, int]:
    if ends[-1] > length:
        raise ValueError(f"{says}, the row has {length} tokens")
    starts = np.unique(np.concatenate([[0], ends])).astype(np.int64)
    return starts[starts < length], int(ends[-1])


# Columns that say where pieces begin, beside position_ids and a numbered attention_mask.
NUMBERED = (
    "segment_ids",
    "segment_id",
    "sequence_ids",
    "sequence_id",
    "document_ids",
    "document_id",
    "doc_ids",
    "seq_idx",
)
LENGTHS = ("seq_lengths", "sequence_lengths", "seq_lens", "seqlens")
CUMULATIVE = (
    *("cu_seqlens", "cu_seqlens_q", "cu_seqlens_k"),
    *("cu_seq_lens", "cu_seq_lens_q", "cu_seq_lens_k"),
)
PACKING: dict[str, Callable[[IntArray, int], tuple[IntArray, int]]] = {
    **dict.fromkeys(NUMBERED, _from_numbers),
    **dict.fromkeys(LENGTHS, _from_lengths),
    **dict.fromkeys(CUMULATIVE, _from_cumulative),
}


def piece_positions(starts: np.ndarray, length: int) -> IntArray:
    """Position of each token within its piece: 0 at every start. int64 [T]"""
    positions_T: IntArray = np.arange(length, dtype=np.int64) - per_token(starts, starts, length)
    return positions_T


def per_token(values: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """A value of each piece, repeated for each of its tokens. [pieces] -> [T]"""
    return np.repeat(values, np.diff(np.append(starts, length)))


def solution_mask(starts: np.ndarray, targets: np.ndarray, length: int) -> np.ndarray:
    """Whether each token belongs to its piece's solution: bool [T], all true for plain text (``targets == starts``)."""
    return np.arange(length) >= per_token(np.asarray(targets, np.int64), starts, length)
