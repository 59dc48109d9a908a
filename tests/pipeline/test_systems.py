"""The commands of docs/systems.md that stand before selection, as they are printed, on tiny text and tables."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from system_rows import RUN_AS_PRINTED, commands, table_rows

from tokensieve.runs.files import read_json
from tokensieve.runs.manifest import is_done, read_manifest

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


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, tiny: Any, tokensieve: Any) -> dict[str, Any]:
    """What each command of the page's first table came to, by its words, in a folder with the files that they name."""
    here = tmp_path_factory.mktemp("systems")
    with contextlib.chdir(here):
        for name in ("base", "corpus"):
            Path(name).symlink_to(getattr(tiny, name))
        write_sources()
        write_tables()
        given = [words for row in table_rows(RUN_AS_PRINTED) for words in commands(row[1])]
        return {" ".join(words): (tokensieve(*words), here / words[words.index("--out") + 1]) for words in given}


def test_commands_of_the_table_run(ran: dict[str, Any]) -> None:
    """Every one to its end, in the order of the page: what one writes another reads."""
    assert len(ran) > 40
    for words, (done, out) in ran.items():
        assert done.code == 0, f"{words}: {done.error}"
        assert is_done(out), words


def test_answers_are_given(ran: dict[str, Any]) -> None:
    """That a plan was written says little: the numbers that the page promises are in it."""
    promised = {
        "plan-chinchilla": {"parameters N*", "tokens D*"},
        "plan-mixture": {"largest share of domain text"},
        "plan-over": {"error of tasks"},
        "plan-constrained": {"passes advised"},
    }
    plans = {out.name: read_json(out / "plan.json")["answers"] for _, out in ran.values() if out.name in promised}
    for name, answers in promised.items():
        assert answers <= {a["what"] for a in plans[name] if a["value"] is not None}, name


def test_shares_are_what_the_rows_say(ran: dict[str, Any]) -> None:
    """Rows of the old corpus by largest remainders, weights exactly, and the mean of two models."""
    made = {out.name: out for _, out in ran.values()}
    for name, share in {"replayed": 0.05, "general": 0.0625, "sailor-best": 0.2, "domain-corpus": 0.05}.items():
        new, old = (part["rows"] for part in read_manifest(made[name])["mixture"])
        assert abs(old - share * (new + old)) < 1, name
    assert [part["rows"] for part in read_manifest(made["mobile-one"])["mixture"]] == [16, 4]
    one, two, mean = (
        load_file(made[n] / "model" / "model.safetensors") for n in ("instella-1", "instella-2", "instella")
    )
    for name, weight in mean.items():
        middle = (one[name].double() + two[name].double()) / 2
        assert torch.equal(weight, middle.float()), name
        assert not torch.equal(one[name], two[name]), name
