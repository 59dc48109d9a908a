"""The forms that a law may have, one function each: columns of a table of runs and constants -> what is predicted.

Columns are arrays ``[runs]``; constants broadcast against them (``[R, 1]`` for R fits at once). Names of columns: ``params`` N,
``tokens`` D (seen in training, repeated ones too), ``unique`` U (different ones among them), ``flops`` C, ``nll`` L in nats.
What else a form reads stands in its docstring, which says the formula, the paper, and how the formula was checked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

RunColumns = Mapping[str, Any]


@dataclass(frozen=True)
class Constant:
    """One constant of a form: where it is looked for, and what it is measured in."""

    name: str
    low: float
    high: float
    power: tuple[tuple[str, str, int], ...] = ()
    """(column, name of an exponent, sign): the constant's unit is the product of column^(sign * exponent). With it, ``low`` and
    ``high`` are shares of the typical value, taken at the middle of the table, where a coefficient can be guessed."""
    level: bool = False
    """``low`` and ``high`` are shares of the typical value that is predicted."""
    signed: bool = False
    """It may be negative and is looked for as it is, all others as logarithms."""


@dataclass(frozen=True)
class Form:
    """A law's form. ``function(columns, **constants)`` predicts the column ``predicts``."""

    function: Callable[..., Any]
    constants: tuple[Constant, ...]
    varies: Mapping[str, int]
    """Columns that it reads -> in how many different values at least: with fewer, constants cannot be told apart."""
    predicts: str = "nll"

    @property
    def names(self) -> list[str]:
        return [c.name for c in self.constants]


def _level(name: str, low: float = 0.02, high: float = 1.0) -> Constant:
    return Constant(name, low, high, level=True)


def _coefficient(name: str, *power: tuple[str, str, int]) -> Constant:
    return Constant(name, 0.02, 1.0, power, level=True)


def _exponent(name: str, low: float = 0.05, high: float = 1.5) -> Constant:
    return Constant(name, low, high)


# --- parameters and tokens ------------------------------------------------------------------------------------------------


def chinchilla(x: RunColumns, E: Any, A: Any, alpha: Any, B: Any, beta: Any) -> Any:
    """``L = E + A N^-alpha + B D^-beta``: every token is new.

    Hoffmann et al., arXiv 2203.15556, eq. 2. Checked: the optimum of the published constants under C = 6 N D is that of their
    closed form (tests).
    """
    return E + A * x["params"] ** -alpha + B * x["tokens"] ** -beta


def saturated(unique: Any, total: Any, half: Any) -> Any:
    """``U + U R* (1 - exp(-R / R*))`` with ``R = max(total / U - 1, 0)``: what ``total`` of which ``unique`` are new is worth.

    Muennighoff et al., arXiv 2305.16264, section 3 (the same for tokens and for parameters)."""
    repeats = np.maximum(total / unique - 1, 0)
    return np.minimum(unique, total) + unique * half * -np.expm1(-repeats / half)


def repetition(x: RunColumns, E: Any, A: Any, alpha: Any, B: Any, beta: Any, R_D: Any) -> Any:
    """``L = E + A N^-alpha + B D'^-beta``, ``D' = U + U R_D (1 - exp(-(D/U - 1) / R_D))``: a token is worth less each time it
    comes again; parameters as in `chinchilla`.

    Muennighoff et al., arXiv 2305.16264, section 3, data alone. Checked against `data_constrained` with R_N beyond all bounds,
    and by its limits: U = D is `chinchilla`; for D / U to infinity D' is U (1 + R_D).
    """
    return E + A * x["params"] ** -alpha + B * saturated(x["unique"], x["tokens"], R_D) ** -beta


def data_constrained(x: RunColumns, E: Any, A: Any, alpha: Any, B: Any, beta: Any, R_D: Any, R_N: Any) -> Any:
    """``L = E + A N'^-alpha + B D'^-beta``: D' as in `repetition`, ``N' = U_N + U_N R_N (1 - exp(-(N/U_N - 1) / R_N))`` with
    ``U_N = min(N, N_opt(U))``, the parameters that U tokens feed: where ``alpha A N^-alpha = beta B U^-beta``.

    Muennighoff et al., arXiv 2305.16264, section 3. All seven constants are fitted together (the paper fits R_D and R_N with
    the others fixed). Checked against a loop in the paper's order, its G and N_opt included, at its C4 constants (A 521, B
    1488, E 1.87, alpha = beta = .353, R_D 15.39, R_N 5.31), in the tests; and by reading two public implementations.
    """
    feeds = (alpha * A / (beta * B)) ** (1 / alpha) * x["unique"] ** (beta / alpha)
    params = saturated(np.minimum(feeds, x["params"]), x["params"], R_N)
    return E + A * params**-alpha + B * saturated(x["unique"], x["tokens"], R_D) ** -beta


def over_training(x: RunColumns, E: Any, a: Any, b: Any, eta: Any) -> Any:
    """``L = E + (a M^eta + b M^-eta) C^-eta`` with ``M = D / N``, tokens a parameter.

    Gadre et al., arXiv 2403.08540; `chinchilla` with alpha = beta = 2 eta and C = 6 N D. Checked by that identity.
    """
    m = x["tokens"] / x["params"]
    return E + (a * m**eta + b * m**-eta) * x["flops"] ** -eta


def compute(x: RunColumns, E: Any, A: Any, alpha: Any) -> Any:
    """``L = E + A C^-alpha``: runs that all shared out their compute in the same way.

    Kaplan et al., arXiv 2001.08361, section 6 (there E = 0), with the floor of Henighan et al., arXiv 2010.14701, eq. 1.1; the
    curve of `compare`.
    """
    return E + A * x["flops"] ** -alpha


# --- mixtures -------------------------------------------------------------------------------------------------------------


def mixture(x: RunColumns, level: Any, slope: Any, s: Any) -> Any:
    """``L_general = level + slope R^s``: nll on general text after training on so many tokens of which the share R
    (column ``share``) was of the domain; column ``general_nll``.

    Gu et al., arXiv 2407.17467, table 2 (its fit over mixture ratios at one length). Known from two public readings of the
    paper that agree, not from its own text.
    """
    return level + slope * x["share"] ** s


def critical_share(x: RunColumns, level: Any, slope: Any, s: Any) -> Any:
    """``R_CMR = level + slope T^s``: the largest share of domain text that keeps the rise of general nll within the tolerance
    (the paper's is .05 nats), over T ``tokens``; column ``critical``.

    Gu et al., arXiv 2407.17467, eq. 8 (T in units of .2 G tokens there). Known as `mixture` is.
    """
    return level + slope * x["tokens"] ** s


# --- other effects --------------------------------------------------------------------------------------------------------


def downstream(x: RunColumns, epsilon: Any, k: Any, gamma: Any) -> Any:
    """``error = epsilon - k exp(-gamma L)``: mean top-1 error of tasks (column ``error``) from nll.

    Gadre et al., arXiv 2403.08540. From memory of the paper; checked by its limits: epsilon for L to infinity, falling with L.
    """
    return epsilon - k * np.exp(-gamma * x["nll"])


def pruning(x: RunColumns, gamma: Any, delta: Any, N_C: Any, alpha: Any, D_C: Any, beta: Any, E: Any) -> Any:
    """``L - L_0 = (1/rho)^gamma N^-delta (N_C N^-alpha + D_C D^-beta + E)``: what is left of a pruning's damage (column
    ``rise``) after D tokens; rho (``pruned``) the share pruned, N ``params`` before it. gamma is negative where more pruning
    harms more.

    The P2 law, Chen et al., arXiv 2411.10272, its chosen parametrisation. Checked against a public abstract of the paper.
    """
    inside = N_C * x["params"] ** -alpha + D_C * x["tokens"] ** -beta + E
    return x["pruned"] ** -gamma * x["params"] ** -delta * inside


def quantisation(x: RunColumns, k: Any, beta: Any, alpha: Any, gamma: Any) -> Any:
    """``rise = k D^beta N^-alpha P^-gamma``: nll that quantising trained weights to P ``bits`` costs (column ``rise``).

    QiD, Ouyang et al., arXiv 2411.17691. From memory of the paper; checked against a public summary: one product of powers that
    rises with D and falls with N and P.
    """
    return k * x["tokens"] ** beta * x["params"] ** -alpha * x["bits"] ** -gamma


def precision(x: RunColumns, E: Any, A: Any, alpha: Any, B: Any, beta: Any, P_w: Any) -> Any:
    """``L = E + A (N (1 - exp(-P / P_w)))^-alpha + B D^-beta``: trained with weights of P ``bits``.

    Kumar et al., arXiv 2411.04330, weights alone (gamma_w is P_w here; activations and cache have factors of the same form).
    From memory of the paper; checked by its limit: P to infinity is `chinchilla`.
    """
    return E + A * (x["params"] * -np.expm1(-x["bits"] / P_w)) ** -alpha + B * x["tokens"] ** -beta


def granularity(x: RunColumns, c: Any, g: Any, gamma: Any, a: Any, alpha: Any, b: Any, beta: Any) -> Any:
    """``L = c + (g G^-gamma + a) N^-alpha + b D^-beta``: mixtures of experts cut G times finer (column ``granularity``).

    Krajewski et al., arXiv 2402.07871, whose N counts all parameters. From memory of the paper; checked by its limit:
    G to infinity is `chinchilla`.
    """
    return c + (g * x["granularity"] ** -gamma + a) * x["params"] ** -alpha + b * x["tokens"] ** -beta


def shape(x: RunColumns, E: Any, A: Any, alpha: Any, B: Any, beta: Any, eps: Any, gamma: Any) -> Any:
    """``L = (E + A N^-alpha + B D^-beta) (1 + eps R^gamma)``: R is the hidden size over the number of blocks (``aspect``).

    Bian et al., arXiv 2501.18107. From memory of the paper; public summaries say no more than that an aspect ratio is put into
    `chinchilla`. Checked by its limit: eps = 0 is that.
    """
    plain = E + A * x["params"] ** -alpha + B * x["tokens"] ** -beta
    return plain * (1 + eps * x["aspect"] ** gamma)


def conditional(x: RunColumns, a0: Any, a1: Any, a2: Any, b1: Any, b2: Any) -> Any:
    """``L = (a0 + a1 log w + a2 / w) (1 + b1 log r + b2 / r) L_opt``: what a model of another architecture ends at, where the
    best of its size and tokens ends at L_opt (column ``best_nll``). w is its hidden size over sqrt(N) (``width``), r its
    parameters in MLPs over those in attention (``mlp_attention``). The factors are lowest at w = a2 / a1 and r = b2 / b1.

    Bian et al., arXiv 2510.18245, eq. 3, which has b0 for 1: only its product with the a is told by any table. Checked against
    a public summary that gives the equation; by its minima.
    """
    width = a0 + a1 * np.log(x["width"]) + a2 / x["width"]
    return width * (1 + b1 * np.log(x["mlp_attention"]) + b2 / x["mlp_attention"]) * x["best_nll"]


def rectified(x: RunColumns, E: Any, B: Any, D_l: Any, beta: Any) -> Any:
    """``L = E + B / (D_l + D^beta)``: fine-tuning on D ``tokens`` of a model that knows D_l of them already, in powers of beta.

    Lin et al., arXiv 2402.02314. Checked against the project's page, which has an outer exponent (1 here), and by its limit:
    D_l = 0 is a power law.
    """
    return E + B / (D_l + x["tokens"] ** beta)


_N, _D = ("params", "alpha", 1), ("tokens", "beta", 1)
_CHINCHILLA = (_level("E"), _coefficient("A", _N), _exponent("alpha"), _coefficient("B", _D), _exponent("beta"))
_ALL = {"params": 3, "tokens": 3}
FORMS: dict[str, Form] = {
    "chinchilla": Form(chinchilla, _CHINCHILLA, _ALL),
    "repetition": Form(repetition, (*_CHINCHILLA, Constant("R_D", 0.5, 50)), {**_ALL, "unique": 1}),
    "data_constrained": Form(
        data_constrained, (*_CHINCHILLA, Constant("R_D", 0.5, 50), Constant("R_N", 0.5, 50)), {**_ALL, "unique": 2}
    ),
    "over_training": Form(
        over_training,
        (
            _level("E"),
            _coefficient("a", ("flops", "eta", 1), ("tokens", "eta", -1), ("params", "eta", 1)),
            _coefficient("b", ("flops", "eta", 1), ("tokens", "eta", 1), ("params", "eta", -1)),
            _exponent("eta", 0.03, 0.8),
        ),
        {"params": 2, "tokens": 2, "flops": 3},
    ),
    "compute": Form(compute, (_level("E"), _coefficient("A", ("flops", "alpha", 1)), _exponent("alpha")), {"flops": 3}),
    "mixture": Form(
        mixture,
        (
            _level("level", 0.5, 1.0),
            Constant("slope", 0.001, 0.5, (("share", "s", -1),), level=True),
            _exponent("s", 0.2, 4.0),
        ),
        {"share": 3},
        "general_nll",
    ),
    "critical_share": Form(
        critical_share,
        (
            Constant("level", 0.05, 2.0, level=True),
            Constant("slope", -1.0, 1.0, (("tokens", "s", -1),), level=True, signed=True),
            Constant("s", -1.5, 1.5, signed=True),
        ),
        {"tokens": 3},
        "critical",
    ),
    "downstream": Form(
        downstream,
        (_level("epsilon", 1.0, 2.0), Constant("k", 0.1, 50), Constant("gamma", 0.1, 3)),
        {"nll": 3},
        "error",
    ),
    "pruning": Form(
        pruning,
        (
            Constant("gamma", -3.0, 1.0, signed=True),
            _exponent("delta", 0.02, 1.0),
            _coefficient("N_C", _N, ("params", "delta", 1)),
            _exponent("alpha"),
            _coefficient("D_C", _D, ("params", "delta", 1)),
            _exponent("beta"),
            _coefficient("E", ("params", "delta", 1)),
        ),
        {**_ALL, "pruned": 2},
        "rise",
    ),
    "quantisation": Form(
        quantisation,
        (
            _coefficient("k", ("tokens", "beta", -1), ("params", "alpha", 1), ("bits", "gamma", 1)),
            _exponent("beta"),
            _exponent("alpha"),
            _exponent("gamma", 0.5, 8.0),
        ),
        {"params": 2, "tokens": 2, "bits": 2},
        "rise",
    ),
    "precision": Form(precision, (*_CHINCHILLA, Constant("P_w", 0.5, 10)), {**_ALL, "bits": 2}),
    "granularity": Form(
        granularity,
        (
            _level("c"),
            _coefficient("g", _N, ("granularity", "gamma", 1)),
            _exponent("gamma", 0.1, 2.0),
            _coefficient("a", _N),
            _exponent("alpha"),
            _coefficient("b", _D),
            _exponent("beta"),
        ),
        {**_ALL, "granularity": 3},
    ),
    "shape": Form(shape, (*_CHINCHILLA, Constant("eps", 0.001, 0.5), _exponent("gamma")), {**_ALL, "aspect": 3}),
    "conditional": Form(
        conditional,
        (
            Constant("a0", 0.2, 2.0),
            Constant("a1", 0.01, 1.0),
            Constant("a2", 0.001, 1.0),
            Constant("b1", 0.01, 1.0),
            Constant("b2", 0.01, 1.0),
        ),
        {"width": 3, "mlp_attention": 3, "best_nll": 1},
    ),
    "rectified": Form(
        rectified,
        (_level("E"), _coefficient("B", _D), Constant("D_l", 0.01, 10, (_D,)), _exponent("beta")),
        {"tokens": 4},
    ),
}
