import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tokensieve.data.pack import pack

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
