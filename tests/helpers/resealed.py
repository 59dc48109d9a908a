"""A checkpoint that somebody tampered with and declared good."""

from __future__ import annotations

import json
from pathlib import Path

from tokensieve.runs.files import MANIFEST
from tokensieve.training.checkpoints import Split, seal


def reseal(checkpoint: Path) -> None:
    """A manifest that fits: hashes find damage, they do not prove who wrote a file."""
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    more = {key: manifest[key] for key in manifest["sealed"] if key != "token_log"}
    seal(checkpoint, Split(**manifest["config"]["split"]), manifest["token_log"]["bytes"], **more)
