"""Logits of -inf, nll of inf: what a masked vocabulary and a dropped token come to, against float64 log_softmax."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tokensieve.core import IGNORE_INDEX, LinearHead, LinearNLL, objective, token_nll_from_logits, weighted_nll
from tokensieve.core.objective import Objective
from tokensieve.core.softmax import EXTRAS, TOP
from tokensieve.training.guards import Watch
from tokensieve.training.step import all_numbers, selection_totals

WIDTH, VOCAB, TOKENS = 6, 40, 9
LOWEST = torch.finfo(torch.float32).min
INF, NAN = math.inf, math.nan
# Which entries of the vocabulary are masked. Slices of 8 columns, so that 0..15 is two whole ones.
MASKS = {
    "none": [],
    "the first slice": range(8),
    "the first two slices": range(16),
    "the last slice": range(32, 40),
    "all slices but one": [*range(16), *range(24, 40)],
    "every other slice": [*range(8), *range(16, 24), *range(32, 40)],
    "parts of slices": range(3, 37, 3),
    "all but one entry": [v for v in range(40) if v != 21],
}


def made(
    masked: list[int], value: float = -INF, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, LinearHead, Tensor]:
    """(hidden, head whose bias masks entries, targets outside the mask and one ignored)."""
    g = torch.Generator().manual_seed(0)
    hidden_TD = torch.randn(TOKENS, WIDTH, generator=g)
    weight_VD, bias_V = torch.randn(VOCAB, WIDTH, generator=g), torch.randn(VOCAB, generator=g)
    bias_V[list(masked)] = value
    there = [v for v in range(VOCAB) if v not in masked]
    targets_T = torch.tensor([there[i % len(there)] for i in range(0, 5 * TOKENS, 5)])
    targets_T[3] = IGNORE_INDEX
    return hidden_TD.to(dtype), LinearHead(weight_VD.to(dtype), bias_V.to(dtype)), targets_T


def true_logits(hidden_TD: Tensor, head: LinearHead) -> Tensor:
    assert head.bias is not None
    return hidden_TD.double() @ head.weight.double().T + head.bias.double()


def truth(logits_TV: Tensor, targets_T: Tensor) -> dict[str, Tensor]:
    """nll and the head's statistics by their definitions, float64; 0 log 0 = 0."""
    safe_T = targets_T.clamp(min=0)
    log_p_TV = logits_TV.log_softmax(-1)
    p_TV, top_TK = log_p_TV.exp(), logits_TV.topk(min(TOP, logits_TV.shape[-1])).values.softmax(-1)
    at_T1 = logits_TV.gather(-1, safe_T[:, None])
    found = {
        "nll": -log_p_TV.gather(-1, safe_T[:, None]).squeeze(-1),
        "entropy": -torch.xlogy(p_TV, p_TV).sum(-1),
        "sum_p2": p_TV.square().sum(-1),
        "target_rank": (logits_TV > at_T1).sum(-1),
        "top_entropy": -torch.xlogy(top_TK, top_TK).sum(-1),
    }
    return {name: value.masked_fill(targets_T == IGNORE_INDEX, 0) for name, value in found.items()}


@pytest.mark.parametrize("slice_columns", [1, 8, 11, VOCAB])
@pytest.mark.parametrize("value", [-INF, LOWEST])
@pytest.mark.parametrize("mask", MASKS)
def test_a_masked_vocabulary_is_exact(mask: str, value: float, slice_columns: int) -> None:
    """-inf minus -inf: a first slice that was all masked made nll and statistics of every token NaN, and one masked with the
    lowest number the entropy (0 * -inf)."""
    hidden_TD, head, targets_T = made(list(MASKS[mask]), value)
    expected = truth(true_logits(hidden_TD, head), targets_T)
    for keep in (True, False):
        found = LinearNLL(hidden_TD, head, targets_T, keep_logits=keep, statistics=EXTRAS, slice_columns=slice_columns)
        for name, values_T in expected.items():
            torch.testing.assert_close(found.statistic(name).double(), values_T.double(), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("how", ["kept", "again", "bounded", "torch"])
@pytest.mark.parametrize("mask", MASKS)
def test_gradients_of_a_masked_vocabulary_are_exact(mask: str, how: str, dtype: torch.dtype) -> None:
    hidden_TD, head, targets_T = made(list(MASKS[mask]), dtype=dtype)
    weight_T = torch.tensor([1.0, 0, 1, 1, 1, 0, 1, 1, 1])
    leaves = [t.clone().requires_grad_() for t in (hidden_TD, head.weight, head.bias)]  # type: ignore[union-attr]
    options = {"backend": "torch"} if how == "torch" else {"keep_logits": how != "again", "slice_columns": 8}
    made_of = LinearNLL(leaves[0], LinearHead(leaves[1], leaves[2]), targets_T, **options)  # type: ignore[arg-type]
    loss, _ = made_of.weighted_sum(weight_T, max_rows=8 if how == "bounded" else None)
    loss.backward()

    doubles = [t.double().requires_grad_() for t in (hidden_TD, head.weight, head.bias)]  # type: ignore[union-attr]
    nll_T = truth(true_logits(doubles[0], LinearHead(doubles[1], doubles[2])), targets_T)["nll"]
    (nll_T * weight_T).sum().backward()
    torch.testing.assert_close(loss.double(), (nll_T * weight_T).sum(), rtol=1e-5, atol=1e-5)
    for got, want in zip(leaves, doubles, strict=True):
        assert got.grad is not None
        assert got.grad.isfinite().all()
        torch.testing.assert_close(got.grad.double(), want.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("slice_columns", [4, VOCAB])
def test_a_target_that_is_masked_has_an_infinite_nll(slice_columns: int) -> None:
    """And statistics that are numbers: the distribution is one. Where everything is masked there is none: NaN."""
    hidden_TD, head, targets_T = made(list(range(8)))
    targets_T[1], targets_T[4] = 2, 7
    found = LinearNLL(hidden_TD, head, targets_T, statistics=EXTRAS, slice_columns=slice_columns)
    assert found.nll[[1, 4]].tolist() == [INF, INF]
    assert found.nll.isinf().sum() == 2
    expected = truth(true_logits(hidden_TD, head), targets_T)
    assert token_nll_from_logits(true_logits(hidden_TD, head), targets_T)[1] == INF
    assert found.statistic("target_rank")[1] == VOCAB - 8
    for name in EXTRAS:
        torch.testing.assert_close(found.statistic(name).double(), expected[name].double(), rtol=1e-5, atol=2e-6)
    hidden_TD, head, targets_T = made([])
    nothing = LinearNLL(hidden_TD, LinearHead(head.weight, torch.full((VOCAB,), -INF)), targets_T, statistics=EXTRAS)
    there_T = targets_T != IGNORE_INDEX
    assert nothing.nll[there_T].isnan().all()
    assert (nothing.nll[~there_T] == 0).all()
    assert nothing.entropy[there_T].isnan().all()


@pytest.mark.parametrize("how", ["kept", "again", "bounded", "torch"])
@pytest.mark.parametrize("broken", ["target masked", "hidden NaN", "hidden inf", "all of them"])
def test_a_token_of_weight_0_adds_exactly_0(how: str, broken: str) -> None:
    """0 * inf: the loss was NaN by a token that had been left out. Loss and gradients are those without the token."""
    # float64: with another number of rows a product takes another kernel, whose float32 is 6e-7 away on some processors.
    hidden_TD, head, targets_T = made(list(range(8)), dtype=torch.float64)
    weight_T = torch.ones(TOKENS)
    for i, kind in ((0, "target masked"), (5, "hidden NaN"), (8, "hidden inf")):
        if broken in (kind, "all of them"):
            weight_T[i] = 0
            targets_T[i] = 5 if i == 0 else targets_T[i]
            hidden_TD[i] = {0: hidden_TD[i], 5: torch.tensor(NAN), 8: torch.tensor(INF)}[i]
    kept = (weight_T != 0).nonzero().squeeze(-1)
    options = {"backend": "torch"} if how == "torch" else {"keep_logits": how != "again", "slice_columns": 8}

    def run(hidden: Tensor, targets: Tensor, weight: Tensor, max_rows: int | None) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in (hidden, head.weight, head.bias)]  # type: ignore[union-attr]
        nll = LinearNLL(leaves[0], LinearHead(leaves[1], leaves[2]), targets, **options)  # type: ignore[arg-type]
        loss, weight_sum = nll.weighted_sum(weight, max_rows=max_rows)
        loss.backward()
        return [loss.detach(), weight_sum, *(t.grad for t in leaves)]  # type: ignore[misc]

    got = run(hidden_TD, targets_T, weight_T, TOKENS if how == "bounded" else None)
    want = run(hidden_TD[kept], targets_T[kept], weight_T[kept], None)
    torch.testing.assert_close(got[2][kept], want[2], rtol=1e-6, atol=1e-7)
    assert (got[2][weight_T == 0] == 0).all()
    for i in (0, 1, 3, 4):
        torch.testing.assert_close(got[i], want[i], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("keep_logits", [True, False])
def test_no_row_with_a_weight_under_a_bound(keep_logits: bool) -> None:
    """The rows that fill a bound up are the first: an ignored one whose hidden state was NaN made every gradient NaN."""
    hidden_TD, head, targets_T = made([])
    hidden_TD[0], targets_T[0] = NAN, IGNORE_INDEX
    leaves = [t.clone().requires_grad_() for t in (hidden_TD, head.weight, head.bias)]  # type: ignore[union-attr]
    nll = LinearNLL(leaves[0], LinearHead(leaves[1], leaves[2]), targets_T, keep_logits=keep_logits)
    loss, _ = nll.weighted_sum(torch.zeros(TOKENS), max_rows=4)
    loss.backward()
    assert float(loss.detach()) == 0
    assert all((t.grad == 0).all() for t in leaves)  # type: ignore[union-attr]


def test_a_kept_token_of_infinite_nll_makes_the_sum_infinite() -> None:
    hidden_TD, head, targets_T = made(list(range(8)))
    targets_T[1] = 2
    loss, _ = weighted_nll(hidden_TD, head, targets_T, torch.ones(TOKENS))
    assert float(loss) == INF


SOFT = Objective("soft", weigh=lambda s: s.valid.float(), denominator="abs", signed=True)


@pytest.mark.parametrize(
    ("nll", "weight", "valid"),
    [
        ([1.0, 2, INF, 4], [1.0, 1, 0, 1], [True, True, True, True]),
        ([INF, 2, 3, 4], [0.0, 1, 1, 1], [True, True, True, True]),
        ([1.0, NAN, 3, INF], [1.0, 1, 1, 0], [True, False, True, True]),
        ([1.0, INF, 3, NAN], [0.5, 0, -2, NAN], [True, True, True, False]),
        ([INF, INF, INF, INF], [0.0, 0, 0, 0], [True, True, True, True]),
    ],
)
def test_totals_take_in_what_counts_alone(nll: list[float], weight: list[float], valid: list[bool]) -> None:
    """inf * 0 in the step's sums: the guard took a dropped token's nll for a broken model and ended the run."""
    rule = objective("clm") if all(w in (0, 1) for w in weight) else SOFT
    columns = [torch.tensor([c]) for c in (weight, valid, nll)]
    totals = selection_totals(rule, *columns, source=torch.zeros(1, 4, dtype=torch.long), num_sources=1)
    tokens = [(n, w) for n, w, v in zip(nll, weight, valid, strict=True) if v]
    want: dict[str, Callable[[float, float], float]] = {
        "kept": lambda n, w: float(w != 0),
        "kept_nll": lambda n, w: n if w else 0.0,
        "dropped_nll": lambda n, w: 0.0 if w else n,
        "weighted_nll": lambda n, w: n * w if w else 0.0,
    }
    for name, of in want.items():
        assert float(totals[name]) == sum(of(n, w) for n, w in tokens), name
    assert float(totals["denominator"]) == sum(abs(w) for _, w in tokens)
    assert bool(all_numbers(totals))


@pytest.mark.parametrize(
    ("nll", "weight", "fine"),
    [
        ([1.0, INF], [1.0, 0.0], True),
        ([1.0, INF], [0.0, 1.0], False),
        ([1.0, NAN], [1.0, 0.0], False),
        ([1.0, NAN], [0.0, 1.0], False),
        ([1.0, -INF], [1.0, 0.0], False),
        ([INF, NAN], [0.0, 0.0], False),
    ],
)
def test_what_stops_a_step(nll: list[float], weight: list[float], fine: bool) -> None:
    """A dropped token of probability 0 does not; a kept one does, and NaN or -inf, which no softmax gives, anywhere."""
    nll_BT, weight_BT, valid_BT = torch.tensor([nll]), torch.tensor([weight]), torch.tensor([[True, True]])
    assert bool(all_numbers(selection_totals(objective("clm"), weight_BT, valid_BT, nll_BT))) == fine
    watch = Watch()
    watch.note(torch.tensor([7]), nll_BT, weight_BT, valid_BT)
    assert bool(watch.rows("nll")) != fine
