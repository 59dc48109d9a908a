"""Learning rates by tokens instead of by steps: they know nothing of how long a run will be.

The schedules by steps are transformers' own (``training.lr_scheduler_type``), warm-up, stable, decay among them. torch is
imported by the one function that needs it: a command's config names :class:`PowerSchedule`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class PowerSchedule:
    """``lr = min(lr_max, beta a n^b)`` after n tokens [Power scheduler, arXiv 2408.13359, section 4].

    ``lr_max`` is the run's learning rate. During a warm-up of N tokens: ``n / N`` of what the rule says at N. The rule names no
    end: a run that goes on is one that was longer. (The paper's decay at the end is a run of its own from a checkpoint.)
    """

    name: Literal["power"] = "power"
    """The rule."""
    a: float = 4.0
    """Of the power law; the paper's, for rows of 4096 tokens, AdamW and muP."""
    b: float = -0.51
    """Its exponent, at most 0."""
    beta: float | None = None
    """Batch size; none: rows of an optimizer step."""
    count: Literal["seen", "trained"] = "seen"
    """What n counts: tokens seen, or those of them with a weight in the loss."""
    warmup_tokens: int = 0
    """N."""

    def __post_init__(self) -> None:
        if not self.a > 0 or not self.b <= 0:
            raise ValueError(f"a must be above 0 and b at most 0, not {self.a} and {self.b}")
        if self.beta is not None and not self.beta > 0:
            raise ValueError(f"beta must be above 0, not {self.beta}")
        if self.warmup_tokens < 0:
            raise ValueError(f"warmup_tokens must be at least 0, not {self.warmup_tokens}")

    def rate(self, tokens: int, lr_max: float, rows: int) -> float:
        """The learning rate after ``tokens``. ``rows``: of an optimizer step, in place of a ``beta`` that is not given."""
        n = max(tokens, self.warmup_tokens)
        power = lr_max if n == 0 else min(lr_max, (rows if self.beta is None else self.beta) * self.a * n**self.b)
        return power * tokens / self.warmup_tokens if tokens < self.warmup_tokens else power


def token_scheduler(optimizer: Any, lr_max: float, rate: Callable[[int], float], tokens: Callable[[], int]) -> Any:
    """A torch scheduler whose every step sets the learning rate to ``rate(tokens())``; a group of parameters that begins with
    another rate than ``lr_max`` keeps that proportion to it."""
    from torch.optim.lr_scheduler import LRScheduler

    class TokenScheduler(LRScheduler):
        def get_lr(self) -> list[Any]:
            now = rate(tokens())
            return [now * (base / lr_max) if lr_max else 0.0 for base in self.base_lrs]

    return TokenScheduler(optimizer)
