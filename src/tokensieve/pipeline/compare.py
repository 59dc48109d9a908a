"""``tokensieve compare``: the arms of an experiment in one table, with the axes named: tokens seen, tokens trained, FLOPs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..analysis.comparison import RISE, curve, end, reached, rise, tokens_to_reach
from ..modeling.folder import model_hash
from ..runs.errors import UserError
from ..runs.files import atomic_file, hash_json, read_json, write_json
from ..runs.manifest import check_files, read_manifest
from ..runs.stage import stage
from ..runs.work import Work
from . import lineage
from .compare_over_seeds import findings
from .compare_tables import render, with_findings
from .configs.compare import KIND, NOT_WORK, CompareConfig
from .recipe.cost import Cost, Known
from .recipe.registration import content

FILES = ("comparison.json", "verdict.json", "table.txt", "table.md")
MEAN = "mean"
BASE = "base"
__all__ = ["CompareConfig", "compare", "render", "run", "validate", "work"]


def run(config: CompareConfig) -> Path:
    """Write the comparison; keys of a row of ``comparison.json`` are those of :func:`compare`, of ``verdict.json`` those of
    :func:`findings`."""
    validate(config)
    out, seeds = Path(config.out), one_by_one(config)
    evaluated = [read_manifest(str(one.evaluation), "evaluation") for one in seeds]
    for one, manifest in zip(seeds, evaluated, strict=True):
        check_files(str(one.evaluation), manifest)
    made_from = work(config)
    for one, manifest in zip(seeds, evaluated, strict=True):
        _check_weights(one, manifest)
    _check_seeds(seeds)
    with stage(out, made_from) as s:
        if s.done:
            return out
        rows = [
            {**row, **({"run": number} if len(seeds) > 1 else {})}
            for number, one in enumerate(seeds)
            for row in compare(one, read_json(Path(str(one.evaluation)) / "evaluation.json"))
        ]
        found = findings(config, seeds, rows)
        s.bind()
        write_json(out / "comparison.json", rows)
        write_json(out / "verdict.json", found)
        for name, markdown in (("table.txt", False), ("table.md", True)):
            with atomic_file(out / name, "w") as f:
                f.write(with_findings(config, rows, found, markdown=markdown) + "\n")
        s.finish(FILES)
    return out


def one_by_one(config: CompareConfig) -> list[CompareConfig]:
    """The comparison of each seed, in which every folder is one. UserError where an arm or the evaluation lacks seeds."""
    given: dict[str, list[str]] = {"evaluation": _listed(config.evaluation)}
    given |= {f"runs.{arm}": _listed(folders) for arm, folders in config.runs.items()}
    given |= {f"curve.{name}": _listed(folders) for name, folders in config.curve.items()}
    most = max(given, key=lambda key: len(given[key]))
    for key, folders in given.items():
        if len(folders) != len(given[most]):
            raise UserError(
                f"{key}: {len(folders)} folders, and {most} has {len(given[most])}: each needs one for every seed, in the "
                "same order"
            )
        if twice := [f for i, f in enumerate(folders) if f in folders[:i]]:
            raise UserError(f"{key}: {twice[0]} is named twice, and a seed counts once")
    return [
        replace(
            config,
            evaluation=given["evaluation"][i],
            runs={arm: given[f"runs.{arm}"][i] for arm in config.runs},
            curve={name: given[f"curve.{name}"][i] for name in config.curve},
        )
        for i in range(len(given[most]))
    ]


def _listed(folders: str | list[str]) -> list[str]:
    return [folders] if isinstance(folders, str) else folders


def _check_seeds(seeds: Sequence[CompareConfig]) -> None:
    """Pairs are pairs only if the runs of one place have one seed, and it is another one at every place."""
    if len(seeds) == 1:
        return
    places: list[int | None] = []
    for number, one in enumerate(seeds):
        found = {arm: read_manifest(str(folder), "model")["config"].get("seed") for arm, folder in one.runs.items()}
        first = next(iter(found))
        if other := [arm for arm, seed in found.items() if seed != found[first]]:
            raise UserError(
                f"runs: at place {number} {first} was trained with seed {found[first]}, {other[0]} with seed "
                f"{found[other[0]]}: name the folders of all arms in the order of the same seeds"
            )
        if found[first] in places:
            raise UserError(f"runs: {first} was trained with seed {found[first]} twice, and a seed counts once")
        places.append(found[first])


def work(config: CompareConfig) -> Work:
    """What says which comparison it is: the evaluation and the runs by their fingerprints, and what is shown of them."""
    seeds = one_by_one(config)

    def prints(kind: str, folders: str | list[str]) -> str | list[str]:
        found = [read_manifest(folder, kind)["fingerprint"] for folder in _listed(folders)]
        return found if len(found) > 1 else str(found[0])

    inputs: dict[str, Any] = {
        "evaluation": prints("evaluation", config.evaluation),
        "runs": {arm: prints("model", folders) for arm, folders in config.runs.items()},
        "curve": {name: prints("model", folders) for name, folders in config.curve.items()},
    }
    if config.registration is not None:
        inputs["registration"] = hash_json(content(read_json(config.registration)))
    if any(_was_there_before_its_end(one) for one in seeds):
        inputs["tokens_to_end"] = "first reached"  # early versions divided all of the baseline's tokens
    return Work.of(KIND, config, NOT_WORK, inputs, arms=list(config.runs))


def _was_there_before_its_end(config: CompareConfig) -> bool:
    """Whether the baseline had its end's nll before its last checkpoint."""
    results = _with_mean(read_json(Path(str(config.evaluation)) / "evaluation.json"), config.mean)
    points = sorted(curve(results, config.baseline, config.target, _on(config)))
    return bool(points) and tokens_to_reach(points, points[-1][1]) != points[-1][0]


def estimate(config: CompareConfig, known: Known) -> Cost:
    """Nothing to speak of."""
    return Cost()


def validate(config: CompareConfig) -> None:
    """Raise UserError if there are no arms, the baseline is none of them, or something is named that is not there."""
    if not config.runs:
        raise UserError("runs: name at least one arm")
    if config.baseline not in config.runs:
        raise UserError(f"baseline: {config.baseline!r} is none of the arms {', '.join(config.runs)}")
    for arm, rival in config.rivals.items():
        if wrong := [name for name in (arm, rival) if name not in config.runs]:
            raise UserError(f"rivals: {wrong[0]!r} is none of the arms {', '.join(config.runs)}")
    if wrong := [name for name in config.on_curve if name not in config.runs or name == config.baseline]:
        raise UserError(f"on_curve: {wrong[0]!r} is none of the arms beside the baseline")
    if (config.target == MEAN) != bool(config.mean) and config.target == MEAN:
        raise UserError("target: mean needs the sets that it is over: name them in mean")
    if config.students < 1:
        raise UserError(f"students must be at least 1, not {config.students}")
    one_by_one(config)


def _check_weights(config: CompareConfig, evaluated: Mapping[str, Any]) -> None:
    """The evaluation must be of the very weights that the runs hold: a run done again since would lend it its figures."""
    for arm, folder in {**config.runs, **config.curve}.items():
        hashes = [found for name, _, found in evaluated["inputs"]["models"] if name == arm]
        if hashes and model_hash(str(folder)) not in hashes:
            raise UserError(f"{config.evaluation} evaluated other weights under the name {arm!r} than {folder} holds")


def compare(config: CompareConfig, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of one seed a row an arm: ``arm``, ``nll``, ``bits_per_byte``, the figures of its run's summary, with those of runs that
    only it was begun from (see ``lineage.charged``), ``flops_total``, ``flops_amortised`` (scoring and reference shared out
    over ``students``), ``seconds`` (null unless it ran alone),
    ``speedup`` (tokens after which the baseline first was at its end's nll, over those after which this arm was; null if it
    never was), ``speedup_is_bound`` (it was there at its first checkpoint: at least so much), ``others`` (set -> nll),
    ``forgetting`` (set -> nll minus that of the base); of a baseline whose curve rises ``lowest``; of an arm that was at the
    baseline's end and left it again ``ends_above``.

    Models that were evaluated but are no arm (base, reference, n-grams) come first, without a run's figures; last the
    baseline's runs of other lengths, with ``length_of`` (the baseline).
    """
    on, results = _on(config), _with_mean(results, config.mean)
    baseline = curve(results, config.baseline, config.target, on)
    trained = {**config.runs, **config.curve}
    manifests = {name: read_manifest(str(folder), "model", ("summary",)) for name, folder in trained.items()}
    free = lineage.shared([manifests[arm] for arm in trained])
    try:
        end(results, config.baseline, config.target, on)
        names = list(dict.fromkeys(r["model"] for r in results))
        rows, averaged = [], dict[str, int]()
        for name in [n for n in names if n not in trained] + list(trained):
            record = end(results, name, config.target, on)
            row = {"arm": name, "nll": record["nll"], "bits_per_byte": record["bits_per_byte"]}
            row["others"] = {other: _end_nll(results, name, other) for other in config.others}
            if config.forgetting:
                row["forgetting"] = {s: _moved(results, name, s) for s in config.forgetting}
            if name in trained:
                row |= {**manifests[name]["summary"], **_figures(config, manifests[name], free)}
                averaged[name] = record.get("averaged", 1)
            if name in config.curve:
                row |= {"length_of": config.baseline}
            if name in config.runs:
                found = reached(baseline, [] if name == config.baseline else curve(results, name, config.target, on))
                row["speedup"], row["speedup_is_bound"] = found.speedup, found.is_bound
                if found.speedup is not None and record["nll"] > baseline[-1][1] + RISE:
                    row["ends_above"] = True
                if name == config.baseline and (low := rise(baseline)):
                    row["lowest"] = {"tokens_seen": low[0], "nll": low[1]}
            rows.append(row)
    except KeyError as e:
        raise UserError(f"{config.evaluation}: {e.args[0]}") from None
    if len(set(averaged.values())) > 1:
        told = ", ".join(f"{name} {n}" for name, n in averaged.items())
        raise UserError(f"{config.evaluation}: not all arms are means of as many checkpoints ({told}): save them alike")
    return rows


def _figures(config: CompareConfig, manifest: Mapping[str, Any], free: frozenset[str]) -> dict[str, Any]:
    """Tokens and FLOPs that an arm is charged with, and its time, if that says anything."""
    made: dict[str, Any] = dict(lineage.charged(manifest, free))
    beside = lineage.total({**made, "flops_student": 0.0})
    made["flops_total"] = lineage.total(made)
    shared_out = None if beside is None else beside / config.students
    made["flops_amortised"] = (
        None if None in (shared_out, made["flops_student"]) else made["flops_student"] + shared_out
    )
    made["seconds"] = manifest["summary"].get("seconds") if manifest["summary"].get("ran_alone") else None
    return made


def _end_nll(results: list[dict[str, Any]], model: str, on_set: str) -> float | None:
    nll: float | None = end(results, model, on_set, "all")["nll"]
    return nll


def _moved(results: list[dict[str, Any]], model: str, on_set: str) -> float | None:
    """How far a model's nll on a set lies above that of the base."""
    there, base = _end_nll(results, model, on_set), _end_nll(results, BASE, on_set)
    return None if there is None or base is None else there - base


def _with_mean(results: list[dict[str, Any]], sets: Sequence[str]) -> list[dict[str, Any]]:
    """The records, and for each model and step that has all of ``sets`` one of the set ``mean``."""
    if not sets:
        return results
    found: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for r in results:
        if r["set"] in sets:
            found.setdefault((r["model"], r["step"], r["on"]), {})[r["set"]] = r
    made = []
    for by_set in found.values():
        if len(by_set) == len(set(sets)):
            first = by_set[sets[0]]
            means = {key: _mean([r[key] for r in by_set.values()]) for key in ("nll", "bits_per_byte")}
            made.append({**first, "set": MEAN, **means})
    return [*results, *made]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _on(config: CompareConfig) -> str:
    return "solution" if config.solution else "all"
