"""How much of one text stands word for word in another: documents can be disjoint and still share paragraphs."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

RUN = 32  # tokens: about 13 words of prose in a vocabulary of a few thousand
_BASE = np.uint64(0x9E3779B97F4A7C15)


def run_hashes(rows: Iterable[np.ndarray], length: int = RUN) -> np.ndarray:
    """A 64-bit hash of every run of ``length`` consecutive tokens within a row, repeats included. uint64 [runs]

    Rows shorter than a run give none; runs that would cross a row's end are not seen.
    """
    powers = np.cumprod(np.full(length, _BASE, np.uint64))
    parts = [
        (np.lib.stride_tricks.sliding_window_view(row.astype(np.uint64) + np.uint64(1), length) * powers).sum(
            -1, np.uint64
        )
        for row in rows
        if len(row) >= length
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)


def shared_share(runs: np.ndarray, others: np.ndarray) -> float:
    """Share of ``runs`` that stand in ``others`` too, 0 to 1; 0 if there are none."""
    return float(np.isin(runs, others).mean()) if len(runs) else 0.0


def alike(document: np.ndarray, other: np.ndarray, length: int = 8) -> float:
    """Runs of ``length`` tokens that both have / runs that either has, 0 to 1; runs are no longer than the shorter document."""
    length = max(1, min(length, len(document), len(other)))
    runs, others = (np.unique(run_hashes([ids], length)) for ids in (document, other))
    common = len(np.intersect1d(runs, others, assume_unique=True))
    return common / max(1, len(runs) + len(others) - common)
