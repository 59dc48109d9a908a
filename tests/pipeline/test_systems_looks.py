"""The commands of docs/systems.md under "Starting points, schedules and looking back", as they are printed, on tiny data."""

from __future__ import annotations

import importlib.util
import itertools
import json
import random
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from experiment import ONE_STEP, WORDS, write_text

from tokensieve.modeling.load import load_causal_lm
from tokensieve.runs.manifest import is_done

ROOT = Path(__file__).resolve().parents[2]
STEP = [f"--training.{k}={v}".replace("True", "true") for k, v in ONE_STEP.items()]
VERBS = ("init", "train", "score", "evaluate", "prepare")
# What the page needs that is not on this machine, and what is said without it.
WITHOUT = {"galore": ("galore_torch", "galore_torch")}


@pytest.fixture(scope="module")
def section() -> list[str]:
    page = (ROOT / "docs" / "systems.md").read_text("utf-8")
    rows = [line for line in page.partition("## Starting points")[2].splitlines() if line.startswith("| ")][1:]
    return [
        c
        for row in rows
        for c in re.findall(r"`([^`]+)`", re.split(r"(?<!\\)\|", row)[2])
        if c.split()[0] in VERBS and " " in c
    ]


def prepare_files(tiny: Any, tokensieve: Any) -> None:
    """What the commands name: folders of the tiny experiment, texts, words with times, a run of three checkpoints."""
    for name in ("base", "corpus", "target", "clm", "rho1"):
        Path(name).symlink_to(getattr(tiny, name))
    for name, count, seed in (("web", 20, 3), ("seen", 3, 4), ("unseen", 3, 5), ("words", 30, 7)):
        write_text(Path(f"{name}.jsonl"), name, count, seed)
    rows = Path("seen.jsonl").read_text("utf-8")
    Path("repeated.jsonl").write_text(rows * 5, encoding="utf-8")
    rng = random.Random(0)
    Path("words.csv").write_text(
        "word,time\n" + "".join(f"{w},{rng.gauss(200, 9):.1f}\n" for w in rng.choices(WORDS[:12], k=40))
    )
    words = ("--sources", "[{path: words.jsonl}]", "--length", 32, "--vocab_size", 296)
    assert tokensieve("prepare", "--out", "words", *words).code == 0
    three = ("--training.max_steps", 3, "--training.save_steps", 1, "--training.logging_steps", 1)
    assert tokensieve("train", "--model", "base", "--corpus", "corpus", "--out", "run", *three).code == 0


def test_commands_of_the_section_run(
    section: list[str], tiny: Any, tokensieve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each to its end, training for one step, in the order of the page: what one writes another reads. And EEVE's stages."""
    monkeypatch.chdir(tmp_path)
    prepare_files(tiny, tokensieve)
    stages = [
        c for c in re.findall(r"^tokensieve (.*)$", (ROOT / "docs" / "init.md").read_text("utf-8"), re.M) if "eeve" in c
    ]
    assert len(section) >= 25
    assert len(stages) == 5
    commands = [shlex.split(c) for c in [*section, *stages]]
    for verb, *words in commands:
        out = words[words.index("--out") + 1]
        done = tokensieve(verb, *words, *(STEP if verb == "train" else ()))
        if out in WITHOUT and importlib.util.find_spec(WITHOUT[out][0]) is None:
            assert (done.code, WITHOUT[out][1] in done.error) == (2, True), done.error
            continue
        assert done.code == 0, f"{verb} {' '.join(words)}: {done.err}"
        assert is_done(out), out
    check_stages()
    kept = json.loads(Path("se-kd/summary.json").read_text())["kept_share"]
    assert kept == pytest.approx(0.2, abs=0.01)  # positions of highest entropy


def check_stages() -> None:
    """Each stage moves what it says and nothing else: rows of the input, of the head, both, all."""
    models = [dict(load_causal_lm(f).named_parameters()) for f in ("eeve", "eeve-1", "eeve-2", "eeve-3", "eeve-4")]
    moved = [{n for n in a if not torch.equal(a[n], b[n])} for a, b in itertools.pairwise(models)]
    table, head = "model.embed_tokens.weight", "lm_head.weight"
    assert moved[:3] == [{table}, {head}, {table, head}]
    assert moved[3] == set(models[0])
