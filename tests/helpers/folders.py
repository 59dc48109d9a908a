"""Files that tests write for `prepare` to read, and folders that must be the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokensieve.data.read.source import SourceConfig
from tokensieve.data.read.sources import resolve


def write(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def names(path: Path | str, **settings: object) -> list[str]:
    """What the files of a source are called."""
    return [f.name for f in resolve(SourceConfig(str(path), **settings)).files]  # type: ignore[arg-type]


def stored(path: Path, form: str, rows: list[dict[str, Any]]) -> Path:
    """Rows as "jsonl", "parquet", or a folder of `datasets`."""
    if form == "jsonl":
        path = path.with_suffix(".jsonl")
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    elif form == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = path.with_suffix(".parquet")
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        import datasets

        datasets.Dataset.from_list(rows).save_to_disk(str(path))
    return path


def assert_same_files(one: Path, other: Path) -> None:
    names = sorted(p.name for p in one.iterdir())
    assert len(names) > 3
    assert names == sorted(p.name for p in other.iterdir())
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
