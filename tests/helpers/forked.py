"""Several ranks of one script, from one interpreter that has imported what they need: starting torch takes seconds a process.

python forked.py SIZE,SIZE... SCRIPT ARGUMENT...      one group of ranks after the other, with what torchrun sets
"""

from __future__ import annotations

import gc
import os
import runpy
import signal
import socket
import sys
import traceback
from pathlib import Path

import datasets  # noqa: F401
import torch

import tokensieve.pipeline.score
import tokensieve.training.trainer  # noqa: F401


def main(sizes: list[int], script: str, arguments: list[str]) -> int:
    gc.freeze()  # the Trainer's collections look at what comes from here on
    for size in sizes:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        children = [_start(rank, size, port, script, arguments) for rank in range(size)]
        while children:
            child, status = os.wait()
            children.remove(child)
            if status:
                for other in children:  # they would wait for it
                    os.kill(other, signal.SIGKILL)
                return 1
    return 0


def _start(rank: int, size: int, port: str, script: str, arguments: list[str]) -> int:
    child = os.fork()
    if child:
        return child
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
    os.environ.update(LOCAL_WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    code = 1
    try:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        runpy.run_path(script, run_name="__main__")
        code = 0
    except BaseException:
        print(f"rank {rank} of {size}:\n{traceback.format_exc()}", flush=True)
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main([int(size) for size in sys.argv[1].split(",")], sys.argv[2], sys.argv[3:]))
