"""Score columns beside a corpus: written shard by shard, bound by hashes, joined to the rows without copying.

corpus/rows-00000.arrow   row 0 row 1 row 2 ...      input_ids, doc_starts ...
scores/rows-00000.arrow   row 0 row 1 row 2 ...      ref_nll: float16, as long as input_ids
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..runs import UserError, atomic_file, read_manifest
from .corpus import Corpus, list_column, open_corpus
from .verify import Verify, check_input

KIND = "scores"
MANIFEST_KEYS = (
    *("columns", "dtype", "corpus_hash", "tokenizer_hash", "model_hash", "length", "isolate_documents"),
    *("shards", "flops", "reference_flops"),
)
DTYPES = {"float16": np.float16, "float32": np.float32}
# What a column's entry is: a number of that type, or a list of so many.
EntryType = str | tuple[str, int]


def load_scored(corpus: Path | str, *scores: Path | str, verify: Verify | None = "full") -> Any:
    """The corpus's rows with the score columns beside them: a memory-mapped ``datasets.Dataset``, verified.

    Columns: those of the corpus (docs/formats.md), each score folder's columns, ``isolated`` if the corpus keeps documents
    apart, and ``bos_id`` if each begins with BOS: the first token of a document (``doc_offsets`` 0) is then no target.
    ``verify``: "full" (every file hashed, once a machine, see verify.py), "size", or None. Raises UserError naming what does
    not fit: another corpus, tokenizer, window (row length or isolation), a missing, truncated or changed shard, a column
    given twice.
    """
    return join_scores(open_corpus(corpus, verify=verify), *scores, verify=verify)


def join_scores(corpus: Corpus, *scores: Path | str, verify: Verify | None = "full") -> Any:
    """:func:`load_scored` for a corpus that is open already."""
    from datasets import Dataset, Features, Value, concatenate_datasets

    parts = [corpus.rows]
    for folder in scores:
        columns = open_scores(folder, corpus, verify=verify)
        if twice := set(columns.column_names) & {c for p in parts for c in p.column_names}:
            raise UserError(f"{folder} brings column {min(twice)!r}, which is there already")
        parts.append(columns)
    if corpus.isolate_documents:
        flags = {"isolated": np.ones(corpus.num_rows, dtype=bool)}
        parts.append(Dataset.from_dict(flags, features=Features({"isolated": Value("bool")})))
    if corpus.bos_id is not None:
        ids = {"bos_id": np.full(corpus.num_rows, corpus.bos_id, np.int32)}
        parts.append(Dataset.from_dict(ids, features=Features({"bos_id": Value("int32")})))
    return concatenate_datasets(parts, axis=1) if len(parts) > 1 else parts[0]


def open_scores(folder: Path | str, corpus: Corpus, *, verify: Verify | None = "full") -> Any:
    """The score columns of ``folder`` as a ``datasets.Dataset`` aligned with ``corpus``'s rows; see :func:`load_scored`."""
    import pyarrow as pa
    from datasets import Dataset, concatenate_datasets

    folder = Path(folder)
    manifest = read_manifest(folder, KIND, MANIFEST_KEYS)
    check_binding(folder, manifest, corpus)
    check_input(folder, manifest, verify)
    try:
        shards = [Dataset.from_file(str(folder / s["file"])) for s in manifest["shards"]]
    except (OSError, pa.ArrowException, ValueError) as e:
        raise UserError(f"{folder}: its rows cannot be read: {e}") from None
    features = _features(types_of(manifest))
    for entry, shard in zip(manifest["shards"], shards, strict=True):
        if shard.features != features:
            raise UserError(f"{folder / entry['file']} does not have the columns that its manifest names")
    columns = concatenate_datasets(shards) if len(shards) > 1 else shards[0]
    if len(columns) != corpus.num_rows:
        raise UserError(f"{folder} has {len(columns)} rows, the corpus {corpus.num_rows}")
    return columns


def types_of(manifest: Mapping[str, Any]) -> dict[str, EntryType]:
    """Column -> what its entries are: ``dtype``, and ``types`` for those that are something else."""
    other = {n: tuple(t) if isinstance(t, list) else t for n, t in manifest.get("types", {}).items()}
    return {**dict.fromkeys(manifest["columns"], manifest["dtype"]), **other}


def check_binding(folder: Path, manifest: Mapping[str, Any], corpus: Corpus) -> None:
    """Scores depend on every token before them: the same rows of the same tokens, cut at the same places, or none."""
    wanted = {
        "tokenizer_hash": (corpus.tokenizer_hash, "tokenizer"),
        "length": (corpus.length, "window (row length)"),
        "isolate_documents": (corpus.isolate_documents, "window (isolate_documents)"),
        "corpus_hash": (corpus.content_hash, "corpus"),
    }
    for key, (value, what) in wanted.items():
        if manifest[key] != value:
            raise UserError(
                f"{folder} was computed from another {what} than {corpus.folder}: {key} is {manifest[key]}, here {value}"
            )


def write_score_shard(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    """Write [rows, length] arrays (float16, float32, int8) as an Arrow shard of list columns, atomically; of [rows, length, K]
    each entry is a list of K."""
    write_columns(path, [columns])


def write_columns(path: Path, blocks: Iterable[Mapping[str, np.ndarray]]) -> None:
    """:func:`write_score_shard` of blocks of rows, one after another: no more than a block is held."""
    import pyarrow as pa

    blocks = iter(blocks)
    first = next(blocks)
    schema = _features({name: _type_of(values) for name, values in first.items()}).arrow_schema
    with atomic_file(path) as f, pa.ipc.new_stream(f, schema) as stream:
        for block in chain([first], blocks):
            arrays = [list_column(values) for values in block.values()]
            stream.write_table(pa.Table.from_arrays(arrays, schema=schema), max_chunksize=1024)


def column_block(dataset: Any, name: str, start: int, stop: int) -> np.ndarray:
    """Rows ``start`` to ``stop`` of a column whose lists are all of one length, [rows, length], without Python lists."""
    values: np.ndarray = list_values(dataset, name, start, stop)[0]
    return values.reshape(stop - start, -1)


def list_values(dataset: Any, name: str, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """(values laid end to end, entries of each row) of a list column."""
    column = dataset.with_format("arrow")[start:stop][name].combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False), column.value_lengths().to_numpy()


def _type_of(values: np.ndarray) -> EntryType:
    return str(values.dtype) if values.ndim == 2 else (str(values.dtype), values.shape[2])


def _features(types: Mapping[str, EntryType]) -> Any:
    from datasets import Features, Sequence, Value

    def entry(kind: EntryType) -> Any:
        return Value(kind) if isinstance(kind, str) else Sequence(Value(kind[0]), length=kind[1])

    return Features({name: Sequence(entry(kind)) for name, kind in types.items()})
