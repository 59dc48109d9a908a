"""The command line with faults that come at a chosen point.

python hurt.py FAULTS VERB --option ...      FAULTS, JSON: {"log": file, ...}

    kill: {folder, at, delay}   SIGKILL `delay` seconds after the at-th time that something below folder is opened to be
                                written, synced, renamed, made or removed; at 0 only counts, into "LOG.events"
    signals: [[step, number]]   the process sends itself these signals after the forward of that step; 0 waits a second
    broken: {step: what}        "nll": that step's first row has NaN hidden states; "gradient": only its gradient has
    file_limit: bytes           no file may become larger (EFBIG, as ENOSPC would come)
    memory_limit: bytes         of address space, over what the process has at its start
    main: "module:function"     instead of the command line's
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

WRITES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")


def install_kill(folder: str, at: int, delay: float, log: str) -> None:
    count = 0

    def die() -> None:
        time.sleep(delay)
        os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        mode = args[1] if event == "open" else "r"  # os.open has none: that is how files are opened to be synced
        written = event in WRITES or mode is None or any(c in str(mode) for c in "wax+")
        if not written or not isinstance(args[0], (str, os.PathLike)) or not str(args[0]).startswith(folder):
            return
        count += 1
        if at == 0:
            fd = os.open(f"{log}.events", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.write(fd, str(count).encode())
            os.close(fd)
        elif count == at:
            threading.Thread(target=die).start() if delay else die()

    sys.addaudithook(hook)


def install_signals(signals: list[tuple[int, int]]) -> None:
    from tokensieve.training.guards import ECHO_SECONDS
    from tokensieve.training.token_log import TokenLog

    add = TokenLog.add

    def signalled(self: Any, step: int, *args: Any) -> None:
        add(self, step, *args)
        for at, number in signals:
            if at == step:
                os.kill(os.getpid(), number) if number else time.sleep(ECHO_SECONDS + 0.2)

    TokenLog.add = signalled  # type: ignore[method-assign]


def install_broken(broken: dict[str, str]) -> None:
    """Hidden states of one row that turn into NaN at some steps, or whose gradient does: what a broken kernel would do."""
    from tokensieve.training.trainer import SelectiveTrainer

    compute_loss = SelectiveTrainer.compute_loss

    def computed(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        what = broken.get(str(self.state.global_step + 1))
        hook = None
        if what and not self.step.watch.seen and model.training:

            def spoil(module: Any, args: Any, output: Any) -> Any:
                output = output.clone()
                if what == "nll":
                    output[0, 5] = float("nan")
                else:
                    output.register_hook(lambda g: g * float("inf"))
                return output

            hook = self.seam.model.model.norm.register_forward_hook(spoil)
        try:
            return compute_loss(self, model, inputs, *args, **kwargs)
        finally:
            if hook is not None:
                hook.remove()

    SelectiveTrainer.compute_loss = computed  # type: ignore[method-assign]


def hurt(faults: dict[str, Any]) -> None:
    if faults.get("signals"):
        install_signals(faults["signals"])
    if faults.get("broken"):
        install_broken(faults["broken"])
    if faults.get("file_limit"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (faults["file_limit"],) * 2)
    if faults.get("memory_limit"):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + faults["memory_limit"],) * 2)
    if faults.get("kill"):
        install_kill(**faults["kill"], log=faults["log"])


def main(faults: dict[str, Any], argv: list[str]) -> None:
    """Never returns: what is done at exit is no part of a trial."""
    code = 70
    try:
        hurt(faults)
        module, name = faults.get("main", "tokensieve.cli:main").split(":")
        code = getattr(importlib.import_module(module), name)(argv)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2:])
