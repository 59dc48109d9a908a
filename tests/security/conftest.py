"""A stopped run, made once, whose checkpoints tests of this folder copy and tamper with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tokensieve.runs.files import MANIFEST
from tokensieve.runs.manifest import read_manifest


@pytest.fixture(scope="session")
def stopped(tiny: Any, tmp_path_factory: pytest.TempPathFactory, tokensieve: Any) -> tuple[list[str], Path]:
    """(command, folder) of a run as a kill between its last checkpoint and its end leaves it."""
    out = tmp_path_factory.mktemp("stopped") / "out"
    command = ["train", "--corpus", str(tiny.corpus), "--model", str(tiny.base), "--training.max_steps", "4"]
    command += ["--training.save_steps", "2", "--out"]
    assert tokensieve(*command, out).code == 0
    manifest = read_manifest(out, "model")
    note = {key: manifest[key] for key in ("fingerprint", "config", "inputs")}
    (out / "work.json").write_text(json.dumps(note))
    (out / MANIFEST).unlink()
    shutil.rmtree(out / "model")
    return command, out
