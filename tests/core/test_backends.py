"""Other libraries' heads behind the same function: same sums, same gradients, or a refusal."""

from __future__ import annotations

import os
from importlib import metadata, util
from typing import Any

import pytest
import torch
from torch import Tensor

from tokensieve.core import IGNORE_INDEX, LinearHead, LinearNLL, backends, weighted_nll

T, D, V = 60, 16, 97


def needs(name: str) -> Any:
    """Skips a backend whose library is not here, or cannot run here (Triton without a GPU, unless interpreted)."""
    there, why = True, ""
    if name == "liger":
        there = util.find_spec("liger_kernel") is not None and util.find_spec("triton") is not None
        there = there and (torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1")
        why = "needs liger-kernel and triton, and a GPU or TRITON_INTERPRET=1"
    if name == "torch":
        there, why = hasattr(torch.nn.functional, "linear_cross_entropy"), "needs torch >= 2.13"
    return pytest.param(name, marks=pytest.mark.skipif(not there, reason=why))


BACKENDS = [needs("torch"), needs("liger")]


def make(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    targets_T = torch.randint(0, V, (T,), generator=g)
    targets_T[torch.rand(T, generator=g) < 0.2] = IGNORE_INDEX
    hidden_TD = torch.randn(T, D, generator=g).to(dtype).requires_grad_()
    weight_VD = torch.randn(V, D, generator=g).to(dtype).requires_grad_()
    return hidden_TD, weight_VD, targets_T, torch.rand(T, generator=g) < 0.6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_same_sums_and_gradients(backend: str, scale: float) -> None:
    """A mask times somebody's reduction="none" loss: in Liger before 0.8.2 all gradients were multiplied by the first one."""
    hidden_TD, weight_VD, targets_T, keep_T = make()
    bias_V = torch.linspace(-1, 1, V).requires_grad_()
    head, inputs = LinearHead(weight_VD, bias_V, logit_scale=scale), [hidden_TD, weight_VD, bias_V]
    truth = weighted_nll(hidden_TD, head, targets_T, keep_T)
    found = weighted_nll(hidden_TD, head, targets_T, keep_T, backend=backend)
    torch.testing.assert_close(found, truth, rtol=0, atol=0)
    for ours, theirs in zip(
        torch.autograd.grad(truth[0] * 0.37, inputs), torch.autograd.grad(found[0] * 0.37, inputs), strict=True
    ):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nll_does_not_depend_on_the_backend(backend: str) -> None:
    """What is chosen is decided by our own pass: another kernel's last bits must not choose other tokens."""
    hidden_TD, weight_VD, targets_T, _ = make(torch.bfloat16)
    assert torch.equal(
        LinearNLL(hidden_TD, weight_VD, targets_T, backend=backend).nll, LinearNLL(hidden_TD, weight_VD, targets_T).nll
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_kept(backend: str) -> None:
    hidden_TD, weight_VD, targets_T, _ = make()
    loss_sum, weight_sum = weighted_nll(hidden_TD, weight_VD, targets_T, torch.zeros(T), backend=backend)
    assert loss_sum.item() == weight_sum.item() == 0
    assert all((g == 0).all() for g in torch.autograd.grad(loss_sum, [hidden_TD, weight_VD]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_soft_weights_are_refused(backend: str) -> None:
    """Rows are summed, not weighed: a weight of 0.5 would silently count as 1."""
    hidden_TD, weight_VD, targets_T, keep_T = make()
    with pytest.raises(ValueError, match="0 and 1"):
        weighted_nll(hidden_TD, weight_VD, targets_T, keep_T * 0.5, backend=backend)


def test_a_cap_that_torch_does_not_know_is_refused() -> None:
    hidden_TD, weight_VD, targets_T, keep_T = make()
    with pytest.raises(ValueError, match="soft-cap"):
        weighted_nll(hidden_TD, LinearHead(weight_VD, softcap=5.0), targets_T, keep_T, backend="torch")


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown head backend 'cce': one of tokensieve, torch, liger"):
        weighted_nll(*make(), backend="cce")


@pytest.mark.parametrize(
    ("backend", "package", "version", "fine"),
    [
        ("liger", "liger-kernel", "0.8.1", False),
        ("liger", "liger-kernel", "0.8.2", True),
        ("liger", "liger-kernel", "0.10.0", True),
        ("liger", "liger-kernel", None, False),
        ("torch", "torch", "2.12.1+cpu", False),
        ("torch", "torch", "2.13.0+cpu", True),
    ],
)
def test_versions_known_wrong_are_refused(
    monkeypatch: pytest.MonkeyPatch, backend: str, package: str, version: str | None, fine: bool
) -> None:
    def found(name: str) -> str:
        assert name == package
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(backends.metadata, "version", found)
    backends._require.cache_clear()
    try:
        if fine:
            backends.check_backend(backend)
        else:
            with pytest.raises(ImportError, match=package):
                backends.check_backend(backend)
    finally:
        backends._require.cache_clear()
