"""What every format is told of a corpus, and what it says of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from .selection import RowBlock

IGNORED = -100
"""The label of a token that is not trained, in every trainer of transformers' family."""


@dataclass(frozen=True)
class Shape:
    """Of a whole corpus, known before its first row is written."""

    rows: int
    length: int
    """Tokens of a row, padding included."""
    vocab_size: int
    eos_id: int
    pad_id: int
    isolated: bool = False
    """Whether documents are contexts of their own."""

    @property
    def token_dtype(self) -> npt.DTypeLike:
        """The smaller of uint16 and uint32 that holds every id, as OLMo-core and datatrove take them."""
        return np.uint16 if self.vocab_size <= 1 << 16 else np.uint32


Write = Callable[[Path, Iterator[RowBlock], Shape], list[str]]


@dataclass(frozen=True)
class Format:
    """A layout on the disk that another trainer reads."""

    about: str
    """Who reads it."""
    holds: Literal["selection", "weights"]
    """selection: which tokens are trained, and no more; weights: any float a token."""
    write: Write
    """(folder, blocks, shape) -> names of the files written. Holds a block and, where the layout wants it, a shard."""
    bytes_each: float
    """About how many bytes a token takes."""
    use: str
    """What a user of that trainer writes: a template of $folder, $length, $seq_len (one less), $longer (one more),
    $token_size, $dtype, $vocab_size, $eos_id, $pad_id and, of whether documents are isolated, $mask and $apart."""
    checked: str
    """The reader's source that the layout was read in."""
    signed: bool = True
    """Of weights: whether any may be below 0."""
    divides: str = "the number of trained tokens"
    """By what its reader divides a step's loss; empty: as its user writes it."""
    all_targets: bool = False
    """Whether its reader can divide by all targets, trained or not."""


def labels_of(ids_T: npt.NDArray[np.int64], weight_T: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """``ids[t]`` where token t is trained, -100 elsewhere: not shifted, since the models shift. Any shape."""
    labels: npt.NDArray[np.int32] = np.where(weight_T != 0, ids_T, IGNORED).astype(np.int32)
    return labels
