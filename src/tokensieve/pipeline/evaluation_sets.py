"""The sets that models are evaluated on, opened and checked against the models."""

from __future__ import annotations

from ..data.corpus import Corpus, open_corpus
from ..modeling.folder import read_config
from ..modeling.load import check_length, check_tokenizer
from .configs.evaluate import EvaluateConfig


def open_sets(config: EvaluateConfig) -> dict[str, Corpus]:
    """The sets by name. UserError for one that is damaged, whose rows are longer than a model takes, or whose tokenizer is
    another one than a model's."""
    sets = {name: open_corpus(folder, verify=config.verify) for name, folder in config.sets.items()}
    for folder in config.models.values():
        for corpus in sets.values():
            check_length(read_config(folder), corpus.length, folder)
            check_tokenizer(folder, corpus.tokenizer(), str(corpus.folder))
    return sets
