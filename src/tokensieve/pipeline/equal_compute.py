"""How long a run trains that is given as much compute as another one cost in all, and whether a corpus is long enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..data.corpus import Corpus
from ..runs.errors import UserError
from ..runs.manifest import read_manifest
from ..training.price import StepFlops
from .configs.train import KIND, TrainConfig
from .lineage import FIGURES, charged, lineage, shared, total


def check_length_given(config: TrainConfig) -> None:
    """Raise UserError where a run's length is given twice, or no run could be as short as ``max_epochs``."""
    if config.compute_of is not None:
        if twice := [name for name in ("max_steps", "num_train_epochs") if name in config.training]:
            raise UserError(f"training.{twice[0]}: compute_of says how long to train, leave it out")
        if config.lora is not None:
            raise UserError("compute_of counts whole models: it cannot stand beside lora")
    if config.max_epochs is not None and not config.max_epochs > 0:
        raise UserError(f"max_epochs must be above 0, not {config.max_epochs}")


def steps_for(
    config: TrainConfig,
    flops: StepFlops,
    places: float,
    share: float,
    spent: tuple[float, float],
    used: Sequence[Mapping[str, Any]] = (),
) -> int:
    """Steps of ``places`` tokens that cost more than the run ``compute_of`` cost in all, by less than one step.

    Not fewer: an arm pays only against a rival that was given as much. What both runs were begun from is charged to neither;
    ``share`` of the tokens is trained on; ``spent`` FLOPs (scoring, references) were needed beforehand, and what ``used``, the
    references of the manifest, were begun from: charged as a comparison will, a model that is both reference and beginning
    once. UserError if nobody knows what that run cost, or if it was no more than what this one needs before its first step.
    """
    other = read_manifest(str(config.compute_of), KIND, ("summary",))
    begun = lineage(config.model) if isinstance(config.model, str) else []
    figures = {**dict.fromkeys(FIGURES, 0.0), "flops_scoring": spent[0], "flops_reference": spent[1]}
    own = {"inputs": {}, "begun_from": begun, "references": used, "summary": figures}
    free = shared([own, other])
    costs, before = total(charged(other, free)), total(charged(own, free))
    each = flops.of(places, places * share)
    if costs is None or before is None or not each > 0 or before != before:
        raise UserError(f"compute_of: nobody knows what {config.compute_of} cost in all, or what a step costs here")
    left = costs - before
    if left <= 0:
        raise UserError(f"compute_of: {config.compute_of} cost less than what this run needs before its first step")
    return int(left / each) + 1


def check_epochs(config: TrainConfig, args: Any, corpus: Corpus) -> None:
    """Raise UserError if a run would go through its corpus more often than ``max_epochs``."""
    if config.max_epochs is None:
        return
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * max(1, args.world_size)
    epochs = args.max_steps * rows / corpus.num_rows if args.max_steps > 0 else args.num_train_epochs
    if epochs > config.max_epochs:
        raise UserError(
            f"{config.corpus} has {corpus.num_rows:,} rows, this run would go through them {epochs:.2f} times: max_epochs is "
            f"{config.max_epochs:g}; prepare more text, or train for fewer steps"
        )
