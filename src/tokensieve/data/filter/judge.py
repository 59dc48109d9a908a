"""From scores to what is kept: shares and thresholds by group, percentile ranks, and the table itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...runs.errors import UserError
from ...runs.files import atomic_file
from .measured import Measured, chunks
from .table import ROWS_AT_A_TIME, TABLE_COLUMNS, TABLE_FILE

Why = Callable[[np.ndarray], Sequence[str]]
"""Indices of documents -> why each is kept or dropped; "" where there is nothing to say."""


@dataclass
class Judgement:
    """What a kind says of all documents, in the order of the table."""

    score: np.ndarray
    """float32 [N]; NaN: none."""
    times: np.ndarray
    """int16 [N]: how often a corpus takes it; 0: dropped."""
    why: Why
    told: dict[str, Any] = field(default_factory=dict)
    """Further keys of the manifest."""


@dataclass(frozen=True)
class Keep:
    """Which documents of a score are kept."""

    share: float | dict[str, float] | None = None
    threshold: float | dict[str, float] | None = None
    by_source: bool = False
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    reverse: bool = False
    repeat: Mapping[int, int] = field(default_factory=dict)

    def judge(self, score: np.ndarray, measured: Measured, **told: Any) -> Judgement:
        """Of each group of n documents the floor(share * n + 0.5) of the highest scores, ties in the order of the table; or all
        whose score is at least the threshold; or all, where neither is given. ``reverse``: the lowest, at most.

        UserError for a group that a mapping of shares or thresholds does not name, and for a name that no group has.
        """
        of_source, names = self._groups(measured.sources)
        group = of_source[measured.source] if len(measured.sources) else np.empty(0, np.int64)
        signed = np.where(np.isnan(score), -np.inf, -score if self.reverse else score)
        keep, limits = np.zeros(len(score), bool), np.full(len(names), np.nan)
        for g, name in enumerate(names):
            mine = np.flatnonzero(group == g)
            keep[kept := mine[self._kept(signed[mine], name)]] = True
            limits[g] = (-1 if self.reverse else 1) * signed[kept].min() if len(kept) else np.nan
        times = keep.astype(np.int16)
        for rounded, n in self.repeat.items():
            times[keep & (np.rint(score) == rounded)] = n
        side = "above" if self.reverse else "below"

        def why(indices: np.ndarray) -> list[str]:
            said = [
                f"none of {name} is kept"
                if np.isnan(limit)
                else f"score {side} that of the kept of {name} ({limit:.6g})"
                for name, limit in zip(names, limits, strict=True)
            ]
            return ["" if keep[i] else said[group[i]] for i in indices]

        shares = {
            n: {"documents": int((group == g).sum()), "kept": int(keep[group == g].sum())} for g, n in enumerate(names)
        }
        for g, name in enumerate(names):
            shares[name]["limit"] = float(limits[g]) if np.isfinite(limits[g]) else None  # type: ignore[assignment]
        return Judgement(score.astype(np.float32), times, why, {"groups": shares, **told})

    def _kept(self, signed: np.ndarray, name: str) -> np.ndarray:
        if (limit := _of(self.threshold, name)) is not None:
            return np.flatnonzero(signed >= (-limit if self.reverse else limit))
        if (share := _of(self.share, name)) is None:
            return np.arange(len(signed))
        kept = int(Fraction(str(share)) * len(signed) + Fraction(1, 2))  # 0.145 * 100 in floats is less than 14.5
        return np.argsort(-signed, kind="stable")[:kept]

    def _groups(self, sources: Sequence[str]) -> tuple[np.ndarray, list[str]]:
        """(group of each source, names of the groups)."""
        named = {source: name for name, members in self.groups.items() for source in members}
        if strangers := sorted(set(named) - set(sources)):
            raise UserError(f"groups: no document is of source {strangers[0]!r}; there are {', '.join(sources[:20])}")
        apart = self.by_source or isinstance(self.share, dict) or isinstance(self.threshold, dict)
        of = [named.get(s, s if apart else "all") for s in sources]
        names = sorted(set(of))
        for field_name, given in (("share", self.share), ("threshold", self.threshold)):
            if isinstance(given, dict) and (other := sorted(set(names) ^ set(given))):
                what = "is of no document" if other[0] in given else "is not given"
                raise UserError(f"{field_name}: {other[0]!r} {what}; there are {', '.join(names[:20])}")
        return np.array([names.index(n) for n in of], np.int64), names


def _of(given: float | dict[str, float] | None, name: str) -> float | None:
    return given[name] if isinstance(given, dict) else given


def buckets_of(score: np.ndarray, buckets: int) -> np.ndarray:
    """floor(buckets * rank / n), 0 to ``buckets`` - 1: rank 0 ... n - 1 in rising order of the score, equal scores in the order
    given, so that all buckets have n / buckets entries, to within one. NaN ranks lowest. int64 [N]"""
    order = np.argsort(np.where(np.isnan(score), -np.inf, score), kind="stable")
    rank = np.empty(len(score), np.int64)
    rank[order] = np.arange(len(score))
    return rank * buckets // max(1, len(score))


def table_rows(measured: Measured, judgement: Judgement) -> Iterator[pa.Table]:
    """The rows of the table in their order, so many at a time."""
    for some in chunks(len(measured), ROWS_AT_A_TIME):
        score = judgement.score[some]
        yield pa.table(
            {
                "text_hash": measured.text_hash[some],
                "key": measured.key[some],
                "id": measured.take("id", some),
                "source": measured.take("source", some),
                "bytes": measured.bytes[some],
                "score": pa.array(score, pa.float32(), mask=np.isnan(score)),
                "kept": judgement.times[some] > 0,
                "times": judgement.times[some],
                "why": pa.array(judgement.why(some), pa.string()),
                "copies": measured.copies[some],
                "place": pa.array([measured.repeated.get(i) for i in some.tolist()], pa.string()),
            },
            pa.schema(list(TABLE_COLUMNS.items())),
        )


def write_table(folder: Path, rows: Iterator[pa.Table]) -> None:
    with atomic_file(folder / TABLE_FILE) as f, pq.ParquetWriter(f, pa.schema(list(TABLE_COLUMNS.items()))) as writer:
        for some in rows:
            writer.write_table(some)


def table_stats(measured: Measured, judgement: Judgement) -> dict[str, Any]:
    """``stats`` of the manifest: documents and bytes, all and kept, by source; a document that is taken n times counts n times
    among the kept bytes."""
    kept = judgement.times > 0
    kept_bytes = measured.bytes * judgement.times
    by_source = {}
    for i, name in enumerate(measured.sources):
        mine = measured.source == i
        by_source[name] = {
            "documents": int(mine.sum()),
            "kept": int(kept[mine].sum()),
            "bytes": int(measured.bytes[mine].sum()),
            "kept_bytes": int(kept_bytes[mine].sum()),
        }
    left = measured.left()
    return {
        "documents": len(measured),
        "kept": int(kept.sum()),
        "bytes": int(measured.bytes.sum()),
        "kept_bytes": int(kept_bytes.sum()),
        "repeated": int((measured.copies - 1).sum()),
        "by_source": by_source,
        "bad_rows": left.num_bad_rows,
        "skipped": dict(sorted(left.skipped.items())),
    }
