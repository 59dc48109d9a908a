"""A corpus on disk: Arrow shards of packed rows, written in order and opened memory-mapped."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from ..runs.errors import UserError
from ..runs.files import atomic_file, hash_json, write_json
from ..runs.manifest import read_manifest
from .build.pack import PackedRows
from .list_columns import list_column, list_values
from .read.documents import NO_TARGET
from .tokenizer import load_tokenizer
from .verify import Verify, check_input

KIND = "corpus"
ROW_COLUMNS: dict[str, pa.DataType] = {
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
# Only in a corpus some document of which says by labels that not all of its tokens are targets; there it is part of the
# identity, since it decides what is trained on.
LABELS: dict[str, pa.DataType] = {"labels": pa.list_(pa.int32())}
# Only in a corpus some document of which has weights; likewise part of the identity there.
WEIGHT_COLUMN: dict[str, pa.DataType] = {"weight": pa.list_(pa.float32())}
OPTIONAL_COLUMNS: dict[str, pa.DataType] = {**LABELS, **WEIGHT_COLUMN}
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
MUCH_PADDING = 0.1  # a share of the rows above which describe() says what it costs
_BATCH_TOKENS = 1 << 20  # what a reader of one row at most has to map


def rows_table(rows: PackedRows, doc_sources: np.ndarray[Any, Any]) -> pa.Table:
    """Packed rows as a table; ``doc_sources`` is each document's source, ``[D]``."""
    pieces = pa.array(rows.offsets)

    def lists(values: Any) -> pa.Array:
        return pa.ListArray.from_arrays(pieces, pa.array(values))

    columns = {
        "input_ids": list_column(rows.input_ids),
        "num_tokens": pa.array(rows.num_tokens),
        "doc_starts": lists(rows.doc_starts),
        "doc_ids": lists(rows.doc_ids),
        "doc_sources": lists(doc_sources[rows.doc_ids].astype(np.int16)),
        "doc_targets": lists(rows.doc_targets),
        "doc_offsets": lists(rows.doc_offsets),
    }
    table = pa.table(columns, schema=rows_schema())
    for name, values in (("labels", rows.labels), ("weight", rows.weight)):
        table = table if values is None else _append(table, name, values.reshape(-1))
    return table


def rows_schema() -> pa.Schema:
    """Columns that every corpus written now has."""
    return pa.schema([*ROW_COLUMNS.items(), *LATER_COLUMNS.items()])


def with_labels(table: pa.Table) -> pa.Table:
    """The table with a column ``labels``: where it has none every token is a target, and padding is not."""
    if "labels" in table.column_names:
        return table
    ids = table["input_ids"].combine_chunks().flatten().to_numpy()
    return _append(table, "labels", np.where(_padding(table), np.int32(NO_TARGET), ids))


def with_weight(table: pa.Table) -> pa.Table:
    """The table with a column ``weight``: where it has none every token's is 1, and padding's 0."""
    if "weight" in table.column_names:
        return table
    return _append(table, "weight", np.where(_padding(table), np.float32(0), np.float32(1)))


def _padding(table: pa.Table) -> np.ndarray[Any, Any]:
    """bool [rows * length]"""
    length = len(table["input_ids"].combine_chunks().flatten()) // max(1, len(table))
    padding_RL: np.ndarray[Any, Any] = np.arange(length) >= table["num_tokens"].to_numpy()[:, None]
    return padding_RL.reshape(-1)


def _append(table: pa.Table, name: str, flat: np.ndarray[Any, Any]) -> pa.Table:
    """With one more column of OPTIONAL_COLUMNS, from its values laid end to end."""
    length = len(flat) // max(1, len(table))
    grid = pa.array(np.arange(len(table) + 1, dtype=np.int32) * np.int32(length))
    values = pa.ListArray.from_arrays(grid, pa.array(flat, OPTIONAL_COLUMNS[name].value_type))
    return table.append_column(pa.field(name, OPTIONAL_COLUMNS[name]), values)


def with_documents(table: pa.Table, doc_ids: np.ndarray[Any, Any], doc_sources: np.ndarray[Any, Any]) -> pa.Table:
    """The table with its pieces' documents and sources replaced; both ``[P]``, in row order."""
    for name, values in (("doc_ids", doc_ids), ("doc_sources", doc_sources)):
        offsets = table[name].combine_chunks().offsets
        offsets = pa.array(offsets.to_numpy() - offsets[0].as_py(), pa.int32())
        array = pa.ListArray.from_arrays(offsets, pa.array(values, ROW_COLUMNS[name].value_type))
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), array)
    return table


class ContentHash:
    """xxh3-128 over every column's values and list lengths, in row order; how rows lie in batches or shards does not count."""

    def __init__(self, optional: Collection[str] = ()) -> None:
        names = [*ROW_COLUMNS, *(name for name in OPTIONAL_COLUMNS if name in optional)]
        self._digests = {name: (xxhash.xxh3_128(), xxhash.xxh3_128()) for name in names}

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

    def __init__(self, folder: Path, length: int, shard_rows: int, optional: Collection[str] = ()) -> None:
        self.folder, self.length, self.shard_rows, self.optional = folder, length, shard_rows, optional
        self.shards: list[dict[str, Any]] = []
        self.content = ContentHash(optional)
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
        schema = _features(self.optional).arrow_schema
        with atomic_file(self.folder / name) as f, pa.ipc.new_stream(f, schema) as stream:
            stream.write_table(shard.cast(schema), max_chunksize=max(1, _BATCH_TOKENS // self.length))
        self.shards.append({"file": name, "rows": num_rows})


def _features(optional: Collection[str] = (), *, later: bool = True) -> Any:
    from datasets import Features

    more = {
        **(LATER_COLUMNS if later else {}),
        **{name: kind for name, kind in OPTIONAL_COLUMNS.items() if name in optional},
    }
    return Features.from_arrow_schema(pa.schema([*ROW_COLUMNS.items(), *more.items()]))


def _written_features() -> Iterator[Any]:
    """The features that a corpus can have, the usual ones first."""
    yield from (_features(optional) for optional in ((), LABELS, WEIGHT_COLUMN, OPTIONAL_COLUMNS))
    yield _features(later=False)


def write_dataset_files(
    folder: Path, shards: list[dict[str, Any]], content_hash: str, optional: Collection[str] = ()
) -> list[str]:
    """What ``datasets.load_from_disk`` needs beside the shards. Returns the names written."""
    files, fingerprint = [s["file"] for s in shards], content_hash.split(":")[1][:16]
    return write_load_from_disk(folder, _features(optional), files, fingerprint)


def write_load_from_disk(folder: Path, features: Any, files: Sequence[str], fingerprint: str) -> list[str]:
    """What ``datasets.load_from_disk`` needs beside Arrow streams of these ``datasets.Features``. Returns the names written."""
    from datasets import DatasetInfo

    info = asdict(DatasetInfo(features=features))
    write_json(folder / "dataset_info.json", {key: info[key] for key in sorted(info)})
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in files],
        "_fingerprint": fingerprint,
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
    rows: Any  # datasets.Dataset with ROW_COLUMNS

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

    def row_tokens(self) -> np.ndarray:
        """Tokens of each row that are no padding. int32 [rows]"""
        column = self.rows.select_columns(["num_tokens"]).with_format("arrow")[:]["num_tokens"]
        return np.asarray(column.to_numpy())

    def contexts(self, rows: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """Tokens that have one context: each row without its padding or, with isolated documents, each of its pieces.

        ``rows``: of these alone, in their order; None: of all.
        """
        table = self.rows.select_columns(["input_ids", "num_tokens", "doc_starts"])
        for row in (table if rows is None else table.select(rows)).with_format("numpy"):
            ids = np.asarray(row["input_ids"])[: int(row["num_tokens"])]
            yield from np.split(ids, np.asarray(row["doc_starts"])[1:]) if self.isolate_documents else [ids]

    def outcomes(self, rows: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """Of each of :meth:`contexts`, which tokens something can predict: all but the BOS of a document. bool [T]"""
        from .rows import bos_places

        read = ["num_tokens", "doc_starts", *(["doc_offsets"] if self.bos_id is not None else [])]
        table = self.rows.select_columns(read)
        for row in (table if rows is None else table.select(rows)).with_format("numpy"):
            outcome_T = np.ones(int(row["num_tokens"]), bool)
            if self.bos_id is not None:
                outcome_T[bos_places(row)] = False
            yield from np.split(outcome_T, np.asarray(row["doc_starts"])[1:]) if self.isolate_documents else [outcome_T]

    def target_weights(self, rows: Sequence[int]) -> np.ndarray:
        """The column ``weight`` of these rows, NaN where there is no target. float32 [rows, length]"""
        labelled = "labels" in self.rows.column_names
        read = ["weight", "num_tokens", *(["labels"] if labelled else [])]
        made = np.full((len(rows), self.length), np.nan, np.float32)
        for weight_T, row in zip(made, self.rows.select_columns(read).select(rows).with_format("numpy"), strict=True):
            count = int(row["num_tokens"])
            weight_T[:count] = row["weight"][:count]
            if labelled:
                weight_T[np.asarray(row["labels"]) == NO_TARGET] = np.nan
        return made

    def documents_at(self, row: int, position: int | None = None) -> list[str]:
        """Names of the documents in a row, or of the one at a position of it."""
        found = self.rows[row]
        ids = found["doc_ids"]
        if position is not None:
            ids = [ids[int(np.searchsorted(found["doc_starts"], position, side="right")) - 1]]
        return self.documents()["id"].take(ids).to_pylist()  # type: ignore[no-any-return]

    def tokens_of(self, documents: np.ndarray) -> list[np.ndarray]:
        """Tokens of each of these documents, as far as they are in the corpus. Reads the rows that they lie in."""
        found: list[np.ndarray] = []
        pieces, each = list_values(self.rows, "doc_ids", 0, self.num_rows)  # ascending
        rows = np.repeat(np.arange(self.num_rows), each)
        for lo, hi in zip(np.searchsorted(pieces, documents), np.searchsorted(pieces, documents, "right"), strict=True):
            parts = [self._piece(int(row), doc) for row, doc in zip(rows[lo:hi], pieces[lo:hi], strict=True)]
            found.append(np.concatenate(parts) if parts else np.empty(0, np.int32))
        return found

    def _piece(self, index: int, document: int) -> np.ndarray:
        row = self.rows[index]
        i = row["doc_ids"].index(document)
        ends = [*row["doc_starts"][1:], row["num_tokens"]]
        return np.array(row["input_ids"][row["doc_starts"][i] : ends[i]], np.int32)

    def documents(self) -> pa.Table:
        """``documents.parquet``: one row a document, index = doc_id."""
        import pyarrow.parquet as pq

        return pq.read_table(self.folder / "documents.parquet")


def open_corpus(folder: Path | str, verify: Verify | None = "size") -> Corpus:
    """Open a finished corpus. ``size``: every file has the size it was written with; ``full``: the same bytes, read and hashed,
    or remembered by size and times, see ``verify.py``.

    :class:`UserError` naming the folder or file if it is unfinished, of another kind, truncated, or damaged.
    """
    from datasets import Dataset, concatenate_datasets

    folder = Path(folder)
    manifest = read_manifest(folder, KIND, MANIFEST_KEYS)
    check_input(folder, manifest, verify)
    try:
        shards = [Dataset.from_file(str(folder / s["file"])) for s in manifest["shards"]]
    except (OSError, pa.ArrowException, ValueError) as e:
        raise UserError(f"{folder}: its rows cannot be read: {e}") from None
    if not shards:
        raise UserError(f"{folder} has no rows")
    features = shards[0].features
    for entry, shard in zip(manifest["shards"], shards, strict=True):
        # A feature can be one that opens files or addresses when it is read.
        if shard.features != features or (shard is shards[0] and features not in _written_features()):
            raise UserError(f"{folder / entry['file']} does not have the columns of a corpus")
        if len(shard) != entry["rows"]:
            raise UserError(f"{folder / entry['file']} has {len(shard)} rows, {entry['rows']} were written")
    return Corpus(folder, manifest, concatenate_datasets(shards) if len(shards) > 1 else shards[0])


def describe(manifest: dict[str, Any]) -> str:
    """A corpus's figures as a few lines of text: tokens, rows, documents, bytes per token, then the same per source."""
    return "\n".join(_lines(manifest))


def _lines(manifest: dict[str, Any]) -> Iterator[str]:
    stats = manifest["stats"]
    padding = 1 - stats["tokens"] / max(1, stats["rows"] * manifest["length"])
    yield (
        f"{stats['tokens']:,} tokens in {stats['rows']:,} rows of {manifest['length']}, {stats['documents']:,} documents, "
        f"{stats['bytes_per_token']:.2f} bytes per token, vocabulary {manifest['vocab_size']:,}, {padding:.1%} padding"
    )
    if padding > MUCH_PADDING:
        yield (
            f"  NOTE: {padding:.1%} of the rows is padding, and every forward pass pays for it: there is little text for "
            "rows of this length, or little in each unit of work (a larger unit_bytes, or a smaller length)"
        )
    width = max(map(len, stats["by_source"]), default=0)
    for name, found in stats["by_source"].items():
        per_token = found["bytes"] / max(1, found["tokens"])
        yield (
            f"  {name:{width}}  {found['tokens']:>12,} tokens ({found['tokens'] / max(1, stats['tokens']):6.1%})  "
            f"{found['documents']:>9,} documents  {per_token:.2f} bytes per token"
        )
    if stats.get("no_targets"):
        share = stats["no_targets"] / stats["tokens"]
        yield f"  {stats['no_targets']:,} tokens ({share:.1%}) are no targets, by the labels of their rows"
    if stats.get("cut_chats"):
        share = f"{stats['cut_chats']:,} of {stats['chats']:,} ({stats['cut_chats'] / stats['chats']:.1%})"
        yield f"  conversations that a row's end cuts in two: {share}; what follows is read without its beginning"
    if weights := stats.get("weights"):
        shares = [f"{weights[what] / stats['tokens']:.1%} {what}" for what in ("zero", "negative") if weights[what]]
        yield f"  tokens have weights{': ' if shares else ''}{', '.join(shares)}"
    for part in manifest.get("mixture", ()):
        asked = "" if part["share"] is None else f", {part['share']:.2%} asked for"
        yield (
            f"  mixture: {part['source']}: {part['rows']:,} rows ({part['realised']:.2%}{asked}), "
            f"{part['times_read']:.4g} times its {part['available']:,}"
        )
    for transform in stats.get("transforms", ()):
        changed, cut = transform["documents"], transform["cut"]
        yield f"  {transform['name']}: {changed:,} documents changed, {cut:,} of them cut by a row's end"
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
