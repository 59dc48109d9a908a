"""Tokens to characters: where in its text each token stands.

    text      a  4  2  €  .       bytes 1 1 1 1 1 3 1
    tokens   "a" " 42" three of a byte each "."
    places    0    2    4 4 4     5

A token stands where its first character that is no space does: " 42" belongs to the number, and not to what is before it. A
character that is cut by tokens is the place of all of them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
_SPACES = np.array([0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000])


def by_bytes(text: str, sizes: Int64) -> Int64:
    """The place of each token, [T], from the bytes that each stands for: they add up to those of the text."""
    ends = sizes.cumsum()
    starts = ends - sizes
    data = np.frombuffer(text.encode(), np.uint8)
    if len(data) != len(text):
        character = np.cumsum((data & 0xC0) != 0x80) - 1  # which one each byte belongs to
        starts, ends = character[starts], character[np.maximum(ends - 1, starts)] + 1
    return by_characters(text, starts, ends)


def by_characters(text: str, starts: Int64, ends: Int64) -> Int64:
    """The place of each token, [T], from the characters that it stands for: from, and up to."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    if not len(codes):
        return np.zeros(len(starts), np.int64)
    here = np.where(_is_space(codes), len(codes), np.arange(len(codes)))
    following = np.minimum.accumulate(here[::-1])[::-1]  # the first that is no space, at each or behind it
    starts = np.minimum(starts, len(codes) - 1)
    found: Int64 = following[starts]
    return np.where(found < ends, found, starts)


def _is_space(codes: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
    there: npt.NDArray[np.bool_] = (codes == 32) | ((codes >= 9) & (codes <= 13))
    return there | np.isin(codes, _SPACES) if codes.max() > 127 else there
