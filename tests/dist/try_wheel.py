"""A wheel in an empty environment: does what was packed work where nothing else of this tree is?

    python tests/dist/try_wheel.py dist/tokensieve-0.1.0-py3-none-any.whl

Installs it and what it needs into a new environment in a temporary folder, and there, with no checkout in sight, prints the
help, plans the demo, does its first stages, checks them and exports one. Needs what pip needs, and some minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"
STAGES = ("base_text", "curated", "corpus")


def main(wheel: str) -> None:
    path = Path(wheel).resolve()
    if not path.is_file():
        sys.exit(f"{path} is no file: `make dist` builds one")
    with tempfile.TemporaryDirectory(prefix="tokensieve-wheel-") as folder:
        here = Path(folder)
        run(here, sys.executable, "-m", "venv", "env")
        quiet = ("--quiet", "--no-compile", "-c", str(CONSTRAINTS))  # of ten thousand files a few hundred are imported
        run(here, "env/bin/python", "-m", "pip", "install", *quiet, str(path))
        verb = "env/bin/tokensieve"
        run(here, verb, "--help")
        run(here, verb, "run", "demo", "--dry-run")
        run(here, verb, "run", "demo", "--only", *STAGES)
        run(here, verb, "check", *(f"runs/demo/{stage}" for stage in STAGES))
        run(here, verb, "export", "--out", "exported", "--to", "parquet", "--corpus", "runs/demo/curated")
        run(here, "env/bin/python", "-c", "import tokensieve; print(tokensieve.__file__)")
    size = f"{path.stat().st_size / 2**20:.2f} MiB"
    print(f"{path.name}, {size}: installed into an empty environment, the demo's first stages are done")


def run(here: Path, *words: str) -> None:
    print("$", *words, flush=True)
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")}
    subprocess.run(words, cwd=here, env={**clean, "HF_HUB_OFFLINE": "1"}, check=True)


if __name__ == "__main__":
    main(sys.argv[1] if sys.argv[1:] else "dist")
