"""``tokensieve report``: a finished run as one HTML page, and its figures for papers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..runs.errors import UserError
from ..runs.files import read_json
from ..runs.manifest import is_done, read_manifest
from .configs.report import ReportConfig

if TYPE_CHECKING:
    from ..analysis.folders import Run


def run(config: ReportConfig) -> str:
    """Write the page; its path, as text."""
    from ..analysis.folders import open_run, read_seeds
    from ..report.page import write

    validate(config)
    folders = _folders(config.runs)
    runs = [
        run
        for f in folders
        for run in read_seeds(f)
        or [open_run(f, config.corpus or _written(f, "corpus"), config.scores or _written(f, "scores"))]
    ]
    _check_fit(config, runs)
    _check_seeds(runs)
    out = Path(config.out) if config.out else Path(config.runs[0]) / "report.html"
    write(runs, out, out.parent / "figures", max_tokens=config.tokens, max_bytes=int(config.megabytes * 1e6))
    return str(out)


def validate(config: ReportConfig) -> None:
    """Raise UserError where there is nothing to report, or no room to show it."""
    if not config.runs:
        raise UserError("runs: name a folder that run or train wrote")
    if config.tokens < 1 or config.megabytes <= 0:
        raise UserError("tokens must be at least 1, and megabytes above 0")


def _folders(given: list[str]) -> list[Path]:
    """The runs named, a folder of runs (a study) taken apart."""
    found = []
    for folder in map(Path, given):
        seeds = sorted(p.parent for p in folder.glob("seed-*/manifest.json"))
        found += seeds if seeds and not is_done(folder) else [folder]
    return found


def _written(folder: Path, field: str) -> str | None:
    """The folder that a training run's config names in ``field``, if it is still there; of several the one with ref_nll."""
    path = folder / "train_config.json"
    named = read_json(path).get(field) if path.is_file() else None
    there = [n for n in (named if isinstance(named, list) else [named]) if isinstance(n, str) and is_done(n)]
    return next((n for n in there if "ref_nll" in read_manifest(n).get("columns", ())), there[0] if there else None)


def _check_fit(config: ReportConfig, runs: list[Run]) -> None:
    """A corpus or scores that are named and belong to no arm would be left out without a word."""
    arms = [arm for run in runs for arm in run.arms]
    for field in ("corpus", "scores"):
        named = getattr(config, field)
        if named and not any(getattr(arm, field) == Path(named) for arm in arms):
            raise UserError(f"{field}: {named} is not what {runs[0].path} was trained on")


def _check_seeds(runs: list[Run]) -> None:
    """Runs that are set side by side must be one experiment: the same recipe and arms, other seeds."""
    for other in runs[1:]:
        if [a.name for a in other.arms] != [a.name for a in runs[0].arms] or other.name != runs[0].name:
            raise UserError(f"{other.path} is another experiment than {runs[0].path}: arms or recipe differ")
        if other.manifest["fingerprint"] in {r.manifest["fingerprint"] for r in runs if r is not other}:
            raise UserError(f"{other.path} is the same run as another one given: a seed counts once")
