"""train by objectives that need more than columns: a teacher's folder, embeddings, documents and the sources' names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny as models

from tokensieve.pipeline import second

STEPS = ("--training.max_steps", "2", "--training.logging_steps", "1", "--training.save_strategy", "no")


def objective(**fields: Any) -> tuple[str, str]:
    return "--objective", json.dumps(fields)


def test_distil_from_a_model_folder(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    """The teacher counts by its weights, wherever it lies; the FLOPs of its forwards and its training are the run's."""
    teacher = shutil.copytree(tiny.base / "model", tmp_path / "teacher")
    command = ["train", "--corpus", tiny.corpus, "--model", tiny.model, "--scores", f"[{tiny.scores}]", *STEPS]
    command += ["--out", tmp_path / "run"]
    told = {"name": "distill", "of": {"name": "rho1"}, "share": 0.5, "top_k": 8}
    assert tokensieve(*command, *objective(**told, teacher=str(teacher))).code == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["objective"] == "distill"
    assert summary["kept_share"] == pytest.approx(0.6, abs=0.01)
    log = [json.loads(x) for x in (tmp_path / "run" / "tokens.jsonl").read_text().splitlines()]
    assert all(line["loss"] > 0 for line in log)
    elsewhere = shutil.move(teacher, tmp_path / "moved")
    again = tokensieve(*command, *objective(**told, teacher=str(elsewhere)))
    assert again.code == 0
    other = tokensieve(*command, *objective(**told, teacher=str(tiny.clm)))
    assert "input second" in other.error


def test_distil_from_columns_is_to_distil_from_the_model(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    """The same teacher, cached by `score` or run beside the student: the same losses up to the columns' rounding."""
    columns = ("--top_k", 8, "--dtype", "float32")
    assert (
        tokensieve("score", "--model", tiny.base, "--corpus", tiny.corpus, "--out", tmp_path / "topk", *columns).code
        == 0
    )
    command = ("train", "--corpus", tiny.corpus, "--model", tiny.model, "--scores", f"[{tmp_path / 'topk'}]", *STEPS)
    told = {"name": "distill", "of": {"name": "rho1"}, "share": 0.8, "top_k": 8}
    losses = []
    for name, more in (("cached", {}), ("live", {"teacher": str(tiny.base)})):
        assert tokensieve(*command, "--out", tmp_path / name, *objective(**told, **more)).code == 0
        log = (tmp_path / name / "tokens.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in log])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_smooth_by_the_start(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    """From a model folder it needs nothing; from new weights it is told whose embeddings count."""
    command = ("train", "--corpus", tiny.corpus, *STEPS, "--objective.name", "smooth")
    assert tokensieve(*command, "--model", tiny.base, "--out", tmp_path / "run").code == 0
    new = (*command, "--model", tiny.model, "--out", tmp_path / "new")
    assert "new weights have no similar tokens: name a model folder" in tokensieve(*new).error
    assert tokensieve(*new, "--objective.embeddings", tiny.base).code == 0


def test_targets_from_nowhere(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    command = ("train", "--corpus", tiny.corpus, "--model", tiny.model, "--out", tmp_path / "run", *STEPS)
    assert "needs the columns topk_ids and topk_logp" in tokensieve(*command, "--objective.name", "distill").error
    gone = tokensieve(*command, *objective(name="distill", teacher=str(tmp_path / "gone")))
    assert "gone does not exist" in gone.error
    small = models.llama(vocab_size=20)
    small.save_pretrained(tmp_path / "small")
    wrong = tokensieve(*command, *objective(name="distill", teacher=str(tmp_path / "small")))
    assert "vocabulary of 20" in wrong.error


def test_documents_and_sources_by_their_names(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    """Whole documents reach the ratio and hardly pass it; a source that is not there is told before the model is loaded."""
    command = ["train", "--corpus", tiny.corpus, "--model", tiny.base, "--scores", f"[{tiny.scores}]", *STEPS]
    command += ["--out", tmp_path / "run"]
    rule = {"name": "by_source", "of": {"name": "rho1", "ratio": 0.3, "unit": "document"}}
    wrong = tokensieve(*command, *objective(**rule, instead={"web": {"ratio": 0.5}}))
    assert "unknown source 'web'; there are corpus" in wrong.error
    assert not (tmp_path / "run" / "work.json").exists()
    assert tokensieve(*command, *objective(**rule, instead={"corpus": {"ratio": 0.5}})).code == 0
    assert 0.5 <= json.loads((tmp_path / "run" / "summary.json").read_text())["kept_share"] < 0.65


def test_folders_of_an_objective_however_deep() -> None:
    inner = {"name": "distill", "teacher": "a", "of": {"name": "x:y", "teacher": "no folder"}}
    told = {"name": "schedule", "of": inner, "option": "share", "points": []}
    assert second.folders(told) == ["a"]
    stripped = second.without_folders(told)
    assert stripped["of"]["teacher"] != "a"
    assert stripped["of"]["of"] == inner["of"]
    assert second.without_folders({"name": "rho1", "ratio": 0.5}) == {"name": "rho1", "ratio": 0.5}
