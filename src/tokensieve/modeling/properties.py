"""What must hold of a model, as judgements on what :mod:`.probe` found: a sentence for each that does not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .probe_rows import Changes


@dataclass(frozen=True)
class Tolerance:
    """What rounding may do in one dtype, with logits of +-30. Measured on the classes of tests/modeling/test_probe.py."""

    loss: float
    """Of the model's own loss against ours, relative."""
    logit: float
    """Distance of numbers near 30 in that dtype: what rounding may do to the own loss of a single target, in nats."""
    same: tuple[float, float]
    """Nats between forwards of one shape: least and most. Between them a tenth of what a change does to the tokens after it."""
    apart: tuple[float, float]
    """Nats between forwards of other shapes."""


_FLOAT32 = Tolerance(1e-3, 0.0, (1e-4, 1e-2), (1e-3, 1e-2))
TOLERANCES = {
    torch.float64: _FLOAT32,  # transformers' norms compute in float32 all the same
    torch.float32: _FLOAT32,
    torch.float16: Tolerance(5e-3, 2**-6, (5e-3, 0.1), (0.05, 0.1)),
    torch.bfloat16: Tolerance(2e-2, 2**-3, (2e-2, 0.5), (0.25, 0.5)),
}
# Share of tokens that may move all the same: a mixture's router may send some elsewhere for the last bit of a number.
MOVED_SAME, MOVED_APART = 0.1, 0.25


@dataclass(frozen=True)
class Findings:
    """What the forwards of a micro-batch showed."""

    model: nn.Module
    dtype: torch.dtype
    """What was computed in."""
    finite: bool
    """The nll of all targets, and the model's own loss."""
    own_loss: float
    our_loss: float
    targets: int
    """How many both losses are means of."""
    changes: Changes
    moved_BT: Tensor
    """Nats between the nll with the changes and without; 0 where there is no target."""
    apart_BT: Tensor
    """Nats between the nll of what was fed by itself and in its batch; NaN elsewhere."""
    lengths: tuple[int, int]
    """Tokens of the shortest and of the longest piece (row)."""
    beside: float = 0.0
    """What the model adds to a loss of 0 in a forward that makes no logits: its router losses."""

    @property
    def name(self) -> str:
        return type(self.model).__name__

    def tolerance(self, bounds: tuple[float, float]) -> float:
        """A tenth of what a change does to the tokens that may see it, within bounds; the least where there are none."""
        through = self.moved_BT[self.changes.through]
        return min(max(0.1 * float(through.median()), bounds[0]), bounds[1]) if through.numel() else bounds[0]


def _finite(found: Findings) -> str | None:
    return nonfinite(found.model, found.dtype) if not found.finite or first_nonfinite(found.model) else None


def nonfinite(model: nn.Module, dtype: torch.dtype) -> str:
    """What is wrong with a model whose numbers are not finite: its weights, or what it computes in."""
    if name := first_nonfinite(model):
        return f"{type(model).__name__} has weights that are not finite, the first in {name}: take another checkpoint"
    told = str(dtype).removeprefix("torch.")
    return (
        f"{type(model).__name__} gives numbers that are not finite, though all of its weights are: it overflows in {told}"
        + (", compute in bfloat16 or float32" if dtype == torch.float16 else "")
    )


def is_mask(bias: Tensor) -> bool:
    """-inf for some, a number for the others: a vocabulary of which a part is never predicted."""
    bias = bias.to_local() if hasattr(bias, "to_local") else bias
    return bool((bias == float("-inf")).any()) and not bool((bias.isnan() | (bias == float("inf"))).any())


def first_nonfinite(model: nn.Module) -> str | None:
    """The first parameter with a NaN or an infinity (of a rank's own share). Reads all weights once."""
    names, largest = [], []
    for name, parameter in model.named_parameters():
        local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        if (
            local.dtype in TOLERANCES and local.numel() and not (name.endswith(".bias") and is_mask(local))
        ):  # isfinite would write a mask of the weights' size
            names.append(name)
            largest.append(torch.linalg.vector_norm(local.detach(), float("inf")).float())
    finite = torch.stack([n.to(largest[0].device) for n in largest]).isfinite().tolist() if largest else []
    return next((name for name, fine in zip(names, finite, strict=True) if not fine), None)


def _own_loss(found: Findings) -> str | None:
    if found.own_loss == found.our_loss:  # both infinite, perhaps
        return None
    bounds = TOLERANCES[found.dtype]
    # Rounded logits of many targets even out. Of a single one they do not, and a soft-cap rounds three times.
    rounding = bounds.logit / max(1, found.targets) ** 0.5
    if abs(found.own_loss - found.our_loss) <= bounds.loss * max(1.0, abs(found.own_loss)) + rounding:
        return None
    return (
        f"{found.name} computes a loss of {found.own_loss:.5f} where its head's weights give {found.our_loss:.5f}: "
        "its head does more than tokensieve knows of"
    )


def _no_logits_needed(found: Findings) -> str | None:
    """A z-loss is a mean over logits, of which there are none: NaN in every step, while the gradients go on without it."""
    if math.isfinite(found.beside):
        return None
    return (
        f"{found.name} adds to its loss what it makes of its logits (a z-loss?), which are never made here: "
        "set its coefficient in the model's config to 0"
    )


def _same(found: Findings, where_BT: Tensor) -> str | None:
    """What moved of tokens that a change must not reach: too many, or those nearest to it in every other row."""
    tolerance = found.tolerance(TOLERANCES[found.dtype].same)
    near_BT = where_BT & found.changes.nearest
    moved_BT = where_BT & (found.moved_BT > tolerance)
    rows = near_BT.any(1)
    nearest = bool(rows.any()) and float((moved_BT & near_BT).any(1)[rows].float().mean()) >= 0.5
    if not nearest and int(moved_BT.sum()) <= MOVED_SAME * int(where_BT.sum()):
        return None
    return f"{int(moved_BT.sum())} of {int(where_BT.sum())} tokens by up to {float(found.moved_BT[where_BT].max()):.3f} nats"


def _independent(found: Findings) -> str | None:
    told = _same(found, found.changes.still)
    return told and (
        f"{found.name} lets the rows of a batch see each other: other tokens in a neighbour move the nll of {told}"
    )


def _causal(found: Findings) -> str | None:
    told = _same(found, found.changes.before)
    return told and (
        f"{found.name} sees later tokens: a change moves the nll of {told} that come before it; it is no causal language "
        "model as it is configured (is_decoder, use_bidirectional_attention ...)"
    )


def _isolating(found: Findings) -> str | None:
    told = _same(found, found.changes.later)
    return told and (
        f"{found.name} looks across document boundaries: a change in one document moves the nll of {told} in later ones; "
        "prepare the corpus with isolate_documents: false for it"
    )


def _alone(found: Findings) -> str | None:
    there = found.apart_BT[~found.apart_BT.isnan()]
    moved = int((there > found.tolerance(TOLERANCES[found.dtype].apart)).sum())
    shortest, most = found.lengths
    rope = rope_by_batch(found.model, shortest, most)
    if not rope and moved <= MOVED_APART * len(there):
        return None
    why = f": its rope scaling {rope!r} follows the longest position in a batch" if rope else ""
    return (
        f"{found.name} gives a document or row another nll beside others than alone{why} ({moved} of {len(there)} tokens moved "
        f"by up to {float(there.max()) if len(there) else 0:.3f} nats, with pieces of {shortest} to {most} tokens); "
        "use rows of one length that are not isolated, or another model"
    )


def rope_by_batch(model: nn.Module, shortest: int, most: int) -> str | None:
    """The name of a rope scaling that gives pieces of these lengths other frequencies in one batch than apart, or None.

    Known from the config: with new weights attention hardly depends on positions yet, and the numbers show little.
    """
    config: Any = model.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    scaling = getattr(config, "rope_parameters", None) or {}
    for entry in [scaling, *(v for v in scaling.values() if isinstance(v, dict))]:
        original = int(
            entry.get("original_max_position_embeddings") or getattr(config, "max_position_embeddings", 0) or most
        )
        kind = entry.get("rope_type")
        if most > original and (
            (kind == "longrope" and shortest <= original) or (kind == "dynamic" and shortest < most)
        ):
            return str(kind)
    return None


# In the order in which they are told: each means something only if those before it hold.
PROPERTIES = (_finite, _own_loss, _no_logits_needed, _independent, _causal, _isolating, _alone)
