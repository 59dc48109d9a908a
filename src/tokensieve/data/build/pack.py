"""Packing: documents -> rows of a fixed length. Concatenate, then cut; only the last row of a unit is padded.

documents   AAAA. BBBBBBBBB. CC.        (. is EOS)
rows        AAAA.BBB | BBBBBB.C | C.____        pieces  [A,B] [B,C] [C]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...runs.errors import UserError
from ..read.documents import NO_TARGET

Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True)
class PackedRows:
    """R packed rows of length L and their P pieces; row r has the pieces ``offsets[r]:offsets[r + 1]``."""

    input_ids: Int32  # [R, L]
    num_tokens: Int32  # [R]
    offsets: Int32  # [R + 1]
    doc_starts: Int32  # [P]
    doc_ids: npt.NDArray[np.int64]  # [P] index into the documents given
    doc_targets: Int32  # [P]
    doc_offsets: Int32  # [P] tokens of the document before the piece
    labels: Int32 | None = None  # [R, L] the token where it is a target, -100 where not and in padding; None: all are


def pack(
    documents: Sequence[Int32],
    targets: Sequence[int],
    length: int,
    pad_id: int,
    labels: Sequence[Int32] | None = None,
) -> PackedRows:
    """Concatenate ``documents`` (each with its EOS) and cut into rows of ``length``.

    ``targets[d]`` is where in document d the solution starts, 0 for plain text. ``labels[d]``: as long as document d, cut as
    it is. No documents give no rows. UserError for a document of 2^31 tokens or more.
    """
    sizes = np.array([len(d) for d in documents], np.int64)  # [D]
    if sizes.max(initial=0) > np.iinfo(np.int32).max:
        raise UserError(
            f"a document of {sizes.max():,} tokens is longer than 2,147,483,647: its places are stored as int32"
        )
    ends = np.cumsum(sizes)
    starts = ends - sizes
    total = int(ends[-1]) if len(ends) else 0
    num_rows = -(-total // length)
    flat, flat_labels = _laid(documents, num_rows * length, pad_id), None
    if labels is not None:
        flat_labels = _laid(labels, num_rows * length, NO_TARGET).reshape(num_rows, length)
    row_starts = np.arange(num_rows, dtype=np.int64) * length
    # A piece starts where a document or a row does. Empty documents start none, hence unique and side="right".
    piece_starts = np.union1d(starts[sizes > 0], row_starts)  # [P]
    piece_ends = np.append(piece_starts[1:], total)
    doc_ids = np.searchsorted(ends, piece_starts, side="right")
    origin = piece_starts // length * length
    solution = starts + np.asarray(targets, np.int64)  # [D]
    target = np.clip(solution[doc_ids], piece_starts, piece_ends) if total else piece_starts
    return PackedRows(
        input_ids=flat.reshape(num_rows, length),
        num_tokens=np.minimum(length, total - row_starts).astype(np.int32),
        offsets=np.searchsorted(piece_starts, np.append(row_starts, num_rows * length)).astype(np.int32),
        doc_starts=(piece_starts - origin).astype(np.int32),
        doc_ids=doc_ids.astype(np.int64),
        doc_targets=(target - origin).astype(np.int32),
        doc_offsets=(piece_starts - starts[doc_ids] if total else piece_starts).astype(np.int32),
        labels=flat_labels,
    )


def _laid(documents: Sequence[Int32], size: int, fill: int) -> Int32:
    """One behind the other, then ``fill`` up to ``size``."""
    flat = np.full(size, fill, np.int32)
    if documents:
        np.concatenate(documents, out=flat[: sum(map(len, documents))])
    return flat
