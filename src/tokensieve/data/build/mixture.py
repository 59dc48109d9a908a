"""Which rows a corpus takes: shares of its sources, how often each is read, and rows of earlier corpora beside them.

rows of each source ──epochs──> as if it were so many times as large ──weights or temperature──> rows to take ──seed──> which
rows of an earlier corpus ──share──> rows to take ──seed──> which
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...runs.errors import UserError
from ..replay import ReplaySource


@dataclass(frozen=True)
class Pool:
    """What rows can be taken from: a source's own, or those of an earlier corpus."""

    label: str
    rows: int
    epochs: float = 1.0

    @property
    def readable(self) -> int:
        """Its rows, each as often as it may be read: floor(epochs * rows + 1/2)."""
        return int(self.epochs * self.rows + 0.5)


def shares_of(pools: Sequence[Pool], weights: Sequence[float | None], temperature: float | None) -> list[float] | None:
    """Shares that add up to 1: of the given weights, or size^(1/T) with size in rows read once; None where neither is given.

    T = 1 is in proportion to size, a large T all alike; sources without rows have none. The exponent is that of Arivazhagan et
    al. 2019 (arXiv 1907.05019, section 3.2.1: p^(1/T), renormalised) and of mT5 with alpha = 1/T.
    """
    if temperature is not None:
        largest = max((p.rows for p in pools), default=0)
        weights = [(p.rows / largest) ** (1 / temperature) if p.rows else 0.0 for p in pools]
    given = [float(w) for w in weights if w is not None]
    return [w / sum(given) for w in given] if given else None


def allot(pools: Sequence[Pool], shares: Sequence[float] | None, max_rows: int | None) -> list[int]:
    """Rows to take of each: all that are readable, at most ``max_rows`` over all, or exactly ``max_rows`` in the given shares.

    Without shares a cap takes from each in proportion to what it has. Shares are rounded by largest remainders, so that they
    add up. UserError, with all numbers, where one has too few.
    """
    has = [p.readable for p in pools]
    if max_rows is None or (shares is None and sum(has) <= max_rows):
        return has
    if shares is None:
        return round_to_sum([n / sum(has) * max_rows for n in has], max_rows)
    wanted = round_to_sum([s * max_rows for s in shares], max_rows)
    short = [_short(p, s, n, max_rows) for p, s, n in zip(pools, shares, wanted, strict=True) if n > p.readable]
    if short:
        most = min(int(p.readable / s) for p, s in zip(pools, shares, strict=True) if s > 0)
        raise UserError(f"{'; '.join(short)}: these shares can be had for {most} rows at most, or with more epochs")
    return wanted


def _short(pool: Pool, share: float, wanted: int, max_rows: int) -> str:
    often = "" if pool.epochs == 1 else f", {pool.readable} in {pool.epochs:g} epochs"
    needs = wanted / pool.rows if pool.rows else float("inf")
    return (
        f"source {pool.label} has {pool.rows} rows{often}, its share of {share:.2%} needs {wanted} of {max_rows} rows"
        f" (epochs: {needs:.4g})"
    )


def round_to_sum(values: Sequence[float], total: int) -> list[int]:
    """Largest remainders: each value goes to its floor or the next integer, and they add up to ``total``."""
    floors = [int(v) for v in values]
    by_remainder = sorted(range(len(values)), key=lambda i: (floors[i] - values[i], i))
    for i in by_remainder[: total - sum(floors)]:
        floors[i] += 1
    return floors


def replayed(replay: Sequence[ReplaySource], pools: Sequence[Pool], new_rows: int) -> list[int]:
    """Rows to take of each earlier corpus beside ``new_rows`` new ones: of N = new_rows / (1 - sum of shares) rows in all,
    rounded, the share of each by largest remainders. UserError, with the numbers, where one has too few."""
    total = int(new_rows / (1 - sum(r.share for r in replay)) + 0.5)
    wanted = _split(replay, total - new_rows)
    check_enough(replay, pools, wanted, total)
    return wanted


def replayed_of(replay: Sequence[ReplaySource], total: int) -> list[int]:
    """The same of ``total`` rows in all, before it is known whether the new ones fill their part: nothing is refused."""
    return _split(replay, int(total * sum(r.share for r in replay) + 0.5))


def _split(replay: Sequence[ReplaySource], old: int) -> list[int]:
    of_all = sum(r.share for r in replay)
    return round_to_sum([r.share / of_all * old for r in replay], old) if old else [0] * len(replay)


def check_enough(replay: Sequence[ReplaySource], pools: Sequence[Pool], wanted: Sequence[int], total: int) -> None:
    """Raise UserError, with the numbers, where an earlier corpus has fewer rows than are ``wanted`` of it."""
    for one, pool, n in zip(replay, pools, wanted, strict=True):
        if n > pool.readable:
            often = "" if pool.epochs == 1 else f", {pool.readable} in {pool.epochs:g} epochs"
            raise UserError(
                f"replay: {pool.label} has {pool.rows} rows{often}, a share of {one.share:.2%} of {total} rows needs {n}: "
                "lower the share, or let it be read more often (epochs)"
            )


def read_over(rows: int, wanted: int, key: Sequence[int]) -> Iterator[npt.NDArray[np.int64]]:
    """Row numbers of each pass over a source of so many rows, ascending, ``wanted`` in all: every row once a pass, and in the
    last one a seeded choice. A larger ``wanted`` takes the same rows and more."""
    for _ in range(wanted // rows if rows else 0):
        yield np.arange(rows)
    if rest := wanted % rows if rows else 0:
        yield np.sort(np.random.default_rng(list(key)).permutation(rows)[:rest])


def mixture_told(
    names: Sequence[str], pools: Sequence[Pool], shares: Sequence[float] | None, taken: Sequence[int], rows: int
) -> list[dict[str, Any]]:
    """What came of a mixture, for the manifest: ``share`` as it was asked for (null: not), ``realised`` of the rows."""
    asked: Sequence[float | None] = shares if shares is not None else [None] * len(pools)
    return [
        {
            "source": name,
            "available": pool.rows,
            "epochs": pool.epochs,
            "share": share,
            "rows": n,
            "realised": n / rows,
            "times_read": n / pool.rows if pool.rows else 0.0,
        }
        for name, pool, share, n in zip(names, pools, asked, taken, strict=True)
    ]
