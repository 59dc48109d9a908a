"""What a run writes about its tokens: ``tokens.jsonl`` (a line a step) and ``tokens/`` (some rows, token by token).

Neither carries a clock, so that two equal runs write equal files; times go to ``times.jsonl``.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core import random_uniform
from ..modeling.flops import known_or_none
from ..runs.errors import UserError
from ..runs.files import atomic_file
from ..runs.layout import BESIDE, TIMES, TOKEN_LOG, log_lines, token_file, token_files
from .price import StepFlops
from .step import Totals, unpacked


@dataclass(frozen=True)
class TokenLogConfig:
    """What is logged of the tokens, beside the line a step."""

    every: int = 0
    """Log a sample of rows token by token every so many steps (and at the first); 0 for never."""
    rows: int = 8
    """Rows in that sample."""
    seed: int = 0
    """Which rows of a batch are in it."""


@dataclass(frozen=True)
class FlopsSpent:
    """FLOPs spent before training on what the objective needs; reported as fields of their own. NaN: not known."""

    scoring: float = 0.0
    """Scoring the corpus with the reference model."""
    reference: float = 0.0
    """Training the reference model."""


@dataclass(frozen=True)
class Pending:
    """A step that has no line yet: its numbers are on the device."""

    step: int
    totals: Totals
    lowest: Tensor
    positions: int


@dataclass
class TokenLog:
    """Collects a step's totals on the device and writes them out in blocks: no host sync in the step.

    Keys of a line: ``step``; of this step ``valid``, ``kept``, ``ratio``, ``threshold`` (lowest score kept), ``nll``,
    ``kept_nll``, ``dropped_nll`` (means over valid, kept, dropped tokens; null where there is none), ``loss`` (weighted sum
    over the objective's denominator: what was minimised), ``effective_share`` (only of objectives whose weights are not just
    0 or 1: (sum |w|)^2 / (valid * sum w^2)), ``valid_by_source``, ``kept_by_source`` (name -> tokens); since the start
    ``tokens_seen``, ``tokens_trained``, ``flops_student``, ``flops_scoring``, ``flops_reference`` (null where not known);
    ``skipped`` (true) only of a step without an update: nothing is kept in it, and its means are null.
    """

    folder: Path
    config: TokenLogConfig
    flops: StepFlops
    spent: FlopsSpent
    sources: Sequence[str] = ()
    tokens_seen: int = 0
    tokens_trained: int = 0
    flops_student: float = 0.0
    pending: list[Pending] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    process: int = 1
    """Which of the processes that worked on this run; a resumed one starts its clock again."""
    skipped: set[int] = field(default_factory=set)
    """Steps whose update was left out because something in them was not finite."""

    def add(self, step: int, totals: Totals, lowest: Tensor, positions: int) -> None:
        """Remember a finished step: this rank's totals (see ``selection_totals``), its threshold, positions computed."""
        self.pending.append(Pending(step, totals, lowest, positions))

    def lines(self, sums: np.ndarray, lowest: np.ndarray, positions: np.ndarray) -> list[dict[str, Any]]:
        """The pending steps as lines, given their packed totals over all ranks; moves the running sums on."""
        numbers = zip(self.pending, sums.tolist(), lowest.tolist(), positions.tolist(), strict=True)
        made = [self._line(p.step, unpacked(s, p.totals), low, places) for p, s, low, places in numbers]
        self.pending.clear()
        return made

    def _line(self, step: int, total: dict[str, Any], low: float, places: float) -> dict[str, Any]:
        skipped = step in self.skipped
        self.flops_student += self.flops.of(places, total["kept"])
        total, low = (_without_update(total), math.inf) if skipped else (total, low)
        self.tokens_seen += round(total["valid"])
        self.tokens_trained += round(total["kept"])
        return {
            "step": step,
            "tokens_seen": self.tokens_seen,
            "tokens_trained": self.tokens_trained,
            "valid": round(total["valid"]),
            "kept": round(total["kept"]),
            "ratio": _ratio(total["kept"], total["valid"]),
            **({"effective_share": _effective_share(total)} if "square" in total else {}),
            "threshold": low if math.isfinite(low) else None,
            "loss": _ratio(total["weighted_nll"], total["denominator"]),
            "nll": _ratio(total["kept_nll"] + total["dropped_nll"], total["valid"]),
            "kept_nll": _ratio(total["kept_nll"], total["kept"]),
            "dropped_nll": _ratio(total["dropped_nll"], total["valid"] - total["kept"]),
            "flops_student": known_or_none(self.flops_student),
            "flops_scoring": known_or_none(self.spent.scoring),
            "flops_reference": known_or_none(self.spent.reference),
            **self._by_source(total),
            **({"skipped": True} if skipped else {}),
        }

    def _by_source(self, total: Mapping[str, Any]) -> dict[str, dict[str, int]]:
        """Valid and kept tokens of each source that occurred in the step."""
        valid = total.get("valid_by_source", [])
        there = [(i, name) for i, name in enumerate(self.sources) if i < len(valid) and valid[i]]
        if not there:
            return {}
        return {key: {name: round(total[key][i]) for i, name in there} for key in ("valid_by_source", "kept_by_source")}

    def write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Append lines to ``tokens.jsonl`` and the time to ``times.jsonl``."""
        if not lines:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        _append(self.folder / TOKEN_LOG, lines)
        seconds = round(time.monotonic() - self.started, 3)
        line = {"process": self.process, "step": lines[-1]["step"], "seconds": seconds}
        _append(self.folder / TIMES, [{**line, "beside": True} if BESIDE in os.environ else line])

    def rewind(self, step: int, *, write: bool) -> None:
        """Go back to a checkpoint's step: later lines were written by a run that did not get to save. Restores the sums."""
        self.pending.clear()  # of a training that was interrupted in this process
        self.process = 1 + max((line["process"] for line in _read_lines(self.folder / TIMES)), default=0)
        self.started = time.monotonic()
        path = self.folder / TOKEN_LOG
        lines = _read_lines(path, step)
        last: dict[str, Any] = lines[-1] if lines else {"tokens_seen": 0, "tokens_trained": 0, "flops_student": 0.0}
        self.tokens_seen, self.tokens_trained = last["tokens_seen"], last["tokens_trained"]
        self.flops_student = math.nan if last["flops_student"] is None else last["flops_student"]
        self.skipped.clear()  # in place: others look at this very set
        self.skipped.update(line["step"] for line in lines if line.get("skipped"))
        if write and path.exists():
            with atomic_file(path, "w") as f:
                f.writelines(json.dumps(line) + "\n" for line in lines)
            for late in (file for at, file in token_files(self.folder).items() if at > step):
                late.unlink()

    def samples(self, step: int) -> bool:
        """Whether this step's rows are logged token by token."""
        return self.config.every > 0 and (step == 1 or step % self.config.every == 0)


def logged_rows(config: TokenLogConfig, step: int, row_id: Tensor) -> Tensor:
    """Places of at most ``config.rows`` rows of a batch, those of lowest seeded hash: the same rows however it is split."""
    order = random_uniform(config.seed, step, row_id, torch.zeros_like(row_id))
    order = order.masked_fill(row_id < 0, 2.0)  # an all-padding row says nothing
    places = order.argsort()[: config.rows]
    return places[order[places] < 2.0]


def write_sample(folder: Path, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """``tokens/step-00000010.parquet``: a line a valid token: step, row, position, nll, keep; rows in ascending order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = sorted(rows, key=lambda r: r["row"])
    columns = {
        "step": np.concatenate([np.full(len(r["position"]), step, np.int64) for r in rows] or [np.empty(0, np.int64)]),
        "row": np.concatenate(
            [np.full(len(r["position"]), r["row"], np.int64) for r in rows] or [np.empty(0, np.int64)]
        ),
        "position": np.concatenate([r["position"] for r in rows] or [np.empty(0, np.int32)]).astype(np.int32),
        "nll": np.concatenate([r["nll"] for r in rows] or [np.empty(0, np.float32)]).astype(np.float32),
        "keep": np.concatenate([r["keep"] for r in rows] or [np.empty(0, bool)]).astype(bool),
    }
    with atomic_file(token_file(folder, step)) as f:
        pq.write_table(pa.table(columns), f)


def _append(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    with open(path, "a", encoding="utf-8") as f:
        f.write("".join(json.dumps(line) + "\n" for line in lines))
        f.flush()
        os.fsync(f.fileno())


def _read_lines(path: Path, last_step: float = math.inf) -> list[dict[str, Any]]:
    """The lines of a log up to a step. What a kill cut short or damaged ends it: a good checkpoint vouches for its own part."""
    lines: list[dict[str, Any]] = []
    with contextlib.suppress(UserError):
        for line in log_lines(path, live=True):
            if line["step"] > last_step:
                break
            lines.append(line)
    return lines


def _without_update(total: Mapping[str, Any]) -> dict[str, Any]:
    """Totals of a step whose update was left out: its tokens were seen, none kept; what was not finite is no figure."""
    unknown = {name: math.nan for name, value in total.items() if not isinstance(value, list)}
    none_kept = {"kept_by_source": [0.0] * len(total["kept_by_source"])} if "kept_by_source" in total else {}
    return {**total, **unknown, **none_kept, "valid": total["valid"], "kept": 0.0}


def _effective_share(total: Mapping[str, Any]) -> float | None:
    """``(sum |w|)^2 / (valid * sum w^2)``: the share of valid tokens that as many equal weights would stand on; 1 if all are
    equal, the kept share if they are 0 or 1."""
    return _ratio(total["abs"] ** 2, total["valid"] * total["square"])


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator and math.isfinite(numerator) else None
