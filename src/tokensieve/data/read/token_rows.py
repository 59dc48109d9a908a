"""Rows that come tokenised: which of their tokens there are, which are targets, and columns that would say more than is read.

input_ids       5 6 7 8 9 0 0          attention_mask 0: padding, left out
attention_mask  1 1 1 1 1 0 0          labels: -100 no target, else the token itself
labels          . . 7 8 9 . .          -> tokens 5 6 7 8 9, labels . . 7 8 9

A corpus has one id a token, so a label that is another id than its token's is refused. So is a list that has an entry for each
token, or lengths that add up to the row: it says which tokens count, or where documents end, and nothing would read it. Text,
numbers and ``ignore_columns`` pass.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from .documents import NO_TARGET, BadRow, Document, Item, Skipped

BESIDE_IDS = ("labels", "attention_mask")  # beside input_ids, where they are there
_METADATA = {
    "special_tokens_mask",
    "word_ids",
    "offset_mapping",
    "length",
    "tokens",
}  # of a tokenizer: no loss hangs on them
_LOSS_MASKS = {"completion_mask", "assistant_masks", "assistant_mask", "loss_mask"}  # pass beside labels that agree
_SEGMENTS = {
    "token_type_ids",
    "segment_ids",
    "segment",
    "document_ids",
    "doc_ids",
    "sequence_ids",
}  # all one: one document


def tokens_document(row: Mapping[str, Any], key: str, label: str, where: str, ignore: Collection[str]) -> Item:
    """A row as a document of tokens; a row without a token is empty."""
    ids = _plain(row["input_ids"])
    if (wrong := _not_integers(ids)) is not None:
        return BadRow(where, f"column 'input_ids' must be a list of integers, this is {wrong}")
    given = {name: _plain(row[name]) for name in BESIDE_IDS if name in row and name not in ignore}
    if isinstance(mask := given.get("attention_mask"), list):
        given["attention_mask"] = [int(m) if isinstance(m, bool) else m for m in mask]
    for name, values in given.items():
        if (wrong := _not_integers(values)) is not None:
            return BadRow(where, f"column {name!r} must be a list of integers, this is {wrong}")
        if len(values) != len(ids):
            return BadRow(where, f"column {name!r} has {len(values)} entries for {len(ids)} tokens")
    if (fault := _fault(ids, given) or _unread(row, len(ids), given, ignore)) is not None:
        return BadRow(where, fault)
    labels = given.get("labels")
    if 0 in (kept := given.get("attention_mask", ())):
        labels = [t for t, m in zip(labels, kept, strict=True) if m] if labels is not None else None
        ids = [t for t, m in zip(ids, kept, strict=True) if m]
    if not ids:
        return Skipped("empty")
    return Document(key, label, where, tokens=ids, labels=labels if labels and NO_TARGET in labels else None)


def _plain(values: Any) -> Any:
    return values.tolist() if hasattr(values, "tolist") else values


def _not_integers(values: Any) -> str | None:
    """What a value is that is no list of integers; None if it is one."""
    if not isinstance(values, list):
        return kind(values)
    wrong = next((v for v in values if type(v) is not int), None) if None not in values else "null"
    if wrong is None:
        return None
    return f"a list with {wrong if wrong == 'null' else kind(wrong)} in it"


def _fault(ids: Sequence[int], given: Mapping[str, Sequence[int]]) -> str | None:
    mask, labels = given.get("attention_mask", ()), given.get("labels", ())
    if (odd := next((i for i, m in enumerate(mask) if m not in (0, 1)), None)) is not None:
        return (
            f"column 'attention_mask' holds {mask[odd]} at token {odd}, it must be 0 or 1: if it numbers documents, "
            "give each a row of its own"
        )
    where = next(
        (i for i, (t, token) in enumerate(zip(labels, ids, strict=False)) if t not in (NO_TARGET, token)), None
    )
    if where is None:
        return None
    said = f"column 'labels' holds {labels[where]} at token {where}, which is {ids[where]}: a label is its token or {NO_TARGET}"
    shifted = all(t in (NO_TARGET, after) for t, after in zip(labels, ids[1:], strict=False))
    return f"{said} (these look shifted by one: give them unshifted)" if shifted else said


def _unread(
    row: Mapping[str, Any], length: int, given: Mapping[str, Sequence[int]], ignore: Collection[str]
) -> str | None:
    """What a column says that is not read, with what to do about it."""
    if "doc_starts" in row and "doc_starts" not in ignore:
        return "column 'doc_starts' says where documents start in the row, which is of a corpus: give each a row of its own"
    for name, value in row.items():
        values = _plain(value)
        if name in ("input_ids", *BESIDE_IDS, *ignore) or not isinstance(values, list) or not values:
            continue
        if not all(isinstance(v, (int, float)) for v in values) or _says_nothing(name, values, length, given):
            continue
        if several := _several(name, values, length):
            return f"{several}: give each a row of its own, or list {name!r} in ignore_columns"
        if len(values) == length:
            return (
                f"column {name!r} has an entry for each token and is not read: give 'labels', {NO_TARGET} where there is no "
                f"loss, or list {name!r} in ignore_columns"
            )
    return None


def _says_nothing(name: str, values: Sequence[Any], length: int, given: Mapping[str, Sequence[int]]) -> bool:
    if name in _METADATA:
        return True
    if name == "position_ids" and len(values) == length:
        kept = [p for p, m in zip(values, given.get("attention_mask", [1] * length), strict=True) if m]
        return kept == list(range(len(kept)))
    if name in _LOSS_MASKS and len(values) == length:  # a label where there is no loss would be a contradiction
        return "labels" in given and all(m or t == NO_TARGET for m, t in zip(values, given["labels"], strict=True))
    return name in _SEGMENTS and len(set(values)) == 1


def _several(name: str, values: Sequence[Any], length: int) -> str | None:
    """What says that a row holds several documents: lengths that add up to it, bounds that rise to it, other positions."""
    if name == "position_ids" and len(values) == length:
        return "column 'position_ids' does not count from 0 to the row's end, as in a row of several documents"
    if name in _SEGMENTS and len(values) == length:
        return f"column {name!r} numbers several documents in the row"
    if not all(type(v) is int and v >= 0 for v in values):
        return None
    bounds = sorted({0, *values})
    if len(values) > 1 and bounds == sorted({*values}) and list(values) == sorted(values) and values[-1] == length:
        if len(bounds) > 2:
            return f"column {name!r} rises from 0 to the row's {length} tokens, as bounds of several documents do"
    elif sum(values) == length and sum(v > 0 for v in values) > 1 and len(values) < length:
        return f"column {name!r} adds up to the row's {length} tokens, as lengths of several documents do"
    return None


def kind(value: Any) -> str:
    names = {str: "a string", int: "a number", float: "a number", bool: "a boolean", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
