"""Second targets: the loss and its gradients against float64 autograd on full logits, and the pieces they come from."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from rule_oracles import second_loss, similar
from torch import Tensor

from tokensieve.core import IGNORE_INDEX, LinearHead, LinearNLL, objective
from tokensieve.core.targets import SparseTargets, similar_entries

T, D, V, K = 31, 6, 29, 5


def make(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(hidden_TD, weight_VD, bias_V, targets_T); some targets ignored."""
    g = torch.Generator().manual_seed(0)
    leaves = [torch.randn(*s, generator=g, dtype=torch.float64).to(dtype) for s in ((T, D), (V, D), (V,))]
    targets_T = torch.randint(0, V, (T,), generator=g)
    targets_T[torch.rand(T, generator=g) < 0.2] = IGNORE_INDEX
    return leaves[0].requires_grad_(), leaves[1].requires_grad_(), leaves[2].requires_grad_(), targets_T


def made_targets(targets_T: Tensor, dtype: torch.dtype = torch.float64, **fields: Any) -> SparseTargets:
    """K entries a token, fewer for some, none for one; the target among them for about every second token."""
    g = torch.Generator().manual_seed(3)
    ids_TK = torch.stack([torch.randperm(V, generator=g)[:K] for _ in range(T)])
    for t in range(0, T, 2):
        if targets_T[t] >= 0 and not (ids_TK[t] == targets_T[t]).any():
            ids_TK[t, t % K] = targets_T[t]
    ids_TK[1:T:5, 3:] = -1
    ids_TK[4] = -1
    probs_TK = torch.rand(T, K, generator=g, dtype=torch.float64)
    probs_TK = probs_TK / probs_TK.sum(-1, keepdim=True) * torch.rand(T, 1, generator=g, dtype=torch.float64)
    return SparseTargets(ids_TK, probs_TK.to(dtype), **fields)


def logits_of(hidden_TD: Tensor, head: LinearHead) -> Tensor:
    logits_TV = (hidden_TD @ head.weight.T + (0 if head.bias is None else head.bias)) * head.logit_scale
    return logits_TV if head.softcap is None else head.softcap * torch.tanh(logits_TV / head.softcap)


def truth(logits_TV: Tensor, targets_T: Tensor, weight_T: Tensor, second: SparseTargets) -> Tensor:
    """``sum(weight * loss)``, token by token on full logits, differentiable."""
    log_p_TV, total = logits_TV.log_softmax(-1), logits_TV.new_zeros(())
    for t in range(T):
        if targets_T[t] != IGNORE_INDEX and weight_T[t] != 0:
            total = total + weight_T[t] * second_loss(
                log_p_TV[t],
                int(targets_T[t]),
                second.ids[t].tolist(),
                second.probs[t].tolist(),
                second.share,
                second.rest,
                second.divergence,
            )
    return total


@pytest.mark.parametrize("keep_logits", [True, False])
@pytest.mark.parametrize(("rest", "divergence"), [(True, False), (True, True), (False, False)])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (1.5, 4.0)])
def test_loss_and_gradients_are_those_of_full_logits(
    share: float, rest: bool, divergence: bool, scale: float, softcap: float | None, keep_logits: bool
) -> None:
    """The rest left out of the gradient, the target's own entry counted twice or not at all, the cap's derivative."""
    hidden_TD, weight_VD, bias_V, targets_T = make()
    head, inputs = LinearHead(weight_VD, bias_V, scale, softcap), [hidden_TD, weight_VD, bias_V]
    second = made_targets(targets_T, share=share, rest=rest, divergence=divergence)
    weight_T = torch.tensor([1.0, 0.0, -0.7, 2.0] * T, dtype=torch.float64)[:T]
    wanted = truth(logits_of(hidden_TD, head), targets_T, weight_T, second)
    gradients = torch.autograd.grad(wanted, inputs)
    for columns, max_rows in ((1, None), (7, T), (V, None)):
        made = LinearNLL(hidden_TD, head, targets_T, second=second, keep_logits=keep_logits, slice_columns=columns)
        loss_sum, weight_sum = made.weighted_sum(weight_T, max_rows=max_rows)
        torch.testing.assert_close(loss_sum, wanted, rtol=0, atol=1e-10)
        assert float(weight_sum) == pytest.approx(float(weight_T[targets_T != IGNORE_INDEX].sum()))
        for found, there in zip(torch.autograd.grad(loss_sum, inputs), gradients, strict=True):
            torch.testing.assert_close(found, there, rtol=0, atol=1e-10)


def test_a_share_of_none_is_the_plain_loss_to_the_last_bit() -> None:
    hidden_TD, weight_VD, _, targets_T = make(torch.float32)
    weight_T = torch.rand(T, generator=torch.Generator().manual_seed(1))
    second = made_targets(targets_T, torch.float32, share=0.0)
    found = [
        torch.autograd.grad(
            LinearNLL(hidden_TD, weight_VD, targets_T, second=s, slice_columns=7).weighted_sum(weight_T)[0], hidden_TD
        )[0]
        for s in (None, second)
    ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-6)


def test_what_changes_nothing() -> None:
    """Rows in another order, a constant on all logits of a token, more places without an entry, entries in another order."""
    hidden_TD, weight_VD, bias_V, targets_T = make()
    second = made_targets(targets_T, share=0.6)
    order_T = torch.randperm(T, generator=torch.Generator().manual_seed(4))
    no_T1 = torch.full((T, 2), -1)
    padded = replace(second, ids=torch.cat([no_T1, second.ids], -1), probs=torch.cat([no_T1 + 1.0, second.probs], -1))
    turned = replace(second, ids=second.ids.flip(-1), probs=second.probs.flip(-1))
    moved = replace(second, ids=second.ids[order_T], probs=second.probs[order_T])

    def loss(other: SparseTargets, rows_T: Tensor, constant: float = 0.0) -> Tensor:
        head = LinearHead(weight_VD, bias_V + constant)
        return LinearNLL(hidden_TD[rows_T], head, targets_T[rows_T], second=other, slice_columns=6).loss

    as_is_T, rows_T = torch.arange(T), loss(second, torch.arange(T))
    for found_T in (loss(padded, as_is_T), loss(turned, as_is_T), loss(second, as_is_T, 40.0)):
        torch.testing.assert_close(found_T, rows_T, rtol=0, atol=1e-12)
    torch.testing.assert_close(loss(moved, order_T), rows_T[order_T], rtol=0, atol=1e-12)
    plain_T = LinearNLL(hidden_TD, LinearHead(weight_VD, bias_V), targets_T).nll
    assert (rows_T[targets_T == IGNORE_INDEX] == 0).all()
    assert (rows_T >= 0.4 * plain_T).all()  # a cross-entropy is at least 0


def test_a_student_that_is_the_teacher_feels_nothing() -> None:
    """Entries cut off and left out, or renormalised, pull a student away from the very teacher."""
    hidden_TD, weight_VD, _, targets_T = make()
    teacher = LinearNLL(hidden_TD.detach(), weight_VD.detach(), targets_T, top_k=K, slice_columns=4)
    ids_TK, log_p_TK = teacher.topk
    second = SparseTargets(ids_TK, log_p_TK.exp(), divergence=True)
    made = LinearNLL(hidden_TD, weight_VD, targets_T, second=second)
    loss_sum, _ = made.weighted_sum(torch.ones(T))
    assert abs(float(loss_sum.detach())) < 1e-10
    assert float(torch.autograd.grad(loss_sum, hidden_TD)[0].abs().max()) < 1e-10


@pytest.mark.parametrize("slice_columns", [1, 3, 7, 100])
def test_top_entries_are_those_of_a_sort(slice_columns: int) -> None:
    hidden_TD, weight_VD, bias_V, targets_T = make()
    head = LinearHead(weight_VD, bias_V)
    made = LinearNLL(hidden_TD, head, targets_T, top_k=K, slice_columns=slice_columns)
    wanted = logits_of(hidden_TD, head).log_softmax(-1).sort(-1, descending=True)
    valid_T = targets_T != IGNORE_INDEX
    for found, there in zip(made.topk, (wanted.indices, wanted.values.detach()), strict=True):
        torch.testing.assert_close(found[valid_T], there[valid_T, :K])
        assert not found[~valid_T].any()


def test_a_sure_student_loses_no_digit() -> None:
    """R as 1 - sum(p) is 0 in float32 here, and its logarithm infinite; the gradient at the target p - 1."""
    hidden_TD = torch.ones(1, 1, requires_grad=True)
    logits_V = [30.0, 3.0, 2.0, 1.0, 0.0]
    second = SparseTargets(torch.tensor([[0, 1]]), torch.tensor([[0.9, 0.05]]))
    head = torch.tensor(logits_V)[:, None].requires_grad_()
    loss_sum, _ = LinearNLL(hidden_TD, head, torch.tensor([0]), second=second).weighted_sum(torch.ones(1))
    (found,) = torch.autograd.grad(loss_sum, head)
    exact = torch.tensor(logits_V, dtype=torch.float64).requires_grad_()
    wanted = second_loss(exact.log_softmax(-1), 0, [0, 1], [0.9, 0.05], 1.0, True, False)
    (gradient,) = torch.autograd.grad(wanted, exact)
    assert float(loss_sum.detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)
    torch.testing.assert_close(found[:, 0].double(), gradient, rtol=1e-5, atol=1e-7)


def test_low_dtypes_and_autocast_stay_near() -> None:
    hidden_TD, weight_VD, _, targets_T = make()
    second = made_targets(targets_T, share=0.5)
    wanted = truth(logits_of(hidden_TD, LinearHead(weight_VD)), targets_T, torch.ones(T), second)
    gradient = torch.autograd.grad(wanted, hidden_TD)[0]
    low_TD, low_VD = hidden_TD.detach().float().requires_grad_(), weight_VD.detach().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = LinearNLL(low_TD, low_VD, targets_T, second=second, slice_columns=7)
        found = torch.autograd.grad(made.weighted_sum(torch.ones(T))[0], low_TD)[0]
    assert float((found.double() - gradient).norm() / gradient.norm()) < 0.02  # bfloat16 has 1/256


@pytest.mark.parametrize("k", [1, 4, 50])
def test_similar_entries_are_their_definition(k: int) -> None:
    g = torch.Generator().manual_seed(0)
    table_VD = torch.randn(11, 3, generator=g, dtype=torch.float64)
    table_VD[5] = 0
    made = similar_entries(table_VD, k, 0.3)
    for y in range(11):
        wanted = similar(table_VD.tolist(), y, k, 0.3)
        found = {int(i): float(q) for i, q in zip(made.ids[y], made.probs[y], strict=True) if i >= 0}
        assert found.keys() == wanted.keys()
        assert all(math.isclose(found[v], wanted[v], rel_tol=1e-4) for v in wanted)


# --- the objectives -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["smooth", "distill"])
def test_weights_are_those_of_the_rule_they_are_put_on(name: str) -> None:
    """Soft x hard: dft's weights of what rho1 keeps."""
    of = {"name": "intersect", "of": [{"name": "dft"}, {"name": "rho1", "ratio": 0.4}], "denominator": "valid"}
    made, inner = objective(name, of=of, share=0.3), objective(**of)
    assert (made.needs, made.scope, made.denominator, made.selects) == (
        inner.needs,
        inner.scope,
        "valid",
        inner.selects,
    )
    assert torch.equal(made.weigh(_known()), inner.weigh(_known()))
    assert made.share is not None
    assert made.share(None) == 0.3  # type: ignore[arg-type]
    assert made.second == objective(name).second


def test_a_share_that_moves_with_the_steps() -> None:
    made = objective("schedule", of={"name": "distill"}, option="share", points=[[0, 1.0], [10, 0.0]])
    known = replace(_known(), step=4)
    assert made.share is not None
    assert made.share(known) == pytest.approx(0.6)
    assert made.second == objective("distill").second


def _known() -> Any:
    from rule_batches import batch, stats_of

    return stats_of(batch())


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("distill", {"share": 1.5}, "share is 1.5"),
        ("distill", {"top_k": 0}, "top_k is 0"),
        ("distill", {"rest": "none"}, "rest is 'none'"),
        (
            "distill",
            {"of": {"name": "rho1"}, "ratio": 0.5},
            "a ratio chooses the tokens by divergence, so it goes without of",
        ),
        ("distill", {"ratio": 0.5, "reference": "divergence"}, "'divergence' is a statistic of the student's"),
        ("distill", {"of": {"name": "smooth"}}, "'smooth' has a second target already"),
        ("distill", {"of": "rho1"}, "an objective, as {name: rho1}, is needed, not rho1"),
        ("smooth", {"temperature": 0.0}, "temperature is 0"),
        ("intersect", {"of": [{"name": "distill"}, {"name": "rho1"}]}, "put intersect into the of of 'distill'"),
        ("schedule", {"of": {"name": "smooth"}, "option": "top_k", "points": [[0, 1], [9, 5]]}, "second target cannot"),
    ],
)
def test_options_that_make_no_sense(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says.replace("{", r"\{").replace("}", r"\}")):
        objective(name, **options)


def test_shapes_and_backends_that_do_not_fit() -> None:
    hidden_TD, weight_VD, _, targets_T = make()
    second = made_targets(targets_T)
    with pytest.raises(ValueError, match="second targets have leading shape"):
        LinearNLL(hidden_TD, weight_VD, targets_T, second=SparseTargets(second.ids[1:], second.probs[1:]))
    with pytest.raises(ValueError, match=r"ids have shape .* probs"):
        SparseTargets(second.ids, second.probs[1:])
    with pytest.raises(ValueError, match="share is 2"):
        replace(second, share=2)
    with pytest.raises(ValueError, match="entries were not asked for"):
        LinearNLL(hidden_TD, weight_VD, targets_T).topk  # noqa: B018
    with pytest.raises(ValueError, match="top_k is 1000"):
        LinearNLL(hidden_TD, weight_VD, targets_T, top_k=1000)
