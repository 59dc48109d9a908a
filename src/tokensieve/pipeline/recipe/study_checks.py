"""What is refused of a study before its arms become stages, each by the name that the study gives it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ...runs.errors import UserError
from ..config.fields import unknown
from ..configs.study import StudyConfig

NAMES = ("is", "compute_of", "rival", "corpus", "curated", "reference", "rule")
"""What an arm says by a name: of itself, of another arm, of a stage or of a rule."""


def check_study(study: StudyConfig, said: Mapping[str, Mapping[str, Any]], stages: Mapping[str, Any]) -> None:
    """UserError for values of another kind, numbers that make no sense, and arms, sets and stages that are not there.

    ``said``: what the recipe says of each arm; ``stages``: the recipe's own.
    """
    _check_kinds(study, said)
    _check_numbers(study)
    _check_names(study, said, stages)


def _check_kinds(study: StudyConfig, said: Mapping[str, Mapping[str, Any]]) -> None:
    """UserError for what is neither a name, a mapping nor a number where an arm's word takes one."""
    if not isinstance(study.student.get("training") or {}, Mapping):
        raise UserError("study: student.training: a mapping is needed, as {max_steps: 100}")
    for name, fields in said.items():
        if wrong := [k for k in NAMES if not isinstance(fields.get(k, ""), str | None)]:
            raise UserError(f"arm {name}: {wrong[0]}: a name is needed, not {fields[wrong[0]]}")
        train = fields.get("train") or {}
        if not isinstance(train, Mapping) or not isinstance(train.get("training") or {}, Mapping):
            raise UserError(f"arm {name}: train: a mapping is needed, as {{training: {{learning_rate: 0.001}}}}")
        if "share" in fields and type(fields["share"]) not in (int, float) and "anneal" in (name, fields.get("is")):
            raise UserError(f"arm {name}: share: a number is needed, not {fields['share']}")
        if not _is_above(fields.get("epochs", 1), 0):
            raise UserError(f"arm {name}: epochs: a number above 0 is needed, not {fields['epochs']}")
        layers = fields.get("layers")
        is_small = "small_reference" in (name, fields.get("is"))
        if is_small and layers is not None and (type(layers) is not int or layers < 1):
            raise UserError(f"arm {name}: layers: a whole number of at least 1 is needed, not {layers}")


def _is_above(value: Any, least: float) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > least


def _check_numbers(study: StudyConfig) -> None:
    """UserError for numbers that make no sense, by the names that the study gives them and not those of the stages' fields."""
    for key in ("epochs", "effect", "sd"):
        value = getattr(study, key)
        if value is not None and not isinstance(value, str) and not _is_above(value, 0):
            raise UserError(f"study: {key}: a number above 0 is needed, not {value:g}")
    for key in ("students", "average"):
        if getattr(study, key) < 1:
            raise UserError(f"study: {key} must be at least 1, not {getattr(study, key)}")
    strategy = (study.student.get("training") or {}).get("save_strategy", "steps")
    if study.average > 1 and strategy in ("no", False):  # each would stand for itself, and nobody be told
        raise UserError(
            f"study: average: {study.average} checkpoints of each student, and save_strategy: no keeps none: leave one out"
        )


def _check_names(study: StudyConfig, said: Mapping[str, Mapping[str, Any]], stages: Mapping[str, Any]) -> None:
    """UserError for arms and sets that are named and not there."""
    named = {f"sets: {name}": stage for name, stage in study.sets.items()}
    for key, stage in (named | ({"longer": study.longer} if study.longer else {})).items():
        if not stage.startswith("@") or stage[1:] not in stages:
            raise UserError(f"study: {key}: {unknown(stage, [f'@{s}' for s in stages], 'stage')}")
    if "mean" in study.sets:
        raise UserError("study: sets: the name 'mean' stands for the mean of sets, call it otherwise")
    for key, names in (("mean", study.mean), ("forgetting", study.forgetting)):
        if wrong := [name for name in names if name not in study.sets]:
            raise UserError(f"study: {key}: {unknown(wrong[0], study.sets, 'set')}")
    targets = [*study.sets, *(["mean"] if study.mean else [])]
    if study.target not in targets:
        raise UserError(f"study: target: {unknown(study.target, targets, 'set')}")
    if study.baseline not in said:
        raise UserError(f"study: baseline: {unknown(study.baseline, said, 'arm')}")
    for name, fields in said.items():
        for key in ("compute_of", "rival"):
            if (other := fields.get(key)) is not None and (other == name or other not in said):
                raise UserError(f"arm {name}: {key}: {unknown(str(other), [n for n in said if n != name], 'arm')}")
