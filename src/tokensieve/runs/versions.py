"""What a run was made with."""

from __future__ import annotations

import contextlib
import functools
import platform
import subprocess
import sys
from pathlib import Path


@functools.cache  # it asks git, and every checkpoint asks it
def versions() -> dict[str, str]:
    """Versions of what decides a number: ours, Python, and the libraries; plus the source revision where there is one."""
    from importlib import metadata

    found = {"python": platform.python_version(), "platform": f"{sys.platform}-{platform.machine()}"}
    for package in ("tokensieve", "torch", "transformers", "tokenizers", "datasets", "accelerate", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    revision = git_revision()
    return {**found, "revision": revision} if revision else found


def git_revision() -> str | None:
    """The commit the package's source is at, with ``+dirty`` if it was changed since; None outside a checkout."""
    here = Path(__file__).resolve().parents[1]

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(here), *args], capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed package may lie inside somebody else's checkout (a .venv in a repository): only a tracked file counts.
    if git("ls-files", "--error-unmatch", str(Path(__file__).resolve())) is None:
        return None
    head = git("rev-parse", "HEAD")
    return f"{head}+dirty" if head and git("status", "--porcelain", "--untracked-files=no", str(here)) else head
