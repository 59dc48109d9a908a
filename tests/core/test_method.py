"""The method as a whole, out of core's parts: hidden, head -> nll -> excess -> keep -> (loss_sum, weight_sum)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tokensieve.core import IGNORE_INDEX, LinearNLL, excess, token_nll, top_fraction, weighted_nll

B, T, D, V = 6, 30, 8, 50


def make() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(hidden_BTD, weight_VD, targets_BT, ref_nll_BT), float64; row by row from well predicted to badly, a fifth of the
    targets ignored and the reference NaN there."""
    g = torch.Generator().manual_seed(0)
    weight_VD = torch.randn(V, D, generator=g, dtype=torch.float64)
    targets_BT = torch.randint(0, V, (B, T), generator=g)
    skill_B = torch.linspace(0.8, 0, B, dtype=torch.float64)
    hidden_BTD = skill_B.view(B, 1, 1) * weight_VD[targets_BT] + torch.randn(B, T, D, generator=g, dtype=torch.float64)
    targets_BT[torch.rand(B, T, generator=g) < 0.2] = IGNORE_INDEX
    targets_BT[-1, 4:] = IGNORE_INDEX  # a row that is nearly all padding
    ref_nll_BT = 4 * torch.rand(B, T, generator=g, dtype=torch.float64)
    ref_nll_BT[targets_BT == IGNORE_INDEX] = float("nan")
    return hidden_BTD.requires_grad_(), weight_VD.requires_grad_(), targets_BT, ref_nll_BT


def slm(
    hidden: Tensor,
    weight_VD: Tensor,
    targets: Tensor,
    ref_nll: Tensor,
    scope: str = "batch",
    slice_columns: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss_sum, weight_sum, keep): Rho-1 at 60 %."""
    head = LinearNLL(hidden, weight_VD, targets, slice_columns=slice_columns)
    keep = top_fraction(excess(head.nll, ref_nll), targets != IGNORE_INDEX, 0.6, scope)
    return *head.weighted_sum(keep), keep


def grads_of(loss: Tensor, hidden: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, [hidden, weight], retain_graph=True)


def assert_same(ours: object, truth: object) -> None:
    torch.testing.assert_close(ours, truth, rtol=0, atol=1e-10)


@pytest.mark.parametrize("scope", ["sequence", "batch"])
def test_is_equation_4(scope: str) -> None:
    """Full logits, a sort in Python, a mean over the selected tokens: the paper written down."""
    hidden_BTD, weight_VD, targets_BT, ref_nll_BT = make()
    nll_BT = F.cross_entropy(hidden_BTD.flatten(0, 1) @ weight_VD.T, targets_BT.flatten(), reduction="none").view(B, T)
    delta_BT = nll_BT.detach().float() - ref_nll_BT.float()
    places = [(b, t) for b in range(B) for t in range(T) if targets_BT[b, t] != IGNORE_INDEX]
    scopes = [places] if scope == "batch" else [[p for p in places if p[0] == b] for b in range(B)]
    chosen = []
    for tokens in scopes:
        ranked = sorted(tokens, key=lambda p: -float(delta_BT[p]))
        chosen += ranked[: int(0.6 * len(tokens) + 0.5)]
    truth = torch.stack([nll_BT[p] for p in chosen]).mean()

    loss_sum, weight_sum, keep_BT = slm(hidden_BTD, weight_VD, targets_BT, ref_nll_BT, scope)
    assert sorted(map(tuple, keep_BT.nonzero().tolist())) == sorted(chosen)
    assert weight_sum.item() == len(chosen)
    assert_same(loss_sum / weight_sum, truth)
    ours = grads_of(loss_sum / weight_sum, hidden_BTD, weight_VD)
    assert_same(ours, grads_of(truth, hidden_BTD, weight_VD))


@pytest.mark.parametrize("slice_columns", [1, 7, B * T])
def test_slices_never_change_the_selection(slice_columns: int) -> None:
    """A top-k inside each chunk of a fused head is another method: 2.7 % of the tokens changed in a toy."""
    whole = slm(*make())
    parts = slm(*make(), slice_columns=slice_columns)
    assert torch.equal(parts[2], whole[2])
    assert_same(parts[:2], whole[:2])


@pytest.mark.parametrize("scope", ["sequence", "batch"])
def test_appended_padding_moves_nothing(scope: str) -> None:
    """-100 and padding inside k, or inside the denominator: loss, gradients and selection move with the padding."""
    hidden_BTD, weight_VD, targets_BT, ref_nll_BT = make()
    loss_sum, weight_sum, keep_BT = slm(hidden_BTD, weight_VD, targets_BT, ref_nll_BT, scope)
    truth = grads_of(loss_sum / weight_sum, hidden_BTD, weight_VD)
    more = slm(
        F.pad(hidden_BTD, (0, 0, 0, 9, 0, 2), value=3.0),
        weight_VD,
        F.pad(targets_BT, (0, 9, 0, 2), value=IGNORE_INDEX),
        F.pad(ref_nll_BT, (0, 9, 0, 2), value=-50.0),  # an enormous excess
        scope,
    )
    assert torch.equal(more[2][:B, :T], keep_BT)
    assert int(more[2].sum()) == int(keep_BT.sum())
    assert_same(more[:2], (loss_sum, weight_sum))
    assert_same(grads_of(more[0] / more[1], hidden_BTD, weight_VD), truth)


def test_sums_of_micro_batches_are_the_batch() -> None:
    """Sums travel, the mean is made once. Ranked by row, any split of the rows gives the loss and the gradients of all."""
    hidden_BTD, weight_VD, targets_BT, ref_nll_BT = make()
    loss_sum, weight_sum, _ = slm(hidden_BTD, weight_VD, targets_BT, ref_nll_BT, "sequence")
    truth = grads_of(loss_sum / weight_sum, hidden_BTD, weight_VD)
    for rows in (1, 2, 4):
        parts = [
            slm(h, weight_VD, t, r, "sequence")
            for h, t, r in zip(hidden_BTD.split(rows), targets_BT.split(rows), ref_nll_BT.split(rows), strict=True)
        ]
        sums = torch.stack([p[0] for p in parts]).sum(), torch.stack([p[1] for p in parts]).sum()
        assert_same(sums, (loss_sum, weight_sum))
        assert_same(grads_of(sums[0] / sums[1], hidden_BTD, weight_VD), truth)


def test_a_mean_of_means_is_something_else() -> None:
    """The gradient accumulation bug of 2024: two micro-batches that keep 90 % and 20 % of 100 tokens. Dividing each by its
    own count gives 1.0 where the tokens' mean is 0.68, and the few tokens of the second are weighted four times too much."""
    logits_TV = torch.zeros(200, 2, dtype=torch.float64)
    wanted_T = torch.cat([torch.full((100,), 0.5), torch.full((100,), 1.5)]).double()
    logits_TV[:, 1] = torch.log(torch.expm1(wanted_T))  # then -log p_0 = wanted
    targets_T = torch.zeros(200, dtype=torch.long)
    keep_T = torch.cat([torch.arange(100) < 90, torch.arange(100) < 20])
    head_VD = torch.eye(2, dtype=torch.float64)
    parts = [
        weighted_nll(h, head_VD, t, k)
        for h, t, k in zip(logits_TV.split(100), targets_T.split(100), keep_T.split(100), strict=True)
    ]
    mean = (parts[0][0] + parts[1][0]) / (parts[0][1] + parts[1][1])
    mean_of_means = sum(float(loss_sum / weight_sum) for loss_sum, weight_sum in parts) / 2
    assert mean.item() == pytest.approx(wanted_T[keep_T].mean().item(), abs=1e-9) == pytest.approx(75 / 110)
    assert mean_of_means == pytest.approx(1.0)


def test_everything_kept_is_plain_training() -> None:
    """``ratio = 1`` is cross-entropy: same loss, same gradients."""
    hidden_BTD, weight_VD, targets_BT, ref_nll_BT = make()
    head = LinearNLL(hidden_BTD, weight_VD, targets_BT)
    keep_BT = top_fraction(excess(head.nll, ref_nll_BT), targets_BT != IGNORE_INDEX, 1.0)
    loss_sum, weight_sum = head.weighted_sum(keep_BT)
    plain = F.cross_entropy(hidden_BTD.flatten(0, 1) @ weight_VD.T, targets_BT.flatten())
    assert_same(loss_sum / weight_sum, plain)
    ours = grads_of(loss_sum / weight_sum, hidden_BTD, weight_VD)
    assert_same(ours, grads_of(plain, hidden_BTD, weight_VD))


def test_flat_tokens_with_row_ids() -> None:
    """torchtitan's [T]: ``group`` says which tokens are a row."""
    hidden_BTD, weight_VD, targets_BT, ref_nll_BT = make()
    keep_BT = slm(hidden_BTD, weight_VD, targets_BT, ref_nll_BT, "sequence")[2]
    nll_T = token_nll(hidden_BTD.flatten(0, 1), weight_VD, targets_BT.flatten())
    group_T = torch.arange(B).repeat_interleave(T)
    valid_T = targets_BT.flatten() != IGNORE_INDEX
    keep_T = top_fraction(excess(nll_T, ref_nll_BT.flatten()), valid_T, 0.6, "sequence", group=group_T)
    assert torch.equal(keep_T, keep_BT.flatten())


def test_a_step_down_the_gradient_helps_the_kept_tokens() -> None:
    """A sign lost in a hand-written backward trains in the wrong direction and only looks slow."""
    hidden_BTD, weight_VD, targets_BT, ref_nll_BT = make()
    loss_sum, weight_sum, keep_BT = slm(hidden_BTD, weight_VD, targets_BT, ref_nll_BT)
    (grad_VD,) = torch.autograd.grad(loss_sum / weight_sum, weight_VD)
    after_BT = token_nll(hidden_BTD, weight_VD - 0.01 * grad_VD, targets_BT)
    assert after_BT[keep_BT].mean() < loss_sum / weight_sum
