"""Three-way precision: float64 truth, the naive head in a low dtype, ours in the same dtype. Ours must not be the worse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tokensieve.core import IGNORE_INDEX, LinearNLL, excess, weighted_nll

T, D, V = 400, 64, 500
LOW = [torch.bfloat16, torch.float16]


def make(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(hidden_TD, weight_VD, targets_T, weight_T), representable in ``dtype``; the hidden states point at their targets, so
    that the softmax is as peaked as a trained model's; a fifth of the targets is ignored."""
    g = torch.Generator().manual_seed(0)
    weight_VD = torch.randn(V, D, generator=g)
    targets_T = torch.randint(0, V, (T,), generator=g)
    strength_T1 = 0.3 * torch.rand(T, 1, generator=g)
    hidden_TD = strength_T1 * weight_VD[targets_T] + 0.3 * torch.randn(T, D, generator=g)
    targets_T[torch.rand(T, generator=g) < 0.2] = IGNORE_INDEX
    return hidden_TD.to(dtype), weight_VD.to(dtype), targets_T, torch.rand(T, generator=g) < 0.6


def naive(
    hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, keep_T: Tensor, loss_dtype: torch.dtype | None = None
) -> tuple[Tensor, ...]:
    """(nll_T, d hidden, d weight) of full logits, everything in the dtype given but, where asked, the loss."""
    hidden_TD, weight_VD = hidden_TD.clone().requires_grad_(), weight_VD.clone().requires_grad_()
    logits_TV = (hidden_TD @ weight_VD.T).to(loss_dtype or hidden_TD.dtype)
    nll_T = F.cross_entropy(logits_TV, targets_T, reduction="none")
    return (nll_T.detach(), *torch.autograd.grad((nll_T * keep_T).sum() / keep_T.sum(), [hidden_TD, weight_VD]))


def ours(
    hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, keep_T: Tensor, keep_logits: bool, slice_columns: int
) -> tuple[Tensor, ...]:
    hidden_TD, weight_VD = hidden_TD.clone().requires_grad_(), weight_VD.clone().requires_grad_()
    head = LinearNLL(hidden_TD, weight_VD, targets_T, keep_logits=keep_logits, slice_columns=slice_columns)
    loss_sum, _ = head.weighted_sum(keep_T)
    return (head.nll, *torch.autograd.grad(loss_sum / keep_T.sum(), [hidden_TD, weight_VD]))


def errors(found: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> dict[str, float]:
    """Root mean square error of each part, relative to the truth's root mean square."""
    pairs = zip(("nll", "d hidden", "d weight"), found, truth, strict=True)
    return {name: float((a.double() - b).norm() / b.norm()) for name, a, b in pairs}


@pytest.mark.parametrize("slice_columns", [7, V])
@pytest.mark.parametrize("keep_logits", [True, False])
@pytest.mark.parametrize("dtype", LOW)
def test_no_worse_than_naive(dtype: torch.dtype, keep_logits: bool, slice_columns: int) -> None:
    """A chunked head that keeps its softmax or its sums in the model's dtype is a little worse everywhere, which no
    comparison with a tolerance shows."""
    hidden_TD, weight_VD, targets_T, keep_T = make(dtype)
    truth = naive(hidden_TD.double(), weight_VD.double(), targets_T, keep_T)
    assert 0.1 < float((truth[0] < 0.1).double().mean()) < 0.9  # peaked, but not everywhere
    of_naive = errors(naive(hidden_TD, weight_VD, targets_T, keep_T), truth)
    of_ours = errors(ours(hidden_TD, weight_VD, targets_T, keep_T, keep_logits, slice_columns), truth)
    for name, error in of_ours.items():
        assert error <= 1.02 * of_naive[name] + 1e-6, (name, of_ours, of_naive)


@pytest.mark.parametrize("peaked", [True, False])
@pytest.mark.parametrize("keep_logits", [True, False])
@pytest.mark.parametrize("dtype", LOW)
def test_no_worse_than_float32_logits(dtype: torch.dtype, keep_logits: bool, peaked: bool) -> None:
    """Slices' products rounded to bfloat16 before they were added made d hidden 1.2 times as far from float64 as one product
    over the whole vocabulary, with logits cast to float32 as transformers does."""
    hidden_TD, weight_VD, targets_T, keep_T = make(dtype)
    if not peaked:
        targets_T = torch.where(targets_T == IGNORE_INDEX, targets_T, targets_T.flip(0).clamp(min=0))
    truth = naive(hidden_TD.double(), weight_VD.double(), targets_T, keep_T)
    of_dense = errors(naive(hidden_TD, weight_VD, targets_T, keep_T, torch.float32), truth)
    of_ours = errors(ours(hidden_TD, weight_VD, targets_T, keep_T, keep_logits, 50), truth)
    for name, error in of_ours.items():
        assert error <= 1.02 * of_dense[name] + 1e-6, (name, of_ours, of_dense)


@pytest.mark.parametrize("slice_columns", [50, 256])
@pytest.mark.parametrize("keep_logits", [True, False])
def test_a_large_log_sum_exp_costs_nothing(keep_logits: bool, slice_columns: int) -> None:
    """The probability as exp(logit - (lse - log weight)): the rounding of a log-sum-exp of 80 is 4e-6 of every probability.

    With hidden states this narrow and long, rounded logits cost cross-entropy 2e-7 to 4e-7, and ours 0.97 to 1.1 of that;
    through the log-sum-exp it is 3 to 7 times as much."""
    g = torch.Generator().manual_seed(0)
    weight_VD, hidden_TD = torch.randn(256, 8, generator=g), 10 * torch.randn(2048, 8, generator=g)
    targets_T, keep_T = torch.randint(0, 256, (2048,), generator=g), torch.rand(2048, generator=g) < 0.6
    truth = naive(hidden_TD.double(), weight_VD.double(), targets_T, keep_T)
    assert 70 < float((hidden_TD @ weight_VD.T).logsumexp(-1).mean()) < 90
    of_naive = errors(naive(hidden_TD, weight_VD, targets_T, keep_T), truth)
    of_ours = errors(ours(hidden_TD, weight_VD, targets_T, keep_T, keep_logits, slice_columns), truth)
    for name, error in of_ours.items():
        assert error <= 1.5 * of_naive[name], (name, of_ours, of_naive)


def test_float32_is_float32() -> None:
    """One cast too many and the float32 path is only as good as bfloat16, ten thousand times worse than naive float32.

    Its products are of seven columns and naive's of all: another order of sums, 0.6 to 1.3 times the error by processor."""
    hidden_TD, weight_VD, targets_T, keep_T = make(torch.float32)
    truth = naive(hidden_TD.double(), weight_VD.double(), targets_T, keep_T)
    of_naive = errors(naive(hidden_TD, weight_VD, targets_T, keep_T), truth)
    for keep_logits in (True, False):
        of_ours = errors(ours(hidden_TD, weight_VD, targets_T, keep_T, keep_logits, 7), truth)
        for name, error in of_ours.items():
            assert error <= 4 * of_naive[name], (name, of_ours, of_naive)


@pytest.mark.parametrize("dtype", LOW)
def test_gradients_are_summed_in_float32(dtype: torch.dtype) -> None:
    """Many slices that add into a bfloat16 gradient lose what is smaller than 1/256 of the sum: the narrower the slices, the
    worse. One column a slice may only add the rounding of its own product."""
    hidden_TD, weight_VD, targets_T, keep_T = make(dtype)
    truth = naive(hidden_TD.double(), weight_VD.double(), targets_T, keep_T)
    one, many = (errors(ours(hidden_TD, weight_VD, targets_T, keep_T, False, c), truth) for c in (V, 1))
    for name in ("d hidden", "d weight"):
        assert many[name] <= 1.25 * one[name], (name, many, one)


@pytest.mark.parametrize("dtype", LOW)
def test_the_sum_is_float32(dtype: torch.dtype) -> None:
    """A loss summed in float16 is infinite from 65504 nats on, a few thousand tokens; in bfloat16 it stops growing."""
    num = 40_000
    hidden_TD, weight_VD = torch.zeros(num, 4, dtype=dtype), torch.zeros(8, 4, dtype=dtype)
    loss_sum, weight_sum = weighted_nll(
        hidden_TD, weight_VD, torch.zeros(num, dtype=torch.long), torch.ones(num, dtype=dtype)
    )
    assert weight_sum.item() == num
    assert loss_sum.item() == pytest.approx(num * torch.tensor(8.0).log().item(), rel=1e-5)


def test_excess_of_stored_float16_scores() -> None:
    """The difference taken in the stored dtype: excess then comes in steps of 1/128 nat and ties decide."""
    nll_T = torch.tensor([10.0, 10.001, 10.002])
    ref_nll_T = torch.tensor([2.5, 2.5, 2.5], dtype=torch.float16)
    torch.testing.assert_close(excess(nll_T, ref_nll_T), torch.tensor([7.5, 7.501, 7.502]))
    assert excess(nll_T.half(), ref_nll_T).dtype == torch.float32
