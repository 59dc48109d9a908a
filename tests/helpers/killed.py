"""Run a tokensieve verb and die by SIGKILL when the N-th file of rows or of nll is about to be renamed into place.

python killed.py N VERB --option ...
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from tokensieve import cli

COUNT = int(sys.argv[1])
rename = os.replace
started = 0


def rename_or_die(source: str, target: str) -> None:
    global started
    if any(Path(target).match(name) for name in ("rows-*.arrow", "nll-*.arrow")):
        started += 1
        if started == COUNT:
            os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)


os.replace = rename_or_die  # type: ignore[assignment]
cli.main(sys.argv[2:])
