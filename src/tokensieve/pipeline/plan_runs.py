"""The table that laws are fitted to: a line a finished run, from CSV files and from folders that the other verbs wrote."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..analysis.scaling.forms import FORMS
from ..modeling.folder import model_folder, model_hash
from ..runs.errors import UserError
from ..runs.files import file_hash, read_json
from ..runs.manifest import check_files, is_done, read_manifest
from .lineage import FLOPS, charged

NUMBERS = ("params", "tokens", "unique", "flops", "general_before")
COLUMNS_READ = tuple(dict.fromkeys([*NUMBERS, *(c for form in FORMS.values() for c in (*form.varies, form.predicts))]))
"""Columns that are read, of a CSV file; the others are passed over."""
_PER_PARAMETER = 6.0
BEYOND = 1e60
"""No run and no budget has so much; products of larger numbers would be infinite."""


@dataclass
class RunTable:
    """``rows``: name -> the numbers of a run. ``columns`` are those that every run has."""

    rows: dict[str, dict[str, float]] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    """What each source is: a hash of its bytes, or fingerprints."""
    assumed: bool = False
    """FLOPs are 6 N D, since the table does not say them."""

    def add(self, name: str, row: dict[str, float], where: str) -> None:
        if name in self.rows:
            raise UserError(f"{where}: a run is called {name} for the second time; names tell runs apart")
        self.rows[name] = row

    def columns(self) -> list[str]:
        return [c for c in COLUMNS_READ if self.rows and all(c in row for row in self.rows.values())]


def read_runs(sources: Sequence[str], on_set: str | None) -> RunTable:
    """All runs of the sources. UserError for one that cannot be read, naming file, line and column, or folder."""
    table, folders = RunTable(), list[Path]()
    for source in sources:
        path = Path(source)
        if path.is_dir():
            folders += _finished(path)
        elif path.is_file():
            _read_csv(path, table)
        else:
            raise UserError(f"runs: {source} does not exist")
    if folders:
        _read_folders(folders, on_set, table)
    if not table.rows:
        raise UserError("runs: nothing in them is a run")
    if "flops" not in table.columns() and {"params", "tokens"} <= set(table.columns()):
        table.assumed = True
        for row in table.rows.values():
            row.setdefault("flops", _PER_PARAMETER * row["params"] * row["tokens"])
    return table


def _read_csv(path: Path, table: RunTable) -> None:
    table.inputs.append(file_hash(path))
    unnamed = dict[tuple[float, ...], int]()
    try:
        with open(path, encoding="utf-8-sig", newline="") as f:
            reader = csv.DictReader(f)
            heads = [h.strip() for h in reader.fieldnames or []]
            reader.fieldnames = heads
            if twice := [h for h in COLUMNS_READ if heads.count(h) > 1]:
                raise UserError(f"{path} line 1: the column {twice[0]} is there twice")
            if not (known := [h for h in heads if h in COLUMNS_READ]):
                raise UserError(
                    f"{path} line 1: none of its columns is known; a table has {', '.join(COLUMNS_READ[:4])}, nll ..."
                )
            for line in reader:
                where = f"{path} line {reader.line_num}"
                row = {column: _number(line[column], f"{where}: {column}") for column in known}
                if (
                    not line.get("name")
                    and (first := unnamed.setdefault(tuple(row.values()), reader.line_num)) < reader.line_num
                ):
                    raise UserError(
                        f"{where}: the run of line {first} again, number for number: remove it, or name both if they are two"
                    )
                table.add(line.get("name") or f"{path.stem}:{reader.line_num}", row, where)
    except (UnicodeDecodeError, csv.Error) as e:
        raise UserError(f"{path} is not a CSV file: {e}") from None


def _number(text: str | None, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not 0 < value < BEYOND:
        within = f" and below {BEYOND:g}" if value > 0 else ""
        raise UserError(f"{where}: a number above 0{within} is needed, not {text!r}")
    return value


def _finished(folder: Path) -> list[Path]:
    """The folder itself or, of a recipe's run, those of its stages."""
    manifest = read_manifest(folder)
    return [folder / s["folder"] for s in manifest["stages"].values()] if manifest["kind"] == "run" else [folder]


def _read_folders(folders: Sequence[Path], on_set: str | None, table: RunTable) -> None:
    """Runs whose last weights were evaluated: models and records are matched by the hash of the weights."""
    manifests = {f: read_manifest(f) for f in dict.fromkeys(folders) if is_done(f)}
    models = {f: m for f, m in manifests.items() if m["kind"] == "model"}
    ends = [end for f, m in manifests.items() if m["kind"] == "evaluation" for end in _ends(f, m, on_set)]
    if not models or not ends:
        lacking = "no finished train stage" if not models else "no finished evaluate stage"
        raise UserError(
            f"runs: among the folders is {lacking}: a run has parameters and tokens from one, its nll from the other"
        )
    by_hash = {model_hash(folder): folder for folder in models}
    for name, weights, nll in ends:
        if (folder := by_hash.get(weights)) is not None:
            table.add(name, _row(folder, models[folder], nll), str(folder))
            table.inputs.append(str(models[folder]["fingerprint"]))
    table.inputs += [str(m["fingerprint"]) for m in manifests.values() if m["kind"] == "evaluation"]


def _ends(folder: Path, manifest: Mapping[str, Any], on_set: str | None) -> Iterator[tuple[str, str, float]]:
    """(name, hash of the weights, nll) of each model's last weights."""
    check_files(folder, manifest)
    records = [r for r in read_json(folder / "evaluation.json") if r["on"] == "all" and r["nll"] is not None]
    there = list(dict.fromkeys(r["set"] for r in records))
    if on_set is not None and on_set not in there:
        raise UserError(f"set: {folder} has no set {on_set!r}, but {', '.join(there) or 'none'}")
    wanted = on_set if on_set is not None else next(iter(there), None)
    nll = {(r["model"], r["step"]): float(r["nll"]) for r in records if r["set"] == wanted}
    last = {name: (step, weights) for name, step, weights in manifest["inputs"]["models"]}
    for name, (step, weights) in last.items():
        if (name, step) in nll:
            yield name, weights, nll[name, step]


def _row(folder: Path, manifest: Mapping[str, Any], nll: float) -> dict[str, float]:
    """Parameters, tokens, unique ones, FLOPs (all that was spent on it), nll. Tied weights are counted once."""
    spent, summary = charged(manifest, ()), manifest["summary"]
    tokens, flops = spent["tokens_seen"], [spent[key] for key in FLOPS]
    if tokens is None:
        raise UserError(f"{folder} was begun from a model whose tokens nobody knows: it is no point of a law")
    passes = max(1.0, float(summary.get("passes", 1.0)))
    row = {"params": float(num_weights(folder)), "tokens": float(tokens), "unique": float(tokens) / passes, "nll": nll}
    return row if None in flops else {**row, "flops": math.fsum(f for f in flops if f is not None)}


def num_weights(folder: Path) -> int:
    """Numbers in a model's weight files, by their headers."""
    from safetensors import safe_open

    total = 0
    for path in sorted(model_folder(folder).glob("*.safetensors")):
        with safe_open(path, "np") as f:
            total += sum(math.prod(f.get_slice(name).get_shape()) for name in f.keys())  # noqa: SIM118 (not a mapping)
    return total
