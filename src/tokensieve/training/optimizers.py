"""Subset-Norm and Subspace-Momentum: less state than AdamW [arXiv 2411.07120, checked against the authors' code].

    Subset-Norm         v_i <- b2 v_i + (1 - b2) sum of g^2 over row i (column, of a wide matrix): one number a row
    Subspace-Momentum   P: the first `rank` singular vectors of g, of its shorter side, anew every `gap` steps
                        m <- b1 m + (1 - b1) g P;   step along m P' + (g - g P P')
    w <- w - lr sqrt(1 - b2^t) / (1 - b1^t) step / (sqrt(v) + eps) - lr wd w

Second moments are float32 at least, whatever the weights are. Vectors keep AdamW's own state. A sum over a row makes steps
smaller than AdamW's by about the square root of its length: learning rates are larger by that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class SubsetNorm(torch.optim.Optimizer):
    """See above. ``betas[0]`` 0: no momentum, and no state for it."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        rank: int = 0,
        gap: int = 200,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "rank": rank, "gap": gap}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; the loss that ``closure`` gives, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group)
        return loss

    def _update(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[p], group["betas"]
        state["step"] = t = state.get("step", 0) + 1
        squares = subset_squares(grad if grad.dtype == torch.float64 else grad.float())
        v = state.setdefault("exp_avg_sq", torch.zeros_like(squares))
        v.mul_(beta2).add_(squares, alpha=1 - beta2)
        along = self._momentum(state, grad, group) if beta1 else grad
        size = group["lr"] * (1 - beta2**t) ** 0.5 / (1 - beta1**t)
        p.sub_((along * (size / (v.sqrt() + group["eps"]))).to(p.dtype))
        if group["weight_decay"]:
            p.mul_(1 - group["lr"] * group["weight_decay"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, which would round second moments to the dtype of the weights."""
        super().load_state_dict(state_dict)
        ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        mine = [p for group in self.param_groups for p in group["params"]]
        for i, p in zip(ids, mine, strict=True):
            if (saved := state_dict["state"].get(i, {}).get("exp_avg_sq")) is not None:
                self.state[p]["exp_avg_sq"] = saved.to(p.device, copy=True)

    def _momentum(self, state: dict[str, Any], grad: Tensor, group: dict[str, Any]) -> Tensor:
        beta1, rank = group["betas"][0], group["rank"]
        if not rank or grad.dim() != 2 or rank >= min(grad.shape):
            m: Tensor = state.setdefault("exp_avg", torch.zeros_like(grad))
            m.mul_(beta1).add_(grad, alpha=1 - beta1)
            return m
        tall = grad.shape[0] >= grad.shape[1]
        g = grad if tall else grad.T
        if "basis" not in state or state["step"] % group["gap"] == 0:
            state["basis"] = directions(g, rank)
            state["exp_avg"] = torch.zeros(len(g), rank, dtype=g.dtype, device=g.device)
        basis = state["basis"]
        low = g @ basis
        low_m = state["exp_avg"].mul_(beta1).add_(low, alpha=1 - beta1)
        along: Tensor = low_m @ basis.T + (g - low @ basis.T)
        return along if tall else along.T


def subset_squares(grad: Tensor) -> Tensor:
    """Sums of squares over the rows of a matrix with at least as many rows as columns, else over its columns: [rows, 1] or
    [1, columns]. Of anything but a matrix every square by itself."""
    if grad.dim() != 2:
        return grad.square()
    return grad.square().sum(1 if grad.shape[0] >= grad.shape[1] else 0, keepdim=True)


def directions(grad: Tensor, rank: int) -> Tensor:
    """The first right singular vectors of [rows, columns], orthonormal [columns, rank]."""
    basis: Tensor = torch.linalg.svd(grad.float(), full_matrices=False).Vh[:rank].T.to(grad.dtype).contiguous()
    return basis
