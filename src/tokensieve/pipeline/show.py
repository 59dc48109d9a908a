"""``tokensieve show``: rows of a corpus as running text, every token coloured by what is known of it.

a run's token log    kept, nll at a step        --scores      ref_nll, excess where a nll is known
                                                --dynamics    class, nll at a checkpoint; with its scores what is kept there
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from ..analysis.table import table
from ..analysis.token_classes import CLASSES
from ..data.corpus import Corpus, open_corpus
from ..data.half import within
from ..data.list_columns import column_block
from ..data.scored import open_scores
from ..data.text import token_pieces, visible
from ..runs.errors import UserError
from ..runs.files import read_json
from ..runs.layout import nll_file, token_files
from ..runs.manifest import read_manifest
from .configs.show import COLUMN_ORDER, By, ShowConfig


def run(config: ShowConfig) -> str:
    """The text to print."""
    if config.lines < 3 or config.width < 0:
        raise UserError("lines must be at least 3, and width at least 0")
    if not (config.run or config.scores or config.dynamics):
        raise UserError("name a run that logged tokens, or scores or dynamics of the corpus")
    known = ShownCorpus(config, open_corpus(config.corpus, verify="size"))
    color = sys.stdout.isatty() and "NO_COLOR" not in os.environ if config.color is None else config.color
    width = config.width or min(120, shutil.get_terminal_size((100, 24)).columns)
    shown, left = [], config.lines
    for row in known.rows(config.row):
        if left <= 2:
            break
        text = _row_text(config, known, row, width, left - 1, color)
        shown.append(text)
        left -= text.count("\n") + 2
    return "\n\n".join(shown)


def _row_text(config: ShowConfig, known: ShownCorpus, row: int, width: int, lines: int, color: bool) -> str:
    """A legend, and the row's text or its numbers below it."""
    from ..report import shades
    from ..report.terminal import DROPPED, KEPT, PLAIN, kept_legend, paint_tokens

    columns = known.columns(row)
    by = _colour_by(config, columns)
    ids = known.corpus.rows[row]["input_ids"]
    pieces = token_pieces(known.corpus.tokenizer(), ids)
    if config.numbers:
        moment = "".join(map(visible, known.moment))
        return "\n".join([f"row {row}{moment}", _numbers(columns, pieces, width, lines)])
    if by == "kept":
        styles = [KEPT if k > 0 else DROPPED if k == 0 else PLAIN for k in columns["kept"]]
        legend = kept_legend(styles)
    else:
        styles = shades.styles_of(by, columns[by].tolist())
        legend = shades.legend_of(by, styles)
    head = [(f"row {row}{known.moment}: ", PLAIN), *legend]
    texts, kinds = [text for text, _ in head], [style for _, style in head]
    return "\n".join(
        [
            *paint_tokens(texts, kinds, width=width, color=color),
            *paint_tokens(pieces, styles, width=width, lines=lines, color=color),
        ]
    )


def _colour_by(config: ShowConfig, columns: Mapping[str, Any]) -> By:
    there = [name for name in COLUMN_ORDER if name in columns]
    if config.by is None:
        return there[0]
    if config.by not in there:
        needs = {
            "kept": "a run that logged it, or --dynamics with the scores it was made with",
            "class": "--dynamics",
            "ref_nll": "--scores",
        }
        missing = needs.get(config.by, "a run that logged it, or --dynamics")
        raise UserError(f"by: {config.by} is not known here ({', '.join(there)} are): it needs {missing}")
    return config.by


def _numbers(columns: Mapping[str, Any], pieces: list[str], width: int, lines: int) -> str:
    """A line a token; columns that do not fit into the width are left out, from the right."""
    from ..report.shades import fitting_columns, sparkline

    curves = columns.get("curve", np.empty((0, len(pieces))))
    low, high = (float(f(curves)) if curves.size else 0.0 for f in (np.nanmin, np.nanmax))
    rows = []
    for t, piece in enumerate(pieces[: max(1, lines - 3)]):
        line: dict[str, Any] = {"at": str(t), "token": piece}
        for name in ("nll", "ref_nll", "excess"):
            if name in columns:
                line[name] = None if np.isnan(columns[name][t]) else f"{columns[name][t]:.2f}"
        if "kept" in columns:
            line["kept"] = {0: "no", 1: "yes"}.get(int(columns["kept"][t]))
        if "class" in columns:
            line["class"] = CLASSES[columns["class"][t]] if columns["class"][t] >= 0 else None
            line["nll over checkpoints"] = sparkline(curves[:, t], low, high)
        rows.append(line)
    more = len(pieces) - len(rows)
    text = table(rows, fitting_columns(rows, width))
    return f"{text}\n... {more:,} more tokens" if more else text


class ShownCorpus:
    """What the folders named say of a row's tokens."""

    def __init__(self, config: ShowConfig, corpus: Corpus) -> None:
        self.corpus, self.moment = corpus, ""
        self.logged: dict[str, Any] | None = None
        self.scores = open_scores(config.scores, corpus, verify="size") if config.scores else None
        self.dynamics = _Dynamics(config, corpus) if config.dynamics else None
        if config.run:
            self.logged, step = _logged(config, corpus)
            self.moment = f", step {step}"
        elif self.dynamics is not None:
            self.moment = f", {self.dynamics.name}"

    def rows(self, row: int | None) -> list[int]:
        """The rows to show. Raises UserError for one that is not there, or was not logged."""
        if self.logged is not None:
            there = sorted(set(self.logged["row"].tolist()))
            if row is not None and row not in there:
                listed = ", ".join(map(str, there))
                raise UserError(f"row {row} was not logged{self.moment.replace(',', ' at')}; logged rows: {listed}")
            return there if row is None else [row]
        if row is not None and not 0 <= row < self.corpus.num_rows:
            raise UserError(f"row {row} is not in {self.corpus.folder}: it has rows 0 to {self.corpus.num_rows - 1}")
        return [row or 0]

    def columns(self, row: int) -> dict[str, np.ndarray]:
        """name -> a value a token: kept, nll, ref_nll, excess, class, curve [C, T]; NaN, or -1 for kept and class: none."""
        made: dict[str, np.ndarray] = {}
        if self.dynamics is not None:
            made |= self.dynamics.columns(row)
        if self.logged is not None:  # its nll is the one that was selected by
            here = self.logged["row"] == row
            made["kept"] = np.full(self.corpus.length, -1)
            made["nll"] = np.full(self.corpus.length, np.nan)
            for name, column in (("kept", "keep"), ("nll", "nll")):
                made[name][self.logged["position"][here]] = self.logged[column][here]
        if self.scores is not None and "ref_nll" in self.scores.column_names:
            made["ref_nll"] = within(column_block(self.scores, "ref_nll", row, row + 1)[0], "ref_nll").astype(
                np.float32
            )
            if "nll" in made:
                made["excess"] = made["nll"] - made["ref_nll"]
        if "kept" not in made and self.dynamics is not None and self.dynamics.threshold is not None:
            made["kept"] = np.where(np.isnan(made["excess"]), -1, made["excess"] >= self.dynamics.threshold)
        return made


class _Dynamics:
    """A dynamics folder, opened at one checkpoint."""

    def __init__(self, config: ShowConfig, corpus: Corpus) -> None:
        folder = Path(config.dynamics or "")
        manifest = read_manifest(folder, "dynamics", ("corpus_hash",))
        if manifest["corpus_hash"] != corpus.content_hash:
            raise UserError(f"{folder} belongs to another corpus than {corpus.folder}")
        described = read_json(folder / "dynamics.json")
        checkpoints = described["checkpoints"]
        self.at = len(checkpoints) - 1 if config.checkpoint is None else config.checkpoint
        if not 0 <= self.at < len(checkpoints):
            raise UserError(f"checkpoint: {folder} has checkpoints 0 to {len(checkpoints) - 1}, not {self.at}")
        chosen = checkpoints[self.at]
        self.name = chosen["model"] + ("" if chosen["step"] is None else f" @{chosen['step']}")
        inputs = manifest["inputs"]
        own = config.scores and "selector" not in inputs
        same = own and read_manifest(str(config.scores))["fingerprint"] == inputs.get("scores")
        thresholds = {r["selected_at"]: r["threshold"] for r in described["selection"]} if same else {}
        self.threshold = thresholds.get(self.at)
        self.tokens = Dataset.from_file(str(folder / "tokens.arrow"))
        self.nll = [Dataset.from_file(str(nll_file(folder, i))) for i in range(len(checkpoints))]

    def columns(self, row: int) -> dict[str, np.ndarray]:
        curve = np.stack([within(column_block(d, "nll", row, row + 1)[0], "nll") for d in self.nll]).astype(np.float32)
        classes = column_block(self.tokens, "class", row, row + 1)[0]
        return {"nll": curve[self.at].copy(), "class": classes, "curve": curve}


def _logged(config: ShowConfig, corpus: Corpus) -> tuple[dict[str, Any], int]:
    """(column -> array, step) of the rows logged at the step wanted."""
    run = Path(config.run or "")
    if read_manifest(run, "model", ("corpus_hash",))["corpus_hash"] != corpus.content_hash:
        raise UserError(f"{run} was trained on another corpus than {config.corpus}")
    files = token_files(run)
    if not files:
        raise UserError(f"{run} logged no rows token by token: train with token_log_every")
    step = max(files) if config.step is None else config.step
    if step not in files:
        raise UserError(f"step {step} was not logged; logged steps: {', '.join(map(str, files))}")
    try:
        columns = pq.read_table(files[step], columns=["row", "position", "nll", "keep"]).to_pydict()
    except (pa.ArrowException, OSError) as e:
        raise UserError(f"{files[step]} cannot be read: {' '.join(str(e).split())}") from None
    return {k: np.asarray(v) for k, v in columns.items()}, step
