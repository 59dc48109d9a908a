"""Several tables of the same documents as one score [Nemotron-CC, arXiv 2412.02595, section 2.2]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ...runs.errors import UserError
from .judge import buckets_of
from .measured import Measured
from .table import open_table


def ensemble_score(folders: Sequence[str], measured: Measured, buckets: int) -> np.ndarray:
    """max over tables of floor(buckets * rank / n): the rank of a document's score among all n of the table. float32 [N]

    UserError for a table of other documents than those ``measured``, or without scores.
    """
    highest = np.zeros(len(measured), np.int64)
    for folder in folders:
        with open_table(folder) as table:
            columns: Any = table.read(["text_hash", "key", "score"])
        same = (np.array_equal(columns[name].to_numpy(), getattr(measured, name)) for name in ("text_hash", "key"))
        if not all(same):
            raise UserError(f"ensemble.tables: the table of {folder} is not of the same documents as these sources")
        score = columns["score"].cast(pa.float64()).to_numpy()
        if len(score) and np.isnan(score).all():
            raise UserError(f"ensemble.tables: the table of {folder} has no scores")
        highest = np.maximum(highest, buckets_of(score, buckets))
    return highest.astype(np.float32)
