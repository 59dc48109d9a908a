"""An objective: a rule from token statistics to token weights, with what it needs declared beforehand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .select import Scope
from .stats import HEAD_STATISTICS, TokenStats

Denominator = Literal["weight", "valid", "nonzero", "abs"]
Unit = Literal["token", "document"]


@dataclass(frozen=True)
class SecondTarget:
    """Where the second targets of an objective come from: ``core/targets.py`` says what they do to the loss."""

    origin: Literal["columns", "teacher", "similar"]
    """columns: of the data set; teacher: a model that is run beside the student; similar: by the target's embedding."""
    model: str | None = None
    """The folder of the teacher, or of the model whose embeddings count; None: the model as training begins."""
    top_k: int = 0
    """Entries a token, where they are made here."""
    temperature: float = 1.0
    """What similarities are divided by."""
    renormalised: bool = False
    """Whether probabilities are brought to a sum of 1; else what they lack is one bucket of all other entries."""
    columns: tuple[str, str] = ("topk_ids", "topk_logp")
    """The data set's columns of ids and of log p in nats."""


@dataclass(frozen=True)
class CorpusScore:
    """A ranking of a whole data set: the share that is kept, by what."""

    ratio: float
    score: Callable[[TokenStats], Tensor]


@dataclass(frozen=True)
class Objective:
    """``loss = sum(weight * nll) / denominator``, with ``weight = weigh(stats)`` float32, 0 where not valid.

    The denominator is summed over all micro-batches and ranks of the step and divided by once:

        weight    sum(weight)         Rho-1 Eq. 4; refused for weights that may be negative
        valid     tokens with a target
        nonzero   tokens with a weight other than 0
        abs       sum(|weight|)

    Raises ValueError for a denominator that does not exist, or one that the weights do not go with.
    """

    name: str
    weigh: Callable[[TokenStats], Tensor]
    needs: frozenset[str] = frozenset()
    """Statistics (see STATISTICS) and score columns that are read; a run without them is refused before it starts."""
    scope: Scope = "batch"
    """The tokens that ``weigh`` must be given together."""
    denominator: Denominator = "weight"
    known_count: Callable[[TokenStats], Tensor] | None = None
    """What is known before the forward -> weight sum, where it can be told from that: see :meth:`count`."""
    most_rows: Callable[[int, int], int] | None = None
    """(rows, length) -> the most tokens of such a batch that can get a weight: spares a wait for the device."""
    selects: bool = False
    """Whether weights are 0 or 1 and nothing else."""
    signed: bool = False
    """Whether weights may be negative."""
    score: Callable[[TokenStats], Tensor] | None = None
    """What ``weigh`` ranks by, if it ranks: logged as the threshold."""
    static: bool = False
    """Whether the weights follow from what is known before the forward alone, so that they can be counted there."""
    options: Mapping[str, Any] = field(default_factory=dict)
    multiplied: bool = False
    """Whether a user's column ``weight`` multiplies the rule, which is then shown tokens of weight 0 as no targets."""
    corpus_scores: Mapping[str, CorpusScore] = field(default_factory=dict)
    """Of scope corpus: what is ranked over the whole data set beforehand; ``weigh`` asks for ``stats.threshold(name)``."""
    second: SecondTarget | None = None
    """A second target of each token: the loss is then ``sum(weight * ((1 - share) nll + share CE))``."""
    share: Callable[[TokenStats], float] | None = None
    """Of the second target, in [0, 1]: by the step or the tokens seen, the same for all tokens of a micro-batch."""

    def __post_init__(self) -> None:
        if self.denominator not in get_args(Denominator):
            raise ValueError(f"unknown denominator {self.denominator!r}: one of {', '.join(get_args(Denominator))}")
        if (self.second is None) != (self.share is None):
            raise ValueError(f"{self.name!r}: second and share go together")
        if "divergence" in self.needs and self.second is None:
            raise ValueError(f"{self.name!r} needs 'divergence', which only an objective with a second target has")
        if self.static and (late := HEAD_STATISTICS & self.needs):
            raise ValueError(f"{self.name!r} says it is static, but needs {min(late)!r}, which comes with the forward")
        if self.signed and self.denominator == "weight":
            raise ValueError(
                f"denominator 'weight': the weights of {self.name!r} may be negative, their sum may be 0 or change the sign "
                "of the loss: take abs, nonzero or valid"
            )

    def count(self, known: TokenStats) -> Tensor | None:
        """The denominator of these tokens if it is known before the forward, a scalar on their device; else None.

        ``known`` has ``valid``, ``step``, ``tokens_seen`` and, of what ``needs`` names, all that does not come from the
        forward. What it says is held against the weights that came at a run's first step.
        """
        if self.denominator == "valid":
            return known.valid.sum()
        if not self.counts_ahead:
            return None
        if self.known_count is None or self.static:
            return self.denominator_of(self.weigh(known), known.valid)
        return self.known_count(known)

    @property
    def counts_ahead(self) -> bool:
        """Whether :meth:`count` knows; else a step's gradients are divided after its last backward."""
        if self.static or self.denominator == "valid":
            return True
        same_as_sum = {"weight": True, "abs": not self.signed, "nonzero": self.selects}
        return self.known_count is not None and same_as_sum[self.denominator]

    def denominator_of(self, weight: Tensor, valid: Tensor) -> Tensor:
        """The denominator of weights that are there, a float64 scalar: what :meth:`count` must have said."""
        if self.denominator == "valid":
            return valid.sum(dtype=sum_dtype(weight))
        weight = torch.where(valid, weight, 0)
        parts = {"weight": weight, "abs": weight.abs(), "nonzero": weight != 0}
        return parts[self.denominator].sum(dtype=sum_dtype(weight))


def with_denominator(made: Objective, denominator: Any) -> Objective:
    """The objective divided by another denominator; None: as it is. ValueError for one that does not exist or fit."""
    if denominator is None:
        return made
    return replace(made, denominator=denominator, options={**made.options, "denominator": denominator})


def sum_dtype(like: Tensor) -> torch.dtype:
    """What sums over many batches are kept in: float32 stops counting at 16.7 million. MPS has nothing wider."""
    return torch.float64 if like.device.type != "mps" else torch.float32
