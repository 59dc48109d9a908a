"""A study's cells as tasks of datatrove: on this machine, on Slurm, or on Ray.

    pip install 'tokensieve[cluster]'
    python examples/study_cluster.py local study.yaml --workers 2
    python examples/study_cluster.py slurm study.yaml --partition gpu --gpus 1 --activate 'source .venv/bin/activate'
    python examples/study_cluster.py ray study.yaml --workers 8 --gpus 1

Cells that do not need each other are the tasks of one level, and a level begins when the one before it is through. Start it
again after a failure: what is done is skipped, what was killed goes on. The folder is the one that ``tokensieve run`` writes;
the recipe, its ``out`` and its text must lie under the same paths everywhere.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tokensieve.pipeline.cluster import RecipeStages, recipe_levels
from tokensieve.pipeline.configs.run import RecipeConfig
from tokensieve.pipeline.recipe.load import load


def through(executors: Sequence[Any], logs: Path) -> None:
    """Run one after the other; a failed task may be in the log only, and the next level would miss what it should have made."""
    for level, executor in enumerate(executors):
        executor.run()
        if failed := executor.get_incomplete_ranks(skip_completed=True):
            raise SystemExit(
                f"{len(failed)} of {executor.tasks} tasks failed, see {logs}/{level:02d}/logs; start it again to go on"
            )


def on_this_machine(steps: Sequence[RecipeStages], options: argparse.Namespace, logs: Path) -> None:
    from datatrove.executor import LocalPipelineExecutor

    through(
        [
            LocalPipelineExecutor(
                [step],
                tasks=max(1, len(step.names)),
                workers=options.workers,
                logging_dir=str(logs / f"{level:02d}"),
                skip_completed=False,
            )
            for level, step in enumerate(steps)
        ],
        logs,
    )


def on_ray(steps: Sequence[RecipeStages], options: argparse.Namespace, logs: Path) -> None:
    """On the cluster that RAY_ADDRESS names or, without it, on this machine."""
    import ray
    from datatrove.executor import RayPipelineExecutor

    ray.init(ignore_reinit_error=True)
    through(
        [
            RayPipelineExecutor(
                [step],
                tasks=max(1, len(step.names)),
                workers=options.workers,
                cpus_per_task=options.cpus,
                gpus_per_task=options.gpus,
                logging_dir=str(logs / f"{level:02d}"),
            )
            for level, step in enumerate(steps)
        ],
        logs,
    )


def on_slurm(steps: Sequence[RecipeStages], options: argparse.Namespace, logs: Path) -> None:
    """An array of tasks a level, each when all of the one before has succeeded."""
    from datatrove.executor import SlurmPipelineExecutor

    after = None
    for level, step in enumerate(steps):
        after = SlurmPipelineExecutor(
            [step],
            tasks=max(1, len(step.names)),
            time=options.time,
            partition=options.partition,
            cpus_per_task=options.cpus,
            gpus_per_task=options.gpus,
            workers=options.workers,
            env_command=options.activate,
            job_name=f"study-{level:02d}",
            qos=None,
            logging_dir=str(logs / f"{level:02d}"),
            depends=after,
        )
    after.run()  # type: ignore[union-attr]


ENGINES = {"local": on_this_machine, "ray": on_ray, "slurm": on_slurm}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("recipe", help="as in tokensieve run")
    parser.add_argument("--out", help="as in tokensieve run")
    parser.add_argument("--set", type=yaml.safe_load, default={}, help="settings, as {steps: 100}")
    parser.add_argument("--workers", type=int, default=-1, help="tasks at a time; -1 for all")
    parser.add_argument("--cpus", type=int, default=1, help="of a task (slurm, ray)")
    parser.add_argument("--gpus", type=int, default=0, help="of a task (slurm, ray)")
    parser.add_argument("--partition", default="", help="slurm")
    parser.add_argument("--time", default="04:00:00", help="slurm: of a task")
    parser.add_argument("--activate", help="slurm: the command that activates the environment on a node")
    options = parser.parse_args()
    path = str(Path(options.recipe).resolve()) if Path(options.recipe).is_file() else options.recipe
    config = RecipeConfig(path, out=options.out, set=options.set)
    out = load(config).out.resolve()
    steps = recipe_levels(RecipeConfig(path, out=str(out), set=options.set))
    # A new folder each time: marks of completion of an earlier start would have tasks left out, whatever became of cells.
    ENGINES[options.engine](steps, options, Path(f"{out}-logs", time.strftime("%Y%m%d-%H%M%S")))


if __name__ == "__main__":  # the local executor's processes import this file
    main()
