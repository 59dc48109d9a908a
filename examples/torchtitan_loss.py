"""The loss of any rule from a model's logits and labels that are shifted already: what torchtitan hands to its loss.

torchtitan_component.py makes it a component for torchtitan's config registry. It needs nothing of torchtitan itself, and serves
any trainer that has the logits and the labels of a micro-batch.
"""

from collections.abc import Mapping

import torch

import tokensieve as ts
from tokensieve.training.step import weights


def selective_loss(
    rule: ts.Objective, logits: torch.Tensor, labels: torch.Tensor, columns: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """``sum(weight * nll)``, to be divided by the step's denominator over all micro-batches and ranks.

    logits [B, T, V]; labels [B, T], -100 for none; ``columns`` [B, T]: ``ref_nll`` and what else the rule needs, each entry of
    the token that is predicted there. A rule of scope "batch" ranks the tokens of this micro-batch.
    """
    if missing := rule.needs - {"nll", "entropy", "valid"} - columns.keys():
        raise ts.UserError(f"rule {rule.name!r} needs {min(missing)!r}, which is not in the batch")
    logits_TV = logits.flatten(0, -2)
    logits_TV = logits_TV if logits.dtype == torch.float64 else logits_TV.float()
    flat = torch.nn.functional.cross_entropy(
        logits_TV, labels.flatten(), reduction="none", ignore_index=ts.IGNORE_INDEX
    )
    known = {**columns, "nll": flat.detach().view(labels.shape)}
    if "entropy" in rule.needs:
        logp_TV = logits_TV.detach().log_softmax(-1)
        known["entropy"] = -(logp_TV.exp() * logp_TV).sum(-1).view(labels.shape)
    weight = weights(rule, ts.TokenStats(labels != ts.IGNORE_INDEX).with_values(known))
    return torch.where(weight != 0, weight * flat.view(labels.shape), 0).sum()  # 0 * inf is NaN
