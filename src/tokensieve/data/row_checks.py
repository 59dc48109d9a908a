"""The values of one row, checked: what is not a token id, a label or a mask is one sentence with row, column and position."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..core import IGNORE_INDEX
from ..runs.errors import UserError
from .half import within

IntArray = npt.NDArray[np.int64]


def integers(values: Any, name: str, index: int, *, bools: bool = False) -> IntArray:
    """A list of whole numbers as int64 [n]; an empty list of any type is one. ``bools``: true and false are 1 and 0.

    UserError for null, a single number, nested lists, null inside, and everything that is no whole number.
    """
    where = f"row {index}: column {name!r}"
    if values is None:
        raise UserError(f"{where} is null")
    found = as_array(values)
    if found.ndim != 1:
        raise UserError(f"{where} is not a list of whole numbers")
    if not found.size:
        return np.empty(0, np.int64)
    if found.dtype.kind == "f" and np.isnan(found).any():
        raise UserError(f"{where} is null or NaN at position {int(np.isnan(found).argmax())}")
    if found.dtype.kind == "O" and None in (listed := found.tolist()):
        raise UserError(f"{where} is null at position {listed.index(None)}")
    if found.dtype.kind not in ("iub" if bools else "iu"):
        raise UserError(f"{where} holds {_kind(found)}, whole numbers are needed")
    return found.astype(np.int64, copy=False)


def as_array(values: Any) -> npt.NDArray[Any]:
    """The values as an array; of lists in lists of unequal lengths an empty one of two dimensions."""
    try:
        return np.asarray(values)
    except ValueError:
        return np.empty((0, 0))


def _kind(values: npt.NDArray[Any]) -> str:
    return {"f": "floats", "b": "true and false", "U": "text", "O": type(values[0]).__name__}.get(
        values.dtype.kind, str(values.dtype)
    )


def as_long(values_T: IntArray, name: str, length: int, index: int) -> IntArray:
    """The same values. UserError if there is not one a token."""
    if len(values_T) != length:
        raise UserError(f"row {index}: column {name!r} has {len(values_T)} entries for {length} tokens")
    return values_T


def token_ids(values: Any, index: int, vocab_size: int | None) -> IntArray:
    """``input_ids`` of a row: 0 <= id < vocab_size, as far as that is known."""
    ids_T = integers(values, "input_ids", index)
    _check_range(ids_T, "input_ids", index, vocab_size)
    return ids_T


def labels(values: Any, length: int, index: int, vocab_size: int | None) -> IntArray:
    """``labels`` of a row: one a token, a token id or -100."""
    labels_T = as_long(integers(values, "labels", index), "labels", length, index)
    _check_range(labels_T, "labels", index, vocab_size, ignored=True)
    return labels_T.copy()  # what is put to -100 here must not reach the data set


def _check_range(ids_T: IntArray, name: str, index: int, vocab_size: int | None, *, ignored: bool = False) -> None:
    wrong_T = ids_T < 0
    if ignored:
        wrong_T &= ids_T != IGNORE_INDEX
    if vocab_size is not None:
        wrong_T |= ids_T >= vocab_size
    if wrong_T.any():
        at = int(wrong_T.argmax())
        known = "a token id" if vocab_size is None else f"a token id of a vocabulary of {vocab_size}"
        also = f" or {IGNORE_INDEX}" if ignored else ""
        raise UserError(f"row {index}: column {name!r} is {ids_T[at]} at position {at}, {known}{also} is needed")


def mask(values: Any, length: int, index: int) -> IntArray:
    """``attention_mask`` of a row: 0 is padding, anything above it is none."""
    mask_T = as_long(integers(values, "attention_mask", index, bools=True), "attention_mask", length, index)
    if (mask_T < 0).any():
        at = int((mask_T < 0).argmax())
        raise UserError(f"row {index}: column 'attention_mask' is {mask_T[at]} at position {at}, 0 or more is needed")
    return mask_T


def check_loss_mask(values: Any, name: str, labels_T: IntArray, index: int) -> None:
    """A loss mask beside labels must not contradict them: no label where it is 0. Some write it as 0.0 and 1.0."""
    if (found := as_array(values)).dtype.kind == "f" and np.isin(found, (0, 1)).all():
        values = found.astype(np.int64)
    mask_T = as_long(integers(values, name, index, bools=True), name, len(labels_T), index)
    wrong_T = (mask_T == 0) & (labels_T != IGNORE_INDEX)
    wrong_T[:1] = False  # nobody's target
    if wrong_T.any():
        raise UserError(
            f"row {index}: column {name!r} is 0 at position {int(wrong_T.argmax())}, where 'labels' has a target: put -100 "
            f"there, or list {name!r} in ignore_columns"
        )


def scores(values: Any, name: str, labels_T: IntArray, index: int, *, half: bool) -> npt.NDArray[np.float32]:
    """A score column of a row: float32 [T], 0 where it is NaN. UserError for a number that is not finite on a target.

    ``half``: stored as float16, whose infinity is a number beyond 65,504: taken as that, with a word on stderr.
    """
    if values is None:
        raise UserError(f"row {index}: column {name!r} is null")
    found = as_array(values)
    if found.dtype.kind == "O":
        found = np.array([np.nan if v is None else v for v in found.tolist()], dtype=object)
    try:
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite below
            values_T = found.astype(np.float32, copy=False)
    except (TypeError, ValueError):
        raise UserError(f"row {index}: column {name!r} does not hold numbers") from None
    if values_T.shape != labels_T.shape:
        raise UserError(f"row {index}: column {name!r} has {values_T.size} entries for {labels_T.size} tokens")
    finite_T = np.isfinite(values_T)
    if finite_T.all():
        return values_T
    if half:
        values_T = within(values_T, f"column {name!r}")
        finite_T = np.isfinite(values_T)
    broken_T = ~finite_T & (labels_T != IGNORE_INDEX)
    broken_T[:1] = False  # the first token of a row is nobody's target
    if broken_T.any():
        at = int(broken_T.argmax())
        what = "NaN" if np.isnan(values_T[at]) else "infinite"
        raise UserError(f"row {index}: {name} is {what} at position {at}, which is a target")
    return np.where(finite_T, values_T, np.float32(0))


def whole_number(value: Any, name: str, index: int) -> int:
    """A column of one whole number from 0 a row. UserError for null and everything else."""
    found = np.asarray(value)
    if found.ndim or found.dtype.kind not in "iu" or found < 0:
        shown = "null" if value is None or (found.dtype.kind == "f" and np.isnan(found)) else repr(found.tolist())
        raise UserError(f"row {index}: column {name!r} is {shown}, a whole number from 0 is needed")
    return int(found)


def second_target(
    ids: Any, log_probs: Any, names: tuple[str, str], labels_T: IntArray, index: int, vocab_size: int | None
) -> dict[str, npt.NDArray[Any]]:
    """The columns of second targets of a row: ids int64 [T, K], -1 for no entry, and log p float32 [T, K].

    UserError, on a target, for an id that is none of the vocabulary or is there twice, and for a log p that is no number or
    above 0. Where there is no target all ids are -1.
    """
    found = [_entries(values, name, len(labels_T), index) for values, name in zip((ids, log_probs), names, strict=True)]
    ids_TK, log_TK = found[0], found[1].astype(np.float32)
    if ids_TK.shape != log_TK.shape:
        raise UserError(f"row {index}: columns {names[0]!r} and {names[1]!r} do not have as many entries a token")
    if ids_TK.size and ids_TK.dtype.kind not in "iu":
        raise UserError(f"row {index}: column {names[0]!r} holds {_kind(ids_TK)}, whole numbers are needed")
    no_target_T = labels_T == IGNORE_INDEX
    no_target_T[:1] = True
    ids_TK = np.where(no_target_T[:, None], -1, ids_TK.astype(np.int64))
    ordered_TK = np.sort(ids_TK, axis=-1)
    checks = (
        (ids_TK >= (vocab_size or np.iinfo(np.int64).max), 0, "beyond the vocabulary"),
        ((ordered_TK[:, 1:] == ordered_TK[:, :-1]) & (ordered_TK[:, 1:] >= 0), 0, "there twice"),
        ((ids_TK >= 0) & ~(log_TK <= 1e-4), 1, "no log of a probability"),  # NaN among them
    )
    for wrong_TK, which, says in checks:
        if wrong_TK.any():
            at = int(wrong_TK.any(-1).argmax())
            raise UserError(f"row {index}: column {names[which]!r} has an entry at position {at} that is {says}")
    return {names[0]: ids_TK, names[1]: np.where(ids_TK >= 0, log_TK, np.float32(0)).clip(max=0)}


def _entries(values: Any, name: str, length: int, index: int) -> npt.NDArray[Any]:
    """A list of as many numbers for each token. [T, K]"""
    if values is None:
        raise UserError(f"row {index}: column {name!r} is null")
    found = as_array(values)
    if found.dtype.kind == "O" and found.ndim == 1:
        found = as_array([np.asarray(v) for v in found])
    if found.ndim != 2 or found.dtype.kind not in "iuf" or len(found) != length:
        raise UserError(f"row {index}: column {name!r} is not a list of as many numbers for each of {length} tokens")
    return found
