from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from tokensieve.data import corpus, list_columns
from tokensieve.data.build.pack import pack
from tokensieve.data.list_columns import column_block, write_columns
from tokensieve.runs.errors import UserError

PAD = -7
documents = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 45)), max_size=12)


def naive(docs: list[list[int]], targets: list[int], length: int) -> list[list[tuple[int, int, int, list[int]]]]:
    """Rows of (doc, start, target, tokens), one token at a time."""
    rows: list[list[tuple[int, int, int, list[int]]]] = []
    filled = length
    for d, tokens in enumerate(docs):
        for i, token in enumerate(tokens):
            if filled == length:
                rows.append([])
                filled = 0
            if i == 0 or not rows[-1]:
                rows[-1].append((d, filled, -1, []))
            doc, start, target, piece = rows[-1][-1]
            if target < 0 and i >= targets[d]:
                target = filled
            rows[-1][-1] = (doc, start, target, [*piece, token])
            filled += 1
    return [[(d, s, t if t >= 0 else s + len(p), p) for d, s, t, p in row] for row in rows]


@given(documents, st.integers(2, 17))
def test_rows_are_what_packing_token_by_token_gives(shape: list[tuple[int, int]], length: int) -> None:
    docs = [[100 * d + i for i in range(n)] for d, (n, _) in enumerate(shape)]
    targets = [t for _, t in shape]
    rows = pack([np.array(d, np.int32) for d in docs], targets, length, PAD)
    expected = naive(docs, targets, length)
    assert rows.input_ids.shape == (len(expected), length)
    for r, row in enumerate(expected):
        mine = slice(rows.offsets[r], rows.offsets[r + 1])
        tokens = [t for *_, piece in row for t in piece]
        assert rows.num_tokens[r] == len(tokens)
        assert rows.input_ids[r].tolist() == tokens + [PAD] * (length - len(tokens))
        assert rows.doc_ids[mine].tolist() == [d for d, *_ in row]
        assert rows.doc_starts[mine].tolist() == [s for _, s, *_ in row]
        assert rows.doc_targets[mine].tolist() == [t for *_, t, _ in row]
    assert (rows.num_tokens[:-1] == length).all()


def test_no_documents_give_no_rows() -> None:
    rows = pack([], [], 8, PAD)
    assert rows.input_ids.shape == (0, 8)
    assert rows.offsets.tolist() == [0]


@pytest.mark.parametrize("most", [1, 5, 12, 59, 60, 2**31 - 1])
def test_columns_longer_than_an_offset_counts(most: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Offsets are int32: from 2^31 tokens of one unit on they began again below 0. Here an array ends after ``most``."""
    monkeypatch.setattr(list_columns, "MOST_VALUES", most)
    rows = pack([np.arange(57, dtype=np.int32)], [0], 5, PAD)
    table = corpus.rows_table(rows, np.zeros(1, np.int64))
    assert table["input_ids"].to_pylist() == rows.input_ids.tolist()
    assert table["input_ids"].num_chunks == -(-12 // max(1, min(most // 5, 12)))
    hashed = [corpus.ContentHash(), corpus.ContentHash()]
    hashed[0].update(table)
    hashed[1].update(table.combine_chunks())
    assert hashed[0].hexdigest() == hashed[1].hexdigest()
    values = np.arange(60, dtype=np.float16).reshape(12, 5)
    write_columns(tmp_path / "x.arrow", [{"x": values}, {"x": values[:3]}])
    stored = Dataset.from_file(str(tmp_path / "x.arrow"))
    np.testing.assert_array_equal(column_block(stored, "x", 0, 15), np.concatenate([values, values[:3]]))


def test_no_rows_are_a_column_too() -> None:
    assert list_columns.list_column(np.empty((0, 8), np.int32)).to_pylist() == []


def test_a_document_whose_places_do_not_fit() -> None:
    long = np.broadcast_to(np.int32(0), 2**31)  # no memory
    with pytest.raises(UserError, match="a document of 2,147,483,648 tokens"):
        pack([np.zeros(3, np.int32), long], [0, 0], 8, PAD)
