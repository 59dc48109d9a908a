"""What one pass through the head says of a prediction beside its nll: against float64 definitions written as loops."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from tokensieve.core import LinearHead, LinearNLL
from tokensieve.core.softmax import EXTRAS, TOP
from tokensieve.core.stats import HEAD_STATISTICS, STATISTICS, TokenStats

T, D, V = 9, 6, 53


def by_loop(name: str, logits: list[float], target: int) -> float:
    """One token's statistic out of Python floats."""
    largest = max(logits)
    total = sum(math.exp(x - largest) for x in logits)
    p = [math.exp(x - largest) / total for x in logits]
    if name == "nll":
        return -math.log(p[target])
    if name == "entropy":
        return -sum(x * math.log(x) for x in p if x > 0)
    if name == "sum_p2":
        return sum(x * x for x in p)
    if name == "target_rank":
        return sum(1 for v, x in enumerate(logits) if v != target and x > logits[target])
    if name == "top_entropy":
        top = sorted(p, reverse=True)[:TOP]
        return -sum(x / sum(top) * math.log(x / sum(top)) for x in top if x > 0)
    raise AssertionError(f"{name} has no definition here")


def make(dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    hidden_TD, weight_VD = torch.randn(T, D, generator=g), torch.randn(V, D, generator=g) * 2
    targets_T = torch.randint(0, V, (T,), generator=g)
    targets_T[[2, 7]] = -100
    return hidden_TD.to(dtype), weight_VD.to(dtype), torch.randn(V, generator=g).to(dtype), targets_T


def truth(name: str, logits_TV: Tensor, targets_T: Tensor) -> list[float]:
    """By token; 0 where there is no target."""
    rows = zip(logits_TV.tolist(), targets_T.tolist(), strict=True)
    return [0.0 if target == -100 else by_loop(name, logits, target) for logits, target in rows]


def test_every_statistic_of_the_head_is_computed() -> None:
    assert set(EXTRAS) | {"nll"} == HEAD_STATISTICS
    assert set(STATISTICS) - {"step"} <= set(TokenStats.__dataclass_fields__)


@pytest.mark.parametrize("slice_columns", [1, 7, 52, 100])
@pytest.mark.parametrize("name", sorted(HEAD_STATISTICS))
def test_is_its_definition(name: str, slice_columns: int) -> None:
    """Slices merged wrongly: a sum not referred to the new maximum, a top 20 of one slice, a rank among some columns."""
    hidden_TD, weight_VD, bias_V, targets_T = make()
    head = LinearHead(weight_VD, bias_V, 0.7, 9.0)
    made = LinearNLL(hidden_TD, head, targets_T, statistics=sorted(EXTRAS), slice_columns=slice_columns)
    logits_TV = 9.0 * torch.tanh(0.7 * (hidden_TD @ weight_VD.T + bias_V) / 9.0)
    assert made.statistic(name).tolist() == pytest.approx(truth(name, logits_TV, targets_T), abs=1e-9)
    assert not made.statistic(name).requires_grad


@pytest.mark.parametrize("keep_logits", [True, False])
def test_of_every_shape_and_beside_a_backward(keep_logits: bool) -> None:
    """A statistic that writes into the logits would change those kept for the backward."""
    hidden_TD, weight_VD, _, targets_T = make()
    grads = []
    for statistics in ((), sorted(EXTRAS)):
        hidden = hidden_TD.view(3, 3, D).clone().requires_grad_()
        made = LinearNLL(
            hidden, weight_VD, targets_T.view(3, 3), statistics=statistics, keep_logits=keep_logits, slice_columns=7
        )
        made.weighted_sum(torch.ones(3, 3))[0].backward()
        grads.append(hidden.grad)
        for name in statistics:
            assert made.statistic(name).shape == (3, 3)
    assert grads[0] is not None
    assert torch.equal(grads[0], grads[1])


@pytest.mark.parametrize("name", sorted(EXTRAS))
def test_shift_of_logits_changes_nothing(name: str) -> None:
    hidden_TD, weight_VD, bias_V, targets_T = make()
    plain = LinearNLL(hidden_TD, LinearHead(weight_VD, bias_V), targets_T, statistics=(name,), slice_columns=10)
    moved = LinearNLL(hidden_TD, LinearHead(weight_VD, bias_V + 300.0), targets_T, statistics=(name,), slice_columns=10)
    torch.testing.assert_close(moved.statistic(name), plain.statistic(name), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", sorted(EXTRAS))
def test_a_masked_vocabulary_gives_numbers(name: str) -> None:
    """Entries at minus infinity in all slices but the first: 0 * -inf is NaN, in the entropies of other libraries too."""
    hidden_TD, weight_VD, bias_V, targets_T = make()
    bias_V[13:] = float("-inf")
    targets_T = torch.where(targets_T == -100, targets_T, targets_T % 13)
    made = LinearNLL(hidden_TD, LinearHead(weight_VD, bias_V), targets_T, statistics=(name,), slice_columns=13)
    logits_TV = hidden_TD @ weight_VD[:13].T + bias_V[:13]
    assert made.statistic(name).tolist() == pytest.approx(truth(name, logits_TV, targets_T), abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_are_float32_whatever_the_dtype(dtype: torch.dtype) -> None:
    """Sums are kept in float32: as near to the truth of the same rounded logits as rounding allows.

    A product of D = 6 terms may differ by D eps |h| |w| from the one here, and a statistic moves by at most about twice that
    error of a logit * (1 + |logit|); a rank by as many entries as lie within that error of the target.
    """
    hidden_TD, weight_VD, _, targets_T = make(dtype)
    made = LinearNLL(hidden_TD, weight_VD, targets_T, statistics=sorted(EXTRAS), slice_columns=7)
    logits_TV = hidden_TD.double() @ weight_VD.double().T
    sizes_TV = hidden_TD.double().abs() @ weight_VD.double().abs().T
    error = float(2 * (D + 2) * torch.finfo(dtype).eps * sizes_TV.max())
    for name in EXTRAS:
        found, wanted = made.statistic(name), truth(name, logits_TV, targets_T)
        if name == "target_rank":
            assert found.dtype == torch.int64
            near_T = ((logits_TV - logits_TV.gather(1, targets_T.clamp(min=0)[:, None])).abs() <= 2 * error).sum(1) - 1
            assert (torch.tensor(wanted) - found).abs().le(near_T).all()
            continue
        assert found.dtype == torch.float32
        assert found.tolist() == pytest.approx(wanted, abs=2 * error * (1 + float(logits_TV.abs().max())))


def test_the_order_of_statistics_is_no_set_s() -> None:
    """Each is gathered over ranks by an exchange of its own: in the order of a set, which follows the process's own seed of
    hashes, one rank sent its entropy where the other sent its nll. Ranks forked from one process share the seed."""
    wanted = "('nll', 'entropy', 'sum_p2', 'target_rank')"
    code = (
        f"from tokensieve.core.stats import head_statistics as h; s = frozenset({wanted}); print(tuple(s)); print(h(s))"
    )
    for seed in range(9):  # as a rule the first will do
        env = {**os.environ, "PYTHONHASHSEED": str(seed)}
        of_set, said = subprocess.check_output([sys.executable, "-c", code], env=env, text=True).splitlines()
        assert said == wanted
        if of_set != wanted:
            return
    pytest.fail("no seed gave a set another order: the test cannot fail")


def test_equal_logits_rank_the_target_first() -> None:
    """A student that knows nothing: every rank is 0, not V - 1, in any slice."""
    made = LinearNLL(
        torch.zeros(4, D), torch.randn(V, D), torch.arange(4) * 17, statistics=("target_rank",), slice_columns=5
    )
    assert made.statistic("target_rank").tolist() == [0, 0, 0, 0]


def test_an_unknown_statistic_is_named() -> None:
    hidden_TD, weight_VD, _, targets_T = make()
    with pytest.raises(ValueError, match=r"unknown statistic 'entrpy' of the head: one of entropy, sum_p2"):
        LinearNLL(hidden_TD, weight_VD, targets_T, statistics=("entrpy",))
