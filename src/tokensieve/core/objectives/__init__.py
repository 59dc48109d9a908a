"""Every token rule by its name. A family of rules is a module; a new one is a function there and a line here."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..objective import Objective, with_denominator
from . import combined, contrast, controls, documents, entropy, given, placed, probability, ranked, second

# name -> factory. A user's own is named by "package.module:factory".
OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "clm": controls.clm,
    "random": controls.random,
    "random_like": controls.random_like,
    "rho1": ranked.rho1,
    "rho1_low_ref": ranked.rho1_low_ref,
    "rho1_low_entropy": ranked.rho1_low_entropy,
    "rho1_intersection": ranked.rho1_intersection,
    "rho1_union": ranked.rho1_union,
    "token_cleaning": ranked.token_cleaning,
    "high_loss": ranked.high_loss,
    "middle_loss": ranked.middle_loss,
    "eslm": ranked.eslm,
    "entropy_top": ranked.entropy_top,
    "prior": probability.prior,
    "cal": contrast.cal,
    "goldfish": placed.goldfish,
    "dft": probability.dft,
    "profit": probability.profit,
    "low_prob_scale": probability.low_prob_scale,
    "griffin": entropy.griffin,
    "long_context": contrast.long_context,
    "tsallis": probability.tsallis,
    "eaft": entropy.eaft,
    "mile": entropy.mile,
    "position_ramp": placed.position_ramp,
    "huber": probability.huber,
    "likelihood_gap": probability.likelihood_gap,
    "wit": placed.wit,
    "influence": placed.influence,
    "learning_time": placed.learning_time,
    "column": given.column,
    "smooth": second.smooth,
    "distill": second.distill,
}

# Objectives made of those in their option ``of``: a list of {name: ..., option: value}.
COMBINED: dict[str, Callable[[Sequence[Objective]], Objective]] = {
    "intersect": combined.intersect,
    "union": combined.union,
}
SCHEDULE = "schedule"  # {of: {name: ...}, option: NAME, points: [[step, value], ...], over: steps}
BY_SOURCE = "by_source"  # {of: {name: ...}, instead: {source: {name: ...} or options of the same rule}}

# Published rules that are no weight on a token's nll, with what stands in the way.
NOT_SERVED = {
    "blade": "its reference is made anew from the student every so many steps, and a run's reference here is frozen",
    "ss_token": "it needs the model's attention to each token, which fast attention kernels do not give",
    "linupper": "it weighs whole samples and not tokens",
    "agg": "it scales the gradient of the head's weight by column and leaves that of the hidden states: no weight does that",
    "lopti": "it makes two updates of every batch, of unlikely tokens first",
}


def objective(name: str, **options: Any) -> Objective:
    """The built-in objective ``name``, or ``package.module:factory`` called with the options.

    ``denominator`` is an option of every objective: weight, valid, nonzero or abs, see :class:`Objective`; ``unit: document``
    of every one that keeps a ratio by a score. The rule's own if not given. ``smooth`` and ``distill`` take one objective as
    ``of``, as a mapping or made, ``intersect`` and ``union`` take ``of``, a list of objectives as mappings or made;
    ``schedule`` takes one, the ``option`` that moves and the ``points`` [step, value] it goes through. Raises ValueError for
    an unknown name (listing those that exist) and for options the objective does not take.
    """
    denominator, unit = options.pop("denominator", None), options.pop("unit", None)
    if name in OBJECTIVES and options.get("of") is not None:
        options["of"] = _part(options["of"])
    try:
        made = _make(name)(**options)
    except TypeError as e:
        raise ValueError(f"objective {name!r}: {e}") from None
    if not isinstance(made, Objective):
        raise ValueError(f"objective {name!r} gave {type(made).__name__}, not an Objective")
    return finished(made, denominator, unit)


def finished(made: Objective, denominator: Any = None, unit: Any = None) -> Objective:
    """The objective with the two options that every one takes; None for those that were not given."""
    return with_denominator(documents.with_unit(made, unit), denominator)


def _make(name: str) -> Callable[..., Objective]:
    """The factory of a name."""
    if name in COMBINED:
        return lambda of: COMBINED[name]([_part(part) for part in of])
    made: dict[str, Callable[..., Objective]] = {SCHEDULE: _scheduled, BY_SOURCE: _by_source, **OBJECTIVES}
    return made[name] if name in made else _imported(name)


def _part(part: Any) -> Objective:
    if not isinstance(part, Objective | Mapping):
        raise ValueError(f"of: an objective, as {{name: rho1}}, is needed, not {part}")
    return part if isinstance(part, Objective) else objective(**{"name": "clm", **part})


def moved(of: Mapping[str, Any], option: str, value: float) -> dict[str, Any]:
    """The mapping ``of`` with its option at a value of a schedule: the nearest whole number for one whose default is whole."""
    default = inspect.signature(_make(of.get("name", "clm"))).parameters.get(option)
    return {**of, option: round(value) if default is not None and type(default.default) is int else float(value)}


def _scheduled(of: Mapping[str, Any], option: str, points: Sequence[Sequence[float]], over: str = "steps") -> Objective:
    return combined.schedule(lambda value: objective(**moved(of, option, value)), points, over)


def _by_source(of: Any, instead: Mapping[str, Any] | None = None) -> Objective:
    others = {}
    for source, part in (instead or {}).items():
        if isinstance(part, Mapping) and isinstance(of, Mapping) and "name" not in part:
            part = {**of, **part}
        if not isinstance(part, Mapping | Objective):
            raise ValueError(f"instead.{source}: options, as {{ratio: 0.4}}, or an objective are needed, not {part}")
        others[source] = _part(part)
    return combined.by_source(_part(of), others)


def _imported(name: str) -> Callable[..., Objective]:
    if name in NOT_SERVED:
        raise ValueError(f"objective {name!r} is not served: {NOT_SERVED[name]}")
    module, _, attribute = name.partition(":")
    if not attribute:
        known = ", ".join([*OBJECTIVES, *COMBINED, SCHEDULE, BY_SOURCE])
        raise ValueError(f"unknown objective {name!r}: one of {known}, or package.module:factory")
    try:
        return getattr(importlib.import_module(module), attribute)  # type: ignore[no-any-return]
    except (ImportError, AttributeError) as e:
        raise ValueError(f"objective {name!r} cannot be imported: {e}") from None
