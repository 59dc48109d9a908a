"""Corpus rows as model inputs: labels, positions, score columns, padding. One place, used by training and scoring.

row            = [ a a a E b b E p p ]      E: EOS, p: padding (num_tokens = 7), pieces start at 0 and 4
labels         = [ a a a E b b E . . ]      . = -100; the model shifts: hidden at t predicts labels[t + 1]
with bos_id:     [ . a a E . b E . . ]      a document's first token is its BOS: no target, in whatever row it begins
isolated:      = [ . a a E . b E . . ]      document masking: positions 0 1 2 3 0 1 2 ...; a piece's first token is no target
targets        = labels one to the left, -100 at the end: made once, by collate, for all that is computed of a batch
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ..core import IGNORE_INDEX
from ..runs.errors import UserError
from .columns import (
    BOS_COLUMNS,
    CORPUS,
    LOSS_MASKS,
    OPTIONAL,
    check_columns,
    check_shift,
    check_types,
    has_transform,
    numbered_masks,
    packing_columns,
    readable,
    value_type,
    visible_columns,
)
from .images import PER_IMAGE, ImageInputs, RowImages
from .list_columns import is_plain, row_arrays
from .pieces import PACKING, Pieces, cut_off_padding, doc_starts, per_token, piece_positions, read_pieces
from .row_checks import check_loss_mask, labels, mask, scores, second_target, token_ids, whole_number

PAD_ROW = -1  # as a row index: a row that is all padding


class Rows(Dataset[dict[str, Tensor]]):
    """Item i: ``input_ids``, ``labels`` [T] and ``row_id`` [], float32 ``scores`` columns, ``position_ids`` if packed apart.

    ``dataset``, a ``datasets.Dataset``, has at least ``input_ids``; a transform of its own is called. Which other columns are
    read, and how: docs/formats.md, "Data sets of your own". A piece's first token is no target, nor is BOS at a document's
    beginning, nor one behind padding. Item -1 (PAD_ROW) is an ignored row: labels all -100.

    UserError for columns that are needed and not there, or that speak of single tokens and are not read, unless they are among
    ``ignore_columns``; when a row is read, for values that cannot be meant, naming row and column: a label that is no id (of
    ``vocab_size``, if given) nor -100, lists of unequal length, null, a score on a target that is not finite.

    ``packs``: whether rows may hold pieces kept apart; of numbered masks, by the rows looked at.

    ``second``, names of the columns of second targets: items have their ids, int64 [T, K], and log p, float32, by these names.

    ``statistics`` are names of ON_REQUEST that items have too, [T]: ``segment``, from a column of that name, ``doc_starts`` or
    what else says where pieces begin; ``document_position``, from a column of that name or ``doc_offsets``; ``source_id``,
    asked for or not, from ``doc_sources``. UserError where none of these is there.

    ``images``: what the model takes of images. Items then have its columns as well (:mod:`.images`), and placeholders are no
    targets.
    """

    def __init__(
        self,
        dataset: Any,
        scores: Sequence[str] = (),
        statistics: Collection[str] = (),
        *,
        ignore_columns: Collection[str] = (),
        vocab_size: int | None = None,
        second: tuple[str, str] | None = None,
        images: ImageInputs | None = None,
    ) -> None:
        shown = visible_columns(dataset)
        names = [n for n in shown if n not in ignore_columns]
        if "input_ids" not in names:
            raise UserError(f"the data set has no column 'input_ids', only {', '.join(shown)}")
        for name in (*scores, *(second or ())):
            if name not in names:
                raise UserError(f"the objective needs a column {name!r}; the data set has {', '.join(shown)}")
        told = {"source_id"} if {"doc_sources", "doc_starts"} <= {*names} else set()  # training counts by it
        self.second = second
        self.scores, self.statistics = tuple(scores), tuple(n for n in ON_REQUEST if n in told | {*statistics})
        packing = packing_columns(dataset, names)
        for name in self.statistics:
            _check_source(name, [n for n in names if n not in PACKING or n in packing])
        asked = {c for name in self.statistics for c in ON_REQUEST[name][0] if c not in PACKING}
        bos = {*BOS_COLUMNS} if {*BOS_COLUMNS, "doc_starts"} <= {*names} else set()
        read = (readable(dataset, names) | {*packing} | (asked & {*names}) | bos) - {"input_ids", *scores}
        packs = {*packing, "position_ids", "isolated"} & read
        self.packs = bool(packs) or numbered_masks(dataset, read)
        self.images = None if images is None else RowImages(images, names, packs=self.packs)
        read |= {*(self.images.read if self.images else ())}
        check_columns(dataset, names, {*read, *scores, *(second or ())}, ignore_columns)
        check_types(dataset, read)
        if "labels" in read:
            check_shift(dataset)
        self.loss_masks = sorted((LOSS_MASKS - {"prompt_mask"}) & {*names}) if "labels" in read else []
        self.vocab_size, self.whole_rows = vocab_size, {*CORPUS} <= {*names}
        self.read = {"input_ids", *scores, *(second or ()), *read, *self.loss_masks}
        self.transformed, self.half = has_transform(dataset), set[str]()
        self.num_rows, self._plain = len(dataset), False
        self.unread = ({*OPTIONAL} | LOSS_MASKS) - {
            *ignore_columns,
            *shown,
        }  # if an item has one all the same, it is refused
        if self.transformed:
            self.dataset = dataset
        else:
            self.half = {n for n in scores if value_type(dataset.features[n]) == "float16"}
            self.arrow: Any = dataset.select_columns(sorted(self.read)).with_format("arrow")
            self._plain = all(is_plain(field.type) for field in self.arrow.features.arrow_schema)

    @cached_property
    def dataset(self) -> Any:
        """What rows are read of one by one."""
        return self.arrow.with_format("numpy")

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        real = [int(i) for i in indices if i != PAD_ROW]
        found = zip(self._read(real), real, strict=True)
        return [self._pad_row() if i == PAD_ROW else self._row(*next(found)) for i in indices]

    def _read(self, indices: list[int]) -> Iterable[Mapping[str, Any]]:
        """Rows as the data set has them; of plain columns read together."""
        if self._plain and indices:
            span = range(indices[0], indices[0] + len(indices))
            if (found := row_arrays(self.arrow[span if indices == [*span] else indices])) is not None:
                return found
        return (self.dataset[i] for i in indices)

    def _row(self, row: Mapping[str, Any], index: int) -> dict[str, Tensor]:
        if self.transformed:  # every item says anew which columns it has
            if missing := self.read - row.keys():
                raise UserError(f"row {index}: the data set's transform gave no {min(missing)!r}, which row 0 has")
            if new := row.keys() & self.unread:
                raise UserError(f"row {index}: the data set's transform gave {min(new)!r}, which row 0 has not")
        row = {name: row[name] for name in self.read}
        ids_T = token_ids(row["input_ids"], index, self.vocab_size)
        labels_T = ids_T.copy()
        if "labels" in row:
            labels_T = labels(row["labels"], len(ids_T), index, self.vocab_size)
        if self.images is not None:
            labels_T[self.images.placeholders(ids_T)] = IGNORE_INDEX
        if "doc_starts" in row:
            row["doc_starts"] = doc_starts(row["doc_starts"], len(ids_T), index)
        if "num_tokens" in row:
            labels_T[whole_number(row["num_tokens"], "num_tokens", index) :] = IGNORE_INDEX
        mask_T, pieces = self._layout(row, labels_T, index)
        if "bos_id" in row:
            labels_T[bos_places(row)] = IGNORE_INDEX
        item: dict[str, np.ndarray] = {"input_ids": ids_T, "labels": labels_T}
        if pieces is not None:
            item["position_ids"] = pieces.positions_T
            row.setdefault("doc_starts", pieces.starts)
        if mask_T is not None and (pieces is None or not pieces.packed):
            item["attention_mask"] = mask_T
        for name in self.loss_masks:
            check_loss_mask(row[name], name, labels_T, index)
        item["row_id"] = np.array(whole_number(row["row_id"], "row_id", index) if "row_id" in row else index)
        for name in self.statistics:
            item[name] = ON_REQUEST[name][1](row, len(ids_T)).astype(np.int64)
        for name in self.scores:
            item[name] = scores(row[name], name, labels_T, index, half=name in self.half)
        if self.second is not None:
            ids, log_probs = self.second
            item |= second_target(row[ids], row[log_probs], self.second, labels_T, index, self.vocab_size)
        tensors = {name: torch.from_numpy(values) for name, values in item.items()}
        return tensors if self.images is None else {**tensors, **self.images.of_row(row, ids_T, index)}

    def _layout(
        self, row: Mapping[str, Any], labels_T: np.ndarray, index: int
    ) -> tuple[np.ndarray | None, Pieces | None]:
        """(attention mask, pieces) of a row, as far as its columns tell of them; what follows from them for its labels."""
        mask_T = mask(row["attention_mask"], len(labels_T), index) if "attention_mask" in row else None
        if mask_T is not None and not mask_T.all():
            labels_T[mask_T == 0] = IGNORE_INDEX
            labels_T[1:][mask_T[:-1] == 0] = IGNORE_INDEX  # predicted from padding
        pieces = read_pieces(row, len(labels_T), mask_T, index)
        if pieces is not None:
            if (labels_T[pieces.covered :] != IGNORE_INDEX).any():
                raise UserError(
                    f"row {index}: its pieces end at token {pieces.covered} of {len(labels_T)}, and there are labels behind "
                    "it: set labels to -100, or attention_mask to 0, where there is padding"
                )
            labels_T[pieces.starts] = IGNORE_INDEX
        if mask_T is not None and not mask_T.any():
            mask_T = np.ones_like(mask_T)  # attention over nothing is NaN in some kernels
        return mask_T, pieces

    def _pad_row(self) -> dict[str, Tensor]:
        row = self._row(next(iter(self._read([0]))), 0)
        row["labels"] = torch.full_like(row["labels"], IGNORE_INDEX)
        row["row_id"] = torch.tensor(PAD_ROW)
        return row


def bos_places(row: Mapping[str, Any]) -> np.ndarray:
    """Where in a row a document's BOS stands: its first token, wherever packing put it. int64 [documents that begin here]

    Not where that id stands: EOS may have it too, and is a target.
    """
    places: np.ndarray = np.asarray(row["doc_starts"], np.int64)[np.asarray(row["doc_offsets"]) == 0]
    return places


def _segment(row: Mapping[str, Any], length: int) -> np.ndarray:
    if "segment" in row:
        return np.asarray(row["segment"])
    starts = np.asarray(row["doc_starts"], np.int64)  # of a packed row: put there from what tells them
    return per_token(np.arange(len(starts)), starts, length)


def _source_id(row: Mapping[str, Any], length: int) -> np.ndarray:
    return per_token(np.asarray(row["doc_sources"]), np.asarray(row["doc_starts"], np.int64), length)


def _document_position(row: Mapping[str, Any], length: int) -> np.ndarray:
    if "document_position" in row:
        return np.asarray(row["document_position"])
    starts = np.asarray(row["doc_starts"], np.int64)
    offsets_T = per_token(np.asarray(row["doc_offsets"], np.int64), starts, length)
    positions_T: np.ndarray = piece_positions(starts, length) + offsets_T
    return positions_T


# Statistics that are made of a row only where an objective needs them: (columns that one may come from, how).
ON_REQUEST: dict[str, tuple[tuple[str, ...], Callable[[Mapping[str, Any], int], np.ndarray]]] = {
    "segment": (("segment", "doc_starts", "position_ids", *PACKING), _segment),
    "document_position": (("document_position", "doc_offsets"), _document_position),
    "source_id": (("doc_sources",), _source_id),
}


def _check_source(name: str, columns: Sequence[str]) -> None:
    """Refuse a statistic that none of the data set's columns tells."""
    there = set(ON_REQUEST[name][0]) & set(columns)
    if not there or (there <= {"doc_offsets", "doc_sources"} and "doc_starts" not in columns):
        raise UserError(
            f"the objective needs {name!r}, which this data set does not tell: it has none of the columns "
            f"{', '.join(ON_REQUEST[name][0])}"
        )


class EpochSampler(Sampler[int]):
    """Row indices of one epoch: a permutation keyed by (seed, epoch), brought to whole global batches.

    The last incomplete batch is filled with PAD_ROW (ignored rows) or, with ``drop_last``, left out; never filled by
    repeating samples, which would train on some rows twice. Independent of the number of ranks.
    """

    def __init__(
        self, num_rows: int, seed: int, *, multiple: int, drop_last: bool = False, shuffle: bool = True
    ) -> None:
        self.num_rows, self.seed, self.multiple = num_rows, seed, multiple
        self.drop_last, self.shuffle, self.epoch = drop_last, shuffle, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = int(epoch)

    def __len__(self) -> int:
        whole = self.num_rows // self.multiple * self.multiple
        return whole if self.drop_last or whole == self.num_rows else whole + self.multiple

    def __iter__(self) -> Iterator[int]:
        order = np.arange(self.num_rows)
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_rows)
        filled = np.concatenate([order, np.full(self.multiple, PAD_ROW)])
        return map(int, filled[: len(self)])  # a list of ints would take five times its 8 bytes a row


def check_targets(dataset: Any, what: str) -> None:
    """Raise UserError if no row has a token to predict. Costs a row, unless there is none: then all of them are read."""
    check_rows(Rows(dataset), what)


def check_rows(rows: Rows, what: str) -> None:
    """:func:`check_targets` of rows that are there already."""
    if not any(bool((rows[i]["labels"][1:] != IGNORE_INDEX).any()) for i in range(len(rows))):
        raise UserError(f"{what}: every token is ignored, there is nothing to predict")


def collate(items: Sequence[Mapping[str, Tensor]]) -> dict[str, Any]:
    """Stack rows to [B, T], with their ``targets``; shorter ones are padded on the right: ids 0, labels -100, scores 0.

    Rows of one length get no attention mask: with padding only at the right a causal model does not need one. Nor do rows of
    isolated pieces: their positions say where attention stops, and a mask beside them would turn that off; rows with a mask
    get positions beside them. T is at least 1: rows may be empty. Images are a tuple of a tensor a row.
    """
    if any("position_ids" in item and "attention_mask" not in item for item in items):
        items = [_by_positions(item) for item in items]
    lengths = torch.tensor([len(item["input_ids"]) for item in items])
    longest = max(1, int(lengths.max()))
    fills = {"labels": IGNORE_INDEX}
    batch: dict[str, Any] = {
        name: torch.stack([_right_padded(item[name], longest, fills.get(name, 0)) for item in items])
        for name in items[0]
        if name not in PER_IMAGE
    }
    batch |= {name: tuple(item[name] for item in items) for name in PER_IMAGE if name in items[0]}
    if not {"position_ids", "attention_mask"} & set(batch) and bool((lengths != longest).any()):
        batch["attention_mask"] = (torch.arange(longest) < lengths[:, None]).long()
    if (
        "attention_mask" in batch
    ):  # an empty row attends to its first padding: over nothing, attention is NaN in some kernels
        batch["attention_mask"][lengths == 0, 0] = 1
    batch["targets"] = shift_targets(batch["labels"])
    return batch


def _by_positions(item: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A row among packed ones: what its attention mask says, said by its positions."""
    made = {name: values for name, values in item.items() if name != "attention_mask"}
    length = len(item["input_ids"])
    positions_T = item["position_ids"] if "position_ids" in item else torch.arange(length)
    if "attention_mask" in item:
        real_T = item["attention_mask"].numpy() != 0
        positions_T = torch.from_numpy(cut_off_padding(positions_T.numpy(), real_T, int(item["row_id"])))
    return {**made, "position_ids": positions_T}


def shift_targets(labels: Tensor) -> Tensor:
    """``targets[..., t] = labels[..., t + 1]``, -100 at the end: what the hidden state at t predicts. [B, T] -> [B, T]"""
    ignored = labels.new_full((*labels.shape[:-1], 1), IGNORE_INDEX)
    return torch.cat([labels[..., 1:], ignored], dim=-1)


def is_target(targets: Tensor) -> np.ndarray:
    """Whether each of ``input_ids`` is a target, of ``targets``, which stand one place to the left. bool [B, T]"""
    found: np.ndarray = torch.nn.functional.pad(targets[:, :-1] != IGNORE_INDEX, (1, 0)).numpy()
    return found


def next_token(values: Tensor) -> Tensor:
    """``values[..., t + 1]`` at t, as targets are: the last entry has no target and is 0. [B, T] -> [B, T]"""
    return torch.nn.functional.pad(values[..., 1:], (0, 1))


def next_entries(values: Tensor) -> Tensor:
    """:func:`next_token` of several values a token. [B, T, K] -> [B, T, K]"""
    return torch.nn.functional.pad(values[:, 1:], (0, 0, 0, 1))


def _right_padded(values: Tensor, length: int, fill: int) -> Tensor:
    if values.dim() == 0 or len(values) == length:
        return values
    return torch.nn.functional.pad(values, (*[0] * (2 * values.dim() - 1), length - len(values)), value=fill)
