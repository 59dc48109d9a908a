"""weighted_nll and LinearNLL.weighted_sum: sums and gradients against autograd on the full logits."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn import functional as F

from tokensieve.core import IGNORE_INDEX, LinearHead, LinearNLL, weighted_nll

T, D, V = 41, 8, 23
KEEP_LOGITS = [True, False, "auto"]


def make(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(hidden_TD, weight_VD, bias_V, targets_T); leaves that want a gradient, about a fifth of the targets ignored."""
    g = torch.Generator().manual_seed(0)
    tensors = [torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype) for shape in ((T, D), (V, D), (V,))]
    targets_T = torch.randint(0, V, (T,), generator=g)
    targets_T[torch.rand(T, generator=g) < 0.2] = IGNORE_INDEX
    return tensors[0].requires_grad_(), tensors[1].requires_grad_(), tensors[2].requires_grad_(), targets_T


def make_weights(kind: str) -> Tensor:
    g = torch.Generator().manual_seed(1)
    uniform_T = torch.rand(T, generator=g, dtype=torch.float64)
    return {
        "bool": uniform_T < 0.6,
        "soft": uniform_T,
        "soft with zeros": torch.where(uniform_T < 0.4, 0.0, 3 * uniform_T),
        "ones": torch.ones(T),
        "none": torch.zeros(T, dtype=torch.bool),
    }[kind]


def by_autograd(hidden_TD: Tensor, head: LinearHead, targets_T: Tensor, weight_T: Tensor) -> tuple[Tensor, Tensor]:
    """(sum(weight * nll), sum(weight)) over tokens with a target, on full logits, all by autograd."""
    logits_TV = hidden_TD @ head.weight.T + (0 if head.bias is None else head.bias)
    logits_TV = logits_TV * head.logit_scale
    if head.softcap is not None:
        logits_TV = head.softcap * torch.tanh(logits_TV / head.softcap)
    nll_T = F.cross_entropy(logits_TV, targets_T, reduction="none")
    weight_T = weight_T.double() * (targets_T != IGNORE_INDEX)
    return (weight_T * nll_T).sum(), weight_T.sum()


def assert_same(ours: Any, truth: Any, atol: float = 1e-10) -> None:
    torch.testing.assert_close(ours, truth, rtol=0, atol=atol, check_dtype=False)


@pytest.mark.parametrize("keep_logits", KEEP_LOGITS)
@pytest.mark.parametrize("kind", ["bool", "soft", "soft with zeros", "ones"])
@pytest.mark.parametrize(
    ("with_bias", "scale", "softcap"), [(False, 1.0, None), (True, 0.25, None), (False, 1.0, 3.0), (True, 1.5, 4.0)]
)
def test_gradients_are_those_of_autograd(
    kind: str, with_bias: bool, scale: float, softcap: float | None, keep_logits: Any
) -> None:
    """A fused head that forgets the cap's derivative, the scale, or the bias trains, only worse. Liger's
    ``reduction="none"`` gave silently wrong head gradients until 2026."""
    hidden_TD, weight_VD, bias_V, targets_T = make()
    head = LinearHead(weight_VD, bias_V if with_bias else None, scale, softcap)
    weight_T = make_weights(kind)
    inputs = [hidden_TD, weight_VD] + ([bias_V] if with_bias else [])
    truth_sum, truth_count = by_autograd(hidden_TD, head, targets_T, weight_T)
    truth = torch.autograd.grad(truth_sum / truth_count, inputs)
    for slice_columns in (1, 7, T):
        loss_sum, weight_sum = weighted_nll(
            hidden_TD, head, targets_T, weight_T, keep_logits=keep_logits, slice_columns=slice_columns
        )
        assert_same(loss_sum, truth_sum)
        assert_same(weight_sum, truth_count)
        assert_same(torch.autograd.grad(loss_sum / weight_sum, inputs), truth)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("max_rows", [None, T])
@pytest.mark.parametrize("keep_logits", KEEP_LOGITS)
def test_signed_weights(keep_logits: Any, max_rows: int | None, dtype: torch.dtype) -> None:
    """Data attribution, unlearning: a token may be trained away from. Every gradient through it changes its sign, too."""
    hidden_TD, weight_VD, bias_V, targets_T = make()
    signs_T = torch.tensor([1.0, -1.0, 0.0, -2.5] * T)[:T]
    weight_T = make_weights("soft") * signs_T
    assert (weight_T < 0).any()
    assert (weight_T == 0).any()
    inputs = [hidden_TD, weight_VD, bias_V]
    truth = torch.autograd.grad(by_autograd(hidden_TD, LinearHead(weight_VD, bias_V), targets_T, weight_T)[0], inputs)
    low = [x.detach().to(dtype).requires_grad_() for x in inputs]
    head = LinearNLL(low[0], LinearHead(low[1], low[2]), targets_T, keep_logits=keep_logits, slice_columns=7)
    loss_sum, weight_sum = head.weighted_sum(weight_T, max_rows=max_rows)
    assert float(weight_sum) == pytest.approx(float(weight_T[targets_T != IGNORE_INDEX].sum()), rel=1e-5, abs=1e-6)
    for found, wanted in zip(torch.autograd.grad(loss_sum, low), truth, strict=True):
        bound = 1e-9 if dtype == torch.float64 else 1e-4
        assert float((found.double() - wanted).abs().max()) < bound * float(wanted.abs().max())


@pytest.mark.parametrize("keep_logits", KEEP_LOGITS)
def test_tied_embeddings(keep_logits: Any) -> None:
    """Where the head is the embedding, both paths' gradients add; an assignment instead of a sum loses one."""
    _, weight_VD, _, targets_T = make()
    ids_T = torch.randint(0, V, (T,), generator=torch.Generator().manual_seed(2))
    weight_T = make_weights("bool")

    def grad(tied: bool) -> Tensor:
        hidden_TD = torch.tanh(F.embedding(ids_T, weight_VD))
        if tied:
            loss_sum, _ = weighted_nll(hidden_TD, weight_VD, targets_T, weight_T, keep_logits=keep_logits)
        else:
            loss_sum, _ = by_autograd(hidden_TD, LinearHead(weight_VD), targets_T, weight_T)
        return torch.autograd.grad(loss_sum, weight_VD)[0]

    assert_same(grad(True), grad(False))


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
def test_only_some_gradients_are_wanted(wanted: tuple[int, ...]) -> None:
    """A frozen head, or a frozen body: the gradients that are asked for stay the same."""
    hidden_TD, weight_VD, bias_V, targets_T = make()
    inputs = [x.detach().requires_grad_(i in wanted) for i, x in enumerate((hidden_TD, weight_VD, bias_V))]
    weight_T = make_weights("soft")
    asked = [inputs[i] for i in wanted]
    head = LinearHead(inputs[1], inputs[2])
    ours = torch.autograd.grad(weighted_nll(inputs[0], head, targets_T, weight_T)[0], asked)
    assert_same(ours, torch.autograd.grad(by_autograd(inputs[0], head, targets_T, weight_T)[0], asked))


@pytest.mark.parametrize("keep_logits", KEEP_LOGITS)
def test_ignored_rows_count_nowhere(keep_logits: Any) -> None:
    """Padding inside the denominator: append rows without a target but with weight (a NaN one, even) and NaN hidden
    states; sums and gradients must not move."""
    hidden_TD, weight_VD, _, targets_T = make()
    weight_T = make_weights("soft")
    sums = weighted_nll(hidden_TD, weight_VD, targets_T, weight_T)
    truth = torch.autograd.grad(sums[0], [hidden_TD, weight_VD])

    padded_TD = torch.cat([hidden_TD, torch.full((3, D), float("nan"))])
    padded_targets_T = torch.cat([targets_T, torch.full((3,), IGNORE_INDEX)])
    padded_weight_T = torch.cat([weight_T, torch.tensor([1.0, 5.0, float("nan")])])
    padded = weighted_nll(padded_TD, weight_VD, padded_targets_T, padded_weight_T, keep_logits=keep_logits)
    assert_same(padded, sums, atol=1e-12)
    assert_same(torch.autograd.grad(padded[0], [hidden_TD, weight_VD]), truth, atol=1e-12)


@pytest.mark.parametrize("case", ["nothing kept", "nothing valid", "no tokens"])
def test_empty_selection_is_a_connected_zero(case: str) -> None:
    """A mean over no token is NaN, and a constant 0 has no graph: the next all-reduce of gradients hangs."""
    hidden_TD, weight_VD, bias_V, targets_T = make()
    weight_T = make_weights("none" if case == "nothing kept" else "ones")
    if case == "nothing valid":
        targets_T = torch.full_like(targets_T, IGNORE_INDEX)
    num = 0 if case == "no tokens" else T
    head = LinearHead(weight_VD, bias_V)
    loss_sum, weight_sum = weighted_nll(hidden_TD[:num], head, targets_T[:num], weight_T[:num])
    assert loss_sum.item() == weight_sum.item() == 0
    loss_sum.backward()
    for leaf in (hidden_TD, weight_VD, bias_V):
        assert leaf.grad is not None
        assert (leaf.grad == 0).all()


def test_any_leading_shape() -> None:
    hidden_TD, weight_VD, _, targets_T = make()
    weight_T = make_weights("soft")
    flat = weighted_nll(hidden_TD, weight_VD, targets_T, weight_T)
    row = weighted_nll(hidden_TD[None], weight_VD, targets_T[None], weight_T[None])
    assert_same(row, flat, atol=0)
    flat_grads, row_grads = (torch.autograd.grad(x[0], [hidden_TD, weight_VD]) for x in (flat, row))
    assert_same(row_grads, flat_grads, atol=0)


def test_sums_are_scalars_and_only_the_first_has_a_gradient() -> None:
    """The weight is a decision, not a parameter: a gradient through it would teach the student to change the selection."""
    hidden_TD, weight_VD, _, targets_T = make(torch.float32)
    weight_T = torch.rand(T, generator=torch.Generator().manual_seed(3), requires_grad=True)
    loss_sum, weight_sum = weighted_nll(hidden_TD, weight_VD, targets_T, weight_T)
    assert loss_sum.shape == weight_sum.shape == ()
    assert loss_sum.dtype == weight_sum.dtype == torch.float32
    assert not weight_sum.requires_grad
    loss_sum.backward()
    assert weight_T.grad is None
    assert hidden_TD.grad is not None


def test_a_selection_is_a_weight_of_one() -> None:
    hidden_TD, weight_VD, _, targets_T = make()
    keep_T = make_weights("bool")
    by_bool = weighted_nll(hidden_TD, weight_VD, targets_T, keep_T)
    for kind in (torch.float32, torch.int64, torch.uint8):
        assert_same(weighted_nll(hidden_TD, weight_VD, targets_T, keep_T.to(kind)), by_bool, atol=0)
    assert by_bool[1].item() == int((keep_T & (targets_T != IGNORE_INDEX)).sum())


def test_order_of_tokens_does_not_count() -> None:
    hidden_TD, weight_VD, _, targets_T = make()
    weight_T = make_weights("soft with zeros")
    order = torch.randperm(T, generator=torch.Generator().manual_seed(4))
    loss_sum, _ = weighted_nll(hidden_TD, weight_VD, targets_T, weight_T, slice_columns=7)
    other_sum, _ = weighted_nll(hidden_TD[order], weight_VD, targets_T[order], weight_T[order], slice_columns=7)
    assert_same(other_sum, loss_sum)
    ours, other = (torch.autograd.grad(x, [hidden_TD, weight_VD]) for x in (loss_sum, other_sum))
    assert_same(other, ours)


@pytest.mark.parametrize("keep_logits", [True, False])
@pytest.mark.parametrize("max_rows", ["exact", "loose", "all", "beyond"])
def test_max_rows_changes_nothing(max_rows: str, keep_logits: bool) -> None:
    """A bound on the kept rows fills up with rows of weight 0: these add nothing, ignored ones among them."""
    hidden_TD, weight_VD, bias_V, targets_T = make()
    inputs, head = [hidden_TD, weight_VD, bias_V], LinearHead(weight_VD, bias_V, 1.5, 4.0)
    weight_T = make_weights("soft with zeros")
    num = int(((weight_T > 0) & (targets_T != IGNORE_INDEX)).sum())
    bound = {"exact": num, "loose": num + 3, "all": T, "beyond": T + 5}[max_rows]
    truth = weighted_nll(hidden_TD, head, targets_T, weight_T)
    bounded = LinearNLL(hidden_TD, head, targets_T, keep_logits=keep_logits, slice_columns=7).weighted_sum(
        weight_T, max_rows=bound
    )
    assert_same(bounded, truth)
    assert_same(torch.autograd.grad(bounded[0], inputs), torch.autograd.grad(truth[0], inputs))


@pytest.mark.parametrize("keep_logits", [True, False])
def test_places_left_over_read_no_broken_row(keep_logits: bool) -> None:
    """Rows without a weight may hold NaN (attention over nothing but padding); filled in with weight 0 they gave NaN gradients,
    since 0 * NaN is NaN."""
    hidden_TD, weight_VD, _, targets_T = make()
    keep_T = torch.arange(T) >= T // 2
    broken_TD = hidden_TD.detach().masked_fill(~keep_T.unsqueeze(-1), float("nan")).requires_grad_()
    truth = torch.autograd.grad(weighted_nll(hidden_TD, weight_VD, targets_T, keep_T)[0], [hidden_TD, weight_VD])
    head = LinearNLL(broken_TD, weight_VD, targets_T.masked_fill(~keep_T, IGNORE_INDEX), keep_logits=keep_logits)
    loss_sum, _ = head.weighted_sum(keep_T, max_rows=T)
    assert_same(torch.autograd.grad(loss_sum, [broken_TD, weight_VD]), truth)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_max_rows_of_an_empty_selection(dtype: torch.dtype) -> None:
    """The row that fills the list up may be one without a target: -100 is no row of a head, or a wrong one."""
    hidden_TD, weight_VD, _, targets_T = make(dtype)
    targets_T[0] = IGNORE_INDEX
    for bound in (0, 5):
        loss_sum, _ = LinearNLL(hidden_TD, weight_VD, targets_T).weighted_sum(make_weights("none"), max_rows=bound)
        grads = torch.autograd.grad(loss_sum, [hidden_TD, weight_VD])
        assert all((g == 0).all() for g in grads)


def test_weighted_sum_is_called_once() -> None:
    """A second call would run on logits that the first one's backward has freed."""
    hidden_TD, weight_VD, _, targets_T = make()
    head = LinearNLL(hidden_TD, weight_VD, targets_T)
    head.weighted_sum(make_weights("bool"))
    with pytest.raises(RuntimeError, match="weighted_sum"):
        head.weighted_sum(make_weights("bool"))


@pytest.mark.parametrize("keep_logits", [True, False])
def test_backward_twice_gives_the_same(keep_logits: bool) -> None:
    """``retain_graph=True``: the second backward finds the kept logits gone and computes them again."""
    hidden_TD, weight_VD, _, targets_T = make()
    loss_sum, _ = weighted_nll(hidden_TD, weight_VD, targets_T, make_weights("bool"), keep_logits=keep_logits)
    first = torch.autograd.grad(loss_sum, [hidden_TD, weight_VD], retain_graph=True)
    assert_same(torch.autograd.grad(loss_sum, [hidden_TD, weight_VD]), first)


def test_a_second_derivative_is_refused() -> None:
    """The backward takes the log-sum-exp for a constant: a gradient penalty through it came out wrong (151.5 instead of
    199.5 in a toy), without a word."""
    hidden_TD, weight_VD, _, targets_T = make()
    loss_sum, _ = weighted_nll(hidden_TD, weight_VD, targets_T, make_weights("ones"))
    (grad_TD,) = torch.autograd.grad(loss_sum, hidden_TD, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(grad_TD.square().sum(), weight_VD)


def test_no_grad() -> None:
    hidden_TD, weight_VD, _, targets_T = make()
    with torch.no_grad():
        loss_sum, weight_sum = weighted_nll(hidden_TD, weight_VD, targets_T, make_weights("soft"))
    truth = by_autograd(hidden_TD, LinearHead(weight_VD), targets_T, make_weights("soft"))
    assert not loss_sum.requires_grad
    assert_same((loss_sum, weight_sum), truth)


def test_wrong_shape_of_weight_is_refused() -> None:
    """Broadcasting [T] against [1, T] weights would hide that they belong to other tokens."""
    hidden_TD, weight_VD, _, targets_T = make()
    with pytest.raises(ValueError, match="weight has shape"):
        weighted_nll(hidden_TD, weight_VD, targets_T, torch.ones(T - 1))
    with pytest.raises(ValueError, match="weight has shape"):
        weighted_nll(hidden_TD[None], weight_VD, targets_T[None], torch.ones(T))


@pytest.mark.parametrize("keep_logits", KEEP_LOGITS)
def test_autocast(keep_logits: Any) -> None:
    """float32 parameters under bfloat16 autocast, backward outside of it: the sums and the leaves' gradients are
    float32, and what a bfloat16 head would give."""
    hidden_TD, weight_VD, bias_V, targets_T = make(torch.float32)
    inputs, weight_T = [hidden_TD, weight_VD, bias_V], make_weights("bool")
    head = LinearHead(weight_VD, bias_V)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss_sum, weight_sum = weighted_nll(hidden_TD, head, targets_T, weight_T, keep_logits=keep_logits)
    assert loss_sum.dtype == weight_sum.dtype == torch.float32
    grads = torch.autograd.grad(loss_sum, inputs)
    assert [g.dtype for g in grads] == [torch.float32] * 3
    low = [x.detach().bfloat16().requires_grad_() for x in inputs]
    low_sum, _ = weighted_nll(low[0], LinearHead(low[1], low[2]), targets_T, weight_T, keep_logits=keep_logits)
    assert_same(loss_sum, low_sum, atol=0)
    for ours, theirs in zip(grads, torch.autograd.grad(low_sum, low), strict=True):
        assert_same(ours.bfloat16(), theirs, atol=0)


def compiled_agrees(backend: str) -> None:
    inputs = make(torch.float32)
    hidden_TD, weight_VD, _, targets_T = inputs
    keep_T = make_weights("bool")
    truth = weighted_nll(hidden_TD, weight_VD, targets_T, keep_T)
    truth_grads = torch.autograd.grad(truth[0], [hidden_TD, weight_VD])
    torch._dynamo.reset()
    counters.clear()
    ours = torch.compile(weighted_nll, backend=backend)(hidden_TD, weight_VD, targets_T, keep_T)
    assert counters["frames"]["ok"] > 0  # else nothing was compiled, and eager was compared with itself
    assert_same(ours, truth, atol=1e-4)
    assert_same(torch.autograd.grad(ours[0], [hidden_TD, weight_VD]), truth_grads, atol=1e-4)


def test_traced_by_torch_compile() -> None:
    """Dynamo and AOT autograd trace it, graph breaks allowed, and nothing changes."""
    compiled_agrees("aot_eager")


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="torch.compile needs a C++ compiler")
def test_compiled_by_inductor() -> None:
    compiled_agrees("inductor")
