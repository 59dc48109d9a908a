"""Stages of a recipe side by side: N processes, each with as many threads as the recipe says, whatever N is.

    ready: all that it reads is done ──> a free process ──> done, or failed: what reads it is left out, all else goes on

The processes stay for the next stage, so that torch is imported once in each. With GPUs each process has one of its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context
from typing import Any

from ...runs.errors import Stopped, UserError
from ...runs.layout import BESIDE

HANDED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
Function = Callable[..., None]


class StagesFailed(UserError):
    """Some stages failed; the others are done."""

    def __init__(self, sentence: str, code: int) -> None:
        super().__init__(sentence)
        self.code = code


@dataclass(frozen=True)
class Ended:
    """How a stage ended: ``code`` 0 for done, else what a command would exit with, and a sentence."""

    code: int = 0
    sentence: str = ""
    signal: int = 0
    """The signal that stopped it, if one did."""


@contextlib.contextmanager
def num_threads(count: int | None) -> Iterator[None]:
    """While open, torch computes with so many threads; None: as many as it likes."""
    if count is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def side_by_side(
    work: Mapping[str, tuple[Function, tuple[Any, ...]]],
    needs: Mapping[str, frozenset[str]],
    *,
    jobs: int,
    threads: int | None,
    starting: Callable[[str], None],
    failing: Callable[[str], None] = print,
) -> None:
    """Call every ``function(*args)`` of ``work`` in one of ``jobs`` processes, none before all that it ``needs`` are done.

    ``starting`` is told the name of each as it begins, ``failing`` a sentence as one fails. That lets the others finish, but
    for those that need it; then StagesFailed names it. A signal to stop is handed on to all, and nothing begins after it;
    Stopped once they are at their end.
    """
    pool, ended = _Pool(jobs, threads), dict[str, Ended]()
    with _signals_to(pool) as received:
        try:
            while True:
                for name in _ready(work, needs, ended, pool.busy())[: pool.free()]:
                    if received:
                        break
                    starting(name)
                    pool.start(name, *work[name])
                    if received:  # while it was being started: it was at no work yet that the signal could have reached
                        pool.signal(received[-1])
                if not pool.busy():
                    break
                for name, how in pool.wait().items():
                    ended[name] = how
                    if how.code and not how.signal:
                        failing(_said(name, how))
        finally:
            pool.close()
    stopped = [e for e in ended.values() if e.signal]
    if received or stopped:
        failed = "".join(f"; {_said(name, how)}" for name, how in ended.items() if how.code and not how.signal)
        raise Stopped(f"stopped{failed}; start it again to go on", received[0] if received else stopped[0].signal)
    _raise_failed(work, ended)


def _said(name: str, how: Ended) -> str:
    return f"stage {name} failed: {how.sentence}"


def _ready(
    work: Mapping[str, Any], needs: Mapping[str, frozenset[str]], ended: Mapping[str, Ended], busy: Sequence[str]
) -> list[str]:
    """What can begin now, in the recipe's order."""
    done = {name for name, how in ended.items() if not how.code}
    return [n for n in work if n not in ended and n not in busy and needs[n] & set(work) <= done]


def _raise_failed(work: Mapping[str, Any], ended: Mapping[str, Ended]) -> None:
    failed = {name: how for name, how in ended.items() if how.code}
    if not failed:
        return
    left = [name for name in work if name not in ended]
    said = "; ".join(_said(name, how) for name, how in failed.items())
    rest = f"; not begun for want of it: {', '.join(left)}" if left else ""
    raise StagesFailed(f"{said}{rest}; all others are done", next(iter(failed.values())).code)


class _Pool:
    """The processes, started as they are needed, each again if it died."""

    def __init__(self, jobs: int, threads: int | None) -> None:
        self.threads, self.jobs = threads, jobs
        self._context = get_context("spawn")  # a fork of a process that runs threads may hang
        self._workers: list[_Worker | None] = [None] * jobs

    def busy(self) -> list[str]:
        return [w.name for w in self._workers if w is not None and w.name is not None]

    def free(self) -> int:
        return len(self._workers) - len(self.busy())

    def start(self, name: str, function: Function, args: tuple[Any, ...]) -> None:
        place = next(i for i, w in enumerate(self._workers) if w is None or w.name is None)
        worker = self._workers[place]
        if worker is None or not worker.process.is_alive():  # an idle one may have died
            worker = self._workers[place] = _Worker(self._context, place, self.threads, beside=self.jobs > 1)
        worker.name = name
        with contextlib.suppress(OSError):  # it died just now: its death will come out where its answer would
            worker.pipe.send((function, args))

    def wait(self) -> dict[str, Ended]:
        """What has ended; returns as soon as something has."""
        workers = {w.pipe: (i, w) for i, w in enumerate(self._workers) if w is not None and w.name is not None}
        ended = {}
        for pipe in connection.wait(list(workers)):
            place, worker = workers[pipe]
            name, worker.name = str(worker.name), None
            try:
                ended[name] = worker.pipe.recv()
            except (EOFError, OSError):  # the latter from one that never read what it was told
                ended[name] = worker.death()
                self._workers[place] = None
        return ended

    def signal(self, number: int) -> None:
        for worker in self._workers:
            if worker is not None and worker.name is not None and worker.process.is_alive():
                worker.told.add(number)
                os.kill(worker.process.pid, number)

    def close(self) -> None:
        """Whoever is still at work is told to stop; the others leave."""
        self.signal(signal.SIGTERM)
        for worker in self._workers:
            if worker is not None:
                worker.pipe.close()
                worker.process.join()


class _Worker:
    """One process, and the stage it is at, if any."""

    def __init__(self, context: Any, place: int, threads: int | None, *, beside: bool = False) -> None:
        self.name: str | None = None
        self.told: set[int] = set()  # signals to stop
        self.pipe, theirs = context.Pipe()
        variables = {**_variables(place, threads), **({BESIDE: "1"} if beside else {})}
        with set_environment(variables):  # before the process imports anything: it is read once
            self.process = context.Process(target=_main, args=(theirs, threads), daemon=False)
            self.process.start()
        theirs.close()

    def death(self) -> Ended:
        self.process.join()
        how = self.process.exitcode or 0
        if -how in self.told:  # before it could listen, or at once, by a second Ctrl-C
            number = signal.SIGINT if how == -signal.SIGKILL else -how
            return Ended(128 + number, "stopped", number)
        why = f"signal {signal.Signals(-how).name}" if how < 0 else f"exit code {how}"
        return Ended(1, f"its process died ({why}), most likely for want of memory: run with fewer jobs")


def _variables(place: int, threads: int | None) -> dict[str, str]:
    """A process's threads, the place of its progress bar, and its GPU."""
    found = {"TQDM_POSITION": str(place), "TOKENIZERS_PARALLELISM": "false"}
    if threads is not None:
        found |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if gpus := visible_gpus():
        found["CUDA_VISIBLE_DEVICES"] = gpus[place]
    return found


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES would call each GPU of this process."""
    import torch

    count = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return (named or [str(i) for i in range(count)])[:count]


@contextlib.contextmanager
def set_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """While open, the environment has these variables."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _signals_to(pool: _Pool) -> Iterator[list[int]]:
    """While open, a signal to stop goes to all processes at work; a second Ctrl-C ends them. Which ones came."""
    received: list[int] = []

    def hand_on(number: int, frame: Any) -> None:
        again = number == signal.SIGINT and signal.SIGINT in received
        received.append(number)
        pool.signal(signal.SIGKILL if again else number)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, hand_on) for number in HANDED_ON}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- in a process of the pool --------------------------------------------------------------------------------------------


def _main(pipe: Any, threads: int | None) -> None:
    """Do what comes through the pipe until it is closed.

    Bars of several processes share the terminal by their places alone: a lock that all of them take would be held for ever by
    one that is killed while it draws.
    """
    from ...data.build.workers import leave_with_parent

    os.setpgid(0, 0)  # a terminal's Ctrl-C is handed on by the parent, once
    leave_with_parent()
    signal.signal(signal.SIGTERM, _interrupt)  # of work that has no handler of its own
    signal.signal(signal.SIGUSR1, _interrupt)
    with num_threads(threads):
        while True:
            try:
                function, args = pipe.recv()
            except (EOFError, KeyboardInterrupt):
                return
            pipe.send(_attempt(function, args))


class _Interrupted(BaseException):
    def __init__(self, number: int) -> None:
        self.number = number


def _interrupt(number: int, frame: Any) -> None:
    raise _Interrupted(number)


def _attempt(function: Function, args: tuple[Any, ...]) -> Ended:
    try:
        function(*args)
        return Ended()
    except Stopped as e:
        return Ended(e.code, str(e), e.code - 128)
    except KeyboardInterrupt:
        return Ended(130, "interrupted", signal.SIGINT)
    except _Interrupted as e:
        return Ended(128 + e.number, "stopped", e.number)
    except UserError as e:
        return Ended(e.code, str(e))
    except OSError as e:
        return Ended(2, f"{e.filename}: {e.strerror}" if e.filename else f"{type(e).__name__}: {e}")
    except Exception as e:
        return Ended(1, f"unexpected {type(e).__name__}: {' '.join(str(e).split())} (--jobs 1 --debug shows where)")
