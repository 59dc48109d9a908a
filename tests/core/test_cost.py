"""What it costs: no tensor larger than a slice of logits, no backward for rows of weight 0. Read off the operators that run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from tokensieve.core import IGNORE_INDEX, LinearHead, LinearNLL, TokenStats, objective, weighted_nll
from tokensieve.core.softmax import TOP
from tokensieve.core.stats import head_statistics
from tokensieve.core.targets import SparseTargets

T, D, V = 200, 8, 333


class LargestTensor(TorchDispatchMode):
    """Records the most elements that any operator's result had, views included."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(x.numel() for x in tree_leaves(out) if isinstance(x, Tensor))])
        return out


def counter() -> FlopCounterMode:
    """torch's counter, which does not know the in-place form of addmm by itself."""

    def flops(sum_shape: Any, left: Any, right: Any, *args: Any, **kwargs: Any) -> int:
        return int(2 * left[0] * left[1] * right[1])

    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: flops})


def make(num_tokens: int = T, width: int = D, vocab: int = V, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """[hidden_TD, weight_VD, targets_T], the first two with gradients."""
    g = torch.Generator().manual_seed(0)
    return [
        torch.randn(num_tokens, width, generator=g).to(dtype).requires_grad_(),
        torch.randn(vocab, width, generator=g).to(dtype).requires_grad_(),
        torch.randint(0, vocab, (num_tokens,), generator=g),
    ]


def test_the_recorder_sees_full_logits() -> None:
    hidden_TD, weight_VD, targets_T = make()
    with LargestTensor() as largest:
        F.cross_entropy(F.linear(hidden_TD, weight_VD), targets_T).backward()
    assert largest.numel == T * V


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("keep_logits", [True, False, "auto"])
def test_nothing_is_larger_than_a_slice(keep_logits: Any, autocast: bool) -> None:
    """The method whose memory is the point, and a convenience somewhere (a one-hot, a cat of the kept slices) that is
    [tokens, vocab] after all."""
    hidden_TD, weight_VD, targets_T = make()
    head = LinearHead(weight_VD, torch.zeros(V, requires_grad=True), logit_scale=0.5, softcap=5.0)
    slice_columns = 16
    with LargestTensor() as largest, torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        linear = LinearNLL(
            hidden_TD, head, targets_T, keep_logits=keep_logits, entropy=True, slice_columns=slice_columns
        )
        loss_sum, _ = linear.weighted_sum(linear.nll > 1)
        loss_sum.backward()
    assert largest.numel == T * slice_columns
    assert T * slice_columns > max(V * D, T * D)  # else the line above would compare something else


@pytest.mark.parametrize("keep_logits", [True, False])
@pytest.mark.parametrize("statistics", [("sum_p2",), ("top_entropy",), ("target_rank",), "second"])
def test_statistics_and_second_targets_make_nothing_larger(statistics: Any, keep_logits: bool) -> None:
    """What deft, eaft and griffin weigh by, and a teacher's entries: published code makes [tokens, vocab] for each."""
    hidden_TD, weight_VD, targets_T = make()
    slice_columns = 16
    second = SparseTargets(torch.arange(12).expand(T, 12) * 27, torch.full((T, 12), 0.07), 0.5)
    with LargestTensor() as largest:
        extra = {"second": second} if statistics == "second" else {"statistics": statistics}
        linear = LinearNLL(
            hidden_TD, weight_VD, targets_T, keep_logits=keep_logits, slice_columns=slice_columns, top_k=12, **extra
        )
        linear.weighted_sum(linear.nll > 1)[0].backward()
    # Of topk the last candidates: those so far, and the slice's.
    assert T * slice_columns <= largest.numel <= T * max(slice_columns, 2 * TOP)


@pytest.mark.parametrize(("rule", "options"), [("tsallis", {}), ("eaft", {}), ("griffin", {"top_k": 99}), ("mile", {})])
def test_rules_of_the_whole_distribution_need_no_logits(rule: str, options: dict[str, Any]) -> None:
    """deft, eaft, griffin from the head's pass to its backward: each is published with the softmax of [tokens, vocab]."""
    hidden_TD, weight_VD, targets_T = make()
    made, position_T = objective(rule, **options), torch.arange(T)
    with LargestTensor() as largest:
        head = LinearNLL(
            hidden_TD, weight_VD, targets_T, statistics=head_statistics(made.needs - {"nll"}), slice_columns=16
        )
        known = TokenStats(targets_T != IGNORE_INDEX, position=position_T, row_id=torch.zeros_like(position_T))
        stats = known.with_values({name: head.statistic(name) for name in head_statistics(made.needs)})
        head.weighted_sum(made.weigh(stats))[0].backward()
    assert hidden_TD.grad is not None
    assert hidden_TD.grad.any()
    assert largest.numel <= T * 2 * TOP < T * V


@pytest.mark.parametrize(("num_tokens", "elements"), [(600, 2048 * 2080), (3000, 3000 * 2080)])
def test_the_default_slice(num_tokens: int, elements: int) -> None:
    """16 MiB of float32 for few tokens, 2080 columns for many: never the 70 thousand there are."""
    hidden_TD, weight_VD, targets_T = make(num_tokens=num_tokens, width=2, vocab=70_000)
    with LargestTensor() as largest:
        loss_sum, _ = weighted_nll(hidden_TD, weight_VD, targets_T, torch.arange(num_tokens) < 30)
        loss_sum.backward()
    assert elements * 0.99 < largest.numel <= elements < num_tokens * 70_000


@pytest.mark.parametrize("kind", ["bool", "soft"])
@pytest.mark.parametrize(("keep_logits", "units"), [(True, 2), (False, 3)])
def test_backward_costs_the_kept_rows(keep_logits: bool, units: int, kind: str) -> None:
    """A selection by multiplying a mask into the losses saves nothing: the whole head's backward runs, times zero.
    One unit is a [rows, D] x [D, V] product; the forward has 1, and the backward 2 or 3 of the kept rows alone."""
    hidden_TD, weight_VD, targets_T = make()
    targets_T[:20] = IGNORE_INDEX  # rows without a target are not kept, whatever their weight
    unit = 2 * D * V
    for num_kept in (0, 1, 60, T - 20):
        kept_T = torch.arange(T) < 20 + num_kept
        weight_T = kept_T if kind == "bool" else kept_T * 0.7
        with counter() as forward:
            loss_sum, _ = weighted_nll(
                hidden_TD, weight_VD, targets_T, weight_T, keep_logits=keep_logits, slice_columns=64
            )
        with counter() as backward:
            loss_sum.backward()
        assert forward.get_total_flops() == T * unit
        assert backward.get_total_flops() == num_kept * units * unit


def test_max_rows_bounds_the_rows() -> None:
    hidden_TD, weight_VD, targets_T = make()
    loss_sum, _ = LinearNLL(hidden_TD, weight_VD, targets_T, keep_logits=True).weighted_sum(
        torch.arange(T) < 50, max_rows=60
    )
    with counter() as backward:
        loss_sum.backward()
    assert backward.get_total_flops() == 60 * 2 * 2 * D * V


def test_no_gradient_no_kept_logits() -> None:
    """Scoring a corpus: the logits kept for a backward that never comes would be most of the memory."""
    hidden_TD, weight_VD, targets_T = make()
    with torch.no_grad():
        assert LinearNLL(hidden_TD, weight_VD, targets_T, keep_logits=True).kept_logits is None


def test_kept_logits_are_gone_after_the_backward() -> None:
    """The head object outlives the backward (its nll is logged): it must not hold on to the largest thing there is."""
    hidden_TD, weight_VD, targets_T = make()
    linear = LinearNLL(hidden_TD, weight_VD, targets_T, keep_logits=True)
    assert linear.kept_logits is not None
    linear.weighted_sum(torch.ones(T))[0].backward()
    assert linear.kept_logits is None
