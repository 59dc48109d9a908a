"""The README does not lie: its Python runs or at least parses, its make targets and verbs exist."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.M | re.S)

pytestmark = pytest.mark.skipif(not README.is_file(), reason="there is no README.md yet")


def blocks(language: str) -> list[tuple[str, str]]:
    """``(words after the language, text)`` of each fenced block of ``language``."""
    return [(words.strip(), text) for lang, words, text in FENCE.findall(README.read_text("utf-8")) if lang == language]


def test_python_blocks_parse() -> None:
    assert blocks("python"), "the README shows no Python"
    for _, text in blocks("python"):
        compile(text, "README.md", "exec")


def test_blocks_marked_run_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that start with ```python run are one script, top to bottom; it ends with a gradient."""
    monkeypatch.chdir(tmp_path)
    marked = [text for words, text in blocks("python") if "run" in words.split()]
    assert marked, "no block of the README is marked ```python run"
    namespace: dict[str, Any] = {"__name__": "readme"}
    for text in marked:
        exec(compile(text, "README.md", "exec"), namespace)
    kept = namespace["keep"].float().mean().item()
    assert kept == pytest.approx(0.6, abs=0.01)
    assert namespace["hidden"].grad.abs().sum() > 0


def test_make_targets_exist() -> None:
    named = set(re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", README.read_text("utf-8"), re.M))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    assert {a or b for a, b in named} <= targets


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_make_reads_its_file() -> None:
    """A merge left half of a list behind its end: every target ended in `missing separator`, and no test saw it."""
    done = subprocess.run(["make", "-C", str(ROOT), "help"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "make test" in done.stdout
