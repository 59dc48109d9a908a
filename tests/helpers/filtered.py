"""Documents in JSON lines, and tables that `filter` makes of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from tokensieve.data.read.source import SourceConfig
from tokensieve.pipeline import filter as filtering
from tokensieve.pipeline.configs.filter import FilterConfig
from tokensieve.runs.manifest import read_manifest

Row = dict[str, Any]


def write(path: Path, rows: Sequence[Row]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def table(out: Path, kind: str, *paths: str, **fields: Any) -> tuple[list[Row], dict[str, Any]]:
    """(rows of the table, its manifest)."""
    sources = fields.pop("sources", None) or [SourceConfig(path) for path in paths]
    filtering.run(FilterConfig(str(out), kind, sources, **fields), progress=False)  # type: ignore[arg-type]
    return pq.read_table(out / "table.parquet").to_pylist(), read_manifest(out, "documents")


def by_id(rows: Sequence[Row], key: str = "kept") -> dict[str, Any]:
    return {row["id"]: row[key] for row in rows}


def words(rng: np.random.Generator, n: int, vocabulary: int = 3000) -> list[str]:
    return [f"w{i}" for i in rng.integers(0, vocabulary, n)]
