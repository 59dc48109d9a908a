"""What the arms of a study may be: a word, and the stages that it stands for.

    arms:
      clm: {}                                      the word is the arm's name
      clm_equal: {is: clm, compute_of: rho1}       or `is`; as long as rho1's total compute lasts
      rho1: {ratio: 0.6}                           what else it says are options of the word

An arm's function is given what the study says and gives stages of a recipe, the last of them the arm itself; what all seeds
share is found later, by what mentions ``${seed}``. A new word is a function here and a line in ``WORDS``.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...runs.errors import UserError
from ..config.fields import unknown
from ..configs.study import StudyConfig

Stages = dict[str, dict[str, Any]]
ANY_WORD = ("is", "compute_of", "rival", "epochs", "train")
"""What any arm may say beside the options of its word."""
LENGTH = ("max_steps", "num_train_epochs")
"""Fields of ``training`` that say how long."""


@dataclass(frozen=True)
class StudyArm:
    """One arm as its function sees it."""

    name: str
    said: Mapping[str, Any]
    """What the recipe says of it."""
    study: StudyConfig
    stages: Mapping[str, Any]
    """The recipe's own stages."""
    allow_code: bool = False
    """Whether an objective may be code of the user's own."""

    @property
    def word(self) -> str:
        return str(self.said.get("is", self.name))

    def at(self, stage: str) -> str:
        """A reference to a stage of the recipe. UserError if there is none."""
        if stage not in self.stages:
            raise UserError(f"arm {self.name}: {self.word} needs a stage {stage!r} in the recipe")
        return f"@{stage}"

    def like(self, stage: str, **instead: Any) -> dict[str, Any]:
        """The fields of a stage of the recipe, some of them changed."""
        self.at(stage)
        return {**copy.deepcopy(dict(self.stages[stage])), **instead}

    def student(self, objective: Mapping[str, Any], **instead: Any) -> dict[str, Any]:
        """The arm's own training: what all students share, then ``instead``, and last what the arm says under ``train``."""
        fields = {"verb": "train", "model": "@base", "seed": "${seed}"}
        fields |= {"max_epochs": self.said.get("epochs", self.study.epochs)}
        made = _merged(
            fields,
            {"objective": dict(objective)},
            self.study.student,
            {"corpus": self.text, **instead},
            self.said.get("train") or {},
        )
        if (other := self.said.get("compute_of")) is not None:
            made["training"] = {k: v for k, v in made.get("training", {}).items() if k not in LENGTH}
            made["compute_of"] = f"@{other}"
        for field in ("corpus", "model"):
            if isinstance(made[field], str) and made[field].startswith("@"):
                made[field] = made[field] if made[field][1:] in self._own() else self.at(made[field][1:])
        return made

    @property
    def text(self) -> str:
        """What it is trained on, where its word says nothing else: the students' corpus, or the longer one."""
        goes_on = "compute_of" in self.said and self.study.longer
        return str(self.study.longer if goes_on else self.study.student.get("corpus", "@corpus"))

    def _own(self) -> tuple[str, ...]:
        return tuple(f"{self.name}_{part}" for part in OWN_PARTS)

    def one(self, objective: Mapping[str, Any], corpus: str | None = None, **instead: Any) -> Stages:
        """A student with this objective; on another corpus than all, and with scores of it, where the objective needs them."""
        if corpus is not None:
            instead["corpus"] = self.at(corpus)
        where = str(instead.get("corpus", self.text))
        made: Stages = {}
        if self._needs_scores(objective) and "scores" not in instead:
            name = "scores" if where == "@corpus" else f"scores_{where[1:]}"
            if name not in self.stages:
                made[name] = {"verb": "score", "model": self.at("reference"), "corpus": where}
            instead["scores"] = [f"@{name}"]
        return {**made, self.name: self.student(objective, **instead)}

    def _needs_scores(self, objective: Mapping[str, Any]) -> bool:
        from ...core.stats import score_columns
        from ..objectives import objective_of

        known = {k: v for k, v in objective.items() if v != "${seed}"}
        try:
            return bool(score_columns(objective_of(known, self.allow_code).needs))
        except UserError as e:
            raise UserError(f"arm {self.name}: {e}") from None

    @property
    def steps(self) -> int:
        """The student's steps. UserError if the study does not say them."""
        return steps_of(self.study, f"arm {self.name}: {self.word}")


OWN_PARTS = ("first", "init", "base", "reference", "scores")
"""What stages that an arm needs for itself are called, after its name."""


def steps_of(study: StudyConfig, who: str) -> int:
    """``max_steps`` of the students. UserError if it is not there."""
    steps = (study.student.get("training") or {}).get("max_steps")
    if type(steps) is not int or steps < 1:
        raise UserError(f"{who} needs student.training.max_steps, a whole number, in the study")
    return steps


def _merged(*each: Mapping[str, Any]) -> dict[str, Any]:
    """Later ones win, field by field; within ``training`` too."""
    made: dict[str, Any] = {}
    for fields in each:
        training = {**made.get("training", {}), **(fields.get("training") or {})}
        made |= {**fields, **({"training": training} if training else {})}
    return made


# --- the words ------------------------------------------------------------------------------------------------------------


def every_token(arm: StudyArm, *, corpus: str | None = None) -> Stages:
    """Every token."""
    return arm.one({"name": "clm"}, corpus)


def by_chance(arm: StudyArm, *, ratio: float = 0.6, corpus: str | None = None, **options: Any) -> Stages:
    """As many tokens as a rule keeps, by chance."""
    return arm.one({"name": "random", "ratio": ratio, "seed": "${seed}", **options}, corpus)


def random_profile(arm: StudyArm, *, rule: str = "rho1", corpus: str | None = None, **options: Any) -> Stages:
    """By chance, but of every token id as many as the rule keeps."""
    of = {"name": rule, **options}
    scores = arm.one(of, corpus)[arm.name].get("scores", [])
    made = {k: v for k, v in arm.one(of, corpus).items() if k != arm.name}
    fields = {"scores": scores} if scores else {}
    return {**made, **arm.one({"name": "random_like", "of": of, "seed": "${seed}"}, corpus, **fields)}


def rule(arm: StudyArm, *, rule: str | None = None, corpus: str | None = None, **options: Any) -> Stages:
    """Any objective, by its name."""
    return arm.one({"name": rule or arm.word, **options}, corpus)


def mix(arm: StudyArm, *, rule: str = "clm", corpus: str = "mixed", **options: Any) -> Stages:
    """Curated text mixed into the corpus: a stage of the recipe, ``mixed``."""
    return arm.one({"name": rule, **options}, corpus)


def anneal(arm: StudyArm, *, share: float = 0.2, curated: str = "curated") -> Stages:
    """clm, then for the last ``share`` of the steps clm on the curated text, while the rate falls to nothing."""
    if not 0 < share < 1:
        raise UserError(f"arm {arm.name}: share is a part of the steps, between 0 and 1, not {share}")
    if "compute_of" in arm.said:
        raise UserError(f"arm {arm.name}: {arm.word} has two parts, compute_of says nothing of how to share it out")
    last = max(1, round(arm.steps * share))
    first, objective = f"{arm.name}_first", {"name": "clm"}
    before = {"max_steps": arm.steps - last, "lr_scheduler_type": "constant_with_warmup"}
    after = {"max_steps": last, "lr_scheduler_type": "linear", "warmup_steps": 0}
    return {
        first: arm.student(objective, training=before),
        arm.name: arm.student(objective, training=after, model=f"@{first}", corpus=arm.at(curated)),
    }


def from_reference(arm: StudyArm, *, rule: str = "clm", reference: str = "reference", **options: Any) -> Stages:
    """The student goes on from the reference model."""
    return arm.one({"name": rule, **options}, model=arm.at(reference))


def curated_only(arm: StudyArm, *, curated: str = "curated") -> Stages:
    """Every token of the curated text and nothing else; how often it may be seen, ``epochs`` says."""
    return arm.one({"name": "clm"}, curated)


def whole_documents(arm: StudyArm, *, rule: str = "rho1", corpus: str | None = None, **options: Any) -> Stages:
    """Whole documents are kept or dropped, by the mean of what the rule ranks tokens by."""
    return arm.one({"name": rule, "unit": "document", **options}, corpus)


def wrong_domain(
    arm: StudyArm, *, curated: str = "wrong", rule: str = "rho1", corpus: str | None = None, **options: Any
) -> Stages:
    """A negative control: the reference has read other text, a stage of the recipe, ``wrong``."""
    return _other_reference(arm, {"name": rule, **options}, corpus, {"corpus": arm.at(curated)})


def other_reference(
    arm: StudyArm, *, trained: Any = None, rule: str = "rho1", corpus: str | None = None, **options: Any
) -> Stages:
    """A reference trained otherwise: the fields of the recipe's that ``trained`` names are as it says."""
    if not isinstance(trained, Mapping) or not trained:
        raise UserError(
            f"arm {arm.name}: {arm.word} needs trained, the fields of the reference's training that are other"
        )
    return _other_reference(arm, {"name": rule, **options}, corpus, trained)


def reversed_(arm: StudyArm, *, rule: str = "rho1", corpus: str | None = None, **options: Any) -> Stages:
    """A negative control: what the rule would drop."""
    return arm.one({"name": rule, "reverse": True, **options}, corpus)


def small_reference(
    arm: StudyArm,
    *,
    layers: Any = None,
    model: Any = None,
    rule: str = "rho1",
    corpus: str | None = None,
    **options: Any,
) -> Stages:
    """A smaller reference: begun from ``layers`` of the base model, or a model of this config trained as the base was."""
    if (layers is None) == (model is None):
        raise UserError(f"arm {arm.name}: {arm.word} needs either layers or model")
    if layers is not None:
        before = {f"{arm.name}_init": {"verb": "init", "model": arm.at("base"), "layers": layers}}
    else:
        before = {f"{arm.name}_base": arm.like("base", model=model)}
    own = {"model": f"@{next(iter(before))}"}
    return {**before, **_other_reference(arm, {"name": rule, **options}, corpus, own)}


def sparse(arm: StudyArm, *, rule: str = "rho1", corpus: str | None = None, **options: Any) -> Stages:
    """A rule whose dropped tokens cost no backward."""
    return arm.one({"name": rule, **options}, corpus, backward="sparse")


def _other_reference(
    arm: StudyArm, objective: Mapping[str, Any], corpus: str | None, fields: Mapping[str, Any]
) -> Stages:
    """A rule with scores of a reference of its own: that of the recipe, trained with some fields changed."""
    reference, scores = f"{arm.name}_reference", f"{arm.name}_scores"
    where = arm.text if corpus is None else arm.at(corpus)
    return {
        reference: _merged(arm.like("reference"), fields),
        scores: {"verb": "score", "model": f"@{reference}", "corpus": where},
        **arm.one(objective, corpus, scores=[f"@{scores}"]),
    }


WORDS: dict[str, Callable[..., Stages]] = {
    "clm": every_token,
    "random": by_chance,
    "random_profile": random_profile,
    "mix": mix,
    "anneal": anneal,
    "from_reference": from_reference,
    "curated_only": curated_only,
    "documents": whole_documents,
    "wrong_domain": wrong_domain,
    "other_reference": other_reference,
    "reversed": reversed_,
    "small_reference": small_reference,
    "sparse": sparse,
    "rule": rule,
}


def stages_of(arm: StudyArm) -> Stages:
    """The stages of an arm. UserError for a word that nobody knows, and for options that it does not take."""
    function = WORDS.get(arm.word) or _rule(arm)
    options = {k: v for k, v in arm.said.items() if k not in ANY_WORD}
    taken = inspect.signature(function).parameters
    known = [*[name for name in taken if name not in ("arm", "options")], *ANY_WORD]
    if "options" not in taken and (wrong := [name for name in options if name not in known]):
        raise UserError(f"arm {arm.name}: {unknown(wrong[0], known, 'field')}")
    return function(arm, **options)


def _rule(arm: StudyArm) -> Callable[..., Stages]:
    from ...core.objectives import BY_SOURCE, COMBINED, OBJECTIVES, SCHEDULE

    rules = (*OBJECTIVES, *COMBINED, SCHEDULE, BY_SOURCE)
    if arm.word not in rules and ":" not in arm.word:
        raise UserError(f"arm {arm.name}: {unknown(arm.word, [*WORDS, *rules], 'arm')}")
    return rule
