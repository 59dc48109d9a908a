"""What a study says before its first run: which difference its seeds tell, what it costs, what the asked certainty would cost.

    tells   the difference that a two-sided paired t test at 5 % over n seeds finds four times in five, for a standard deviation
            of paired differences that is assumed, or that an earlier comparison measured
    costs   FLOPs of all cells by their estimates; minutes at the pace of cells that are done, else of a step of the student

It stands in ``registration.json``, and under the plan of a dry run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...analysis.certainty import MOST_SEEDS, SUPPOSED_SD, detectable, seeds_needed
from ...analysis.table import rounded
from ...modeling.folder import read_config
from ...modeling.load import model_config, model_shapes
from ...runs.errors import UserError
from ...runs.files import read_json
from ...runs.manifest import is_done, read_manifest
from ..configs.compare import KIND as COMPARISON
from .cost import Known
from .estimate import known_of, states_of
from .jobs import num_threads
from .load import Recipe

_TRIED = 30_000_000  # parameters of a model of which a step is tried: what a second does on one core
_TRY_SECONDS = 0.5


def beforehand(recipe: Recipe, jobs: int) -> dict[str, Any]:
    """``said``: sentences; ``parameters`` of the student and ``large_parameters`` of the run that the study is made for, null
    where they are not known. UserError for a comparison that was named for its spread and is not there."""
    study = recipe.cells.plan or {}
    (sd, origin), large = _spread(study.get("sd")), _large(study.get("large"))
    known = known_of(recipe, states_of(recipe))
    student = _student(recipe)
    pace, measured = _pace(recipe, student, known)
    shared, a_seed = _flops(recipe, known)
    seeds = len(recipe.cells.seeds)
    parameters = _size(_shapes(student, known))
    said = [_tells(seeds, sd, origin), _takes(shared + seeds * a_seed, a_seed, pace, measured, jobs)]
    if (effect := study.get("effect")) is not None:
        said.append(_asked(effect, sd, shared, a_seed, pace, jobs))
    if large is not None and parameters:
        said.append(
            f"It stands for a run of a model of {rounded(large)} parameters, {large / parameters:,.0f} times its students' "
            f"{rounded(parameters)}: at that size nothing is measured."
        )
    return {"said": said, "parameters": parameters, "large_parameters": large}


def _spread(given: float | str | None) -> tuple[float, str]:
    """(standard deviation of paired differences, where it is from); of a comparison the largest that one of its arms showed."""
    if given is None:
        return SUPPOSED_SD, "assumed: study.sd says another, or names a comparison that measured it"
    if not isinstance(given, str):
        return float(given), "assumed"
    target = read_manifest(given, COMPARISON)["config"]["target"]
    found = read_json(Path(given) / "verdict.json")
    known = [r["sd"] for r in found["differences"] if r["set"] == target and r["sd"] is not None]
    if not known:
        raise UserError(f"study: sd: {given} compares one seed, which has no spread: name a comparison over several")
    return max(known), f"measured over {found['runs']} seeds in {given}, the largest of its arms"


def _student(recipe: Recipe) -> Any:
    """The config of the baseline's first cell."""
    cell = recipe.cells.of[str((recipe.cells.plan or {})["baseline"])][recipe.cells.seeds[0]]
    return next(s for s in recipe.stages if s.name == cell).config()


def _flops(recipe: Recipe, known: Known) -> tuple[float, float]:
    """(of the stages that all seeds share, of those of one seed); NaN where nobody knows."""
    spent = {s.name: 0.0 if (f := known.costs[s.folder].flops) is None else f for s in recipe.stages}
    first = {cells[recipe.cells.seeds[0]] for cells in recipe.cells.of.values()}
    every = {cell for cells in recipe.cells.of.values() for cell in cells.values()}
    return (math.fsum(f for n, f in spent.items() if n not in every), math.fsum(spent[n] for n in first))


def _pace(recipe: Recipe, student: Any, known: Known) -> tuple[float, str]:
    """(FLOPs a second of one process, where that is from); NaN where nobody knows."""
    done = [read_manifest(s.folder)["summary"] for s in recipe.stages if s.verb == "train" and is_done(s.folder)]
    timed = [(d["flops_student"], d["seconds"]) for d in done if d.get("flops_student") and d.get("seconds")]
    if timed:
        return sum(f for f, _ in timed) / sum(s for _, s in timed), "at the pace of the cells that are done"
    try:
        return _tried(student, known, recipe.threads or 1), "at the pace of a step of the student, tried now"
    except Exception:  # whatever a library says to a model or a corpus that is not there yet: minutes are left out
        return math.nan, ""


def _tried(student: Any, known: Known, threads: int) -> float:
    """Of forward and backward of one micro-batch, for half a second of processor time. NaN on a GPU and for large models."""
    import torch
    from transformers import AutoModelForCausalLM

    from ...modeling.flops import token_flops
    from ..train import training_arguments

    shapes = _shapes(student, known)
    if shapes is None or torch.cuda.is_available() or (_size(shapes) or math.inf) > _TRIED:
        return math.nan
    rows, length = training_arguments(student).per_device_train_batch_size, int(known.length(student.corpus))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, shapes.config.get_text_config().vocab_size, (rows, length), generator=generator)
    with num_threads(threads), torch.random.fork_rng():
        model = AutoModelForCausalLM.from_config(shapes.config, trust_remote_code=False)
        model(input_ids=ids, labels=ids).loss.backward()
        begun, steps = time.process_time(), 0
        while (took := time.process_time() - begun) < _TRY_SECONDS:
            model(input_ids=ids, labels=ids).loss.backward()
            steps += 1
    return steps * token_flops(shapes, length).train(ids.numel(), ids.numel()) / (took / threads)


def _shapes(student: Any, known: Known) -> Any:
    try:
        return known.model(student.model, student.corpus)
    except Exception:  # whatever is wrong with it, the stage that begins with it will say
        return None


def _size(shapes: Any) -> int | None:
    return None if shapes is None else sum(p.numel() for p in shapes.parameters())


def _large(model: str | Mapping[str, Any] | None) -> int | None:
    """Parameters of the model that the study is made for. UserError for a folder that is not there, or no config."""
    if model is None:
        return None
    config = read_config(model) if isinstance(model, str) else model_config(model)
    return _size(model_shapes(config))


# --- sentences -------------------------------------------------------------------------------------------------------------


def _tells(seeds: int, sd: float, origin: str) -> str:
    least = detectable(seeds, sd)
    if least is None:
        return "Beforehand: one seed tells no difference, however large it is."
    return (
        f"Beforehand: {seeds} seeds tell a difference of {least:.3g} nats or more, four times in five (two-sided paired t test "
        f"at 5 %), if differences of seeds have a standard deviation of {sd:.3g} nats ({origin})."
    )


def _takes(flops: float, a_seed: float, pace: float, measured: str, jobs: int) -> str:
    if math.isnan(flops):
        return "What it takes in FLOPs is not known."
    minutes = _minutes(flops, pace, jobs)
    return f"It takes {rounded(flops)}FLOP, {rounded(a_seed)}FLOP of them for each seed{minutes}" + (
        f" ({measured})." if minutes else "."
    )


def _asked(effect: float, sd: float, shared: float, a_seed: float, pace: float, jobs: int) -> str:
    needed = seeds_needed(effect, sd)
    if needed is None:
        return f"To tell {effect:g} nats, more than {MOST_SEEDS} seeds would be needed."
    flops = shared + needed * a_seed
    said = "" if math.isnan(flops) else f": {rounded(flops)}FLOP{_minutes(flops, pace, jobs)}"
    return f"To tell {effect:g} nats it would take {needed} seeds{said}."


def _minutes(flops: float, pace: float, jobs: int) -> str:
    """``, about 12 min with --jobs 2``; nothing where the pace is not known."""
    if math.isnan(pace) or pace <= 0:
        return ""
    return f", about {max(1, round(flops / (pace * jobs) / 60)):,} min with --jobs {jobs}"
