"""Sums of nll by document, of the last weights of each evaluated model: what a bootstrap over documents draws from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..runs.files import atomic_file
from .sums import Sums

DOCUMENTS = "documents.parquet"
SCHEMA = pa.schema({
    "model": pa.dictionary(pa.int32(), pa.string()), "set": pa.dictionary(pa.int32(), pa.string()),
    "on": pa.dictionary(pa.int32(), pa.string()), "document": pa.int64(), "nll": pa.float64(), "tokens": pa.int64(),
})  # fmt: skip


class DocumentSums:
    """A row a model, set, ``on`` and document with a target: ``nll`` (sum, nats) and ``tokens``."""

    def __init__(self) -> None:
        self._tables: list[pa.Table] = []

    def add(self, model: str, name: str, sums: Sums) -> None:
        for on, (nll_D, tokens_D) in sums.documents.items():
            if on == "solution" and not sums.has_solutions:
                continue
            there = np.flatnonzero(tokens_D)
            labels = [pa.array([text] * len(there)) for text in (model, name, on)]
            columns = [*labels, pa.array(there), pa.array(nll_D[there]), pa.array(tokens_D[there].astype(np.int64))]
            named = dict(zip(SCHEMA.names, columns, strict=True))
            self._tables.append(pa.table(named).cast(SCHEMA))

    def write(self, path: Path) -> None:
        table = pa.concat_tables([SCHEMA.empty_table(), *self._tables]).unify_dictionaries()
        with atomic_file(path) as f:
            pq.write_table(table, f)


def read_documents(folder: Path | str) -> dict[tuple[str, str, str], dict[str, Any]] | None:
    """(model, set, on) -> ``document``, ``nll``, ``tokens`` as arrays; None for an evaluation of an earlier version."""
    path = Path(folder) / DOCUMENTS
    if not path.exists():
        return None
    table = pq.read_table(path)
    labels = [table[name].to_pylist() for name in ("model", "set", "on")]
    values = {name: table[name].to_numpy() for name in ("document", "nll", "tokens")}
    rows: dict[tuple[str, str, str], list[int]] = {}
    for i, key in enumerate(zip(*labels, strict=True)):
        rows.setdefault(key, []).append(i)
    return {key: {name: column[at] for name, column in values.items()} for key, at in rows.items()}
