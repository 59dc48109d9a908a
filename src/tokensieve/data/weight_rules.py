"""Rules that give tokens weights by what they say: as a config has them. What they do is in ``build/weigh.py``."""

from __future__ import annotations

from dataclasses import dataclass

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


def only_source(rule: WeightRule) -> bool:
    """Whether a rule looks at no text."""
    return rule.role is rule.tag is rule.regex is None
