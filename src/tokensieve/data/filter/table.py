"""The table that ``filter`` writes and ``prepare --documents`` reads: which documents a corpus takes.

A document is one of text, source and id: ``text_hash`` and ``key``, 64 bits each, say which, so neither the order of files and
rows nor how they are cut into units does. Read twice it is still one, and taken where it stands first (``place``). Rows stand
in the order of text hash and key: equal input gives equal bytes in any order, a reader finds a document by bisection, two
tables are joined by reading them side by side, and what ties are decided by does not change where rows without ids move.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from ...runs.errors import UserError
from ...runs.manifest import check_files, read_manifest
from ..read.documents import Document, Item, Skipped

TABLE_KIND = "documents"
TABLE_FILE = "table.parquet"
TABLE_COLUMNS = {
    "text_hash": pa.uint64(),
    "key": pa.uint64(),
    "id": pa.string(),
    "source": pa.string(),
    "bytes": pa.int64(),
    "score": pa.float32(),
    "kept": pa.bool_(),
    "times": pa.int16(),
    "why": pa.string(),
    "copies": pa.int32(),
    "place": pa.string(),
}
ROWS_AT_A_TIME = 1 << 16
_INDEX = {"text_hash": np.uint64, "key": np.uint64, "times": np.int16, "place": np.uint64}


def document_text(document: Document) -> str:
    """What a document says, of a conversation its messages. UserError for one that came as token ids."""
    if document.tokens is not None:
        raise UserError(f"{document.where}: a document of token ids has no text to filter")
    if document.chat is not None:
        return "\n".join(m["content"] for m in document.chat.messages)
    return document.text


def document_key(document: Document) -> tuple[int, int]:
    """(text_hash, key): xxh3-64 of the text, and of source and id. A conversation's text is all that its messages are, roles
    and calls included."""
    chat = document.chat
    text = (document_text(document) if chat is None else json.dumps([chat.messages, chat.tools], default=str)).encode(
        "utf-8", "surrogatepass"
    )
    name = json.dumps([document.source, document.id]).encode()
    return xxhash.xxh3_64_intdigest(text), xxhash.xxh3_64_intdigest(name)


def place_hash(place: str | None) -> int:
    """Of a place, never 0: that stands where the document was read once."""
    return 0 if place is None else xxhash.xxh3_64_intdigest(place.encode("utf-8", "surrogatepass")) | 1


class Tables:
    """``Tables.of(folders, scratch)``: what finished tables say of documents; memory-mapped, 26 bytes a document and table.

    Pickled as the names of its files, so that each worker opens them for itself.
    """

    def __init__(self, folders: Sequence[str], indices: Sequence[Path]) -> None:
        self.folders, self._paths = tuple(folders), tuple(indices)
        self._opened = [[np.load(p / f"{name}.npy", mmap_mode="r") for name in _INDEX] for p in self._paths]

    def __reduce__(self) -> Any:
        return Tables, (self.folders, self._paths)

    @classmethod
    def of(cls, folders: Sequence[str], scratch: Path) -> Tables:
        """Each table is read once, a group of rows at a time. UserError for one that is damaged or no table."""
        made = []
        for i, folder in enumerate(folders):
            made.append(scratch / f"documents-{i:02d}")
            _write_index(folder, made[-1])
        return cls(folders, made)

    def times(self, document: Document) -> int:
        """How often a corpus takes it: the product over tables; 0 where one drops it, or where it stood elsewhere first.

        UserError for a document that no table drops and one does not have.
        """
        (text, key), times, without = document_key(document), 1, ""
        for folder, (texts, keys, all_times, places) in zip(self.folders, self._opened, strict=True):
            lo, hi = (int(np.searchsorted(texts, np.uint64(text), side)) for side in ("left", "right"))
            i = lo + int(np.searchsorted(keys[lo:hi], np.uint64(key)))
            if i == hi or int(keys[i]) != key:
                without = without or folder
                continue
            elsewhere = places[i] and int(places[i]) != place_hash(document.place)
            times *= 0 if elsewhere else int(all_times[i])
        if times and without:
            raise UserError(
                f"{document.where}: the table of {without} has no document {document.id!r} of source {document.source!r} with "
                "this text: filter the same sources, under the same names, and give all tables"
            )
        return times

    def takes(self, document: Document) -> bool:
        return self.times(document) > 0

    def chosen(self, items: Iterable[Item]) -> Iterator[Item]:
        """The documents that a corpus takes; in place of others, ``Skipped("filtered")``. Those taken several times come once
        more each after all others, so that copies stand apart."""
        again: list[tuple[int, Document]] = []
        for item in items:
            if not isinstance(item, Document):
                yield item
                continue
            times = self.times(item)
            if times > 1:
                again.append((times - 1, item))
            yield item if times else Skipped("filtered")
        while again:
            yield from (document for _, document in again)
            again = [(times - 1, document) for times, document in again if times > 1]


def describe_table(manifest: dict[str, Any]) -> str:
    """A table's figures as a few lines of text."""
    return "\n".join(_described(manifest))


def _described(manifest: dict[str, Any]) -> Iterator[str]:
    stats = manifest["stats"]
    share = stats["kept"] / max(1, stats["documents"])
    yield (
        f"{manifest['config']['kind']}: {stats['kept']:,} of {stats['documents']:,} documents kept ({share:.2%}), "
        f"{stats['kept_bytes'] / 1e6:,.1f} of {stats['bytes'] / 1e6:,.1f} MB"
    )
    width = max(map(len, stats["by_source"]), default=0)
    for name, found in stats["by_source"].items():
        part = found["kept"] / max(1, found["documents"])
        yield f"  {name:{width}}  {found['kept']:>10,} of {found['documents']:>10,} ({part:7.2%})"
    for name, found in manifest.get("sets", {}).items():
        yield (
            f"  {name}: {found['training_documents']:,} documents share a run with {found['found']:,} of its "
            f"{found['documents']:,}; {found['too_short']:,} are too short to have one"
        )
    if "exact_copies" in manifest:
        near = f", {manifest['near_copies']:,} near copies" if "near_copies" in manifest else ""
        yield f"  {manifest['exact_copies']:,} exact copies{near}"
    for key, value in manifest.get("classifier", {}).items():
        yield f"  {key}: {'unknown' if value is None else f'{value:,.4f}' if isinstance(value, float) else f'{value:,}'}"
    if stats["repeated"]:
        yield f"  read several times and taken once: {stats['repeated']:,}"
    left_out = {"bad rows": stats["bad_rows"], **stats["skipped"]}
    if any(left_out.values()):
        yield "  left out: " + ", ".join(f"{n:,} {what}" for what, n in left_out.items() if n)


def table_hash(folder: str) -> str:
    """What a table was, as a hash. UserError where the folder is no finished one."""
    files = read_manifest(folder, TABLE_KIND)["files"]
    return str(next(f["hash"] for f in files if f["file"] == TABLE_FILE))


def open_table(folder: str) -> pq.ParquetFile:
    """The table of a finished folder, its bytes checked. UserError that names what is wrong with it."""
    check_files(folder, read_manifest(folder, TABLE_KIND))
    try:
        table = pq.ParquetFile(Path(folder) / TABLE_FILE)
    except (pa.ArrowException, OSError) as e:
        raise UserError(f"{Path(folder) / TABLE_FILE} is no readable Parquet file: {e}") from None
    if missing := [name for name in TABLE_COLUMNS if name not in table.schema_arrow.names]:
        raise UserError(f"{Path(folder) / TABLE_FILE} has no column {missing[0]!r}")
    return table


def _write_index(folder: str, into: Path) -> None:
    into.mkdir(parents=True, exist_ok=True)
    with open_table(folder) as table:
        size = (table.metadata.num_rows,)
        arrays = (
            {n: np.lib.format.open_memmap(into / f"{n}.npy", "w+", t, size) for n, t in _INDEX.items()}
            if size[0]
            else {}
        )
        for name in () if size[0] else _INDEX:
            np.save(into / f"{name}.npy", np.empty(0, _INDEX[name]))
        start = 0
        for batch in table.iter_batches(ROWS_AT_A_TIME, columns=["text_hash", "key", "times", "place"]):
            there = slice(start, start + len(batch))
            for name in ("text_hash", "key", "times"):
                arrays[name][there] = batch[name].to_numpy()
            arrays["place"][there] = [place_hash(p) for p in batch["place"].to_pylist()]
            start += len(batch)
    for array in arrays.values():
        array.flush()
    if arrays and not _ascending(arrays["text_hash"], arrays["key"]):
        raise UserError(f"{Path(folder) / TABLE_FILE} is not in the order of its keys: `filter` did not write it")


def _ascending(text_hash: np.ndarray, key: np.ndarray) -> bool:
    before, after = slice(None, -1), slice(1, None)
    later = text_hash[after] > text_hash[before]
    return bool((later | ((text_hash[after] == text_hash[before]) & (key[after] > key[before]))).all())
