"""Proof, before the first step, that the fast path's gradients are those of the reference gate for this model as it is fed.

Costs two forwards and backwards of a small micro-batch, one of them with a gate in the way of plain autograd, and for their
time one more copy of the gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ...runs.errors import UserError
from .backward import SparseBackward
from .gate import gated
from .tape import Store

# Of a parameter's gradient, as norms. What is not served is off by tenths: whole paths are missing or see what they should not.
# In float64 some norms of transformers still compute in float32.
GRADIENT_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}
# A gradient that is 0 but for rounding (keys' biases) is held against this share of the largest.
NEGLIGIBLE = 1e-2


def wrong_gradients(
    sparse: SparseBackward,
    named: Iterable[tuple[str, nn.Parameter]],
    loss: Callable[[], Tensor],
    keep_BT: Tensor,
    store: Store,
    dtype: torch.dtype,
) -> str | None:
    """A sentence on the parameter whose gradient is farthest from the reference gate's, or None where all agree.

    ``loss()``: a forward of the run's own (wrapped) model, the same each time, whose loss gives a gradient at the positions
    ``keep`` only; ``dtype`` the one it computes in. Parameters have no gradient before and none after.
    """
    parameters = [(name, p) for name, p in named if p.requires_grad]
    kind = keep_BT.device.type

    def gradients() -> list[Tensor | None]:
        with torch.random.fork_rng(devices=[keep_BT.device] if kind == "cuda" else []):
            torch.manual_seed(0)  # the same dropout in both
            loss().backward()
        found = [_local(p.grad) for _, p in parameters]
        for _, parameter in parameters:
            parameter.grad = None
        return found

    name = type(sparse.blocks[0]).__name__
    try:
        with gated(sparse.blocks, keep_BT, sparse.switch, strict=sparse.strict), sparse.own_checkpointing():
            reference = gradients()
        with sparse.forward(keep=keep_BT if store == "kept" else None, store=store) as selection:
            if selection.kept is None:
                selection.choose(keep_BT)
            ours = gradients()
    except UserError as e:
        return str(e)
    except (TypeError, ValueError, LookupError, AttributeError, AssertionError, RuntimeError) as e:
        if isinstance(e, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(e):
            raise
        told = (str(e).strip() or type(e).__name__).split("\n")[0]
        return f"backward: sparse cannot serve {name}: {told}; use backward: exact"
    worst, where = farthest([n for n, _ in parameters], ours, reference)
    if worst <= GRADIENT_TOLERANCE[dtype]:
        return None
    return (
        f"backward: sparse does not serve {name}: its gradient to {where} is {worst:.1g} from the reference gate's, "
        "relative to its norm; use backward: exact"
    )


def farthest(names: list[str], ours: list[Tensor | None], reference: list[Tensor | None]) -> tuple[float, str]:
    """(largest ``|ours - reference| / |reference|`` of a parameter, its name); inf where only one of them has a gradient."""
    norms = [0.0 if g is None else float(g.double().norm()) for g in reference]
    least = NEGLIGIBLE * max(norms, default=0.0) or 1.0
    worst, where = 0.0, ""
    for name, mine, theirs, norm in zip(names, ours, reference, norms, strict=True):
        if mine is None and theirs is None:
            continue
        gap = math.inf if mine is None or theirs is None else float((mine.double() - theirs.double()).norm())
        relative = math.inf if math.isnan(gap) else gap / max(norm, least)
        if relative > worst:
            worst, where = relative, name
    return worst, where


def _local(grad: Tensor | None) -> Tensor | None:
    """This rank's part of a sharded gradient."""
    return grad.to_local() if hasattr(grad, "to_local") else grad  # type: ignore[union-attr]
