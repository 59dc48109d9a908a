"""What may be known of a token: the one list of statistics, and the object that carries them.

A new statistic is a line in ``STATISTICS`` and a field of ``TokenStats`` here, and the place that computes it: ``data/rows.py``
for what a row says, ``core/softmax.py`` for what the head's pass says. Whatever else an objective needs is a score column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor


@dataclass(frozen=True)
class Statistic:
    """Who computes a statistic, and what it is."""

    origin: Literal["rows", "run", "column", "head", "second"]
    """rows: from the data set's rows; run: a number for the whole step; column: a score column that the user gives; head:
    from the student's forward, so not known before it; second: as head, where there is a second target."""
    about: str
    """What it is, with its unit."""


# In the order in which they become known. Each is computed only where an objective needs it.
STATISTICS: dict[str, Statistic] = {
    "row_id": Statistic("rows", "the corpus row that the token stands in, int64"),
    "position": Statistic("rows", "its place in that row, int64"),
    "segment": Statistic("rows", "which document or turn of the row it stands in, counted from 0, int64"),
    "document_position": Statistic(
        "rows", "tokens before it in its document, also where a row begins inside one, int64"
    ),
    "input_ids": Statistic("rows", "the token's id, int64"),
    "context_ids": Statistic("rows", "the id before it: what stands at the predicting position, int64"),
    "source_id": Statistic("rows", "the source its document is from: an index into the corpus's sources, int64"),
    "step": Statistic("run", "optimizer steps done before this one, an int"),
    "tokens_seen": Statistic("run", "tokens with a target in all steps before this one, over all ranks, int64 scalar"),
    "sources": Statistic("run", "the names of the corpus's sources, in the order of source_id, a tuple"),
    "ref_nll": Statistic("column", "the reference model's nll, nats"),
    "ref_entropy": Statistic("column", "the entropy of the reference model's prediction, nats"),
    "nll": Statistic("head", "the student's nll, nats, float32"),
    "entropy": Statistic("head", "-sum_v p_v log p_v of the student's prediction, nats, float32"),
    "sum_p2": Statistic("head", "sum_v p_v^2 of the student's prediction, in (0, 1], float32"),
    "target_rank": Statistic(
        "head", "vocabulary entries that the student finds likelier than the token, from 0, int64"
    ),
    "top_entropy": Statistic("head", "entropy of the 20 likeliest entries, renormalised, nats, float32"),
    "divergence": Statistic("second", "KL(second target || student), nats, float32"),
}


def of_origin(*origins: str) -> frozenset[str]:
    """Names of the statistics that come from there."""
    return frozenset(name for name, s in STATISTICS.items() if s.origin in origins)


HEAD_STATISTICS, ROW_STATISTICS = of_origin("head"), of_origin("rows")


def head_statistics(needs: Iterable[str]) -> tuple[str, ...]:
    """Those of ``needs`` that the head's pass gives, in the order of STATISTICS.

    The order counts: each is gathered over ranks by an exchange of its own, and the order of a set follows the process's own
    seed of string hashes. Two ranks exchanged nll for entropy.
    """
    asked = set(needs)
    return tuple(name for name, s in STATISTICS.items() if s.origin in ("head", "second") and name in asked)


def score_columns(needs: Iterable[str]) -> tuple[str, ...]:
    """The columns that a data set must have beside its rows, in alphabetical order: those listed as such, and all others."""
    return tuple(sorted(set(needs) - of_origin("rows", "run", "head", "second") - {"valid"}))


@dataclass(frozen=True)
class TokenStats:
    """What is known of each token of a scope: ``STATISTICS`` says what each field is.

    Tensors share one shape, [T] or [B, T], and are aligned by *predicting* position: entry t speaks of the token that hidden
    state t predicts, and ``valid`` says whether there is one. On a flat [T] batch ``row_id`` says where rows are.
    """

    valid: Tensor
    nll: Tensor | None = None
    entropy: Tensor | None = None
    ref_nll: Tensor | None = None
    ref_entropy: Tensor | None = None
    input_ids: Tensor | None = None
    row_id: Tensor | None = None
    position: Tensor | None = None
    step: int = 0
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    """Further score columns by name."""
    segment: Tensor | None = None
    document_position: Tensor | None = None
    context_ids: Tensor | None = None
    source_id: Tensor | None = None
    tokens_seen: Tensor | int = 0
    sources: tuple[str, ...] = ()
    sum_p2: Tensor | None = None
    target_rank: Tensor | None = None
    top_entropy: Tensor | None = None
    divergence: Tensor | None = None
    thresholds: Mapping[str, float] = field(default_factory=dict)
    """Of objectives of scope corpus: what each of their rankings of the whole data set came to."""

    def threshold(self, name: str) -> float:
        """One of ``thresholds``. Raises ValueError naming it if it was not given."""
        if name not in self.thresholds:
            raise ValueError(
                f"scope 'corpus' needs the threshold of the whole data set for {name}, which was not given"
            )
        return self.thresholds[name]

    def need(self, name: str) -> Tensor:
        """The statistic or score column ``name``, detached. Raises ValueError naming it if it was not given."""
        value = getattr(self, name) if name in STATISTICS or name == "valid" else self.columns.get(name)
        if value is None:
            raise ValueError(f"this objective or score needs {name!r}, which was not given")
        found: Tensor = value
        return found.detach()

    def per_token(self) -> dict[str, Tensor]:
        """name -> tensor of every statistic of one value a token that is there, ``valid`` first, then columns."""
        named = {name: getattr(self, name) for name in STATISTICS if STATISTICS[name].origin != "run"}
        there = {name: value for name, value in named.items() if value is not None}
        return {"valid": self.valid, **there, **{n: v for n, v in self.columns.items() if n not in STATISTICS}}

    def with_values(self, values: Mapping[str, Tensor]) -> TokenStats:
        """The same with these statistics and score columns put in, by name."""
        fields: dict[str, Any] = {n: v for n, v in values.items() if n in STATISTICS or n == "valid"}
        extra = {name: value for name, value in values.items() if name not in fields}
        return replace(self, columns={**self.columns, **extra}, **fields)

    def map(self, change: Callable[[Tensor], Tensor]) -> TokenStats:
        """The same with ``change`` applied to every tensor of one value a token."""
        return self.with_values({name: change(value) for name, value in self.per_token().items()})
