"""Weights from how likely the student, or the reference, finds a token: p = exp(-nll). All are constants to the gradient."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..objective import Objective
from ..select import Scope
from ..stats import TokenStats
from .shared import at_place, check_column, check_range, mean_within, normalised, soft


def dft(power: float = 1.0) -> Objective:
    """``w = p^power`` of the student: Dynamic Fine-Tuning (arXiv 2508.05629) at power 1, divided by valid tokens.

    Read in the authors' code; their current default is another rule, with powers by kind of word. Trains on what is likely
    already: good for fine-tuning a strong model, bad from scratch, where it learns next to nothing.
    """
    check_range("power", power, 0.0)
    return soft("dft", lambda stats: _p(stats) ** power, frozenset({"nll"}), {"power": power})


def tsallis(exponent: float | Literal["deft", "cayley"] = "deft") -> Objective:
    """``w = p^a``: the gradient of Tsallis losses; a number, or a from the student's certainty; divided by valid tokens.

    ``a = 1`` is dft, ``a -> 0`` plain nll. ``deft``: ``a = sum_v p_v^2`` of the token's own prediction, from the head's pass:
    nll where the student knows nothing, dft where it is sure. ``cayley``: ``a = f + (1 - f) p / (2 - p)`` with f half the mean
    p of the micro-batch. Read in the authors' code; which is better depends on how strong the start is (arXiv 2510.00526).
    """
    if exponent not in ("deft", "cayley"):
        if isinstance(exponent, str):
            raise ValueError(f"exponent is {exponent!r}, it must be a number, deft or cayley")
        check_range("exponent", exponent, 0.0)

    def weigh(stats: TokenStats) -> Tensor:
        p = _p(stats)
        if exponent == "deft":
            return p ** stats.need("sum_p2").float()
        if exponent == "cayley":
            f = 0.5 * mean_within(p, stats, "batch").to(p.dtype)
            return p ** (f + (1 - f) * p / (2 - p))
        return p**exponent

    needs = frozenset({"nll", "sum_p2"}) if exponent == "deft" else frozenset({"nll"})
    scope: Scope = "batch" if exponent == "cayley" else "sequence"
    return soft("tsallis", weigh, needs, {"exponent": exponent}, scope=scope)


def low_prob_scale(alpha: float = 0.3) -> Objective:
    """``w = alpha p + 1 - alpha``: unlikely tokens count less, advantage reweighting of arXiv 2505.12929; divided by valid.

    Read in the authors' code, where it multiplies an advantage; alpha of .2 to .3 there.
    """
    check_range("alpha", alpha, 0.0, 1.0)
    return soft("low_prob_scale", lambda stats: alpha * _p(stats) + (1 - alpha), frozenset({"nll"}), {"alpha": alpha})


def profit(tau: float = 0.1, keep: Literal["likely", "unlikely", "middle"] = "likely", high: float = 0.9) -> Objective:
    """Keep tokens of ``p >= tau`` (likely), ``p < tau`` (unlikely) or ``tau <= p <= high`` (middle); divided by valid tokens.

    ProFit (read in the authors' code). Which sign pays depends on the start: from a strong prior the likely, from scratch
    the unlikely. The thresholds are ours. Its random mode is the objective ``random``.
    """
    check_range("tau", tau, 0.0, 1.0)
    check_range("high", high, tau, 1.0)
    kept = {
        "likely": lambda p: p >= tau,
        "unlikely": lambda p: p < tau,
        "middle": lambda p: (p >= tau) & (p <= high),
    }
    if keep not in kept:
        raise ValueError(f"keep is {keep!r}, it must be likely, unlikely or middle")
    options = {"tau": tau, "keep": keep, **({"high": high} if keep == "middle" else {})}
    return soft("profit", lambda stats: kept[keep](_p(stats)), frozenset({"nll"}), options, selects=True)


def huber(c: float = 3.0, scope: Scope = "batch") -> Objective:
    """``w = min(1, c median(nll) / nll)``: tokens of far more than the usual loss pull with a bounded force.

    Robust to wrong labels. The median is over the valid tokens of ``scope``, the lower of two middle ones.
    """
    check_range("c", c, 0.0)

    def weigh(stats: TokenStats) -> Tensor:
        nll = stats.need("nll").float()
        bound = c * at_place(lambda n: torch.floor(n / 2), nll, stats, scope)
        return torch.where(nll > bound, bound / nll, torch.ones_like(nll))

    return soft("huber", weigh, frozenset({"nll"}), {"c": c, "scope": scope}, scope=scope, denominator="weight")


def likelihood_gap(alpha: float = 1.0, least: float = 0.1, reference: str = "ref_nll") -> Objective:
    """``w = max(least, 1 + alpha (p_ref - p))``: a soft, bounded excess, with probabilities where rho1 has their logarithms."""
    check_range("alpha", alpha, 0.0)
    check_range("least", least, 0.0)
    check_column("reference", reference)

    def weigh(stats: TokenStats) -> Tensor:
        return (1 + alpha * (_p(stats, reference) - _p(stats))).clamp(min=least)

    options = {"alpha": alpha, "least": least, "reference": reference}
    return soft("likelihood_gap", weigh, frozenset({"nll", reference}), options, denominator="weight")


def prior(alpha: float = 1.0, scope: Scope = "batch", reference: str = "ref_nll") -> Objective:
    """``w = (1 - p_ref)^alpha``, over its mean in the scope: what a model without the context cannot guess counts more.

    The text form of PRIOR (arXiv 2505.08971, from secondary sources), where the reference is a language model that does not
    see the image; divided by valid tokens.
    """
    check_range("alpha", alpha, 0.0)
    check_column("reference", reference)

    def weigh(stats: TokenStats) -> Tensor:
        surprise = -torch.expm1(-stats.need(reference).float())  # 1 - p, exact where p is nearly 1
        return normalised(surprise**alpha, stats, scope)

    options = {"alpha": alpha, "scope": scope, "reference": reference}
    return soft("prior", weigh, frozenset({reference}), options, scope=scope, static=True)


def _p(stats: TokenStats, column: str = "nll") -> Tensor:
    return torch.exp(-stats.need(column).float())
