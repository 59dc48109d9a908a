"""lm-evaluation-harness's own tasks, as it has them, from data sets that are on this disk already. Nothing is downloaded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runs.files import hash_json
from .catalogue import PAPER_GENERAL
from .harness import TaskResult, keeping_model, quiet, run_harness
from .kept import KeptAnswers

BY_PROGRAM = ("humaneval", "mbpp")
"""Tasks whose answers are programs that the harness runs without any isolation."""


# In the harness's folder of tasks; others are called as their task. Reading all of its thousands of files takes long.
_FOLDERS = {"gsm8k_cot": "gsm8k", "arc_challenge": "arc", "arc_easy": "arc", "boolq": "super_glue"}


@dataclass(frozen=True)
class GeneralTask:
    """A task of the harness, or a group of them, that can be asked."""

    name: str
    column: str
    identity: Any
    """Its version and data, as far as they are known."""
    manager: Any


def find_general(names: Sequence[str]) -> tuple[list[GeneralTask], dict[str, str]]:
    """(those whose data is here, name -> why not): each is loaded as the harness loads it, with its data sets' cache only."""
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager

    found, missing = list[GeneralTask](), dict[str, str]()
    home = Path(lm_eval.tasks.__file__).parent
    with quiet():
        manager = TaskManager(include_defaults=False, include_path=[home / _FOLDERS.get(n, n) for n in names])
    for name in names:
        if name in BY_PROGRAM:
            missing[name] = f"{name}: the harness runs what a model writes without isolation, which is not done here"
            continue
        try:
            with offline(), quiet():
                loaded = manager.load([name])
        except Exception as e:  # whatever a data set's loader raises; a traceback of a missing download helps nobody
            missing[name] = f"{name}: its data is not in this machine's cache of data sets ({_first(e)})"
        else:
            leaves = loaded["tasks"].values()
            identity = hash_json([(t.task_name, t.VERSION, len(t.eval_docs)) for t in leaves])
            found.append(GeneralTask(name, PAPER_GENERAL[name], identity, manager))
    return found, missing


def evaluate_general(
    task: GeneralTask, lm: Any, kept: KeptAnswers, batch_rows: int, advance: Callable[[int], Any]
) -> TaskResult:
    """Every metric of the harness of this task, or of the group; no answers are written."""
    keeping, told = keeping_model(lm, kept, batch_rows, advance)
    with offline():
        results = run_harness(keeping, [task.name], task.manager)
    figures = {**results["results"], **results.get("groups", {})}[task.name]
    counts = results.get("n-samples", {})
    n = sum(c["effective"] for c in counts.values())
    records = []
    for key, value in figures.items():
        metric, _, kind = key.partition(",")
        if not kind or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = figures.get(f"{metric}_stderr,{kind}")
        shown = metric if kind == "none" else f"{metric} ({kind})"
        error = float(error) if isinstance(error, int | float) else None
        records.append({"metric": shown, "value": float(value), "stderr": error, "n": n})
    return TaskResult(records, told=told)


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Hugging Face libraries read their switches at import: here they are set for a while, whenever they were imported."""
    import datasets.config
    import huggingface_hub.constants

    switches = [datasets.config, huggingface_hub.constants]
    before = [m.HF_HUB_OFFLINE for m in switches]
    for module in switches:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, was in zip(switches, before, strict=True):
            module.HF_HUB_OFFLINE = was


def _first(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
