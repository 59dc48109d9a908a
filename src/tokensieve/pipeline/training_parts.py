"""Parts of a training that a config may ask for: what does not go with noise, and what an optimizer's state takes."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..data.corpus import Corpus
from ..runs.errors import UserError
from .configs.train import TrainConfig

# Bytes a parameter of state beside float32 weights, by the beginning of transformers' names; AdamW's two moments if unknown.
_STATE = {
    "sgd": 0,
    "lion": 4,
    "adagrad": 4,
    "rmsprop": 4,
    "adafactor": 0,
    "adamw_8bit": 2,
    "adamw_bnb_8bit": 2,
    "lomo": 0,
    "adalomo": 0,
}
_ADAM = 8


def state_bytes(config: TrainConfig, optim: str) -> int:
    """Bytes a parameter that the optimizer keeps, whole matrices taken: rows, columns and subspaces count for nothing.

    GaLore's moments are of its subspace, and adafactor's of rows and columns. Meta-experience replay keeps one more copy.
    """
    if config.optimizer is not None:
        found = 0 if config.optimizer.rank else 4
    elif "galore" in optim or "apollo" in optim:
        found = 0
    else:
        found = next((n for name, n in sorted(_STATE.items(), reverse=True) if optim.startswith(name)), _ADAM)
    return found + (4 if config.mer is not None and config.mer.epsilon != 1 else 0)


def check_noise(config: TrainConfig) -> None:
    """Raise UserError for what is defined on rows without noise."""
    if config.noise is None:
        return
    if config.eval_sets or config.self_test:
        what = "eval_sets" if config.eval_sets else "self_test"
        raise UserError(f"noise: {what} would be of rows without it, read from left to right: leave it out")
    if config.noise.name == "absorbing" and "denominator" in config.objective:
        raise UserError("noise: absorbing divides by the number of hidden tokens: leave objective.denominator out")


def noise_of(config: TrainConfig, corpus: Corpus) -> Any:
    """With the id of the mask; UserError for a token that the corpus's tokenizer does not have."""
    if config.noise is None or isinstance(config.noise.token, int):
        return config.noise
    if (found := corpus.tokenizer().get_vocab().get(config.noise.token)) is None:
        raise UserError(
            f"noise.token: the tokenizer of {config.corpus} has no token {config.noise.token!r}: init --vocab adds one"
        )
    return dataclasses.replace(config.noise, token=found)
