"""Rules that give tokens weights by what they say: as a config has them. What they do is in ``build/weigh.py``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..runs.errors import UserError

SELECTORS = ("role", "regex", "tag", "source")


@dataclass(frozen=True)
class WeightRule:
    """A weight for the text that all of the selectors given speak of; of several rules the last one wins."""

    weight: float
    """Any finite number; 0 drops a token, below 0 the model is taught away from it."""
    role: str | None = None
    """What a role says in a chat (assistant, user, system, tool); problem or solution of a source that has these."""
    regex: str | None = None
    """What a regular expression matches (of the regex package: Python's, and more)."""
    tag: str | None = None
    """``think``: from <think> to the next </think>, both included; what is not closed is not meant."""
    source: str | None = None
    """All text of a source, by its name in per-source figures."""

    @property
    def told(self) -> str:
        return ", ".join(f"{name}: {getattr(self, name)}" for name in SELECTORS if getattr(self, name) is not None)


def check_rules(rules: Sequence[WeightRule]) -> None:
    """Raise UserError for a rule that speaks of nothing, a weight that is no number, or an expression that is none."""
    import regex

    for i, rule in enumerate(rules):
        if not rule.told:
            raise UserError(f"weights.{i}: a rule needs one of {', '.join(SELECTORS)}")
        if not math.isfinite(rule.weight):
            raise UserError(f"weights.{i}: weight must be a finite number, not {rule.weight}")
        if any(getattr(rule, name) == "" for name in SELECTORS):
            raise UserError(f"weights.{i}: an empty text selects nothing ({rule.told})")
        try:
            regex.compile(rule.regex or "")
        except regex.error as e:
            raise UserError(f"weights.{i}: {rule.regex!r} is no regular expression: {e}") from None


def only_source(rule: WeightRule) -> bool:
    """Whether a rule looks at no text."""
    return rule.role is rule.tag is rule.regex is None


def silent(rules: Sequence[WeightRule], documents: Sequence[int]) -> list[str]:
    """A sentence on each rule that spoke of no document; ``documents``: of how many each did."""
    return [
        f"weights.{i} ({rule.told}) matched nothing in any document"
        for i, (rule, n) in enumerate(zip(rules, documents, strict=True))
        if not n
    ]
