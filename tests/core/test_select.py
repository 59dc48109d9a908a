"""top_fraction, kept_count, above_threshold: which tokens are kept."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from tokensieve.core import above_threshold, kept_count, top_fraction

RATIOS = st.sampled_from([0.01, 0.1, 0.25, 0.3, 0.5, 0.6, 2 / 3, 0.7, 0.75, 0.99, 1.0])
# Few distinct scores: ties everywhere.
TOKENS = st.lists(st.tuples(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 3.0]), st.booleans()), max_size=24)


def bools(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.bool)


def by_sorting(score: list[float], valid: list[bool], ratio: float) -> list[bool]:
    """The definition, in Python: of the valid tokens, best score first, earlier first, the first k."""
    order = sorted((i for i, v in enumerate(valid) if v), key=lambda i: (-score[i], i))
    kept = set(order[: kept_count(len(order), ratio)])
    return [i in kept for i in range(len(score))]


@given(TOKENS, RATIOS)
def test_is_what_sorting_gives(tokens: list[tuple[float, bool]], ratio: float) -> None:
    score, valid = [t[0] for t in tokens], [t[1] for t in tokens]
    one_row = torch.zeros(len(score), dtype=torch.long)
    for scope in ("batch", "step", "sequence"):
        group = one_row if scope == "sequence" else None
        keep_T = top_fraction(torch.tensor(score), torch.tensor(valid, dtype=torch.bool), ratio, scope, group=group)
        assert keep_T.tolist() == by_sorting(score, valid, ratio)


@pytest.mark.parametrize("shape", [(0,), (1,), (12,)])
def test_a_flat_batch_without_rows_is_refused(shape: tuple[int, ...]) -> None:
    """``scope="sequence"`` on a flat batch ranked all rows together, without a word."""
    with pytest.raises(ValueError, match="a flat batch has no rows"):
        top_fraction(torch.zeros(shape), torch.ones(shape, dtype=torch.bool), 0.5, "sequence")


@given(st.integers(0, 2**40), st.floats(1e-6, 1.0))
@example(5, 0.5)
def test_count_of_int_and_tensor_agree(num_valid: int, ratio: float) -> None:
    """The denominator comes from one of them, the selection from the other."""
    of_tensor = kept_count(torch.tensor(num_valid), ratio)
    assert of_tensor.dtype == torch.int64
    assert kept_count(num_valid, ratio) == int(of_tensor)
    assert 0 <= int(of_tensor) <= num_valid
    assert (int(of_tensor) == 0) == (num_valid == 0)


@given(st.integers(1, 2**20), st.integers(1, 64))
def test_count_is_floor_of_half_more(num_valid: int, share_of_64: int) -> None:
    """``round()`` sends halves to the even neighbour: 0.5 * 5 -> 2, 0.5 * 7 -> 4."""
    exact = Fraction(share_of_64, 64) * num_valid + Fraction(1, 2)
    assert kept_count(num_valid, share_of_64 / 64) == max(exact.numerator // exact.denominator, 1)


def test_halves_go_up() -> None:
    assert [kept_count(n, 0.5) for n in range(8)] == [0, 1, 1, 2, 2, 3, 3, 4]
    assert kept_count(torch.arange(8), 0.5).tolist() == [0, 1, 1, 2, 2, 3, 3, 4]


def test_ties_go_to_the_earlier_position() -> None:
    """An unstable sort chooses among equals as it likes, differently on a GPU; float16 scores have many equals."""
    keep_T = top_fraction(torch.tensor([1.0, 2.0, 1.0, 1.0, 1.0]), torch.ones(5, dtype=torch.bool), 0.6)
    assert keep_T.tolist() == [True, True, True, False, False]
    many_T = torch.zeros(5000)
    assert top_fraction(many_T, many_T == 0, 0.3).nonzero().squeeze(-1).tolist() == list(range(1500))


def test_invalid_tokens_are_neither_kept_nor_counted() -> None:
    """Padding inside k: a share of all T positions, half of them padding, keeps every token there is."""
    score_T = torch.tensor([9.0, 9.0, 4.0, 3.0, 2.0, 1.0, 9.0, 9.0])
    valid_T = bools(0, 0, 1, 1, 1, 1, 0, 0)
    assert top_fraction(score_T, valid_T, 0.5).tolist() == bools(0, 0, 1, 1, 0, 0, 0, 0).tolist()


@pytest.mark.parametrize("scope", ["sequence", "batch"])
def test_padding_does_not_move_the_selection(scope: str) -> None:
    g = torch.Generator().manual_seed(0)
    score_BT = torch.randn(3, 20, generator=g)
    valid_BT = torch.rand(3, 20, generator=g) < 0.8
    keep_BT = top_fraction(score_BT, valid_BT, 0.6, scope)
    for value in (1e9, -1e9, float("nan"), float("inf"), float("-inf"), 0.0):
        padded_BT = torch.cat([score_BT, torch.full((3, 7), value)], 1)
        padded_valid_BT = torch.cat([valid_BT, torch.zeros(3, 7, dtype=torch.bool)], 1)
        padded_keep_BT = top_fraction(padded_BT, padded_valid_BT, 0.6, scope)
        assert torch.equal(padded_keep_BT[:, :20], keep_BT)
        assert not padded_keep_BT[:, 20:].any()


def test_minus_infinity_still_outranks_the_invalid() -> None:
    """Invalid tokens masked with -inf before a topk: a valid token whose score is -inf itself then loses to padding."""
    score_T = torch.tensor([1.0, float("-inf"), float("-inf"), 5.0])
    assert top_fraction(score_T, bools(1, 0, 1, 0), 1.0).tolist() == [True, False, True, False]
    group_T = torch.zeros(4, dtype=torch.long)
    assert top_fraction(score_T, bools(1, 0, 1, 0), 1.0, "sequence", group=group_T).tolist() == [
        True,
        False,
        True,
        False,
    ]


@pytest.mark.parametrize("scope", ["sequence", "batch", "step"])
def test_ratio_one_keeps_all_that_is_valid(scope: str) -> None:
    g = torch.Generator().manual_seed(0)
    valid_BT = torch.rand(4, 33, generator=g) < 0.5
    assert torch.equal(top_fraction(torch.randn(4, 33, generator=g), valid_BT, 1.0, scope), valid_BT)


def test_at_least_one_is_kept_where_one_is_valid() -> None:
    score_BT, valid_BT = (
        torch.tensor([[1.0, 2.0, 3.0]] * 3),
        torch.stack([bools(1, 1, 0), bools(0, 0, 0), bools(1, 1, 1)]),
    )
    keep_BT = top_fraction(score_BT, valid_BT, 0.01, "sequence")
    assert keep_BT.tolist() == [[False, True, False], [False, False, False], [False, False, True]]
    assert top_fraction(score_BT, valid_BT, 0.01, "batch").sum() == 1


@pytest.mark.parametrize("scope", ["sequence", "batch"])
def test_no_valid_token_keeps_nothing(scope: str) -> None:
    for shape in ((2, 5), (2, 0)) if scope == "sequence" else ((5,), (2, 5), (0,), (2, 0)):
        nothing = torch.zeros(shape, dtype=torch.bool)
        assert torch.equal(top_fraction(torch.randn(shape), nothing, 0.6, scope), nothing)
    empty = torch.zeros(0, dtype=torch.long)
    assert top_fraction(torch.zeros(0), empty.bool(), 0.6, "sequence", group=empty).shape == (0,)


def test_scopes_differ() -> None:
    """Scope taken for a detail: over the batch a hard row is kept whole and an easy one dropped."""
    score_BT = torch.tensor([[5.0, 6.0, 7.0, 8.0], [1.0, 2.0, 3.0, 4.0]])
    valid_BT = score_BT > 0
    of_batch = top_fraction(score_BT, valid_BT, 0.5, "batch")
    of_rows = top_fraction(score_BT, valid_BT, 0.5, "sequence")
    assert of_batch.tolist() == [[True] * 4, [False] * 4]
    assert of_rows.tolist() == [[False, False, True, True]] * 2
    assert torch.equal(of_batch, top_fraction(score_BT, valid_BT, 0.5))  # the paper's is the default
    assert torch.equal(of_batch, top_fraction(score_BT, valid_BT, 0.5, "step"))


@pytest.mark.parametrize("scope", ["batch", "step"])
def test_flat_is_one_row(scope: str) -> None:
    g = torch.Generator().manual_seed(0)
    score_T, valid_T = torch.randn(40, generator=g), torch.rand(40, generator=g) < 0.7
    flat = top_fraction(score_T, valid_T, 0.3, scope)
    assert torch.equal(top_fraction(score_T[None], valid_T[None], 0.3, scope)[0], flat)
    assert flat.shape == (40,)
    assert flat.dtype == torch.bool


@given(st.integers(1, 5), st.integers(0, 9), RATIOS, st.integers(0, 2**31))
def test_groups_of_a_flat_tensor_are_rows(rows: int, length: int, ratio: float, seed: int) -> None:
    """A flat batch with row ids, in any order of ids, ranks as the rows do."""
    g = torch.Generator().manual_seed(seed)
    score_BT = torch.randint(0, 4, (rows, length), generator=g).float()  # ties
    valid_BT = torch.rand(rows, length, generator=g) < 0.7
    row_ids = torch.randperm(100, generator=g)[:rows]  # neither dense nor ascending
    group_T = row_ids.repeat_interleave(length)
    flat = top_fraction(score_BT.flatten(), valid_BT.flatten(), ratio, "sequence", group=group_T)
    assert torch.equal(flat, top_fraction(score_BT, valid_BT, ratio, "sequence").flatten())


def test_groups_may_have_any_length() -> None:
    keep_T = top_fraction(
        torch.tensor([1.0, 2.0, 9.0, 1.0, 2.0, 3.0]),
        torch.ones(6, dtype=torch.bool),
        0.5,
        "sequence",
        group=torch.tensor([7, 7, 3, 5, 5, 5]),
    )
    assert keep_T.tolist() == [False, True, True, False, True, True]


@pytest.mark.parametrize("scope", ["sequence", "batch"])
def test_order_of_tokens_does_not_count(scope: str) -> None:
    g = torch.Generator().manual_seed(0)
    score_BT = torch.randperm(60, generator=g).view(3, 20).float()
    valid_BT = torch.rand(3, 20, generator=g) < 0.7
    keep_BT = top_fraction(score_BT, valid_BT, 0.3, scope)
    order = torch.randperm(20, generator=g)
    assert torch.equal(top_fraction(score_BT[:, order], valid_BT[:, order], 0.3, scope), keep_BT[:, order])
    rows = torch.tensor([2, 0, 1])
    assert torch.equal(top_fraction(score_BT[rows], valid_BT[rows], 0.3, scope), keep_BT[rows])


def test_only_the_order_of_scores_counts() -> None:
    """A selection, not soft weights: any increasing function of the score chooses the same tokens."""
    score_T = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    valid_T = torch.ones(50, dtype=torch.bool)
    keep_T = top_fraction(score_T, valid_T, 0.6)
    for same in (score_T.exp(), 3 * score_T - 100, score_T**3):
        assert torch.equal(top_fraction(same, valid_T, 0.6), keep_T)


def test_sequence_scope_knows_no_batch() -> None:
    """Ranked row by row, a token's fate does not depend on the rows it happens to share a batch with."""
    g = torch.Generator().manual_seed(0)
    score_BT, valid_BT = torch.randn(8, 30, generator=g), torch.rand(8, 30, generator=g) < 0.8
    whole = top_fraction(score_BT, valid_BT, 0.6, "sequence")
    parts = [top_fraction(s, v, 0.6, "sequence") for s, v in zip(score_BT.split(3), valid_BT.split(3), strict=True)]
    assert torch.equal(torch.cat(parts), whole)


def test_valid_of_any_kind() -> None:
    score_T = torch.tensor([3.0, 2.0, 1.0])
    for kind in (torch.int64, torch.uint8, torch.float32):
        assert top_fraction(score_T, bools(0, 1, 1).to(kind), 0.5).tolist() == [False, True, False]


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.01, 60.0, float("nan")])
def test_a_ratio_outside_is_refused(ratio: float) -> None:
    """60 instead of 0.6 would keep everything, and nothing would tell."""
    with pytest.raises(ValueError, match="ratio"):
        top_fraction(torch.zeros(3), bools(1, 1, 1), ratio)
    with pytest.raises(ValueError, match="ratio"):
        kept_count(3, ratio)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="scope"):
        top_fraction(torch.zeros(3), bools(1, 1, 1), 0.5, "microbatch")
    with pytest.raises(ValueError, match="shape"):
        top_fraction(torch.zeros(1, 3), bools(1, 1, 1), 0.5)


def test_above_threshold() -> None:
    score_T = torch.tensor([0.5, 1.0, 2.0, 3.0, float("nan")])
    assert above_threshold(score_T, bools(1, 1, 1, 0, 1), 1.0).tolist() == [False, True, True, False, False]
    assert above_threshold(score_T, bools(1, 1, 1, 0, 1), torch.tensor(2.0)).tolist() == [
        False,
        False,
        True,
        False,
        False,
    ]
    assert torch.equal(above_threshold(score_T[None], bools(1, 1, 1, 0, 1)[None], 1.0)[0], bools(0, 1, 1, 0, 0))
