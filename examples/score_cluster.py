"""``tokensieve score`` as many small tasks of datatrove: on this machine, on Slurm, or on Ray.

    pip install 'tokensieve[cluster]'
    python examples/score_cluster.py local --tasks 8 --workers 2 \\
        --out runs/x/scores --model runs/x/reference --corpus runs/x/corpus
    python examples/score_cluster.py slurm --tasks 64 --partition gpu --gpus 1 --out ...
    python examples/score_cluster.py ray --tasks 64 --workers 8 --gpus 1 --out ...

Task r of W writes the shards r, r + W, ... of the corpus: more tasks than shards have nothing to do. When all are through, one
more finishes the folder. Start it again after a failure: shards that are whole are kept. The folder is the one that
``tokensieve score`` writes, byte for byte, on the same kind of device and with as many threads (OMP_NUM_THREADS).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from tokensieve.pipeline.cluster import ScoreShards
from tokensieve.pipeline.score import ScoreConfig


def on_this_machine(step: ScoreShards, options: argparse.Namespace, logs: Path) -> None:
    from datatrove.executor import LocalPipelineExecutor

    parts = LocalPipelineExecutor(
        [step], tasks=options.tasks, workers=options.workers, logging_dir=str(logs), skip_completed=False
    )
    parts.run()
    finish(step, parts, logs)


def on_ray(step: ScoreShards, options: argparse.Namespace, logs: Path) -> None:
    """On the cluster that RAY_ADDRESS names or, without it, on this machine."""
    import ray
    from datatrove.executor import RayPipelineExecutor

    ray.init(ignore_reinit_error=True)
    parts = RayPipelineExecutor(
        [step],
        tasks=options.tasks,
        workers=options.workers,
        cpus_per_task=options.cpus,
        gpus_per_task=options.gpus,
        logging_dir=str(logs),
    )
    parts.run()
    finish(step, parts, logs)


def finish(step: ScoreShards, parts: Any, logs: Path) -> None:
    """Ray reports a failed task in the log only, and an executor that depends on it would wait for it for ever."""
    if failed := parts.get_incomplete_ranks(skip_completed=True):
        raise SystemExit(f"{len(failed)} of {parts.tasks} tasks failed, see {logs}/logs; start it again to go on")
    step()


def on_slurm(step: ScoreShards, options: argparse.Namespace, logs: Path) -> None:
    """Two jobs: an array of parts and, when all of it has succeeded, the one that finishes."""
    from datatrove.executor import SlurmPipelineExecutor

    after = None
    for name, tasks in (("parts", options.tasks), ("finish", 1)):
        after = SlurmPipelineExecutor(
            [step],
            tasks=tasks,
            time=options.time,
            partition=options.partition,
            cpus_per_task=options.cpus,
            gpus_per_task=options.gpus,
            workers=options.workers,
            env_command=options.activate,
            job_name=f"score-{name}",
            qos=None,
            logging_dir=str(logs / name),
            depends=after,
        )
    after.run()  # type: ignore[union-attr]


ENGINES = {"local": on_this_machine, "ray": on_ray, "slurm": on_slurm}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=ENGINES)
    for name in ("out", "model", "corpus"):
        parser.add_argument(f"--{name}", required=True, help="as in tokensieve score")
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--workers", type=int, default=-1, help="tasks at a time; -1 for all")
    parser.add_argument("--cpus", type=int, default=1, help="of a task (slurm, ray)")
    parser.add_argument("--gpus", type=int, default=0, help="of a task (slurm, ray)")
    parser.add_argument("--partition", default="", help="slurm")
    parser.add_argument("--time", default="04:00:00", help="slurm: of a task")
    parser.add_argument("--activate", help="slurm: the command that activates the environment on a node")
    options = parser.parse_args()
    paths = {name: str(Path(getattr(options, name)).resolve()) for name in ("out", "model", "corpus")}
    # A new folder each time: marks of completion of an earlier start would have tasks left out, whatever became of shards.
    logs = Path(f"{paths['out']}-logs", time.strftime("%Y%m%d-%H%M%S"))
    ENGINES[options.engine](ScoreShards(ScoreConfig(**paths)), options, logs)


if __name__ == "__main__":  # the local executor's processes import this file
    main()
