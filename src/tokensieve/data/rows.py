"""Corpus rows as model inputs: labels, positions, score columns, padding. One place, used by training and scoring.

row            = [ a a a E b b E p p ]      E: EOS, p: padding (num_tokens = 7), pieces start at 0 and 4
labels         = [ a a a E b b E . . ]      . = -100; the model shifts: hidden at t predicts labels[t + 1]
with bos_id:     [ . a a E . b E . . ]      a document's first token is its BOS: no target, in whatever row it begins
isolated:      = [ . a a E . b E . . ]      a piece's first token is no target; positions 0 1 2 3 0 1 2 ...
targets        = labels one to the left, -100 at the end: made once, by collate, for all that is computed of a batch
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ..runs import UserError

IGNORE_INDEX = -100
PAD_ROW = -1  # as a row index: a row that is all padding


# Columns that are read where they are there: those of a corpus, and those of a data set made elsewhere.
OPTIONAL = ("labels", "num_tokens", "isolated", "doc_starts", "doc_sources", "row_id", "attention_mask", "position_ids")
BOS_COLUMNS = ("bos_id", "doc_offsets")  # likewise, where both are there: a document's first token is no target
LOSS_MASKS = {"completion_mask", "assistant_masks", "assistant_mask", "loss_mask", "prompt_mask"}


class Rows(Dataset[dict[str, Tensor]]):
    """Item i: ``input_ids``, ``labels`` [T] and ``row_id`` [], float32 ``scores`` columns, ``position_ids`` if isolated.

    ``dataset`` has at least ``input_ids``;
    optional: ``labels``, ``num_tokens``, ``doc_starts`` with ``isolated``, ``doc_offsets`` with ``bos_id``, ``doc_sources``,
    ``row_id``. Item -1 (PAD_ROW)
    is an ignored row: labels all -100. A NaN score on a target raises UserError naming row and position.

    ``statistics`` are names of ON_REQUEST that items have too, [T]: ``segment``, from a column of that name, ``doc_starts`` or
    positions that restart; ``document_position``, from a column of that name or ``doc_offsets``; ``source_id``, asked for or
    not, from ``doc_sources``. UserError where none of these is there.
    """

    def __init__(self, dataset: Any, scores: Sequence[str] = (), statistics: Collection[str] = ()) -> None:
        if "input_ids" not in dataset.column_names:
            raise UserError(f"the data set has no column 'input_ids', only {', '.join(dataset.column_names)}")
        for name in scores:
            if name not in dataset.column_names:
                raise UserError(
                    f"the objective needs a column {name!r}; the data set has {', '.join(dataset.column_names)}"
                )
        if "labels" not in dataset.column_names and (masks := LOSS_MASKS & set(dataset.column_names)):
            raise UserError(f"column {min(masks)!r} is not read: give the column 'labels', -100 where there is no loss")
        told = (
            {"source_id"} if {"doc_sources", "doc_starts"} <= {*dataset.column_names} else set()
        )  # training counts by it
        self.scores, self.statistics = tuple(scores), tuple(n for n in ON_REQUEST if n in told | {*statistics})
        for name in self.statistics:
            _check_source(name, dataset.column_names)
        bos = BOS_COLUMNS if set(BOS_COLUMNS) <= {*dataset.column_names} else ()
        read = {*OPTIONAL, *bos, *(c for name in self.statistics for c in ON_REQUEST[name][0])} - {"input_ids", *scores}
        columns = ["input_ids", *scores, *sorted(read & set(dataset.column_names))]
        self.dataset = dataset.select_columns(columns).with_format("numpy")

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        return [self._pad_row() if i == PAD_ROW else self._row(self.dataset[int(i)], int(i)) for i in indices]

    def _row(self, row: Mapping[str, Any], index: int) -> dict[str, Tensor]:
        ids_T = np.asarray(row["input_ids"], dtype=np.int64)
        labels_T = np.array(row.get("labels", ids_T), dtype=np.int64)
        labels_T[int(row.get("num_tokens", len(ids_T))) :] = IGNORE_INDEX
        item = {"input_ids": torch.from_numpy(ids_T)}
        if "attention_mask" in row:
            mask_T = np.asarray(row["attention_mask"], dtype=np.int64)
            labels_T[mask_T == 0] = IGNORE_INDEX
            item["attention_mask"] = torch.from_numpy(mask_T)
        if "position_ids" in row:
            item["position_ids"] = torch.from_numpy(np.asarray(row["position_ids"], dtype=np.int64))
        if bool(row.get("isolated", False)):
            starts = np.asarray(row["doc_starts"], dtype=np.int64)
            labels_T[starts] = IGNORE_INDEX
            item["position_ids"] = torch.from_numpy(piece_positions(starts, len(ids_T)))
        if "bos_id" in row:
            labels_T[bos_places(row)] = IGNORE_INDEX
        item["labels"] = torch.from_numpy(labels_T)
        item["row_id"] = torch.tensor(int(row.get("row_id", index)))
        for name in self.statistics:
            item[name] = torch.from_numpy(ON_REQUEST[name][1](row, len(ids_T)).astype(np.int64))
        for name in self.scores:
            item[name] = torch.from_numpy(self._scores(row, name, labels_T, index))
        return item

    def _scores(self, row: Mapping[str, Any], name: str, labels_T: np.ndarray, index: int) -> np.ndarray:
        values_T = np.asarray(row[name], dtype=np.float32)
        if values_T.shape != labels_T.shape:
            raise UserError(f"row {index}: column {name!r} has {values_T.size} entries for {labels_T.size} tokens")
        missing_T = np.isnan(values_T) & (labels_T != IGNORE_INDEX)
        missing_T[0] = False  # the first token of a row is nobody's target
        if missing_T.any():
            raise UserError(f"row {index}: {name} is NaN at position {int(missing_T.argmax())}, which is a target")
        return np.nan_to_num(values_T, nan=0.0)

    def _pad_row(self) -> dict[str, Tensor]:
        row = self._row(self.dataset[0], PAD_ROW)
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
    if "doc_starts" in row:
        starts = np.asarray(row["doc_starts"], np.int64)
        return per_token(np.arange(len(starts)), starts, length)
    restarts_T = np.asarray(row["position_ids"]) == 0
    restarts_T[0] = False
    return np.cumsum(restarts_T)


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
    "segment": (("segment", "doc_starts", "position_ids"), _segment),
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
        return iter(filled[: len(self)].tolist())


def check_targets(dataset: Any, what: str) -> None:
    """Raise UserError if no row has a token to predict. Costs a row, unless there is none: then all of them are read."""
    rows = Rows(dataset)
    if not any(bool((rows[i]["labels"][1:] != IGNORE_INDEX).any()) for i in range(len(rows))):
        raise UserError(f"{what}: every token is ignored, there is nothing to predict")


def collate(items: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Stack rows to [B, T], with their ``targets``; shorter ones are padded on the right: ids 0, labels -100, scores 0.

    Rows of one length get no attention mask: with padding only at the right a causal model does not need one. Nor do rows of
    isolated pieces: their positions say where attention stops, and a mask beside them would turn that off.
    """
    longest = max(len(item["input_ids"]) for item in items)
    fills = {"labels": IGNORE_INDEX}
    batch = {
        name: torch.stack([_right_padded(item[name], longest, fills.get(name, 0)) for item in items])
        for name in items[0]
    }
    if not {"position_ids", "attention_mask"} & set(batch) and any(len(item["input_ids"]) != longest for item in items):
        lengths = torch.tensor([len(item["input_ids"]) for item in items])
        batch["attention_mask"] = (torch.arange(longest) < lengths[:, None]).long()
    batch["targets"] = shift_targets(batch["labels"])
    return batch


def shift_targets(labels: Tensor) -> Tensor:
    """``targets[..., t] = labels[..., t + 1]``, -100 at the end: what the hidden state at t predicts. [B, T] -> [B, T]"""
    ignored = labels.new_full((*labels.shape[:-1], 1), IGNORE_INDEX)
    return torch.cat([labels[..., 1:], ignored], dim=-1)


def next_token(values: Tensor) -> Tensor:
    """``values[..., t + 1]`` at t, as targets are: the last entry has no target and is 0. [B, T] -> [B, T]"""
    return torch.nn.functional.pad(values[..., 1:], (0, 1))


def piece_positions(starts: np.ndarray, length: int) -> np.ndarray:
    """Position of each token within its piece: 0 at every start. int64 [T]"""
    positions_T: np.ndarray = np.arange(length, dtype=np.int64) - per_token(starts, starts, length)
    return positions_T


def per_token(values: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """A value of each piece, repeated for each of its tokens. [pieces] -> [T]"""
    return np.repeat(values, np.diff(np.append(starts, length)))


def solution_mask(starts: np.ndarray, targets: np.ndarray, length: int) -> np.ndarray:
    """Whether each token belongs to its piece's solution: bool [T], all true for plain text (``targets == starts``)."""
    return np.arange(length) >= per_token(np.asarray(targets, np.int64), starts, length)


def _right_padded(values: Tensor, length: int, fill: int) -> Tensor:
    if values.dim() == 0 or len(values) == length:
        return values
    return torch.nn.functional.pad(values, (0, length - len(values)), value=fill)
