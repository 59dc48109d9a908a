"""The tokens that a run logged, as columns: where they stand, the student's nll and the reference's, what was kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..analysis.folders import Arm

Columns = dict[str, np.ndarray[Any, Any]]


def logged_tokens(arm: Arm) -> Columns | None:
    """``step``, ``row``, ``position``, ``nll``, ``keep`` of all logged tokens, in order of steps.

    ``ref_nll`` if there are scores, ``source`` (index into the corpus's sources) if the corpus is there. None if the arm
    logged no token.
    """
    import pyarrow.parquet as pq

    tables = [pq.read_table(path) for path in arm.logged().values()]
    if not sum(len(t) for t in tables):
        return None
    names = ("step", "row", "position", "nll", "keep")
    columns: Columns = {k: np.concatenate([t[k].to_numpy() for t in tables]) for k in names}
    if arm.corpus is not None:
        columns |= _beside(columns, arm.corpus, arm.scores)
    return columns


def _beside(columns: Mapping[str, np.ndarray[Any, Any]], corpus: Path, scores: Path | None) -> Columns:
    """What corpus and scores say of the same tokens. Rows are read once each, however often they were logged."""
    from ..data.corpus import open_corpus
    from ..data.pieces import per_token
    from ..data.scored import open_scores

    opened = open_corpus(corpus, verify="size")
    rows, place = np.unique(columns["row"], return_inverse=True)
    at = (place, columns["position"])
    texts = opened.rows.select_columns(["doc_starts", "doc_sources"]).with_format("numpy")
    sources = np.zeros((len(rows), opened.length), np.int16)
    for i, row in enumerate(rows.tolist()):
        found = texts[row]
        starts = np.asarray(found["doc_starts"], np.int64)
        sources[i] = per_token(np.asarray(found["doc_sources"], np.int16), starts, opened.length)
    beside: Columns = {"source": sources[at]}
    if scores is not None:
        reference = open_scores(scores, opened, verify="size").with_format("numpy")
        if "ref_nll" in reference.column_names:
            beside["ref_nll"] = np.stack([reference[r]["ref_nll"] for r in rows.tolist()]).astype(np.float32)[at]
    return beside
