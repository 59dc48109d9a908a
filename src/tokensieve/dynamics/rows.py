"""A corpus and the nll of its tokens at every checkpoint, read in blocks of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset

from ..data.corpus import Corpus
from ..data.half import within
from ..data.list_columns import column_block, list_values
from ..data.pieces import per_token, piece_positions
from ..data.scored import open_scores
from ..runs.errors import UserError

# Positions of a block: about 40 MB for 20 checkpoints in float64, and long enough for numpy to be fast.
BLOCK_TOKENS = 1 << 17


@dataclass(frozen=True)
class TokenBlock:
    """Rows of a corpus: their targets' values, and where these stand."""

    start: int
    target_BT: np.ndarray
    place_N: np.ndarray
    """row * length + position of each target."""
    ids_N: np.ndarray
    source_N: np.ndarray
    position_N: np.ndarray
    """Tokens before it in its context."""
    nll_CN: np.ndarray
    """float16, as stored."""


class NllReader:
    """A corpus and the nll files of its checkpoints, mapped into memory, read in blocks of rows."""

    def __init__(self, corpus: Corpus, paths: Sequence[Path], scores: str | None = None) -> None:
        self.corpus, self.length, self.folder = corpus, corpus.length, paths[0].parent
        self.files = [Dataset.from_file(str(path)) for path in paths]
        self.scores = open_scores(scores, corpus, verify=None) if scores else None
        if wrong := [p for p, f in zip(paths, self.files, strict=True) if len(f) != corpus.num_rows]:
            raise UserError(f"{wrong[0]} has not the rows of {corpus.folder}: remove it and start again")

    def spans(self) -> Iterator[tuple[int, int]]:
        """(start, stop) of each block."""
        step = max(1, BLOCK_TOKENS // self.length)
        for start in range(0, self.corpus.num_rows, step):
            yield start, min(start + step, self.corpus.num_rows)

    def nll(self, index: int, start: int, stop: int) -> np.ndarray:
        """float16 [B, T] of one checkpoint, without inf."""
        return within(column_block(self.files[index], "nll", start, stop), f"nll in {self.folder}")

    def block(self, start: int, stop: int) -> TokenBlock:
        """All that is known of the targets of some rows."""
        target_BT = ~np.isnan(self.nll(-1, start, stop))
        source_BT, position_BT = self._context(start, stop)
        return TokenBlock(
            start,
            target_BT,
            start * self.length + np.flatnonzero(target_BT),
            column_block(self.corpus.rows, "input_ids", start, stop)[target_BT],
            source_BT[target_BT],
            position_BT[target_BT],
            np.stack([self.nll(c, start, stop)[target_BT] for c in range(len(self.files))]),
        )

    def _context(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Source of each token, and tokens before it in its context. int64 [B, T]"""
        size, shape = (stop - start) * self.length, (stop - start, self.length)
        starts, pieces = list_values(self.corpus.rows, "doc_starts", start, stop)
        starts = starts.astype(np.int64) + np.repeat(np.arange(stop - start) * self.length, pieces)
        sources = list_values(self.corpus.rows, "doc_sources", start, stop)[0].astype(np.int64)
        contexts = starts if self.corpus.isolate_documents else np.arange(stop - start) * self.length
        return per_token(sources, starts, size).reshape(shape), piece_positions(contexts, size).reshape(shape)

    def excess(self, block: TokenBlock, nll_CN: np.ndarray) -> np.ndarray:
        """nll - ref_nll of a block's targets, float32 [C, N]."""
        ref_BT = column_block(self.scores, "ref_nll", block.start, block.start + len(block.target_BT))
        if ref_BT.dtype == np.float16:
            ref_BT = within(ref_BT, "column 'ref_nll'")
        ref_N = ref_BT[block.target_BT].astype(np.float32)
        if not np.isfinite(ref_N).all():
            at = int((~np.isfinite(ref_N)).argmax())
            row, position = divmod(int(block.place_N[at]), self.length)
            what = "NaN" if np.isnan(ref_N[at]) else "infinite"
            raise UserError(f"row {row}: ref_nll is {what} at position {position}, which is a target")
        excess_CN: np.ndarray = nll_CN.astype(np.float32) - ref_N
        return excess_CN
