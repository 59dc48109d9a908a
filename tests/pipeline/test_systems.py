"""The commands of docs/systems.md that stand before selection, as they are printed, on tiny text and tables."""

from __future__ import annotations

import csv
import importlib.util
import json
import random
from pathlib import Path
from typing import Any

import pytest
from system_rows import RUN_AS_PRINTED, commands, table_rows

from tokensieve.runs.manifest import is_done

ROOT = Path(__file__).resolve().parents[2]
WANTED, OTHER = ["proof", "lemma", "integral", "theorem", "set"], ["click", "menu", "login", "share", "buy"]


def write_rows(path: str, rows: list[dict[str, Any]]) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_sources() -> None:
    rng = random.Random(0)

    def text(words: list[str]) -> str:
        return " ".join(rng.choices(words, k=20))

    rows = [
        {"id": str(i), "language": ("de", "fr")[i % 2], "text": text((WANTED, OTHER)[i % 3 > 0])} for i in range(60)
    ]
    write_rows("web.jsonl", [*rows, {**rows[0], "id": "copy"}])
    write_rows("few.jsonl", rows[:5])
    write_rows("curated.jsonl", [{"id": f"c{i}", "text": text(WANTED)} for i in range(30)])
    rated = [{"id": f"r{i}", "rating": 1 + 4 * (i % 2), "text": text((OTHER, WANTED)[i % 2])} for i in range(30)]
    write_rows("rated.jsonl", rated)
    for name, text_of in {"one/a.py": "import b\n", "one/deep/b.py": "b = 1\n", "two/c.py": "c = 2\n"}.items():
        Path("repos", name).parent.mkdir(parents=True, exist_ok=True)
        Path("repos", name).write_text(text_of)
    write_rows("refined.jsonl", [{"text": "Home\nA proof", "program": "remove_lines(1, 1)"}])


def write_tables() -> None:
    """A table of every planted law of benchmarks/scaling.py, under the name of its form."""
    spec = importlib.util.spec_from_file_location("scaling_benchmark", ROOT / "benchmarks" / "scaling.py")
    assert spec is not None
    assert spec.loader is not None
    trials = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(trials)
    for name in trials.PLANTED:
        columns = {k: v.tolist() for k, v in trials.planted(name, 0).items()}
        runs = len(next(iter(columns.values())))
        if name == "mixture":
            columns |= {"tokens": [1e6] * runs, "general_before": [2.2] * runs}
        if name == "over_training":
            columns["error"] = [float(e) for e in trials.FORMS["downstream"].function(
                {"nll": trials.planted(name, 0)["nll"]}, **trials.PLANTED["downstream"][1])]  # fmt: skip
        with open(f"{name}.csv", "w", newline="") as f:
            writer = csv.writer(f)
            writer.writerow(["name", *columns])
            writer.writerows([f"r{i}", *row] for i, row in enumerate(zip(*columns.values(), strict=True)))
    Path("knowledge.csv").symlink_to("chinchilla.csv")  # a skill's table is one as any


def test_commands_of_the_table_run(tmp_path: Path, tiny: Any, tokensieve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every one to its end, in the order of the page: what one writes another reads."""
    monkeypatch.chdir(tmp_path)
    for name in ("base", "corpus"):
        (tmp_path / name).symlink_to(getattr(tiny, name))
    write_sources()
    write_tables()
    found = [words for row in table_rows(RUN_AS_PRINTED) for words in commands(row[1])]
    assert len(found) > 40
    for words in found:
        done = tokensieve(*words)
        assert done.code == 0, f"{' '.join(words)}: {done.error}"
        assert is_done(words[words.index("--out") + 1]), words


def test_answers_are_given(tmp_path: Path, tokensieve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """That a plan was written says little: the numbers that the page promises are in it."""
    monkeypatch.chdir(tmp_path)
    write_tables()
    promised = {
        "chinchilla.csv --forms chinchilla --flops 1e18": {"parameters N*", "tokens D*"},
        "mixture.csv --forms mixture --flops 1e12 --domain-tokens 1e6 --tolerance 0.05": {
            "largest share of domain text"
        },
        "over_training.csv --forms over_training downstream --flops 1e12": {"error of tasks"},
        "data_constrained.csv --forms repetition --flops 1e12 --unique 1e6": {"passes advised"},
    }
    for i, (words, answers) in enumerate(promised.items()):
        assert tokensieve("plan", *words.split(), "--out", f"out{i}").code == 0
        found = {
            a["what"] for a in json.loads(Path(f"out{i}/plan.json").read_text())["answers"] if a["value"] is not None
        }
        assert answers <= found, words
