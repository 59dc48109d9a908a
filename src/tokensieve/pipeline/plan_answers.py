"""The questions of ``tokensieve plan``, answered by fitted laws: each number with interval and law, or why there is none."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..analysis.scaling.allocation import (
    ALLOCATES,
    Allocation,
    Price,
    allocate,
    half_worth,
    largest_share,
    must_gain,
    price_of_selection,
)
from ..analysis.scaling.forms import FORMS
from ..analysis.scaling.law import Estimate, Law, choose, fit_law
from ..runs.errors import UserError
from .configs.plan import PlanConfig
from .lineage import training_flops
from .recipe.cost import Known

REPEATING = ("repetition", "data_constrained")
FEWEST_SHARES = 5
"""Runs of one length that a law of mixtures takes: three constants and one more, and one to see an error by."""


@dataclass(frozen=True)
class Answer:
    """One number of a plan. ``unit``: tokens, parameters, FLOPs, nats, passes, share or times; "" where ``note`` says why
    there is none."""

    what: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    law: str = ""
    note: str = ""

    @classmethod
    def of(cls, what: str, estimate: Estimate, unit: str, law: str, note: str = "") -> Answer:
        return cls(what, estimate.value, estimate.low, estimate.high, unit, law, note)


@dataclass(frozen=True)
class Evidence:
    """What the answers rest on."""

    config: PlanConfig
    laws: Mapping[str, Law]
    refused: Mapping[str, str]
    columns: Mapping[str, Any]
    each: float
    """FLOPs a parameter and token: the table's median of C / (N D)."""
    largest: float
    """C of the largest run."""


def allocating(laws: Mapping[str, Law], unique: float | None) -> Law | None:
    """The law that shares out compute: of those in parameters and tokens the one that predicts best; where text is limited, of
    those that know of repetition, if there is one. None of them where runs are flat in parameters or tokens."""
    able = [laws[name] for name in ALLOCATES if name in laws and not laws[name].flat]
    knowing = [law for law in able if law.form in REPEATING]
    return choose(knowing if unique is not None and knowing else able) if able else None


def answers(evidence: Evidence) -> Iterator[Answer]:
    """All that the config asks for; nothing without a budget."""
    config, flops = evidence.config, evidence.config.flops
    if flops is None:
        return
    law = allocating(evidence.laws, config.unique)
    if law is None:
        flat = sorted({column for name in ALLOCATES if name in evidence.laws for column in evidence.laws[name].flat})
        why = evidence.refused.get("chinchilla", "no form in parameters and tokens was fitted")
        if flat:
            some = " and ".join(flat)
            why = f"runs change no more with {some} than they scatter: no optimum follows; add runs of more different {some}"
        yield Answer("parameters and tokens", note=why)
    else:
        free = allocate(law, flops, evidence.each)
        yield from _compute_optimal(evidence, law, free)
        best = free
        if config.unique is not None:
            best = allocate(law, flops, evidence.each, config.unique)
            yield from _limited(evidence, law, free, best)
        yield from _selection(evidence, law, best)
    if "compute" in evidence.laws:
        by_compute = evidence.laws["compute"]
        yield Answer.of(
            "nll at C, shared out as the runs were", by_compute.expected({"flops": flops}), "nats", "compute"
        )
    yield from _downstream(evidence, law)
    yield from _mixture(evidence, None if law is None else best)


def _compute_optimal(evidence: Evidence, law: Law, found: Allocation) -> Iterator[Answer]:
    flops = evidence.config.flops or math.nan
    note = "" if found.bounded else "the law has no optimum: an end of what was looked at"
    beyond = "" if flops <= evidence.largest else f"{flops / evidence.largest:.3g} times the largest run's C"
    yield Answer.of("parameters N*", found.params, "parameters", law.form, note)
    yield Answer.of("tokens D*", found.tokens, "tokens", law.form, note)
    yield Answer.of("nll at N*, D*", found.nll, "nats", law.form, beyond)


def _limited(evidence: Evidence, law: Law, free: Allocation, best: Allocation) -> Iterator[Answer]:
    """What a limit of unique tokens changes."""
    unique = evidence.config.unique or math.nan
    if law.form not in REPEATING:
        if free.tokens.value > unique:
            yield Answer("passes advised", note=evidence.refused.get("repetition", "no law of repetition was fitted"))
        else:
            yield Answer(
                "passes advised", 1.0, None, None, "passes", law.form, "there is more text than D*: none is repeated"
            )
        return
    yield Answer.of("parameters with U unique tokens", best.params, "parameters", law.form)
    yield Answer.of("tokens with U unique tokens", best.tokens, "tokens", law.form)
    passes = Estimate(*(v / unique for v in (best.tokens.value, best.tokens.low, best.tokens.high)))
    yield Answer.of("passes advised", passes, "passes", law.form)
    yield Answer.of("passes until a token is worth half", half_worth(law), "passes", law.form)
    yield Answer.of("nll with U unique tokens", best.nll, "nats", law.form)


# --- selection ------------------------------------------------------------------------------------------------------------


def _selection(evidence: Evidence, law: Law, best: Allocation) -> Iterator[Answer]:
    """What a reference and its scores cost, and what selection must gain at equal total compute."""
    config = evidence.config
    if config.domain_tokens is None and config.reference is None:
        return
    params = best.params
    price, *ends = (_priced(evidence, n) for n in (params.value, params.low, params.high))
    _, training, named = reference_costs(config, params.value, evidence.each)
    if price is None:
        known = not math.isnan(training)
        why = "it is all of C: no selection can pay" if known else f"nobody knows the FLOPs of {config.reference}"
        yield Answer("price of a reference", training if known else None, unit="FLOPs", law=named, note=why)
        return
    law_of_price = f"{law.form}; {named}" + (f", shared by {config.students}" if config.students > 1 else "")

    def over_size(what: str, of: Callable[[Price], float], unit: str, note: str = "") -> Answer:
        """The interval is that of N*: what it costs for a given size is counted."""
        low, high = sorted(math.nan if end is None else of(end) for end in ends)
        known = not math.isnan(low + high)
        return Answer(what, of(price), low if known else None, high if known else None, unit, law_of_price, note)

    flops = config.flops or math.nan
    yield over_size("price of a reference", lambda p: p.reference, "FLOPs", f"{price.reference / flops:.1%} of C")
    yield over_size("price of scoring", lambda p: p.scoring, "FLOPs", f"{price.scoring / flops:.1%} of C")
    yield over_size("tokens left to a student that pays for both", lambda p: p.tokens, "tokens")
    gain = must_gain(law, params.value, best.tokens.value, price.tokens, evidence.each, config.unique)
    yield Answer.of("selection must gain at equal tokens", gain, "nats", law.form)

    def worth(p: Price) -> float:
        """Tokens of a plain run over tokens left: the student's part of C is spent on as many."""
        return flops / (flops - p.reference - p.scoring)

    yield over_size("a token seen must be worth", worth, "times")
    if config.ratio < 1:
        note = f"{config.ratio:.0%} of {_count(price.tokens)} tokens"
        yield over_size("a token trained must be worth", lambda p: worth(p) / config.ratio, "times", note)


def _priced(evidence: Evidence, params: float) -> Price | None:
    """For a student of so many parameters; None where nobody knows, or nothing is left."""
    scoring, training, _ = reference_costs(evidence.config, params, evidence.each)
    if math.isnan(scoring) or math.isnan(training):
        return None
    flops = evidence.config.flops or math.nan
    return price_of_selection(flops, evidence.each * params, training, scoring, evidence.config.students)


def reference_costs(config: PlanConfig, params: float, each: float) -> tuple[float, float, str]:
    """(FLOPs of one scored token, FLOPs of training the reference, how they were counted); NaN where not known.

    A model's folder is counted by its modules, and its training as its run says; else the reference is as large as the student,
    each token costs ``each`` FLOPs a parameter in training, and a third of that in a forward.
    """
    seen = (config.domain_tokens or 0.0) * config.reference_passes
    if config.reference is None:
        return each / 3 * params, each * params * seen, f"{each:.3g} N a token"
    forward = Known().forward_flops(config.reference, 1.0, config.length)
    trained = training_flops(config.reference)
    if trained:
        return forward, trained, "its own modules and run"
    return forward, math.nan if trained is None else 3 * forward * seen, "its own modules"


# --- downstream and mixture -----------------------------------------------------------------------------------------------


def _downstream(evidence: Evidence, law: Law | None) -> Iterator[Answer]:
    """The tasks' error at the planned nll: draws of both laws, one by one."""
    flops, errors = evidence.config.flops, evidence.laws.get("downstream")
    if errors is None or law is None or flops is None:
        return
    nll = allocate(law, flops, evidence.each, evidence.config.unique)
    drawn = FORMS["downstream"].function({"nll": nll.nll_draws}, **errors.draws)
    error = Estimate.of(float(errors.at({"nll": nll.nll.value})), drawn)
    yield Answer.of("error of tasks", error, "share", f"{law.form}, downstream")


def _mixture(evidence: Evidence, best: Allocation | None) -> Iterator[Answer]:
    """The largest share of domain text within the tolerance, by the runs of each length."""
    x = evidence.columns
    if not {"share", "general_nll", "general_before", "tokens"} <= set(x):
        return
    critical = list(_critical(evidence))
    if not critical:
        yield Answer(
            "share of domain text", note=f"mixture: no {FEWEST_SHARES} runs of one length with different shares"
        )
        return
    wanted = critical[-1][0] if best is None else best.tokens.value
    length, share = min(critical, key=lambda c: abs(math.log(c[0] / wanted)))
    law, note = "mixture", f"by the runs of {_count(length)} tokens; not extrapolated"
    if len(critical) > 3 and all(0 < s.value < 1 for _, s in critical):
        table = {"tokens": np.array([t for t, _ in critical]), "critical": np.array([s.value for _, s in critical])}
        try:
            over = fit_law("critical_share", table, seed=evidence.config.seed).expected({"tokens": wanted})
            share = Estimate(*(float(np.clip(v, 0, 1)) for v in (over.value, over.low, over.high)))
            law, note = "critical_share", f"over runs of {len(critical)} lengths"
        except UserError as e:
            note += f" ({e})"
    yield Answer.of("largest share of domain text", share, "share", law, note)
    yield Answer("share of general text", 1 - share.value, 1 - share.high, 1 - share.low, "share", law)
    if evidence.config.domain_tokens is not None:
        passes = [v * wanted / evidence.config.domain_tokens for v in (share.value, share.low, share.high)]
        yield Answer.of("passes over the domain's text", Estimate(*passes), "passes", law)


def _critical(evidence: Evidence) -> Iterator[tuple[float, Estimate]]:
    """(tokens, largest share within the tolerance) of each length with enough runs."""
    x = evidence.columns
    for length in np.unique(x["tokens"]):
        here = x["tokens"] == length
        if here.sum() < FEWEST_SHARES:
            continue
        try:
            law = fit_law("mixture", {c: x[c][here] for c in ("share", "general_nll")}, seed=evidence.config.seed)
        except UserError:
            continue
        yield float(length), largest_share(law, float(x["general_before"][here].mean()) + evidence.config.tolerance)


# --- as text --------------------------------------------------------------------------------------------------------------


def _count(value: float) -> str:
    """1234567 -> 1.235 M"""
    for factor, name in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.4g} {name}"
    return f"{value:.4g}"


def in_units(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    if unit == "nats":
        return f"{value:.4f}"
    if unit == "share":
        return f"{value:.1%}"
    return f"{value:.3g}" if unit in ("passes", "times") else _count(value)


def lines(found: Sequence[Answer]) -> list[dict[str, Any]]:
    """For a table: a row an answer."""
    return [
        {
            "question": a.what,
            "answer": in_units(a.value, a.unit) or "not answered",
            "unit": a.unit,
            "90 % interval": "" if a.low is None else f"{in_units(a.low, a.unit)} to {in_units(a.high, a.unit)}",
            "law": a.law,
            "note": a.note,
        }
        for a in found
    ]
