"""Scope corpus in a run: its thresholds are looked up with the scores, found if they are not there, told, and kept there."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core import Objective
from ..data.corpus import Corpus
from ..runs.manifest import read_manifest
from ..training.thresholds import read_thresholds, store, told
from . import launch
from .configs.export import ExportConfig
from .configs.train import TrainConfig


def _place(config: TrainConfig | ExportConfig, corpus: Corpus) -> tuple[Path | None, dict[str, Any]]:
    """(the folder of scores that thresholds are kept in, what they are made from). Not those of code that may change."""
    made_from = {**corpus.identity, "scores": [read_manifest(s, "scores")["fingerprint"] for s in config.scores]}
    return (None if config.allow_code or not config.scores else Path(config.scores[0])), made_from


def found_before(config: TrainConfig | ExportConfig, corpus: Corpus, objective: Objective) -> dict[str, Any]:
    """What an earlier run of the same scores came to."""
    return read_thresholds(*_place(config, corpus)) if objective.corpus_scores else {}


def find(config: TrainConfig | ExportConfig, corpus: Corpus, trainer: Any) -> None:
    """Those of scope corpus of a trainer, or of a selection to be exported, found or found before: told, and kept with the
    scores."""
    trainer.find_thresholds(trainer.objective)
    if launch.ranks().rank == 0 and (found := trainer.thresholds):
        for sentence in told({name: found[name] for name in trainer.objective.corpus_scores}):
            print(f"tokensieve: {sentence}", file=sys.stderr, flush=True)
        store(*_place(config, corpus), found)


def in_manifest(objective: Objective, thresholds: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's manifest says of them: nothing, where there are none."""
    ranked = {name: dataclasses.asdict(thresholds[name]) for name in objective.corpus_scores}
    return {"thresholds": ranked} if ranked else {}
