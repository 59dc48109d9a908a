"""Without `report/` everything but its own verbs works."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from processes import run_warm

SOURCE = Path(__file__).resolve().parents[2] / "src"
SCRIPT = """
import importlib, pkgutil, runpy, sys
sys.argv = ["tokensieve", "--help"]
try:
    runpy.run_module("tokensieve", run_name="__main__")
except SystemExit as done:
    assert not done.code, done.code
import tokensieve.pipeline, tokensieve.training.trainer, tokensieve.analysis, tokensieve.scoring
for module in pkgutil.iter_modules(tokensieve.pipeline.__path__):
    importlib.import_module(f"tokensieve.pipeline.{module.name}")
import tokensieve
tokensieve.SelectiveTrainer, tokensieve.objective("rho1")
"""


@pytest.fixture(scope="module")
def without_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source without its `report/`."""
    copy = tmp_path_factory.mktemp("copy") / "src"
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.rmtree(copy / "tokensieve" / "report")
    return copy


def test_help_and_imports(without_report: Path) -> None:
    done = run_warm("-c", SCRIPT, folder=without_report, PYTHONPATH=str(without_report))
    assert done.returncode == 0, done.stderr
    assert "report" in done.stdout


def test_a_recipe_runs_to_its_end(without_report: Path, tmp_path: Path, tokensieve: Any) -> None:
    """`evaluate` and `compare` printed their tables with a function of report/, and a recipe's end asked for a page."""
    text = [{"id": str(i), "text": f"some words number {i} and {i * i}"} for i in range(40)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(t) + "\n" for t in text))
    (tmp_path / "recipe.yaml").write_text(f"""
name: small
out: {tmp_path}/run
report: true
stages:
  corpus: {{verb: prepare, sources: [{{path: {tmp_path}/text.jsonl}}], vocab_size: 270, length: 16}}
  clm:
    verb: train
    corpus: "@corpus"
    model: {{model_type: llama, hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 1,
             num_key_value_heads: 1, max_position_embeddings: 16}}
    training: {{max_steps: 2, save_strategy: "no", logging_steps: 1}}
  evaluation: {{verb: evaluate, models: {{clm: "@clm"}}, sets: {{target: "@corpus"}}}}
  table: {{verb: compare, evaluation: "@evaluation", runs: {{clm: "@clm"}}, target: target}}
""")
    words = ["run", str(tmp_path / "recipe.yaml")]
    twice = f"from tokensieve.cli import main; assert main({[*words, '--dry-run']}) == 0; assert main({words}) == 0"
    done = run_warm("-c", twice, folder=without_report, PYTHONPATH=str(without_report))
    assert done.returncode == 0, done.stderr
    assert "no report: this installation is without tokensieve.report" in done.stdout
    whole = tokensieve("report", tmp_path / "run")
    assert whole.code == 0, whole.err
    assert (tmp_path / "run" / "report.html").is_file()
