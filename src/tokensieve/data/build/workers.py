"""Units over processes: as many in flight as memory allows, finished ones as they come."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context, parent_process
from typing import TypeVar

from ...runs.errors import UserError
from ..read.documents import Block
from ..read.readers import Placed, placements
from ..read.source import Source
from .units import Counts, Setup, WorkUnit, read_counts, run_unit


class WorkerDied(UserError):
    """A process ended without a word. What the others did stands, and the same work started again goes on from there."""


T = TypeVar("T")
R = TypeVar("R")
BlockGroup = tuple[Block, ...]


def results(units: Iterator[WorkUnit], setup: Setup, workers: int) -> Iterator[tuple[WorkUnit, Counts]]:
    """(unit, counts) of each unit, as they finish; done ones come from their files. At most 2 a worker are in flight."""
    known = partial(_known, setup)
    if workers == 1:
        for unit in units:
            yield unit, known(unit) or run_unit(unit, setup)
        return
    yield from pooled(units, _work, workers, setup, known)


def sampled(source: Source, groups: Iterator[BlockGroup], workers: int) -> Iterator[tuple[BlockGroup, list[Placed]]]:
    """(group, :func:`placements` of its documents), as they finish. At most 2 a worker are in flight."""
    if workers == 1:
        yield from ((group, placements(source, group)) for group in groups)
    else:
        yield from pooled(groups, partial(placements, source), workers)


def _known(setup: Setup, unit: WorkUnit) -> Counts | None:
    return read_counts(setup.parts, unit.name)


def pooled(
    items: Iterator[T],
    work: Callable[[T], R],
    workers: int,
    setup: Setup | None = None,
    known: Callable[[T], R | None] = lambda item: None,
) -> Iterator[tuple[T, R]]:
    """(item, ``work(item)``) by processes, as they finish; what ``known`` gives is not done again. At most 2 a worker are
    in flight."""
    context = get_context("spawn")  # forking a process that runs tokenizer threads can deadlock
    pool = ProcessPoolExecutor(workers, context, _start_worker, (setup,))
    waiting: dict[Future[R], T] = {}
    try:
        for item in items:
            found = known(item)
            if found is not None:
                yield item, found
                continue
            waiting[pool.submit(work, item)] = item
            while len(waiting) >= 2 * workers:
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                yield from ((waiting.pop(f), f.result()) for f in done)
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            yield from ((waiting.pop(f), f.result()) for f in done)
    except BrokenProcessPool:
        raise WorkerDied(
            "a worker process died, most likely for want of memory: run again with fewer workers to go on"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_worker_setup: Setup | None = None


def _start_worker(setup: Setup | None) -> None:
    global _worker_setup
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread a process: there are as many processes as cores
    leave_with_parent()
    _worker_setup = setup


def leave_with_parent() -> None:
    """End this process of a pool when its parent ends: one that is killed cannot tell, and its workers would wait for ever."""
    parent = parent_process()
    assert parent is not None

    def leave() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()


def _work(unit: WorkUnit) -> Counts:
    assert _worker_setup is not None
    return run_unit(unit, _worker_setup)
