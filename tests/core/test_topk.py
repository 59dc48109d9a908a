"""The likeliest entries of each prediction, against a sort of full logits in float64."""

from __future__ import annotations

import math

import pytest
import torch

from tokensieve.core import LinearHead, LinearNLL

T, D, V, K = 9, 6, 23, 5


def made(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, LinearHead, torch.Tensor]:
    torch.manual_seed(0)
    hidden, weight = torch.randn(T, D, dtype=dtype), torch.randn(V, D, dtype=dtype)
    targets = torch.randint(0, V, (T,))
    targets[[0, 4]] = -100
    return hidden, LinearHead(weight, bias=torch.randn(V, dtype=dtype), logit_scale=1.5, softcap=4.0), targets


def truth(hidden: torch.Tensor, head: LinearHead, row: int) -> list[tuple[int, float]]:
    """(entry, log p) of a row by Python's sort: log p over the whole vocabulary, not over the K."""
    raw = [1.5 * (sum(a * b for a, b in zip(hidden[row].tolist(), w, strict=True)) + bias)
           for w, bias in zip(head.weight.tolist(), head.bias.tolist(), strict=True)]  # fmt: skip
    logits = [4.0 * math.tanh(x / 4.0) for x in raw]
    total = math.log(sum(math.exp(x) for x in logits))
    return sorted(((v, x - total) for v, x in enumerate(logits)), key=lambda entry: -entry[1])[:K]


@pytest.mark.parametrize("columns", [1, 3, 7, V])
@pytest.mark.parametrize("keep_logits", [False, True])
def test_slices_and_kept_logits_change_nothing(columns: int, keep_logits: bool) -> None:
    """An entry of a later slice that is counted from the slice's beginning is another token."""
    hidden, head, targets = made()
    made_of = LinearNLL(hidden.requires_grad_(), head, targets, top_k=K, slice_columns=columns, keep_logits=keep_logits)
    ids, logp = made_of.topk
    assert (ids.shape, logp.shape, ids.dtype, logp.dtype) == ((T, K), (T, K), torch.int64, torch.float64)
    for row in range(T):
        wanted = truth(hidden, head, row) if targets[row] != -100 else [(0, 0.0)] * K
        assert ids[row].tolist() == [v for v, _ in wanted]
        torch.testing.assert_close(logp[row].tolist(), [p for _, p in wanted], rtol=1e-12, atol=1e-12)


def test_a_shift_of_the_logits_and_other_statistics_change_nothing() -> None:
    hidden, head, targets = made()
    head = LinearHead(head.weight, head.bias)
    plain = LinearNLL(hidden, head, targets, top_k=K)
    shifted = LinearNLL(
        hidden, LinearHead(head.weight, head.bias + 100.0), targets, top_k=K, statistics=("entropy", "target_rank")
    )
    assert torch.equal(plain.topk[0], shifted.topk[0])
    torch.testing.assert_close(plain.topk[1], shifted.topk[1], rtol=1e-9, atol=1e-9)
    # The target is among the likeliest where its rank says so, with its own nll.
    rank, (ids, logp) = shifted.statistic("target_rank"), shifted.topk
    for row in range(T):
        if targets[row] != -100:
            assert (targets[row] in ids[row].tolist()) == (rank[row] < K)
            if rank[row] < K:
                assert logp[row, rank[row]] == pytest.approx(-float(shifted.nll[row]), abs=1e-9)


def test_a_masked_vocabulary_and_what_cannot_be() -> None:
    hidden, head, targets = made()
    bias = torch.full((V,), -math.inf, dtype=torch.float64)
    bias[3:5] = 0.0
    ids, logp = LinearNLL(hidden, LinearHead(head.weight, bias), targets.clamp(max=3), top_k=3, slice_columns=2).topk
    assert (logp[1].exp().sum() - 1).abs() < 1e-12
    assert logp[1, 2] == -math.inf
    assert set(ids[1, :2].tolist()) == {3, 4}
    with pytest.raises(ValueError, match="top_k is 24, it must be between 0 and the vocabulary of 23"):
        LinearNLL(hidden, head, targets, top_k=V + 1)
    with pytest.raises(ValueError, match="were not asked for"):
        _ = LinearNLL(hidden, head, targets).topk
