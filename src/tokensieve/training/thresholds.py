"""The thresholds of scope corpus: each ranking of a whole data set, found exactly before training and kept with the scores.

rank r of W reads its share of the rows, twice, in blocks ── counts, summed over ranks ──> the k-th largest score of all
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core import Objective
from ..core.kth import HALF, Threshold, holding, lower_counts, threshold, upper_counts
from ..core.select import kept_count
from ..data.rows import Rows, collate
from ..runs.errors import UserError
from ..runs.files import hash_json, write_json
from .step import known_stats

STORED = "thresholds.json"
BLOCK_ROWS = 64  # read at a time: no more of the data set is held


def find_thresholds(
    objective: Objective,
    rows: Rows,
    *,
    rank: int = 0,
    num_ranks: int = 1,
    reduce: Callable[[Tensor], Tensor] = lambda counts: counts,
) -> dict[str, Threshold]:
    """Name -> threshold of each of the objective's ``corpus_scores`` over the tokens of ``rows`` that have a target.

    Exact, in two readings of the rows (about 2 million tokens a second each, on a core) and a MiB a ranking. ``reduce`` sums
    int64 counts over ranks, which call it together.
    """
    ranked = objective.corpus_scores
    zeros = {name: torch.zeros(HALF, dtype=torch.int64) for name in ranked}
    upper, lower = dict(zeros), dict(zeros)
    for name, values in _scores(objective, rows, rank, num_ranks):
        upper[name] = upper[name] + upper_counts(values)
    upper = {name: reduce(counts) for name, counts in upper.items()}
    wanted = {name: kept_count(int(counts.sum()), ranked[name].ratio) for name, counts in upper.items()}
    halves = {name: holding(counts, wanted[name])[0] for name, counts in upper.items() if wanted[name]}
    for name, values in _scores(objective, rows, rank, num_ranks) if halves else ():
        lower[name] = lower[name] + lower_counts(values, halves[name])
    return {name: threshold(ranked[name].ratio, upper[name], reduce(lower[name])) for name in ranked}


def _scores(objective: Objective, rows: Rows, rank: int, num_ranks: int) -> Iterator[tuple[str, Tensor]]:
    """(name, scores of the targets) of each ranking, block by block of this rank's."""
    for start in range(rank * BLOCK_ROWS, len(rows), num_ranks * BLOCK_ROWS):
        batch = collate(rows.__getitems__(range(start, min(start + BLOCK_ROWS, len(rows)))))
        stats = known_stats(objective.needs, batch)
        shown = stats.valid & (stats.need("weight") != 0) if objective.multiplied else stats.valid
        for name, ranking in objective.corpus_scores.items():
            yield name, ranking.score(stats)[shown]


def told(found: Mapping[str, Threshold]) -> list[str]:
    """A sentence on each: the threshold, what is kept, and how many tokens tie with it."""
    return [
        f"{name}: of {t.tokens:,} tokens {t.kept:,} are kept, from a score of {t.value:.6g} on"
        + (f": {t.kept - t.wanted:,} more than asked for, {t.ties:,} tie there" if t.kept > t.wanted else "")
        for name, t in found.items()
    ]


# --- kept with the scores -------------------------------------------------------------------------------------------------


def read_thresholds(folder: Path | None, made_from: Mapping[str, Any]) -> dict[str, Threshold]:
    """The thresholds that were found before from the same rows and scores. What was changed is not there."""
    found = {}
    for entry in _entries(folder):
        if entry.get("made_from") == made_from and entry.get("seal") == _seal(entry):
            found[entry["name"]] = Threshold(**entry["threshold"])
    return found


def store(folder: Path | None, made_from: Mapping[str, Any], found: Mapping[str, Threshold]) -> None:
    """Add these to what is kept. A folder that cannot be written is left as it is: they are found again."""
    if folder is None or not found or found.items() <= read_thresholds(folder, made_from).items():
        return
    kept = [e for e in _entries(folder) if not (e.get("made_from") == made_from and e.get("name") in found)]
    made: Sequence[dict[str, Any]] = [
        {"made_from": dict(made_from), "name": name, "threshold": asdict(t)} for name, t in found.items()
    ]
    try:
        write_json(folder / STORED, [*kept, *({**entry, "seal": _seal(entry)} for entry in made)])
    except (OSError, UserError):
        return


def _entries(folder: Path | None) -> list[dict[str, Any]]:
    path = None if folder is None else folder / STORED
    try:
        found = json.loads(path.read_bytes()) if path is not None and path.is_file() else []
    except (OSError, ValueError, RecursionError):
        return []
    return [e for e in found if isinstance(e, dict)] if isinstance(found, list) else []


def _seal(entry: Mapping[str, Any]) -> str:
    return hash_json({key: entry.get(key) for key in ("made_from", "name", "threshold")})
