"""The recipes of mixtures and of stages, on a few made-up documents and in a few steps: to their last tables."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from tokensieve.runs.files import read_json

WORDS = [a + b + c for a in "bdfglm" for b in "aeiou" for c in "nrst"]
CODE, PROSE = WORDS[:70], WORDS[50:]


def write_documents(path: Path, words: list[str], documents: int, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    rows = [{"id": f"{path.stem}{i}", "text": " ".join(rng.choices(words, k=40))} for i in range(documents)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [{"path": str(path), "name": path.stem}]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    here = tmp_path_factory.mktemp("texts")
    made = {
        "old": (CODE, 30),
        "new": (WORDS, 20),
        "prose": (PROSE, 20),
        "old_heldout": (CODE, 4),
        "new_heldout": (WORDS, 4),
    }
    return {
        name: write_documents(here / f"{name}.jsonl", *what, seed) for seed, (name, what) in enumerate(made.items())
    }


def run_small(
    name: str, tokensieve: Any, folder: Path, settings: dict[str, Any], stages: dict[str, Any], *more: Any
) -> Path:
    """The shipped recipe with its own stages, over other text and fewer rows."""
    small = {"extends": name, "out": str(folder / "run"), "settings": settings, "report": False, "stages": stages}
    (folder / "small.yaml").write_text(yaml.safe_dump(small))
    done = tokensieve("run", folder / "small.yaml", *more)
    assert done.code == 0, done.err
    return folder / "run"


def weights(run: Path, stage: str) -> dict[str, Any]:
    return load_file(run / stage / "model" / "model.safetensors")


def test_stages_to_their_table(tokensieve: Any, tmp_path: Path, texts: dict[str, Any]) -> None:
    """mix-tiny, filter to table: stages of a mixture, a budget, an objective and a freeze list of their own."""
    both = [{**source, "epochs": 2} for source in (*texts["new"], *texts["prose"])]
    given = {
        "old": texts["old"],
        "curated": texts["prose"],
        "filtered": both,
        "deduped": both,
        "new": both,
        "mixed": both,
    }
    given |= {name: texts[name] for name in ("old_heldout", "new_heldout")}
    rows = {"old": 24, "curated": 8, "new": 24, "mixed": 24, "old_heldout": 4, "new_heldout": 4}
    stages: dict[str, Any] = {name: {"sources": sources} for name, sources in given.items()}
    for name, most in rows.items():
        stages[name]["max_rows"] = most
    stages["old"]["vocab_size"] = 280
    stages["filtered"]["classifier"] = {"positive": texts["prose"]}
    run = run_small(
        "mix-tiny", tokensieve, tmp_path, {"steps": 3, "base_steps": 4, "reference_steps": 2, "length": 64}, stages
    )
    mixture = read_json(run / "mixed" / "manifest.json")["mixture"]
    assert [(part["source"], part["rows"]) for part in mixture][-1] == ("replay of old", 6)  # a quarter of 24
    steps = {
        s: read_json(run / s / "summary.json")["steps"]
        for s in ("base", "reference", "plain", "replay", "rho1", "frozen")
    }
    assert steps == {"base": 4, "reference": 2, "plain": 3, "replay": 3, "rho1": 3, "frozen": 3}
    base, moved, still = (weights(run, stage) for stage in ("base", "replay", "frozen"))
    assert {name for name in base if (base[name] == still[name]).all()} == {"model.embed_tokens.weight"}
    assert not any((base[name] == moved[name]).all() for name in base)
    table = {row["arm"]: row for row in json.loads((run / "table" / "comparison.json").read_text())}
    assert list(table)[-4:] == ["plain", "replay", "rho1", "frozen"]
    assert table["rho1"]["flops_reference"] > 0 < table["rho1"]["flops_scoring"]
    assert table["frozen"]["flops_total"] < table["replay"]["flops_total"] == table["plain"]["flops_total"]
    assert table["rho1"]["tokens_trained"] == pytest.approx(0.6 * table["replay"]["tokens_trained"], rel=0.02)


def test_the_order_of_stages_to_its_table(tokensieve: Any, tmp_path: Path, texts: dict[str, Any]) -> None:
    """dmt-tiny: a second stage goes on from the first, over text in which a share is the first stage's."""
    given = {"code": texts["old"], "docstrings": texts["prose"], "code_and_some": texts["old"]}
    given |= {"both": [{**s, "weight": 1, "epochs": 2} for s in (*texts["old"], *texts["prose"])]}
    given |= {"code_heldout": texts["old_heldout"], "docstrings_heldout": texts["new_heldout"]}
    stages: dict[str, Any] = {name: {"sources": sources, "max_rows": 16} for name, sources in given.items()}
    for name in ("code_heldout", "docstrings_heldout"):
        stages[name]["max_rows"] = 4
    stages["code"]["vocab_size"] = 280
    few = {"special_steps": 2, "general_steps": 3, "all_steps": 5, "length": 64}
    run = run_small("dmt-tiny", tokensieve, tmp_path, few, stages, "--seeds", "[0]")
    assert read_json(run / "code_and_some" / "manifest.json")["mixture"][-1]["rows"] == 1  # a sixteenth of 16
    [table] = run.glob("table*/comparison.json")
    assert [row["arm"] for row in json.loads(table.read_text())][-3:] == ["sequential", "dmt", "multitask"]
