"""A recipe with ``seeds:``, or ``arms:`` and ``seeds:``, as one that is nothing but stages: its cells.

    seeds: [0, 1, 2]        a stage that says ${seed}, and each that reads one, becomes a stage for every seed: rho1-seed0 ...
    arms: {rho1: {...}}     arms.py makes stages of them; `evaluation` and `table` are added (study: says what they compare)

So each cell is a stage with a folder of its own: skipped if it is done, gone on with if it was killed, one of several at once
with --jobs. ``compare`` is done once, over the folders of all seeds.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...runs.errors import UserError
from ..config.fields import WrongFields, from_fields
from ..configs.study import StudyConfig
from .arms import LENGTH, Stages, StudyArm, stages_of, steps_of
from .registration import REGISTRATION, TEST
from .study_checks import check_study

SEED = "${seed}"
EVALUATION, TABLE = "evaluation", "table"
IF_GIVEN = ("effect", "sd", "large")
"""Fields that studies registered before they existed do not have: one that is not given is not written down."""
OVER_SEEDS = ("compare",)
"""Verbs that read the folders of all seeds at once."""


@dataclass(frozen=True)
class Cells:
    """The stages of a recipe, for each seed where they differ."""

    stages: dict[str, Any]
    seeds: tuple[int, ...] = ()
    of: dict[str, dict[int, str]] = field(default_factory=dict)
    """stage -> seed -> the name of its cell; of stages that differ by seed."""
    plan: dict[str, Any] | None = None
    """What a study registers before its first run; None for a recipe without arms."""

    def named(self, name: str) -> list[str]:
        """The stages that a name on the command line means: its cells, or itself."""
        return list(self.of.get(name, {0: name}).values())


def cells_of(path: Path, source: Mapping[str, Any], out: Path, seeds: Sequence[int], allow_code: bool) -> Cells:
    """``source`` is the recipe with its settings filled in, but for ``${seed}``. UserError for anything wrong in it."""
    stages, plan = dict(source["stages"]), None
    if "arms" not in source:
        if "study" in source:
            raise UserError(f"{path}: study: says how arms are compared, and there are no arms")
    else:
        try:
            study = from_fields(StudyConfig, source.get("study") or {}, "study")
            stages, plan = _with_arms(study, source, out, seeds, allow_code)
        except WrongFields as e:
            raise e.at(str(path)) from None
        except UserError as e:
            raise UserError(f"{path}: {e}") from None
    return _over_seeds(stages, seeds, plan) if seeds else Cells(stages)


def seeds_of(path: Path, source: Mapping[str, Any], given: Sequence[int]) -> tuple[int, ...]:
    """The seeds of a run: those given, else the recipe's. UserError for one that is no whole number, or counts twice."""
    seeds = given or source.get("seeds") or []
    if not isinstance(seeds, list | tuple) or any(type(s) is not int or s < 0 for s in seeds):
        raise UserError(f"{path}: seeds: a list of whole numbers of at least 0 is needed, not {seeds}")
    if twice := [s for i, s in enumerate(seeds) if s in seeds[:i]]:
        raise UserError(f"{path}: seeds: {twice[0]} is named twice, and a seed counts once")
    if "arms" in source and not seeds:
        raise UserError(f"{path}: seeds: a study needs at least one, as seeds: [0, 1, 2]")
    return tuple(seeds)


# --- arms -----------------------------------------------------------------------------------------------------------------


def _with_arms(
    study: StudyConfig, source: Mapping[str, Any], out: Path, seeds: Sequence[int], allow_code: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(stages with those of the arms, what is registered)."""
    arms, own = source["arms"], dict(source["stages"])
    if not isinstance(arms, dict) or not arms:
        raise UserError("arms: a mapping of arm to what it says, as {clm: {}, rho1: {ratio: 0.6}}, is needed")
    said = {str(name): {} if fields is None else fields for name, fields in arms.items()}
    if wrong := [name for name, fields in said.items() if not isinstance(fields, dict)]:
        raise UserError(f"arm {wrong[0]}: a mapping is needed, as {{is: rho1, ratio: 0.6}}")
    check_study(study, said, own)
    made: Stages = {}
    for name in _ordered(said):
        for stage, fields in stages_of(StudyArm(name, said[name], study, own, allow_code)).items():
            if stage in own or made.get(stage, fields) != fields or (stage in said and stage != name):
                raise UserError(f"arm {name}: there is another stage {stage!r} already, call it otherwise")
            made[stage] = fields
    lengths = _lengths(study, made[study.baseline]) if study.lengths else {}
    if taken := [n for n in (*lengths, EVALUATION, TABLE) if n in {**own, **made}]:
        raise UserError(f"a study makes the stage {taken[0]!r} itself, call the recipe's otherwise")
    rivals = {str(f["compute_of"]): name for name, f in reversed(said.items()) if "compute_of" in f}
    rivals |= {name: str(f["rival"]) for name, f in said.items() if "rival" in f}
    shared = {k: v for k, v in asdict(study).items() if k not in ("stop", "ngrams", "checkpoints")}
    shared = {k: v for k, v in shared.items() if v is not None or k not in IF_GIVEN}
    plan = {"test": TEST, "stop": study.stop, "seeds": list(seeds), "arms": said, "rivals": rivals, **shared}
    first = [name for name in ("base", "reference") if name in own]
    ends = [name for name in said if name != study.baseline and _is_length_of(made[name], made[study.baseline], study)]
    return {**own, **made, **lengths, **_judged(study, first, said, lengths, rivals, ends, out)}, plan


def _judged(
    study: StudyConfig,
    first: Collection[str],
    arms: Collection[str],
    lengths: Collection[str],
    rivals: Mapping[str, str],
    ends: Sequence[str],
    out: Path,
) -> Stages:
    """The stages that evaluate and compare: ``first`` are models that are no arm, ``lengths`` the baseline's further runs,
    ``ends`` arms that are such runs."""
    models = {name: f"@{name}" for name in (*first, *arms, *lengths)}
    evaluation: dict[str, Any] = {"verb": "evaluate", "models": models, "sets": study.sets, "baselines": study.ngrams}
    evaluation |= {"checkpoints": study.checkpoints, "average": study.average}
    compared = {
        "verb": "compare",
        "evaluation": f"@{EVALUATION}",
        "runs": {name: f"@{name}" for name in arms},
        "curve": {name: f"@{name}" for name in lengths},
        "others": [name for name in study.sets if name != study.target],
        "rivals": dict(rivals),
        **({"on_curve": list(ends)} if ends else {}),
        "registration": str(out / REGISTRATION),
        **{key: getattr(study, key) for key in ("target", "mean", "forgetting", "solution", "baseline", "students")},
    }
    return {EVALUATION: evaluation, TABLE: compared}


def _ordered(said: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The arms, each after the one whose compute it is given."""
    made: list[str] = []
    waiting = list(said)
    while ready := [name for name in waiting if said[name].get("compute_of") in (None, *made)]:
        made += ready
        waiting = [name for name in waiting if name not in made]
    if waiting:
        raise UserError(f"arm {waiting[0]}: compute_of goes round in a circle")
    return made


def _lengths(study: StudyConfig, baseline: Mapping[str, Any]) -> Stages:
    """The baseline's own runs of other lengths: what a schedule that ends there comes to, at what compute."""
    if wrong := [x for x in study.lengths if not x > 0 or x == 1]:
        raise UserError(
            f"study: lengths: {wrong[0]:g} is no other length: shares of the student's steps, above 0, not 1"
        )
    if study.longer and baseline.get("scores") and max(study.lengths) > 1:
        raise UserError(
            f"study: lengths: {study.baseline} needs scores, and there are none of {study.longer}, which its longer runs would "
            "read: leave lengths above 1 or longer out"
        )
    steps, made = steps_of(study, "lengths"), Stages()
    for share in study.lengths:
        training = {**baseline.get("training", {}), "max_steps": max(1, round(steps * share))}
        corpus = {"corpus": study.longer} if study.longer and share > 1 else {}
        made[f"{study.baseline}_x{share:g}"] = {**baseline, **corpus, "training": training}
    return made


def _is_length_of(arm: Mapping[str, Any], baseline: Mapping[str, Any], study: StudyConfig) -> bool:
    """Whether an arm is the baseline but for where its schedule ends: its end is then a point on the baseline's curve."""

    def apart_from_length(fields: Mapping[str, Any]) -> dict[str, Any]:
        kept = {k: v for k, v in fields.items() if k not in ("compute_of", "max_epochs")}
        training = {k: v for k, v in fields.get("training", {}).items() if k not in LENGTH}
        same_text = study.longer is not None and fields["corpus"] == study.longer
        corpus = baseline["corpus"] if same_text else fields["corpus"]
        return {**kept, "training": training, "corpus": corpus}

    return apart_from_length(arm) == apart_from_length(baseline)


# --- seeds ----------------------------------------------------------------------------------------------------------------


def _over_seeds(stages: Mapping[str, Any], seeds: Sequence[int], plan: dict[str, Any] | None) -> Cells:
    """Every stage that differs by seed once for each, in the recipe's order."""
    made: dict[str, Any] = {}
    of: dict[str, dict[int, str]] = {}
    for name, fields in stages.items():
        differs = any(text == SEED or SEED in text or stage_named(text) in of for text in texts_in(fields))
        verb = fields.get("verb") if isinstance(fields, Mapping) else None
        if not differs:
            made[str(name) if isinstance(name, str) else name] = fields
        elif verb in OVER_SEEDS:
            made[name] = _collected(fields, of)
        else:
            of[name] = {seed: f"{name}-seed{seed}" for seed in seeds}
            made |= {cell: _of_seed(fields, seed, of) for seed, cell in of[name].items()}
    return Cells(made, tuple(seeds), of, plan)


def texts_in(value: Any) -> list[str]:
    """Every text in a stage's fields."""
    if isinstance(value, Mapping | list):
        inside = value.values() if isinstance(value, Mapping) else value
        return [text for v in inside for text in texts_in(v)]
    return [value] if isinstance(value, str) else []


def stage_named(text: str) -> str | None:
    """The stage that ``@stage/rest`` names."""
    return text[1:].partition("/")[0] if text.startswith("@") else None


def _of_seed(value: Any, seed: int, of: Mapping[str, Mapping[int, str]]) -> Any:
    if isinstance(value, Mapping):
        return {k: _of_seed(v, seed, of) for k, v in value.items()}
    if isinstance(value, list):
        return [_of_seed(v, seed, of) for v in value]
    if not isinstance(value, str):
        return value
    if (stage := stage_named(value)) in of:
        return f"@{of[str(stage)][seed]}{value[1 + len(str(stage)) :]}"
    return seed if value == SEED else re.sub(re.escape(SEED), str(seed), value)


def _collected(value: Any, of: Mapping[str, Mapping[int, str]]) -> Any:
    """``@stage`` becomes the list of its cells."""
    if isinstance(value, Mapping):
        return {k: _collected(v, of) for k, v in value.items()}
    if isinstance(value, list):
        return [_collected(v, of) for v in value]
    if isinstance(value, str) and (stage := stage_named(value)) in of:
        return [f"@{cell}{value[1 + len(str(stage)) :]}" for cell in of[str(stage)].values()]
    return value
