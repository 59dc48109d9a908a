"""A finished run as reports and notebooks read it: its arms, their logs, and the folders that belong to them.

Folders are matched by the hashes in their manifests, never by the paths a run was made with, so that a run may be moved.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..runs.errors import UserError
from ..runs.files import read_json
from ..runs.layout import TOKEN_LOG, token_files, token_lines
from ..runs.manifest import check_files, read_manifest
from .comparison import TOTAL, by_seed


@dataclass(frozen=True)
class Folder:
    """A finished folder and its manifest."""

    name: str
    path: Path
    manifest: Mapping[str, Any]


@dataclass(frozen=True)
class Arm:
    """A training run: its summary, a line for every optimizer step, and the corpus and scores it read, where they are found."""

    name: str
    path: Path
    manifest: Mapping[str, Any]
    steps: list[dict[str, Any]]
    corpus: Path | None = None
    scores: Path | None = None

    @property
    def summary(self) -> dict[str, Any]:
        return dict(self.manifest["summary"])

    @property
    def is_selective(self) -> bool:
        return float(self.summary["kept_share"]) < 1.0

    def logged(self) -> dict[int, Path]:
        """step -> the file with its tokens, in order of steps."""
        return token_files(self.path)


@dataclass(frozen=True)
class Dynamics:
    """A dynamics folder, with the corpus it looked at and that corpus's scores, where they are found."""

    name: str
    path: Path
    tables: Mapping[str, Any]
    corpus: Path | None = None
    scores: Path | None = None

    @property
    def model(self) -> str:
        """Whose dynamics they are: the name of the last checkpoint's run."""
        return str(self.tables["checkpoints"][-1]["model"])

    @property
    def tokens_seen(self) -> list[int] | None:
        """Tokens the model had seen at each checkpoint, rising; the model it started from stands at 0. None if unknown."""
        marks = self.tables["checkpoints"]
        seen = [c["tokens_seen"] if c["model"] == self.model else 0 if i == 0 else None for i, c in enumerate(marks)]
        known = [s for s in seen if s is not None]
        return known if len(known) == len(marks) and all(a < b for a, b in pairwise(known)) else None


@dataclass(frozen=True)
class Run:
    """What one report is about. ``results``: the evaluation's records, ``rows``: the comparison's; may be empty."""

    name: str
    path: Path
    manifest: Mapping[str, Any]
    arms: list[Arm]
    corpora: list[Folder] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    compared: Mapping[str, Any] = field(default_factory=dict)
    found: Mapping[str, Any] = field(default_factory=dict)
    """verdict.json of a comparison over several seeds, of which this run is one."""
    dynamics: list[Dynamics] = field(default_factory=list)
    plans: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """stage -> what its plan.json holds."""
    measures: list[dict[str, Any]] = field(default_factory=list)
    """Records of `evaluate --measures`, of all its stages."""

    @property
    def target(self) -> str | None:
        """The evaluation set that the comparison is about; else the evaluation's first."""
        found = self.compared.get("target") or (self.results[0]["set"] if self.results else None)
        return None if found is None else str(found)

    @property
    def others(self) -> list[str]:
        """The other evaluation sets, in order."""
        return [s for s in dict.fromkeys(r["set"] for r in self.results) if s != self.target]

    @property
    def on(self) -> str:
        return "solution" if self.compared.get("solution") else "all"

    @property
    def baseline(self) -> str | None:
        return self.compared.get("baseline")

    @property
    def seed(self) -> Any:
        return (self.manifest["config"].get("settings") or self.manifest["config"]).get("seed")


def open_run(path: Path | str, corpus: Path | str | None = None, scores: Path | str | None = None) -> Run:
    """A folder that ``run`` or ``train`` wrote. ``corpus`` and ``scores`` say where a lone training run's are.

    Raises UserError if the folder or one of its stages is unfinished, of another kind, or not as it was written.
    """
    path = Path(path)
    manifest = read_manifest(path)
    extra = [_folder(Path(p)) for p in (corpus, scores) if p is not None]
    if manifest["kind"] == "model":
        name = path.resolve().name
        return Run(name, path, manifest, [_arm(Folder(name, path, manifest), extra)], _of_kind(extra, "corpus"))
    if manifest["kind"] != "run":
        raise UserError(f"{path} holds {manifest['kind']!r}: a folder that run or train wrote is needed")
    stages = [_folder(path / s["folder"], name) for name, s in manifest["stages"].items()]
    return _read_stages(path, manifest, stages, extra)


def read_seeds(path: Path | str) -> list[Run]:
    """A folder that ``run`` wrote with several seeds, as a run for each, in their order; of any other folder nothing."""
    path = Path(path)
    manifest = read_manifest(path)
    runs = []
    for place, (seed, cells) in enumerate(manifest.get("seeds", {}).items()):
        folders = {name: manifest["stages"][cell]["folder"] for name, cell in cells.items()}
        config = {**manifest["config"], "settings": {**(manifest["config"].get("settings") or {}), "seed": int(seed)}}
        of_seed = {**manifest, "config": config, "fingerprint": f"{manifest['fingerprint']} seed {seed}"}
        of_seed["stages"] = {name: manifest["stages"][cell] for name, cell in cells.items()}
        stages = [_folder(path / folder, name) for name, folder in folders.items()]
        runs.append(_read_stages(path, of_seed, stages, [], place))
    return runs


def _at(value: Any, place: int) -> Any:
    """What a comparison notes of one of its seeds: a list where there are several."""
    return value[place] if isinstance(value, list) else value


def _read_stages(
    path: Path, manifest: Mapping[str, Any], stages: list[Folder], extra: list[Folder], place: int = 0
) -> Run:
    compared = _of_kind(stages, "comparison")[-1:]
    evaluated = _of_kind(stages, "evaluation")
    if compared:
        wanted = _at(compared[0].manifest["inputs"]["evaluation"], place)
        evaluated = [e for e in evaluated if e.manifest["fingerprint"] == wanted]
    trained = [s for s in _of_kind(stages, "model") if (s.path / TOKEN_LOG).is_file()]
    if compared:
        of_arm = {arm: _at(p, place) for arm, p in compared[0].manifest["inputs"]["runs"].items()}
        by_print = {s.manifest["fingerprint"]: s for s in trained}
        trained = [Folder(arm, by_print[p].path, by_print[p].manifest) for arm, p in of_arm.items() if p in by_print]
    around = [*extra, *stages]
    return Run(
        name=str(manifest["config"]["name"]),
        path=path,
        manifest=manifest,
        arms=[_arm(s, around) for s in trained],
        corpora=_of_kind(stages, "corpus"),
        results=read_json(evaluated[-1].path / "evaluation.json") if evaluated else [],
        rows=[dict(r) for r in by_seed(read_json(compared[0].path / "comparison.json"))[place]] if compared else [],
        compared=compared[0].manifest["config"] if compared else {},
        found=_found(compared[0].path) if compared else {},
        dynamics=[_dynamics(s, around) for s in _of_kind(stages, "dynamics")],
        plans={s.name: read_json(s.path / "plan.json") for s in _of_kind(stages, "plan")},
        measures=[r for s in _of_kind(stages, "measures") for r in read_json(s.path / "measures.json")],
    )


def _found(comparison: Path) -> dict[str, Any]:
    """Of a comparison of an earlier version nothing."""
    path = comparison / "verdict.json"
    return dict(read_json(path)) if path.is_file() else {}


def _folder(path: Path, name: str | None = None) -> Folder:
    manifest = read_manifest(path)
    check_files(path, manifest, hashes=False)
    return Folder(name or path.resolve().name, path, manifest)


def _of_kind(folders: Iterable[Folder], kind: str) -> list[Folder]:
    return [f for f in folders if f.manifest["kind"] == kind]


def _arm(folder: Folder, around: list[Folder]) -> Arm:
    corpus, scores = _inputs(folder.manifest, folder.manifest["inputs"]["scores"], around)
    return Arm(folder.name, folder.path, folder.manifest, token_lines(folder.path), corpus, scores)


def _dynamics(folder: Folder, around: list[Folder]) -> Dynamics:
    scores = folder.manifest["inputs"].get("scores")
    corpus, found = _inputs(folder.manifest, [scores] if isinstance(scores, str) else scores or [], around)
    return Dynamics(folder.name, folder.path, read_json(folder.path / "dynamics.json"), corpus, found)


def _inputs(manifest: Mapping[str, Any], scores: list[Any], around: list[Folder]) -> tuple[Path | None, Path | None]:
    """(corpus, scores) among the folders ``around``: by content hash and by fingerprint."""
    corpora = [f.path for f in _of_kind(around, "corpus") if f.manifest["content_hash"] == manifest["corpus_hash"]]
    read = [f for f in _of_kind(around, "scores") if f.manifest["fingerprint"] in scores]
    # Of several the one that excess is shown by: scores of other models stand beside it under other names.
    found = [f.path for f in sorted(read, key=lambda f: "ref_nll" not in f.manifest["columns"])]
    return corpora[0] if corpora else None, found[0] if found else None


# --- curves ---------------------------------------------------------------------------------------------------------------


def checkpoint_records(run: Run, arm: str, on_set: str, on: str | None = None) -> list[dict[str, Any]]:
    """The evaluation's records of one arm on one set, in order of steps; those without a value are left out."""
    on = on or run.on
    found = [r for r in run.results if (r["model"], r["set"], r["on"]) == (arm, on_set, on) and r["nll"] is not None]
    return sorted(found, key=lambda r: r["step"] or 0)


def total_flops(arm: Arm, tokens_seen: int) -> float:
    """FLOPs spent when the arm had seen so many tokens: its own, and all of scoring and reference training before them; NaN
    where one of them is not known."""
    line = next((s for s in arm.steps if s["tokens_seen"] >= tokens_seen), arm.steps[-1])
    spent = [line[key] for key in TOTAL]
    return math.nan if None in spent else float(sum(spent))
