"""Weights from the entropy of the student's prediction, and from where the target stands in it."""

from __future__ import annotations

from torch import Tensor

from ..objective import Objective
from ..select import Scope
from ..stats import TokenStats
from .shared import check_range, normalised, soft


def eaft(alpha: float = 1.0) -> Objective:
    """``w = (H_top20 / 3)^alpha``: entropy of the 20 likeliest entries, renormalised, over about its largest; valid tokens.

    Entropy-Adaptive Fine-Tuning (arXiv 2601.02151; read in LLaMA-Factory's code). log 20 is 2.996, so w is at most about 1;
    another port leaves the / 3 out, which changes the effective learning rate.
    """
    check_range("alpha", alpha, 0.0)
    return soft(
        "eaft",
        lambda stats: (stats.need("top_entropy").float() / 3) ** alpha,
        frozenset({"top_entropy"}),
        {"alpha": alpha},
    )


def mile(gamma: float = 1.0, scope: Scope = "batch") -> Objective:
    """``w = (1 + H)^gamma`` over its mean in the scope: hard-to-predict places count more, and the weights add up to n.

    MiLe loss (arXiv 2310.19531; read in the authors' code), the one weight by entropy that was tried in pretraining (468M to
    6.7B). Divided by valid tokens, which is what its weights add up to.
    """
    check_range("gamma", gamma, 0.0)

    def weigh(stats: TokenStats) -> Tensor:
        return normalised((1 + stats.need("entropy").float()) ** gamma, stats, scope)

    return soft("mile", weigh, frozenset({"entropy"}), {"gamma": gamma, "scope": scope}, scope=scope)


def griffin(top_k: int = 10) -> Objective:
    """Keep a target that is among the student's ``top_k``, if the target before it in its row is kept or there is none.

    The token mask of GRIFFIN (arXiv 2502.11018; read in the authors' code), made for drafts that must be alignable: 1 where
    the target is in the top k, times the mask one place before. Only hits count in that, not hits of hits.
    """
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}, it must be at least 1")

    def weigh(stats: TokenStats) -> Tensor:
        hit = stats.need("target_rank") < top_k
        first = stats.need("position") <= 1
        return hit & (first | (hit | ~stats.valid).roll(1, -1))

    return soft(
        "griffin", weigh, frozenset({"target_rank", "position"}), {"top_k": top_k}, denominator="weight", selects=True
    )
