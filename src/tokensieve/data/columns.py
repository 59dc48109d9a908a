"""Which columns of a data set are read, and which may stand there unread.

Strings, single numbers, nested lists and columns known to say nothing of the loss pass. A list of numbers for each token, or
one that tells how a row is divided, which nothing reads, is refused by name: what it says about the loss would be lost.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from ..core import IGNORE_INDEX
from ..core.stats import STATISTICS
from ..runs.errors import UserError
from .list_columns import is_plain, row_arrays
from .pieces import PACKING
from .row_checks import as_array

# Columns of a corpus that `prepare` wrote. With the first two a data set is one: its rows have one length, and it says itself
# where documents begin.
CORPUS = ("num_tokens", "doc_starts")
OF_CORPUS = (*CORPUS, "isolated", "doc_sources", "doc_ids", "doc_targets", "doc_offsets", "bos_id")
BOS_COLUMNS = ("bos_id", "doc_offsets")  # where both are there, a document's first token is no target
# Read where they are there: those of a corpus, and those of a data set made elsewhere.
READ_COLUMNS = (
    "labels",
    "attention_mask",
    "position_ids",
    "row_id",
    "num_tokens",
    "isolated",
    "doc_starts",
    "doc_sources",
)
SCALARS = ("row_id", "num_tokens")  # a whole number a row; of another type they are somebody else's, and metadata
OPTIONAL = (*READ_COLUMNS, *PACKING)
# 1 where there is a loss. None makes labels: which of a row's masks count together differs from one trainer to the next.
LOSS_MASKS = {
    *("completion_mask", "assistant_masks", "assistant_mask", "response_mask", "label_mask", "loss_mask"),
    "prompt_mask",
}
# What tokenizers write beside ids. It says nothing of the loss.
METADATA = {"special_tokens_mask", "word_ids", "offset_mapping", "tokens"}
ENOUGH_LABELS = 4  # labels by which one may tell whether they are shifted
SAMPLED_ROWS = 16  # rows, spread over the data set, that say what an unknown column holds


def visible_columns(dataset: Any) -> tuple[str, ...]:
    """The columns that an item of a ``datasets.Dataset`` has: what its format, or its transform, leaves of them."""
    if has_transform(dataset):
        return tuple(dataset[0]) if len(dataset) else tuple(dataset.column_names)
    shown = dataset.format
    return tuple(dataset.column_names if shown["output_all_columns"] or not shown["columns"] else shown["columns"])


def has_transform(dataset: Any) -> bool:
    """Whether items are made on the fly, by ``set_transform`` or ``with_transform``."""
    return bool(dataset.format["type"] == "custom")


def check_columns(dataset: Any, names: Sequence[str], read: Collection[str], ignored: Collection[str]) -> None:
    """Raise UserError for a column that says something of each token, or of how a row is divided, and is not read.

    ``read``: columns that are. Looks at SAMPLED_ROWS rows, and only at lists of numbers that nobody knows.
    """
    if "labels" not in read and (masks := (LOSS_MASKS & {*names}) - {*ignored}):
        raise UserError(
            f"column {min(masks)!r} is not read: give the column 'labels', -100 where there is no loss, or list it in "
            "ignore_columns"
        )
    corpus = "doc_starts" in names
    known = {
        "input_ids",
        "weight",
        *read,
        *ignored,
        *METADATA,
        *LOSS_MASKS,
        *STATISTICS,
        *(OF_CORPUS if corpus else ()),
    }
    unknown = [
        name
        for name in names
        if name not in known and not name.startswith("ref_") and _may_count(dataset, name, corpus=corpus)
    ]
    if not unknown or not len(dataset):
        return
    beside = [n for n in ("attention_mask", "labels") if n in read]  # they say where a row's padding begins
    rows = _looked_at(dataset, [*unknown, *beside])
    for name in unknown:
        if says := _says(name, rows):
            raise UserError(
                f"column {name!r} {says}, and nothing reads it: if it says which tokens count, say that by labels (-100 where "
                f"there is no loss) or position_ids; if not, list it in ignore_columns"
            )


def check_types(dataset: Any, names: Collection[str]) -> None:
    """Raise UserError for a column that must hold lists of whole numbers and holds something else, by its type alone."""
    if has_transform(dataset) or not len(dataset):
        return
    features = dataset.features  # a copy, whenever it is asked for
    for name in ("input_ids", *names):
        dtype = value_type(features[name])
        if name in ("input_ids", "labels", "attention_mask", "position_ids", *PACKING) and dtype != "null":
            whole = dtype is not None and dtype.startswith(("int", "uint"))
            if not whole and not (name == "attention_mask" and dtype == "bool"):
                found = "no list of numbers" if dtype is None else dtype
                raise UserError(f"row 0: column {name!r} holds {found}, a list of whole numbers is needed")


def packing_columns(dataset: Any, names: Collection[str]) -> tuple[str, ...]:
    """The columns of :data:`PACKING` that are there and are lists. A corpus says by itself where its documents begin."""
    there = [name for name in PACKING if name in names]
    if not there or "doc_starts" in names:
        return ()
    rows = _looked_at(dataset, there) if len(dataset) else []
    # One number a row, as the id of its document, or some of no fixed count, are metadata.
    lists = [n for n in there if any(as_array(row[n]).ndim == 1 and _divides(n, row) for row in rows)]
    if wrong := [n for n in there if n not in lists and any(as_array(row[n]).ndim > 1 for row in rows)]:
        raise UserError(f"row 0: column {wrong[0]!r} is not a list of whole numbers")
    return tuple(lists)


def numbered_masks(dataset: Any, names: Collection[str]) -> bool:
    """Whether an ``attention_mask`` of some rows looked at numbers their pieces."""
    if "attention_mask" not in names or not len(dataset):
        return False
    masks = [as_array(row["attention_mask"]) for row in _looked_at(dataset, ["attention_mask"])]
    return any(m.dtype.kind in "iu" and m.size and m.max() > 1 for m in masks)


def _divides(name: str, row: Mapping[str, Any]) -> bool:
    """Whether a packing column speaks of this row: ids of its documents without their places do not."""
    return name not in ("doc_ids", "document_ids", "sequence_ids", "segment_ids") or len(row[name]) == len(
        row["input_ids"]
    )


def readable(dataset: Any, names: Collection[str]) -> set[str]:
    """Those of READ_COLUMNS that are there and can be meant: SCALARS are, where they hold whole numbers."""
    there = {name for name in READ_COLUMNS if name in names}
    if has_transform(dataset):
        first = dataset[0] if len(dataset) else {}
        return {n for n in there if n not in SCALARS or isinstance(first.get(n), (int, np.integer))}
    features = dataset.features
    dtypes = {n: str(getattr(features[n], "dtype", "")) for n in SCALARS if n in there}
    return {n for n in there if dtypes.get(n, "int").startswith(("int", "uint"))}


def value_type(feature: Any) -> str | None:
    """The type of the values of a list column, None for everything else."""
    inner: Any = feature[0] if isinstance(feature, list) and len(feature) == 1 else getattr(feature, "feature", None)
    return str(inner.dtype) if type(inner).__name__ == "Value" else None


def _may_count(dataset: Any, name: str, *, corpus: bool) -> bool:
    """Whether a column's type is a list of numbers; with a transform, which has no types, its values are looked at."""
    if has_transform(dataset):
        return True
    dtype = value_type(dataset.features[name])
    if corpus and dtype in ("float16", "float32"):
        return False  # a score column of a name of its own: beside a corpus, another objective's
    return dtype is not None and dtype.startswith(("int", "uint", "float", "bool"))


def _looked_at(dataset: Any, names: Sequence[str]) -> list[Mapping[str, Any]]:
    """Some rows: ``names`` and ``input_ids`` of them."""
    columns = ["input_ids", *names]
    made_on_the_fly = has_transform(dataset)
    count = min(len(dataset), 4 if made_on_the_fly else SAMPLED_ROWS)
    chosen = np.unique(np.linspace(0, len(dataset) - 1, count).astype(int)).tolist()
    if made_on_the_fly:
        return [row for row in map(dataset.__getitem__, chosen) if {*columns} <= {*row}]
    if chosen:
        wide = not all(is_plain(f.type) for f in dataset.features.arrow_schema if f.name not in columns)
        shown = dataset.select_columns(columns) if wide else dataset  # images beside them need not be read
        table = shown.with_format("arrow")[chosen].select(columns)
        plain = all(is_plain(field.type) for field in table.schema)
        if plain and (together := row_arrays(table)) is not None:
            return list(together)
    shown = dataset.select_columns(columns).with_format("numpy")
    return [shown[i] for i in chosen]


def _says(name: str, rows: Sequence[Mapping[str, Any]]) -> str | None:
    """What the column seems to say, by most rows where it has values; None if it is no list of numbers of such a kind."""
    pairs = []
    for row in rows:
        values = as_array(row[name])
        if values.ndim == 1 and values.size and values.dtype.kind in "iufb":
            pairs.append((values, _lengths(row)))
    if not pairs:
        return None
    if _most([len(values) == max(lengths) for values, lengths in pairs]):
        zero = name.endswith("token_type_ids") and not any(values.any() for values, _ in pairs)
        return None if zero else "has an entry for each token"
    whole = all(values.dtype.kind in "iu" for values, _ in pairs)
    if whole and any(len(values) > 1 for values, _ in pairs):
        if _most([int(values.sum()) in lengths for values, lengths in pairs]):
            return "sums to the row's length"
        if _most([values[0] == 0 and int(values[-1]) in lengths for values, lengths in pairs]):
            return "rises to the row's length"
    return None


def _most(there: Sequence[Any]) -> bool:
    return 2 * sum(map(bool, there)) > len(there)


def _lengths(row: Mapping[str, Any]) -> set[int]:
    """What a row's length may be taken for: with its padding, and without."""
    lengths = {len(row["input_ids"])}
    for name, padding in (("attention_mask", 0), ("labels", IGNORE_INDEX)):
        values = as_array(row[name]) if name in row else np.empty(0)
        if values.ndim == 1 and (there := np.flatnonzero(values != padding)).size:
            lengths.add(int(there[-1]) + 1)
    return lengths


def check_shift(dataset: Any) -> None:
    """Raise UserError for labels that stand one place to the left: some trainers shift them beforehand, here the model does.

    By most of SAMPLED_ROWS rows' labels: with such labels a model learns the token after the next one, at a plausible loss.
    """
    own = following = count = 0
    for row in _looked_at(dataset, ["labels"]) if len(dataset) else []:
        ids, labels = as_array(row["input_ids"]), as_array(row["labels"])
        if ids.ndim == labels.ndim == 1 and len(ids) == len(labels):
            there = labels[:-1] != IGNORE_INDEX
            own += int((labels[:-1] == ids[:-1])[there].sum())
            following += int((labels[:-1] == ids[1:])[there].sum())
            count += int(there.sum())
    if count >= ENOUGH_LABELS and following > 0.9 * count and own < 0.5 * count:
        raise UserError(
            "column 'labels' has for each token the one that follows it: here a label stands at its own token, and the model "
            "shifts; shift them back, or leave the column out where every token counts"
        )
