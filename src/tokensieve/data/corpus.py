"""A corpus on disk: Arrow shards of packed rows, written in order and opened memory-mapped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import xxhash

from tokensieve.data.pack import Rows
from tokensieve.data.tokenizer import load_tokenizer
from tokensieve.runs import UserError, atomic_file, check_files, hash_json, read_manifest, write_json

KIND = "corpus"
COLUMNS: dict[str, pa.DataType] = {
    "input_ids": pa.list_(pa.int32()),
    "num_tokens": pa.int32(),
    "doc_starts": pa.list_(pa.int32()),
    "doc_ids": pa.list_(pa.int64()),
    "doc_sources": pa.list_(pa.int16()),
    "doc_targets": pa.list_(pa.int32()),
}
# Written since 0.1.0 stood; corpora without it are read, and what needs it says so. It follows from the documents, and is not
# part of a corpus's identity: scores of the same rows stay theirs.
LATER_COLUMNS: dict[str, pa.DataType] = {"doc_offsets": pa.list_(pa.int32())}
DOCUMENT_COLUMNS: dict[str, pa.DataType] = {
    "doc_id": pa.int64(),
    "id": pa.string(),
    "source": pa.int16(),
    "num_bytes": pa.int64(),
    "num_tokens": pa.int64(),
    "text_hash": pa.uint64(),
}
MANIFEST_KEYS = (
    *("length", "isolate_documents", "vocab_size", "eos_id", "pad_id", "sources"),
    *("content_hash", "tokenizer_hash", "shards", "stats"),
)
_BATCH_TOKENS = 1 << 20  # what a reader of one row at most has to map


def rows_table(rows: Rows, doc_sources: np.ndarray[Any, Any]) -> pa.Table:
    """Packed rows as a table; ``doc_sources`` is each document's source, ``[D]``."""
    num_rows, length = rows.input_ids.shape
    grid = pa.array(np.arange(num_rows + 1, dtype=np.int32) * np.int32(length))
    pieces = pa.array(rows.offsets)

    def lists(values: Any, offsets: pa.Array = pieces) -> pa.Array:
        return pa.ListArray.from_arrays(offsets, pa.array(values))

    columns = {
        "input_ids": lists(rows.input_ids.reshape(-1), grid),
        "num_tokens": pa.array(rows.num_tokens),
        "doc_starts": lists(rows.doc_starts),
        "doc_ids": lists(rows.doc_ids),
        "doc_sources": lists(doc_sources[rows.doc_ids].astype(np.int16)),
        "doc_targets": lists(rows.doc_targets),
        "doc_offsets": lists(rows.doc_offsets),
    }
    return pa.table(columns, schema=pa.schema([*COLUMNS.items(), *LATER_COLUMNS.items()]))


def with_documents(table: pa.Table, doc_ids: np.ndarray[Any, Any], doc_sources: np.ndarray[Any, Any]) -> pa.Table:
    """The table with its pieces' documents and sources replaced; both ``[P]``, in row order."""
    for name, values in (("doc_ids", doc_ids), ("doc_sources", doc_sources)):
        offsets = table[name].combine_chunks().offsets
        offsets = pa.array(offsets.to_numpy() - offsets[0].as_py(), pa.int32())
        array = pa.ListArray.from_arrays(offsets, pa.array(values, COLUMNS[name].value_type))
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), array)
    return table


class ContentHash:
    """xxh3-128 over every column's values and list lengths, in row order; how rows lie in batches or shards does not count."""

    def __init__(self) -> None:
        self._digests = {name: (xxhash.xxh3_128(), xxhash.xxh3_128()) for name in COLUMNS}

    def update(self, table: pa.Table) -> None:
        for name, (values, lengths) in self._digests.items():
            for chunk in table[name].chunks:
                if pa.types.is_list(chunk.type):
                    lengths.update(chunk.value_lengths().to_numpy().tobytes())
                    chunk = chunk.flatten()
                values.update(chunk.to_numpy().tobytes())

    def hexdigest(self, bos_id: int | None = None) -> str:
        """``bos_id``: where each document begins with BOS; the same rows with that token as a target are other content."""
        columns: dict[str, Any] = {name: [d.hexdigest() for d in pair] for name, pair in self._digests.items()}
        return hash_json(columns if bos_id is None else {**columns, "bos_id": bos_id})


class ShardWriter:
    """Writes rows, in the order given, to ``rows-00000.arrow`` ... of ``shard_rows`` rows each (the last: what is left)."""

    def __init__(self, folder: Path, length: int, shard_rows: int) -> None:
        self.folder, self.length, self.shard_rows = folder, length, shard_rows
        self.shards: list[dict[str, Any]] = []
        self.content = ContentHash()
        self._waiting: list[pa.Table] = []
        self._num_waiting = 0

    def write(self, table: pa.Table) -> None:
        self.content.update(table)
        self._waiting.append(table)
        self._num_waiting += len(table)
        while self._num_waiting >= self.shard_rows:
            self._write_shard(self.shard_rows)

    def close(self) -> None:
        if self._num_waiting:
            self._write_shard(self._num_waiting)

    def _write_shard(self, num_rows: int) -> None:
        table = pa.concat_tables(self._waiting)
        shard, rest = table.slice(0, num_rows).combine_chunks(), table.slice(num_rows)
        self._waiting, self._num_waiting = ([rest] if len(rest) else []), len(rest)
        name = f"rows-{len(self.shards):05d}.arrow"
        schema = _features().arrow_schema
        with atomic_file(self.folder / name) as f, pa.ipc.new_stream(f, schema) as stream:
            stream.write_table(shard.cast(schema), max_chunksize=max(1, _BATCH_TOKENS // self.length))
        self.shards.append({"file": name, "rows": num_rows})


def _features(*, later: bool = True) -> Any:
    from datasets import Features

    return Features.from_arrow_schema(pa.schema([*COLUMNS.items(), *(LATER_COLUMNS.items() if later else ())]))


def write_dataset_files(folder: Path, shards: list[dict[str, Any]], content_hash: str) -> list[str]:
    """What ``datasets.load_from_disk`` needs beside the shards. Returns the names written."""
    from datasets import DatasetInfo

    info = asdict(DatasetInfo(features=_features()))
    write_json(folder / "dataset_info.json", {key: info[key] for key in sorted(info)})
    state: dict[str, Any] = {
        "_data_files": [{"filename": s["file"]} for s in shards],
        "_fingerprint": content_hash.split(":")[1][:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    write_json(folder / "state.json", state)
    return ["dataset_info.json", "state.json"]


@dataclass(frozen=True)
class Corpus:
    """A finished corpus. ``rows`` is memory-mapped: opening costs nothing however large it is."""

    folder: Path
    manifest: dict[str, Any]
    rows: Any  # datasets.Dataset with COLUMNS

    @property
    def num_rows(self) -> int:
        return len(self.rows)

    @property
    def length(self) -> int:
        return int(self.manifest["length"])

    @property
    def isolate_documents(self) -> bool:
        return bool(self.manifest["isolate_documents"])

    @property
    def sources(self) -> list[str]:
        return list(self.manifest["sources"])

    @property
    def content_hash(self) -> str:
        return str(self.manifest["content_hash"])

    @property
    def identity(self) -> dict[str, Any]:
        """What it is to whoever reads its rows: them, their tokenizer, and whether a piece sees the one before it."""
        return {"corpus": self.content_hash, "tokenizer": self.tokenizer_hash, "isolated": self.isolate_documents}

    @property
    def tokenizer_hash(self) -> str:
        return str(self.manifest["tokenizer_hash"])

    @property
    def vocab_size(self) -> int:
        return int(self.manifest["vocab_size"])

    @property
    def eos_id(self) -> int:
        return int(self.manifest["eos_id"])

    @property
    def pad_id(self) -> int:
        return int(self.manifest["pad_id"])

    @property
    def bos_id(self) -> int | None:
        """The token that begins each document and is never a target; None: there is none, as in corpora of early versions."""
        found = self.manifest.get("bos_id")
        return None if found is None else int(found)

    @property
    def stats(self) -> dict[str, Any]:
        return dict(self.manifest["stats"])

    def tokenizer(self) -> Any:
        """The tokenizer its rows were made with, as a transformers object."""
        return load_tokenizer(self.folder / "tokenizer")

    def contexts(self) -> Iterator[np.ndarray]:
        """Tokens that have one context: each row without its padding or, with isolated documents, each of its pieces."""
        for row in self.rows.select_columns(["input_ids", "num_tokens", "doc_starts"]).with_format("numpy"):
            ids = np.asarray(row["input_ids"])[: int(row["num_tokens"])]
            yield from np.split(ids, np.asarray(row["doc_starts"])[1:]) if self.isolate_documents else [ids]

    def outcomes(self) -> Iterator[np.ndarray]:
        """Of each of :meth:`contexts`, which tokens something can predict: all but the BOS of a document. bool [T]"""
        from tokensieve.data.rows import bos_places

        read = ["num_tokens", "doc_starts", *(["doc_offsets"] if self.bos_id is not None else [])]
        for row in self.rows.select_columns(read).with_format("numpy"):
            outcome_T = np.ones(int(row["num_tokens"]), bool)
            if self.bos_id is not None:
                outcome_T[bos_places(row)] = False
            yield from np.split(outcome_T, np.asarray(row["doc_starts"])[1:]) if self.isolate_documents else [outcome_T]

    def documents_at(self, row: int, position: int | None = None) -> list[str]:
        """Names of the documents in a row, or of the one at a position of it."""
        found = self.rows[row]
        ids = found["doc_ids"]
        if position is not None:
            ids = [ids[int(np.searchsorted(found["doc_starts"], position, side="right")) - 1]]
        return self.documents()["id"].take(ids).to_pylist()  # type: ignore[no-any-return]

    def documents(self) -> pa.Table:
        """``documents.parquet``: one row a document, index = doc_id."""
        import pyarrow.parquet as pq

        return pq.read_table(self.folder / "documents.parquet")


def open_corpus(folder: Path | str, verify: Literal["size", "full"] | None = "size") -> Corpus:
    """Open a finished corpus. ``size``: every file has the size it was written with; ``full``: the same bytes, read and hashed.

    :class:`UserError` naming the folder or file if it is unfinished, of another kind, truncated, or damaged.
    """
    from datasets import Dataset, concatenate_datasets

    folder = Path(folder)
    manifest = read_manifest(folder, KIND, MANIFEST_KEYS)
    if verify is not None:
        check_files(folder, manifest, hashes=verify == "full")
    try:
        shards = [Dataset.from_file(str(folder / s["file"])) for s in manifest["shards"]]
    except (OSError, pa.ArrowException, ValueError) as e:
        raise UserError(f"{folder}: its rows cannot be read: {e}") from None
    for entry, shard in zip(manifest["shards"], shards, strict=True):
        if shard.features not in (
            _features(),
            _features(later=False),
        ):  # a feature can be one that opens files or addresses when it is read
            raise UserError(f"{folder / entry['file']} does not have the columns of a corpus")
        if len(shard) != entry["rows"]:
            raise UserError(f"{folder / entry['file']} has {len(shard)} rows, {entry['rows']} were written")
    return Corpus(folder, manifest, concatenate_datasets(shards))


def describe(manifest: dict[str, Any]) -> str:
    """A corpus's figures as a few lines of text: tokens, rows, documents, bytes per token, then the same per source."""
    return "\n".join(_lines(manifest))


def _lines(manifest: dict[str, Any]) -> Iterator[str]:
    stats = manifest["stats"]
    yield (
        f"{stats['tokens']:,} tokens in {stats['rows']:,} rows of {manifest['length']}, {stats['documents']:,} documents, "
        f"{stats['bytes_per_token']:.2f} bytes per token, vocabulary {manifest['vocab_size']:,}"
    )
    width = max(map(len, stats["by_source"]), default=0)
    for name, found in stats["by_source"].items():
        per_token = found["bytes"] / max(1, found["tokens"])
        yield (
            f"  {name:{width}}  {found['tokens']:>12,} tokens ({found['tokens'] / max(1, stats['tokens']):6.1%})  "
            f"{found['documents']:>9,} documents  {per_token:.2f} bytes per token"
        )
    if manifest.get("bos_id") is not None:
        yield f"  each document begins with BOS (id {manifest['bos_id']}), which is never a target"
    if stats.get("unknown"):
        share = f"{stats['unknown_share']:.2%} of the tokens ({stats['unknown']:,})"
        yield f"  unknown to the tokenizer: {share}, their text is lost"
    left_out = {"bad rows": stats["bad_rows"], **stats["skipped"]}
    if any(left_out.values()):
        yield "  left out: " + ", ".join(f"{n:,} {what}" for what, n in left_out.items() if n)
    if not stats["token_bytes_exact"]:
        yield "  bytes of a token are approximate with this tokenizer, so bits per byte will be too"
