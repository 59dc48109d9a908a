"""``score`` handed to an engine that runs many small tasks: datatrove's executors on one machine, Slurm or Ray.

task r of W writes shards r, r + W, ...   in any order, at any time, again after a failure
a last one, alone                         finds them all there and writes the manifest: the bytes of a plain ``score``
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import score
from .configs.score import ScoreConfig
from .launch import Ranks


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
