"""Python that starts in milliseconds: one process has imported torch, transformers and the package, and forks for each command.

    warm.python()    the path of a program that is called as ``python`` is: [options] -m MODULE | -c CODE | SCRIPT, ARGUMENT...

    caller ──starts──> warm_client.py ──its arguments, folder, environment, open files──> the warm process ──fork──> the command

The client is what the caller sees: it hands on signals, takes the command with it when it is killed, and ends as the command
does. The command is a process of its own, in a group of its own; ``sys.executable`` is the client again, so that what torchrun
or a pool starts is warm too. Where PYTHONPATH begins with another source tree, the package is imported from there.

Nothing is computed in the warm process, and no thread runs in it, which is asserted: a fork finds no lock held and no pool of
threads that is not there (OpenMP, gloo, Arrow). What forks share is the seed of string hashes: a command with a PYTHONHASHSEED
is started cold. So must be, by ``sys.executable``, what a test says of imports, of an orphan, or of the end of a process.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import gc
import importlib
import json
import multiprocessing.spawn
import os
import runpy
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import types
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
IMPORTS = (
    *(
        "torch",
        "torch.distributed.fsdp",
        "torch.distributed.tensor",
        "torch.distributed.run",
        "datasets",
        "pyarrow.parquet",
    ),
    *("transformers.models.llama.modeling_llama", "accelerate", "peft", "trl.trainer.sft_trainer"),
)
# Arrow's allocator starts a thread when it is imported, to give back memory.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
OURS = (
    *("tokensieve.cli", "tokensieve.pipeline.prepare", "tokensieve.pipeline.score", "tokensieve.pipeline.train"),
    *("tokensieve.pipeline.dynamics", "tokensieve.pipeline.evaluate", "tokensieve.training.trainer"),
)
STARTED: list[subprocess.Popen[bytes]] = []


@functools.cache
def python() -> str:
    """The program's path. The warm process is started by the first who asks, of all workers of a run of the tests, and ends
    with the run: what it imports takes ten seconds.
    """
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    folder = Path(tempfile.gettempdir(), f"warm-{run}") if run else Path(tempfile.mkdtemp(prefix="warm-"))
    folder.mkdir(mode=0o700, exist_ok=True)
    program = folder / "python"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            start(folder, program, os.getppid() if run else os.getpid())
    return str(program)


def start(folder: Path, program: Path, until: int) -> None:
    """The warm process, and the program that asks it. It ends with the process ``until``."""
    import tokensieve  # the one that this test imported

    with open(folder / "log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, __file__, str(folder / "socket"), str(Path(tokensieve.__file__).parents[1]), str(until)],
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | ONE_THREAD,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # a Ctrl-C at the terminal is not for it
        )
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n", (folder / "log").read_text()
    STARTED.append(server)
    client = f"'{sys.executable}' -ISE '{HERE / 'warm_client.py'}' '{folder / 'socket'}' '{program}'"
    program.write_text(f'#!/bin/sh\nexec {client} "$@"\n')
    program.chmod(0o755)


# --- in the warm process ------------------------------------------------------------------------------------------------


def serve(path: str, until: int) -> dict[str, Any]:
    """Fork for whoever asks while the process ``until`` lives. Returns in each fork, with what it was asked; the warm process
    itself never does."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    ended, woken = os.pipe()
    for end in (ended, woken):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken)
    callers: dict[socket.socket, int] = {}
    run = os.pidfd_open(until)  # is read when it has ended
    with selectors.DefaultSelector() as events:
        for source in (run, listener, ended):
            events.register(source, selectors.EVENT_READ)
        print("ready", flush=True)
        while True:
            for key, _ in events.select():
                if key.fileobj is run:
                    for child in callers.values():
                        kill(child)
                    shutil.rmtree(Path(path).parent, ignore_errors=True)
                    os._exit(0)
                elif key.fileobj is listener:
                    caller, _ = listener.accept()
                    if (request := received(caller)) is None:
                        continue
                    child = os.fork()
                    if not child:
                        signal.set_wakeup_fd(-1)
                        return request
                    for file in request["received"]:
                        os.close(file)
                    callers[caller] = child
                    events.register(caller, selectors.EVENT_READ)
                    tell(caller, child)
                elif key.fileobj is ended:
                    os.read(ended, 4096)
                else:  # a caller says no more: it was killed
                    assert isinstance(key.fileobj, socket.socket)
                    kill(callers[key.fileobj])
                    events.unregister(key.fileobj)
            reap(callers, events)


def received(caller: socket.socket) -> dict[str, Any] | None:
    """What is asked; None of a caller that was killed meanwhile."""
    head, files, _, _ = socket.recv_fds(caller, 4, 250)
    size, text = int.from_bytes(head, "little"), b""
    while len(text) < size and (more := caller.recv(size - len(text))):
        text += more
    return {**json.loads(text), "received": files} if text and len(text) == size else None


def kill(child: int) -> None:
    """With all that it started, but for what has left its group."""
    for send in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            send(child, signal.SIGKILL)


def tell(caller: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # it was killed
        caller.sendall(struct.pack("i", number))


def reap(callers: dict[socket.socket, int], events: selectors.BaseSelector) -> None:
    for caller, child in list(callers.items()):
        if (found := os.waitpid(child, os.WNOHANG))[0]:
            tell(caller, os.waitstatus_to_exitcode(found[1]))
            if caller in events.get_map():
                events.unregister(caller)
            caller.close()
            del callers[caller]


# --- in a fork --------------------------------------------------------------------------------------------------------------


def become(request: dict[str, Any]) -> None:
    """This process is from here on as one that the caller would have started."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    high = 512
    moved = [os.dup2(file, high + i) for i, file in enumerate(request["received"])]
    os.closerange(0, high)
    for file, number in zip(moved, request["files"], strict=True):
        os.dup2(file, number, inheritable=True)
        os.close(file)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout.reconfigure(line_buffering=os.isatty(1))
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    if (threads := os.environ.get("OMP_NUM_THREADS", "")) not in ("", "1"):
        sys.modules["torch"].set_num_threads(int(threads))
    if level := os.environ.get("TRANSFORMERS_VERBOSITY"):
        logs = importlib.import_module("transformers.utils.logging")
        logs.set_verbosity(logs.log_levels[level])
    sys.modules["numpy"].random.seed()  # each process has its own, but for forks
    sys.executable = request["program"]
    multiprocessing.spawn.set_executable(request["program"])


def run(options: list[str], source: str) -> None:
    """What the interpreter does with its command line. ``source``: where the package was imported from."""
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    paths = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    if paths and Path(paths[0]).resolve() != Path(source).resolve():
        for name in [name for name in sys.modules if name.partition(".")[0] == "tokensieve"]:
            del sys.modules[name]
    what = next(i for i, word in enumerate(options) if word in ("-c", "-m") or not word.startswith("-"))
    kind, rest = options[what], options[what + 1 :]
    sys.path[:1] = ["" if kind == "-c" else os.getcwd() if kind == "-m" else str(Path(kind).resolve().parent), *paths]
    importlib.invalidate_caches()
    if kind == "-m":
        sys.argv = ["-m", *rest[1:]]
        runpy._run_module_as_main(rest[0])  # type: ignore[attr-defined]
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    else:
        sys.argv, main.__file__ = [kind, *rest], kind
        exec(compile(Path(kind).read_bytes(), kind, "exec"), main.__dict__)


def code_of(options: list[str], source: str) -> int:
    """What a process of this command line would exit with; -signal if it died of one."""
    try:
        run(options, source)
    except SystemExit as e:
        if isinstance(e.code, (int, type(None))):
            return (e.code or 0) & 0xFF
        print(e.code, file=sys.stderr)
        return 1
    except BaseException as e:
        sys.excepthook(type(e), e, e.__traceback__)
        return -signal.SIGINT if isinstance(e, KeyboardInterrupt) else 1
    return 0


def end(code: int) -> None:
    """Threads, exit functions, output; not the objects of all modules one by one, which takes half a second."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def warm_up(source: str) -> None:
    sys.path.insert(1, source)
    for name in (*IMPORTS, *OURS):
        importlib.import_module(name)
    del sys.path[1]
    assert len(os.listdir("/proc/self/task")) == 1, "a thread: a fork would not be safe"
    gc.collect()
    gc.freeze()  # the Trainer's collections look at what comes from here on


if __name__ == "__main__":
    warm_up(sys.argv[2])
    asked = serve(sys.argv[1], int(sys.argv[3]))
    become(asked)
    end(code_of(asked["arguments"], sys.argv[2]))
