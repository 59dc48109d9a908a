"""Folders that an earlier version wrote: what is done stays done, what is unfinished goes on.

``tests/data/run-f0f3be2.tar.gz`` holds recipe.yaml, text/ and run/. The commit f0f3be2 made it, in that folder, by
``tokensieve run recipe.yaml``, killed (SIGKILL) when run/stopped/checkpoint-20/manifest.json appeared. Every stage but
``stopped``, a run of 40 steps, is done.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tokensieve.data.read.source import SourceConfig
from tokensieve.pipeline.prepare import PARTS, PrepareConfig, _start_parts, work
from tokensieve.runs.files import MANIFEST
from tokensieve.runs.manifest import read_manifest
from tokensieve.runs.stage import Stage

ARCHIVE = Path(__file__).parents[1] / "data" / "run-f0f3be2.tar.gz"
DONE = ("corpus", "target", "base", "scores", "rho1", "evaluation", "table", "dynamics")


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy as the working directory."""
    with tarfile.open(ARCHIVE) as packed:
        packed.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_recipe_goes_on(earlier: Path, tokensieve: Any) -> None:
    """A field more in a config changed every fingerprint, and with that all that was done was other work."""
    old = {name: (earlier / "run" / name / MANIFEST).read_bytes() for name in DONE}
    plan = tokensieve("run", "recipe.yaml", "--dry-run")
    assert plan.code == 0, plan.err
    assert [line.split()[2] for line in plan.out.splitlines() if line.startswith(DONE)] == ["done"] * len(DONE)
    log = (earlier / "run" / "stopped" / "tokens.jsonl").read_bytes().splitlines()[:20]
    done = tokensieve("run", "recipe.yaml")
    assert done.code == 0, done.err
    assert done.out.count("done already") == len(DONE)
    assert {name: (earlier / "run" / name / MANIFEST).read_bytes() for name in DONE} == old
    stopped = (earlier / "run" / "stopped" / "tokens.jsonl").read_bytes().splitlines()
    assert (stopped[:20], len(stopped)) == (log, 40)
    times = [json.loads(line) for line in (earlier / "run" / "stopped" / "times.jsonl").read_text().splitlines()]
    assert min(line["step"] for line in times if line["process"] == 2) > 20
    assert tokensieve("check", "run").code == 0


def test_changed_is_changed_all_the_same(earlier: Path, tokensieve: Any) -> None:
    done = tokensieve("run", "recipe.yaml", "--set.rate", "2e-3", "--only", "stopped")
    assert "has checkpoints of another config or other inputs (training.learning_rate 0.001 -> 0.002)" in done.error
    done = tokensieve("run", "recipe.yaml", "--set.rate", "2e-3", "--only", "base")
    assert "run/base holds a finished run of other work (training.learning_rate 0.001 -> 0.002): --redo b" in done.error
    assert (earlier / "run" / "base" / MANIFEST).is_file()


def test_text_that_moved_is_the_same_text(earlier: Path, tokensieve: Any) -> None:
    """The path of the text, and of the tokenizer, counted: a corpus was other work where its text lay elsewhere."""
    shutil.move(earlier / "text", earlier / "moved")
    shutil.move(earlier / "run" / "corpus", earlier / "elsewhere")
    words = ("prepare", "--sources", "[{path: moved/train.jsonl}]", "--vocab_size", 270, "--length", 16, "--out")
    before = (earlier / "elsewhere" / MANIFEST).stat().st_mtime_ns
    assert tokensieve(*words, "elsewhere").code == 0
    target = ("prepare", "--sources", "[{path: moved/target.jsonl}]", "--tokenizer", "elsewhere", "--length", 16)
    stamp = (earlier / "run" / "target" / MANIFEST).stat().st_mtime_ns
    assert tokensieve(*target, "--out", "run/target").code == 0
    assert (earlier / "elsewhere" / MANIFEST).stat().st_mtime_ns == before
    assert (earlier / "run" / "target" / MANIFEST).stat().st_mtime_ns == stamp
    assert tokensieve(*words, "new").code == 0
    shutil.move(earlier / "moved", earlier / "again")
    assert tokensieve(*[str(w).replace("moved", "again") for w in words], "new").code == 0
    changed = (earlier / "again" / "train.jsonl").read_text() + '{"id": "x", "text": "one more"}\n'
    (earlier / "again" / "train.jsonl").write_text(changed)
    done = tokensieve(*[str(w).replace("moved", "again") for w in words], "new")
    assert "new is done, but from other inputs (input source 0)" in done.error


def test_units_of_an_unfinished_corpus_are_kept(earlier: Path) -> None:
    """What they are part of was noted as the fingerprint of that time, over paths and fields at their default."""
    source = SourceConfig("text/train.jsonl")
    for length, kept in ((16, True), (32, False)):
        config = PrepareConfig("run/corpus", [source], vocab_size=270, length=length)
        parts = earlier / "run" / "corpus" / PARTS
        parts.mkdir()
        (parts / "plan.json").write_text(json.dumps({"fingerprint": read_manifest("run/corpus")["fingerprint"]}))
        (parts / "0000-000000.json").write_text("")
        made = Stage("run/new", work(config))
        made.folder = parts.parent
        _start_parts(config, made)
        assert (parts / "0000-000000.json").exists() == kept
        shutil.rmtree(parts)
