"""Score columns beside a corpus: written shard by shard, bound by hashes, joined to the rows without copying.

corpus/rows-00000.arrow   row 0 row 1 row 2 ...      input_ids, doc_starts ...
scores/rows-00000.arrow   row 0 row 1 row 2 ...      ref_nll: float16, as long as input_ids
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..runs.errors import UserError
from ..runs.manifest import read_manifest
from .corpus import Corpus, open_corpus
from .list_columns import EntryType, list_features, write_columns
from .verify import Verify, check_input

KIND = "scores"
MANIFEST_KEYS = (
    *("columns", "dtype", "corpus_hash", "tokenizer_hash", "model_hash", "length", "isolate_documents"),
    *("shards", "flops", "reference_flops"),
)
SCORE_DTYPES = {"float16": np.float16, "float32": np.float32}


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
    features = list_features(types_of(manifest))
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
    """Write the [rows, length] columns of a shard of scores, atomically."""
    write_columns(path, [columns])
