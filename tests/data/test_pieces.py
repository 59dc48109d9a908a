"""Packed rows of other tools: every way of saying where a piece begins gives the positions and targets of the pieces alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from tokensieve.data.rows import Rows, collate
from tokensieve.runs.errors import UserError

X = -100
IDS = [10, 11, 12, 13, 14, 15]

# All of: three tokens, then three.
SAME: dict[str, dict[str, list[int]]] = {
    "positions": {"position_ids": [0, 1, 2, 0, 1, 2]},
    "positions-and-ones": {"position_ids": [0, 1, 2, 0, 1, 2], "attention_mask": [1] * 6},
    "numbered-mask": {"attention_mask": [1, 1, 1, 2, 2, 2]},
    "numbered-mask-and-positions": {"attention_mask": [1, 1, 1, 2, 2, 2], "position_ids": [0, 1, 2, 0, 1, 2]},
    "numbered-mask-and-plain-positions": {"attention_mask": [1, 1, 1, 2, 2, 2], "position_ids": [0, 1, 2, 3, 4, 5]},
    "lengths": {"seq_lengths": [3, 3]},
    "lengths-with-none": {"seq_lens": [3, 0, 3]},
    "cumulative": {"cu_seqlens": [0, 3, 6]},
    "cumulative-filled-up": {"cu_seq_lens_q": [0, 3, 6, 6]},
    "segments": {"segment_ids": [1, 1, 1, 2, 2, 2]},
    "documents": {"document_ids": [9, 9, 9, 4, 4, 4]},
    "from-zero": {"seq_idx": [0, 0, 0, 1, 1, 1]},
    "labels-too": {"seq_lengths": [3, 3], "labels": IDS},
    "two-that-agree": {"seq_lengths": [3, 3], "sequence_id": [0, 0, 0, 1, 1, 1], "attention_mask": [1] * 6},
}


def item(ids: list[int] = IDS, **columns: Any) -> dict[str, torch.Tensor]:
    return Rows(Dataset.from_dict({"input_ids": [ids], **{k: [v] for k, v in columns.items()}}))[0]


@pytest.mark.parametrize("name", SAME)
def test_pieces_are_apart(name: str) -> None:
    """Dropped without a word, or undone by a mask of ones beside it: documents saw each other, and the first token of each was
    a target, predicted from another one's end."""
    row = item(**SAME[name])
    assert row["position_ids"].tolist() == [0, 1, 2, 0, 1, 2]
    assert row["labels"].tolist() == [X, 11, 12, X, 14, 15]
    assert "attention_mask" not in row


@pytest.mark.parametrize(
    ("columns", "positions", "labels"),
    [
        (
            {"position_ids": [5, 6, 7, 0, 1, 2]},
            [5, 6, 7, 0, 1, 2],
            [X, 11, 12, X, 14, 15],
        ),  # in the middle of a document
        ({"position_ids": [0, 1, 2, 7, 8, 9]}, [0, 1, 2, 7, 8, 9], [X, 11, 12, X, 14, 15]),
        (
            {"position_ids": [0, 1, 0, 1, 9, 9], "attention_mask": [1, 1, 1, 1, 0, 0]},
            [0, 1, 0, 1, 9, 9],
            [X, 11, X, 13, X, X],
        ),
        (
            {"position_ids": [0, 1, 2, 3, 0, 1], "attention_mask": [0, 0, 1, 1, 1, 1]},
            [2, 2, 2, 3, 0, 1],
            [X, X, X, 13, X, 15],
        ),
        ({"attention_mask": [1, 1, 2, 2, 0, 0]}, [0, 1, 0, 1, 0, 1], [X, 11, X, 13, X, X]),
        ({"attention_mask": [0, 1, 1, 0, 2, 2]}, [0, 0, 1, 0, 0, 1], [X, X, 12, X, X, 15]),
        ({"seq_lengths": [2, 2], "attention_mask": [1, 1, 1, 1, 0, 0]}, [0, 1, 0, 1, 0, 1], [X, 11, X, 13, X, X]),
        ({"segment_ids": [1, 1, 2, 2, 0, 0], "labels": [*IDS[:4], X, X]}, [0, 1, 0, 1, 0, 1], [X, 11, X, 13, X, X]),
    ],
)
def test_padding_beside_pieces(columns: dict[str, list[int]], positions: list[int], labels: list[int]) -> None:
    row = item(**columns)
    assert row["position_ids"].tolist() == positions
    assert row["labels"].tolist() == labels
    assert "attention_mask" not in row


def test_a_mask_beside_positions_that_count_on_is_kept() -> None:
    row = item(
        position_ids=[1, 1, 0, 1, 2, 3], attention_mask=[0, 0, 1, 1, 1, 1]
    )  # padded on the left, as tokenizers do
    assert row["attention_mask"].tolist() == [0, 0, 1, 1, 1, 1]
    assert row["labels"].tolist() == [X, X, X, 13, 14, 15], "the first token behind padding has nothing before it"


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"seq_lengths": [3, 4]}, "'seq_lengths' sums to 7, the row has 6 tokens"),
        ({"cu_seqlens": [0, 3, 7]}, "'cu_seqlens' ends at 7, the row has 6 tokens"),
        ({"cu_seqlens": [3, 6]}, "'cu_seqlens' does not rise from 0"),
        ({"seq_lengths": [3, 2]}, "pieces end at token 5 of 6, and there are labels behind it"),
        ({"segment_ids": [1, 1, 2, 2, 0, 0]}, "pieces end at token 4 of 6, and there are labels behind it"),
        ({"seq_lengths": [3, 3], "position_ids": [0, 1, 0, 1, 2, 3]}, "begin at position 2, 'seq_lengths' has not"),
        ({"seq_lengths": [3, 3], "segment_ids": [1, 1, 1, 1, 1, 1]}, "begin at position 3, 'segment_ids' has not"),
        ({"attention_mask": [1, 1, 2, 0, 2, 2]}, "'attention_mask' comes back to 2 at position 4"),
        ({"attention_mask": [2, 2, 2, 1, 1, 1]}, "'attention_mask' comes back to 1 at position 3"),
        (
            {"attention_mask": [1, 0, 1, 1, 1, 1], "seq_lengths": [3, 3]},
            "attention_mask is 0 at position 1, inside a document",
        ),
    ],
)
def test_what_cannot_be_meant(columns: dict[str, list[int]], says: str) -> None:
    with pytest.raises(UserError, match=f"^row 0: .*{says}"):
        item(**columns)


@pytest.mark.parametrize(
    ("mask", "positions"),
    [
        ([1, 1, 1, 1], [0, 1, 2, 3, 0, 0]),
        ([1, 1, 1, 0], [0, 1, 2, 3, 0, 0]),
        ([0, 0, 1, 1], [2, 2, 2, 3, 0, 0]),
    ],
)
def test_plain_rows_beside_packed_ones(mask: list[int], positions: list[int]) -> None:
    """One batch has a mask or none: beside a packed row the others' masks become positions."""
    data = Dataset.from_dict({"input_ids": [IDS, IDS[:4]], "attention_mask": [[1, 1, 1, 2, 2, 2], mask]})
    batch = collate(Rows(data).__getitems__([0, 1]))
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2], positions]
    assert "attention_mask" not in batch
    hole = Dataset.from_dict({"input_ids": [IDS, IDS[:4]], "attention_mask": [[1, 1, 1, 2, 2, 2], [1, 0, 1, 1]]})
    with pytest.raises(
        UserError, match="row 1: attention_mask is 0 at position 1, inside a document of a packed batch"
    ):
        collate(Rows(hole).__getitems__([0, 1]))


@settings(max_examples=12)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.data())
def test_all_ways_say_the_same(sizes: list[int], data: Any) -> None:
    ids, ends = list(range(sum(sizes))), [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    numbered = [i for i, size in enumerate(sizes) for _ in range(size)]
    ways = {
        "position_ids": [t for size in sizes for t in range(size)],
        "seq_lengths": sizes,
        "cu_seqlens": ends,
        "attention_mask": [i + 1 for i in numbered],
        "document_id": numbered,
    }
    chosen = data.draw(st.lists(st.sampled_from(sorted(ways)), min_size=1, unique=True))
    row = item(ids, **{name: ways[name] for name in chosen})
    wanted = [X if t in ends else t for t in ids]
    if len(sizes) > 1 or chosen != ["attention_mask"]:
        assert row["labels"].tolist() == wanted
        assert row["position_ids"].tolist() == ways["position_ids"]


@pytest.mark.parametrize("lengths", [[0, 0], [0, 2], [1, 0]])
def test_batches_with_empty_rows(lengths: list[int]) -> None:
    """A batch of empty rows had no position at all, and attention over nothing is NaN in some kernels."""
    batch = collate(Rows(Dataset.from_dict({"input_ids": [[7] * n for n in lengths]})).__getitems__([0, 1]))
    assert batch["input_ids"].shape == batch["targets"].shape == (2, max(1, *lengths))
    assert batch["attention_mask"].sum(1).tolist() == [max(1, n) for n in lengths] or lengths == [1, 1]
    assert int((batch["targets"] != X).sum()) == sum(max(0, n - 1) for n in lengths)
