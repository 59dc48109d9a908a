"""A finished run in a notebook: ``tokensieve.read_run`` and what it gives.

run = tokensieve.read_run("runs/demo")
run.comparison                    the table of arms and the verdict; .frame for pandas
run.steps                         a line an optimizer step and arm
run.tokens("rho1", step=40)       what was logged token by token, a datasets.Dataset
run.row("rho1", 17)               a row of it as coloured text; .frame for its numbers
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from ..analysis.comparison import by_seed, rises, verdicts
from ..analysis.folders import Arm, Run, open_run, read_seeds
from ..data.corpus import open_corpus
from ..data.list_columns import column_block
from ..data.scored import join_scores, open_scores
from ..data.text import token_pieces
from ..runs.errors import UserError
from .show import coloured, html_table, text_table


def read_run(path: Path | str, corpus: Path | str | None = None, scores: Path | str | None = None) -> Results:
    """A folder that ``run``, ``demo`` or ``train`` wrote, as pandas frames and ``datasets`` objects: see :class:`Results`.

    ``corpus`` and ``scores`` say where a lone training run's are. UserError if the folder or one of its stages is unfinished,
    of another kind, or not as it was written.
    """
    return Results(read_seeds(path) or [open_run(path, corpus, scores)])


@dataclass(frozen=True)
class Results:
    """A finished run. Of several seeds, ``seed`` tells the lines of frames apart."""

    runs: list[Run]
    """One for each seed."""

    @property
    def arms(self) -> list[str]:
        return [arm.name for arm in self.runs[0].arms]

    @property
    def steps(self) -> pd.DataFrame:
        """``tokens.jsonl`` of every arm (docs/formats.md): a line an optimizer step, ``arm`` and ``seed`` in front."""
        lines = [
            {"seed": run.seed, "arm": arm.name, **line} for run in self.runs for arm in run.arms for line in arm.steps
        ]
        return pd.json_normalize(lines)

    @property
    def evaluation(self) -> pd.DataFrame:
        """``evaluation.json``: nll of a model at a step on a set; empty for a run without an evaluation."""
        return pd.DataFrame([{"seed": run.seed, **record} for run in self.runs for record in run.results])

    @property
    def comparison(self) -> Comparison:
        """The table of arms and the verdict. UserError where the run compares none."""
        rows = [{**row, "run": number} for number, run in enumerate(self.runs) for row in run.rows]
        first = self.runs[0]
        if not rows or first.baseline is None:
            raise UserError(f"{first.path} compares no arms: it has no stage of compare")
        said = verdicts(by_seed(rows), first.baseline, str(first.target), first.on)
        sentences = list(first.found.get("sentences", [])) or [*rises(by_seed(rows), first.baseline), *said]
        seeds = [run.seed for run in self.runs]
        return Comparison(pd.json_normalize([{"seed": seeds[r["run"]], **_without(r, "run")} for r in rows]), sentences)

    def tokens(self, arm: str, step: int | None = None, *, seed: Any = None) -> Any:
        """What an arm logged token by token, a ``datasets.Dataset``: ``step``, ``row``, ``position``, ``nll``, ``keep``.

        Of one step, or of all. UserError for an arm that logged none: ``token_log_every``.
        """
        from datasets import Dataset, concatenate_datasets

        return concatenate_datasets([Dataset(pq.read_table(p)) for p in self._logged(arm, step, seed).values()])

    def scored(self, arm: str, *, seed: Any = None) -> Any:
        """The corpus that an arm was trained on, its scores beside it: a ``datasets.Dataset``, as of ``load_scored``."""
        found = self._arm(arm, seed)
        return join_scores(
            open_corpus(self._corpus(found), verify="size"), *([found.scores] if found.scores else []), verify="size"
        )

    def row(
        self, arm: str, row: int | None = None, *, step: int | None = None, by: str | None = None, seed: Any = None
    ) -> TokenRow:
        """A row of the corpus that an arm logged, as coloured text: ``by`` kept, nll, ref_nll, excess or weight.

        The first one logged and the last step, if not said; ``by`` kept of an arm that selects, else nll.
        """
        found = self._arm(arm, seed)
        files = self._logged(arm, step, seed)
        at = max(files)
        log = pq.read_table(files[at]).to_pandas()
        there = sorted(set(log["row"]))
        row = there[0] if row is None else row
        if row not in there:
            raise UserError(
                f"row {row} was not logged at step {at}: {', '.join(map(str, there[:20]))} were, give another step or row"
            )
        values = _values(found, self._corpus(found), row, log[log["row"] == row])
        by = by or ("kept" if found.is_selective else "nll")
        corpus = open_corpus(self._corpus(found), verify="size")
        count = int(corpus.rows[row]["num_tokens"])
        pieces = token_pieces(corpus.tokenizer(), corpus.rows[row]["input_ids"][:count])
        return TokenRow(pieces, {name: v[:count] for name, v in values.items()}, by, f"{arm}, step {at}, row {row}")

    def _repr_html_(self) -> str:
        if self.runs[0].rows and self.runs[0].baseline is not None:
            return self.comparison._repr_html_()
        return html_table([{"arm": arm.name, **arm.summary} for run in self.runs for arm in run.arms])

    def _arm(self, name: str, seed: Any) -> Arm:
        seeds = {run.seed: run for run in self.runs}
        run = self.runs[0] if seed is None else seeds.get(seed)
        if run is None:
            raise UserError(f"seed: {seed} is none of {', '.join(map(str, seeds))}")
        found = {arm.name: arm for arm in run.arms}
        if name not in found:
            raise UserError(f"arm: {name!r} is none of {', '.join(found)}")
        return found[name]

    def _logged(self, arm: str, step: int | None, seed: Any) -> dict[int, Path]:
        files = self._arm(arm, seed).logged()
        if not files:
            raise UserError(f"{arm} logged no tokens: train it with token_log_every")
        if step is not None and step not in files:
            raise UserError(f"step: {arm} logged {', '.join(map(str, files))}, not {step}")
        return files if step is None else {step: files[step]}

    def _corpus(self, arm: Arm) -> Path:
        if arm.corpus is None:
            raise UserError(f"{arm.path}: where its corpus is, is not known: read_run(path, corpus=FOLDER)")
        return arm.corpus


@dataclass(frozen=True)
class Comparison:
    """The arms of a run side by side, and what that comes to in words."""

    frame: pd.DataFrame
    """``comparison.json``, a line an arm and seed; dictionaries are columns with a dot (``others.wiki``)."""
    sentences: list[str]

    def __repr__(self) -> str:
        return "\n\n".join([text_table(self._shown()), *self.sentences])

    def _repr_html_(self) -> str:
        return html_table(self._shown(), self.sentences)

    def _shown(self) -> list[dict[str, Any]]:
        """The columns that say something, in the order of the table that ``compare`` writes."""
        others = [name for name in self.frame.columns if name.startswith("others.")]
        wanted = [
            "seed",
            "arm",
            "nll",
            "bits_per_byte",
            *others,
            "tokens_seen",
            "tokens_trained",
            "flops_total",
            "speedup",
        ]
        kept = [name for name in wanted if name in self.frame.columns]
        rows = self.frame[kept].astype(object).where(self.frame[kept].notna(), None).to_dict("records")
        if len({row.get("seed") for row in rows}) == 1:
            rows = [_without(row, "seed") for row in rows]
        return [{name.removeprefix("others."): value for name, value in row.items()} for row in rows]


@dataclass(frozen=True)
class TokenRow:
    """Text whose tokens are coloured by what is known of them."""

    pieces: Sequence[str]
    """The text of each token."""
    values: Mapping[str, Any]
    """name -> a number a token, NaN where there is none: kept (0 or 1), nll, ref_nll, excess (nats), weight."""
    by: str
    """What they are coloured by."""
    title: str = ""

    def __post_init__(self) -> None:
        if self.by not in self.values:
            raise UserError(f"by: {self.by} is not known here, {', '.join(self.values)} are")

    @property
    def frame(self) -> pd.DataFrame:
        """A line a token."""
        return pd.DataFrame({"token": list(self.pieces), **self.values})

    def _repr_html_(self) -> str:
        return coloured(self.pieces, self.values, self.by, self.title)


def _values(arm: Arm, folder: Path, row: int, log: pd.DataFrame) -> dict[str, Any]:
    """What is known of the tokens of a row, [length] each."""
    corpus = open_corpus(folder, verify="size")
    values = {name: np.full(corpus.length, np.nan) for name in ("kept", "nll")}
    values["kept"][log["position"]] = log["keep"]
    values["nll"][log["position"]] = log["nll"]
    if arm.scores is not None:
        scores = open_scores(arm.scores, corpus, verify="size")
        if "ref_nll" in scores.column_names:
            values["ref_nll"] = column_block(scores, "ref_nll", row, row + 1)[0].astype(np.float64)
            values["excess"] = values["nll"] - values["ref_nll"]
    if "weight" in corpus.rows.column_names:
        values["weight"] = corpus.target_weights([row])[0].astype(np.float64)
    return values


def _without(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != name}
