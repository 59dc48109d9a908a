"""``score``, and the cells of a study, handed to an engine that runs many small tasks: datatrove's executors on one machine,
Slurm or Ray.

    score   task r of W writes shards r, r + W, ...     in any order, at any time, again after a failure
    study   task r of W does the cells r, r + W, ... of a level: those that need nothing but what earlier levels made
    a last one, alone, finds all there and writes the manifest: the bytes of a plain ``score``, the folder of a plain ``run``
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..runs.layout import BESIDE
from . import score
from .configs.run import RecipeConfig
from .configs.score import ScoreConfig
from .launch import Ranks
from .recipe import run as recipe
from .recipe.estimate import needs_of
from .recipe.jobs import set_environment


@dataclass(frozen=True)
class ScoreShards:
    """A step of a datatrove pipeline, or any function of (data, rank, world_size). Passes ``data`` on.

    One task alone (``world_size`` 1) does what is left to do and finishes the folder. Raises UserError as ``score`` does.
    """

    config: ScoreConfig
    """Paths in it must mean the same on every machine."""

    def __call__(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
        score.run(self.config, None if world_size == 1 else Ranks(rank, world_size))
        return data


@dataclass(frozen=True)
class RecipeStages:
    """Some stages of a recipe as a step of a datatrove pipeline, or any function of (data, rank, world_size): each is skipped,
    gone on with or done as by ``run``. Passes ``data`` on. What they read must be there.

    Without ``names``: all that is left to do, and the run's manifest; for one task alone. Raises UserError as ``run`` does.
    """

    config: RecipeConfig
    """Its ``out`` must mean the same on every machine."""
    names: tuple[str, ...] = ()

    def __call__(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
        own = self.names[rank::world_size]
        if own or not self.names:
            with set_environment({BESIDE: "1"} if self.names else {}):  # nobody knows who else is on the machine
                recipe.run(replace(self.config, only=list(own)))
        return data


def recipe_levels(config: RecipeConfig) -> list[RecipeStages]:
    """The steps of a recipe, one after the other, the last of them without names; within each, stages do not need each other.

    Checks the recipe and registers a study, once, before any task begins: UserError as from ``run``.
    """
    found, _ = recipe.begin(config)
    needs, level = needs_of(found.stages), dict[str, int]()
    for stage in found.stages:  # in order: what a stage needs stands before it
        level[stage.name] = 1 + max((level[name] for name in needs[stage.name]), default=-1)
    steps = [tuple(name for name, n in level.items() if n == i) for i in range(1 + max(level.values()))]
    return [*(RecipeStages(config, names) for names in steps), RecipeStages(config)]
