"""Other libraries' fused heads for the backward half of ``weighted_nll``: the same sums, somebody else's kernel.

The first pass, which gives the nll that tokens are chosen by, is ours in any case: a fused loss of all rows times a mask costs
more than plain training, because its backward computes all rows. What a backend is given are the selected rows alone, and it
sums them: 3 units of head matmul a row, no logits kept.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import metadata

import torch
from torch import Tensor

from .head import LinearHead

# Before 0.8.2 Liger's reduction="none" multiplied all gradients by that of the first token; nobody should have it around.
LIGER_FLOOR = (0, 8, 2)
TORCH_FLOOR = (2, 13, 0)


def torch_sum(hidden_RD: Tensor, head: LinearHead, targets_R: Tensor) -> Tensor:
    """``sum_r nll_r`` by ``torch.nn.functional.linear_cross_entropy``, chunked. Has no soft-cap."""
    _require("torch", TORCH_FLOOR)
    if head.softcap is not None:
        raise ValueError("the torch backend has no logit soft-cap: use backend='tokensieve' or 'liger'")
    # From 2.13 on only; the floor of the package is lower.
    function, options = torch.nn.functional.linear_cross_entropy, torch.nn.LinearCrossEntropyOptions()
    bias_V = None if head.bias is None else head.bias * head.logit_scale
    return function(
        hidden_RD * head.logit_scale,
        head.weight.to(hidden_RD.dtype),
        targets_R,
        linear_bias=None if bias_V is None else bias_V.to(hidden_RD.dtype),
        reduction="sum",
        options=options,
    )


def liger_sum(hidden_RD: Tensor, head: LinearHead, targets_R: Tensor) -> Tensor:
    """``sum_r nll_r`` by Liger's fused linear cross-entropy (Triton kernels), head gradient in float32."""
    _require("liger-kernel", LIGER_FLOOR)
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    bias_V = None if head.bias is None else (head.bias * head.logit_scale).to(hidden_RD.dtype)
    out = LigerFusedLinearCrossEntropyFunction.apply(
        hidden_RD * head.logit_scale,
        head.weight.to(hidden_RD.dtype),
        targets_R,
        bias_V,
        None,  # class weights
        -100,
        0.0,  # z-loss
        0.0,  # label smoothing
        "sum",
        head.softcap,
        False,  # return the z-loss
        torch.float32,  # what the head's gradient is summed in
    )
    loss_sum: Tensor = out[0] if isinstance(out, tuple) else out
    return loss_sum


Backend = Callable[[Tensor, LinearHead, Tensor], Tensor]
# name -> sum of nll over rows, differentiable. Our own is no entry: it is the one that shares the first pass.
BACKENDS: dict[str, Backend] = {"torch": torch_sum, "liger": liger_sum}
OWN = "tokensieve"


def check_backend(name: str) -> None:
    """Raise ValueError for a backend that does not exist, ImportError for one not installed or in a version known wrong."""
    if name != OWN and name not in BACKENDS:
        raise ValueError(f"unknown head backend {name!r}: one of {', '.join([OWN, *BACKENDS])}")
    if name == "liger":
        _require("liger-kernel", LIGER_FLOOR)
    if name == "torch":
        _require("torch", TORCH_FLOOR)


def selected_sum(name: str, hidden_RD: Tensor, head: LinearHead, targets_R: Tensor, value: Tensor) -> Tensor:
    """``value`` with the gradient of the backend's sum over kept rows: some sum in the input's dtype, ours is float32.

    A row whose target is -100 adds nothing to either.
    """
    if not targets_R.numel():
        return value + 0 * (hidden_RD.sum() + head.weight[:0].sum()).to(value.dtype)
    with torch.autocast(hidden_RD.device.type, enabled=False):
        loss_sum = BACKENDS[name](hidden_RD, head, targets_R)
    return value + (loss_sum - loss_sum.detach()).to(value.dtype)


@cache  # asked at every micro-batch
def _require(package: str, floor: tuple[int, ...]) -> None:
    wanted = ".".join(map(str, floor))
    try:
        found = metadata.version(package)
    except metadata.PackageNotFoundError:
        raise ImportError(f"the backend needs {package} >= {wanted}, which is not installed") from None
    if tuple(int(n) for n in found.split("+")[0].split(".")[:3] if n.isdigit()) < floor:
        raise ImportError(
            f"the backend needs {package} >= {wanted}; {found} is known to be wrong or has no such function"
        )
