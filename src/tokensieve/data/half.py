"""Numbers in float16 columns: what is too large for them, on the way in and on the way out.

float16 ends at 65,504, and what lies further out becomes inf on the way in: a class of its own in dynamics (inf - inf), and
an excess of -inf or NaN in training. So it is stored as 65,504, counted, and told.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

LARGEST = 65504.0


def stored(values: np.ndarray, dtype: Any) -> tuple[np.ndarray, int]:
    """(``values`` as ``dtype``, how many were clipped): float16 takes what is beyond +-65,504 as +-65,504. NaN stays NaN.

    Other dtypes are cast as they are. Below 6e-8 float16 has nothing but 0: an error smaller than that.
    """
    if np.dtype(dtype) != np.float16:
        return values.astype(dtype), 0
    return np.clip(values, -LARGEST, LARGEST).astype(np.float16), int((np.abs(values) > LARGEST).sum())


def within(values: np.ndarray, what: str) -> np.ndarray:
    """A float16 column that was read, with +-65,504 for +-inf, which earlier versions stored; told on stderr once a process.

    ``what`` names the column and, where it is known, its folder.
    """
    if not np.isinf(values).any():
        return values
    _tell(what)
    clipped: np.ndarray = np.clip(values, -LARGEST, LARGEST)
    return clipped


@functools.cache
def _tell(what: str) -> None:
    print(f"tokensieve: {what} is infinite at some tokens, too large for float16: taken as 65,504", file=sys.stderr)


def tell_clipped(folder: Any, clipped: Mapping[str, int], instead: str = "") -> None:
    """One line on stderr a column that has any clipped values; ``instead``: what to do to have them whole."""
    for name, count in clipped.items():
        if count:
            print(
                f"tokensieve: {folder}: {count:,} values of {name} beyond 65,504 are stored as 65,504, where float16 ends"
                f"{instead}",
                file=sys.stderr,
            )
