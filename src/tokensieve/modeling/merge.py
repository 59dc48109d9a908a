"""Several models of one shape as one: linear, task arithmetic, TIES. Weights are merged in float64, each by itself.

    linear              theta = sum_i w_i theta_i / sum_i w_i                                   over the base as well
    task arithmetic     theta = theta_0 + scale sum_i w_i tau_i,   tau_i = theta_i - theta_0      (arXiv 2212.04089, section 2)
    ties                theta = theta_0 + scale tau                                             (arXiv 2306.01708, Algorithm 1)
        trim     of each tau_i, over all its weights together, the share ``density`` of largest magnitude; the rest is 0
        elect    gamma = sign(sum_i w_i tau_i)
        merge    tau = sum of w_i tau_i over models of that sign / sum of their w_i; 0 where there is none

TIES was read in the authors' code (utils/merge_utils.py: topk_values_mask, resolve_sign "mass", disjoint_merge "mean"). Two
differences: a threshold there keeps one weight more than the share, and where a sum is exactly 0 theirs takes the sign of most
weights of the model and ours gives 0, as the paper has it. w_i are ours: 1 is theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..runs.errors import UserError

MergeMethod = Literal["linear", "task_arithmetic", "ties"]


def linear(weights: Sequence[Tensor], share: Sequence[float]) -> Tensor:
    """``sum_i share_i theta_i / sum_i share_i``, as the first and its differences: of equal ones exactly these."""
    first, total = weights[0].double(), sum(share)
    parts = [s / total * (w.double() - first) for w, s in zip(weights[1:], share[1:], strict=True)]
    return first + torch.stack(parts).sum(0) if parts else first


def task_arithmetic(base: Tensor, weights: Sequence[Tensor], share: Sequence[float], scale: float) -> Tensor:
    """``base + scale sum_i share_i (theta_i - base)``."""
    base = base.double()
    return base + scale * torch.stack([s * (w.double() - base) for w, s in zip(weights, share, strict=True)]).sum(0)


def ties(
    base: Tensor, weights: Sequence[Tensor], share: Sequence[float], scale: float, thresholds: Sequence[float]
) -> Tensor:
    """Elect and merge of what is trimmed by each model's ``thresholds``: differences below it count for nothing."""
    base = base.double()
    taus = torch.stack([w.double() - base for w in weights])
    limits, shares = (torch.tensor(v, dtype=torch.float64).view(-1, *[1] * base.dim()) for v in (thresholds, share))
    taus = torch.where(taus.abs() >= limits, taus, 0.0)
    sign = (shares * taus).sum(0).sign()
    agree = (taus.sign() == sign) & (taus != 0)
    total = torch.where(agree, shares, 0.0).sum(0)
    return base + scale * torch.where(agree, shares * taus, 0.0).sum(0) / torch.where(total == 0, 1.0, total)


def trim_threshold(base: Mapping[str, Tensor], model: Mapping[str, Tensor], density: float) -> float:
    """The k-th largest ``|theta - theta_0|`` over all weights, ``k = floor(density n)``, at least 1. Holds 4 bytes a weight."""
    every = torch.cat([(model[name].double() - base[name].double()).abs().float().flatten() for name in base])
    k = max(1, int(density * every.numel()))
    # Ties stay: of a model that is the base, every weight. The float32 is rounded down so that its own weight stays as well.
    found = every.kthvalue(every.numel() - k + 1).values
    return float(torch.nextafter(found, torch.zeros_like(found)))


def check_mergeable(models: Sequence[Any], names: Sequence[str]) -> None:
    """Refuse (UserError) models of other families, names or shapes than the first one's, and weights that are no numbers."""
    kind, first = models[0].config.model_type, models[0].state_dict()
    shapes = {n: w.shape for n, w in first.items()}
    for model, name in zip(models[1:], names[1:], strict=True):
        if model.config.model_type != kind:
            raise UserError(f"merge.models: {name} is a {model.config.model_type}, {names[0]} a {kind}")
        other = {n: w.shape for n, w in model.state_dict().items()}
        if wrong := sorted(n for n in {*shapes, *other} if shapes.get(n) != other.get(n)):
            raise UserError(
                f"merge.models: {name} and {names[0]} differ in {wrong[0]}: only models of one shape are merged"
            )
        if field := _other_field(models[0].config, model.config):
            raise UserError(f"merge.models: the configs of {name} and {names[0]} differ in {field}")
    for model, name in zip(models, names, strict=True):
        if broken := [n for n, w in model.state_dict().items() if not bool(w.isfinite().all())]:
            raise UserError(f"merge.models: {name} has weights that are not finite, the first are {broken[0]}")


def _other_field(one: Any, other: Any) -> str | None:
    """The first field of two configs that differs and says what is computed: not ids of special tokens, nor the longest row."""
    said = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}
    said |= {"bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings"}
    first, second = ({k: v for k, v in c.to_dict().items() if k not in said} for c in (one, other))
    return next((k for k in sorted({*first, *second}) if first.get(k) != second.get(k)), None)


@torch.no_grad()
def merge(
    base: Any, models: Sequence[Any], method: MergeMethod, share: Sequence[float], scale: float, density: float
) -> Any:
    """``base`` with merged weights, in place and in its dtype. ``share``: of ``models``, of linear with the base's before them.

    Weights that are shared (a tied head) are merged once; buffers stay the base's.
    """
    own, others = dict(base.named_parameters()), [dict(m.named_parameters()) for m in models]
    limits = [trim_threshold(own, w, density) for w in others] if method == "ties" else []
    for name, weight in own.items():
        parts = [w[name] for w in others]
        if method == "linear":
            made = linear([weight, *parts], share)
        elif method == "ties":
            made = ties(weight, parts, share, scale, limits)
        else:
            made = task_arithmetic(weight, parts, share, scale)
        weight.copy_(made)
    return base
