"""Second targets of a training run: whether they come from somewhere, and the models that they come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core import Objective
from ..data.corpus import Corpus
from ..modeling.load import check_length, check_tokenizer, check_vocabulary, load_causal_lm
from ..runs.errors import UserError
from .configs.train import TrainConfig

# Options of an objective that name a model's folder.
FOLDERS = ("teacher", "embeddings")


def folders(objective: Any) -> list[str]:
    """The model folders that an objective's mapping names, those of the objective in it too."""
    if not isinstance(objective, Mapping):
        return []
    own = [objective[n] for n in FOLDERS if _is_served(objective) and isinstance(objective.get(n), str)]
    return own + folders(objective.get("of"))


def teachers(objective: Any) -> list[str]:
    """Of these the ones that are asked in each step: at most one."""
    if not isinstance(objective, Mapping):
        return []
    own = objective.get("teacher") if objective.get("name") == "distill" else None
    return ([own] if isinstance(own, str) else []) + teachers(objective.get("of"))


def without_folders(objective: Any) -> Any:
    """The same mapping without these paths."""
    if not isinstance(objective, Mapping):
        return objective
    found = {n: "a folder" if n in FOLDERS and _is_served(objective) else v for n, v in objective.items()}
    return {**found, **({"of": without_folders(objective["of"])} if "of" in objective else {})}


def _is_served(objective: Mapping[str, Any]) -> bool:
    """Whether its options are ours to read, not those of somebody's own code."""
    return objective.get("name") in ("smooth", "distill")


def check(objective: Objective, config: TrainConfig) -> None:
    """Refuse an objective whose second targets come from nowhere."""
    target = objective.second
    if target is None:
        return
    if target.origin == "columns" and not config.scores:
        raise UserError(
            f"scores: the objective needs the columns {' and '.join(target.columns)}: name a folder that `score` wrote, or a "
            "teacher in the objective"
        )
    if target.origin == "similar" and target.model is None and not isinstance(config.model, str):
        raise UserError(
            "objective: new weights have no similar tokens: name a model folder in the option embeddings, or train from one"
        )


def models(objective: Objective, config: TrainConfig, corpus: Corpus) -> dict[str, Any]:
    """The teacher, or the embeddings, that an objective names, checked against the corpus; as the trainer takes them."""
    target = objective.second
    if target is None or target.model is None:
        return {}
    check_tokenizer(target.model, corpus.tokenizer(), config.corpus)
    model = load_causal_lm(target.model, dtype=config.dtype)
    check_vocabulary(model, corpus.vocab_size, target.model)
    if target.origin == "similar":
        return {"embeddings": model.get_input_embeddings().weight.detach().clone()}
    check_length(model.config, corpus.length, target.model)
    return {"teacher": model}
