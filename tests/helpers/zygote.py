"""A process that has imported everything and forks for each command: real processes to kill, without seconds of imports.

stdin, a line a command: {"argv": [verb, ...], "log": file, ...}    stdout, a line each: {"code": exit code, or -signal}

    kill: {folder, at, delay}   SIGKILL `delay` seconds after the at-th time that something below folder is opened to be
                                written, synced, renamed, made or removed; at 0 only counts
    signals: [[step, number]]   the process sends itself these signals after the forward of that step; 0 waits a second
    broken: {step: what}        "nll": that step's first row has NaN hidden states; "gradient": only its gradient has
    file_limit: bytes           no file may become larger (EFBIG, as ENOSPC would come)
    memory_limit: bytes         of address space, over what the process has at its start
    main: "module:function"     instead of the command line's
    ranks: [{name: value}]      that many processes at once, each with these variables set, its own log "LOG.rank", and of
                                the command's faults those under its rank: {"signals": {"1": ...}}; "codes" has the exit codes
"""

from __future__ import annotations

import gc
import importlib
import json
import os
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


def run(command: dict[str, Any]) -> None:
    """In the child: never returns."""
    code = 70
    try:
        log = os.open(command["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if command.get("signals"):
            install_signals(command["signals"])
        if command.get("broken"):
            install_broken(command["broken"])
        if command.get("file_limit"):
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (command["file_limit"],) * 2)
        if command.get("memory_limit"):
            import resource

            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + command["memory_limit"],) * 2)
        if command.get("kill"):
            install_kill(**command["kill"], log=command["log"])
        module, name = command.get("main", "tokensieve.cli:main").split(":")
        code = getattr(importlib.import_module(module), name)(command["argv"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    import tokensieve.pipeline.prepare
    import tokensieve.pipeline.score
    import tokensieve.pipeline.train
    import tokensieve.training.trainer  # noqa: F401

    gc.freeze()  # the Trainer's collections look at what comes from here on
    out = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        command = json.loads(line)
        children = [fork(of_rank) for of_rank in by_rank(command)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps({"code": codes[0], "codes": codes}), file=out, flush=True)


def by_rank(command: dict[str, Any]) -> list[dict[str, Any]]:
    ranks = command.pop("ranks", None)
    if ranks is None:
        return [command]
    signals = command.pop("signals", {})
    return [
        {**command, "log": f"{command['log']}.{i}", "signals": signals.get(str(i)), "env": env}
        for i, env in enumerate(ranks)
    ]


def fork(command: dict[str, Any]) -> int:
    child = os.fork()
    if child == 0:
        sys.stdin.close()
        os.environ.update(command.get("env", {}))
        run(command)
    return child


if __name__ == "__main__":
    main()
