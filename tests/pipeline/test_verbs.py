"""A verb is one module and a row of the registry: one that is added to a copy of the tree is everywhere where verbs are."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import run_warm

from tokensieve.pipeline.recipe.load import stage_verbs
from tokensieve.pipeline.verbs import VERBS

PACKAGE = Path(sys.modules["tokensieve"].__file__ or "").parent

COUNT = '''
"""``tokensieve count``: how often each token of a corpus occurs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..runs.errors import UserError
from ..runs.files import write_json
from ..runs.manifest import read_manifest
from ..runs.stage import stage
from ..runs.work import Work
from .recipe.cost import Cost, Known

KIND = "counts"
NOT_WORK = ("out", "corpus")


@dataclass(frozen=True)
class CountConfig:
    """Count the tokens of a corpus."""

    out: str
    """Folder to write: counts.json."""
    corpus: str
    """A folder that `prepare` wrote."""
    at_least: int = 1
    """Leave out tokens that occur less often."""


def run(config: CountConfig) -> Path:
    from ..data.corpus import open_corpus

    out = Path(config.out)
    with stage(out, work(config)) as s:
        if s.done:
            return out
        s.bind()
        found = Counter(t for row in open_corpus(config.corpus).rows for t in row["input_ids"][: row["num_tokens"]])
        write_json(out / "counts.json", {str(t): n for t, n in sorted(found.items()) if n >= config.at_least})
        s.finish(["counts.json"])
    return out


def work(config: CountConfig) -> Work:
    return Work.of(KIND, config, NOT_WORK, {"corpus": read_manifest(config.corpus, "corpus")["content_hash"]})


def validate(config: CountConfig) -> None:
    if config.at_least < 1:
        raise UserError("at_least must be at least 1")


def estimate(config: CountConfig, known: Known) -> Cost:
    tokens, exact = known.tokens(config.corpus)
    return Cost(tokens, None, 1000.0, exact)
'''
ROW = """
    "count": Verb(
        "count:CountConfig",
        "count the tokens of a corpus",
        "tokensieve count --out runs/x/counts --corpus runs/x/corpus",
        group="data", stage=True,
    ),
}

"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with one module and one row more."""
    root = tmp_path_factory.mktemp("tree")
    shutil.copytree(PACKAGE, root / "tokensieve", ignore=shutil.ignore_patterns("__pycache__"))
    pipeline = root / "tokensieve" / "pipeline"
    (pipeline / "count.py").write_text(COUNT.lstrip())
    rows, end, rest = (pipeline / "verbs.py").read_text().partition("\n}\n")
    assert end
    (pipeline / "verbs.py").write_text(rows + ROW + rest)
    return root


CHAIN = """
import contextlib, io, json, sys
from tokensieve import cli
told = []
for words in json.loads(sys.argv[1]):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = cli.main(words)
    told.append([code, out.getvalue()])
print("\\n" + json.dumps(told))
"""


def test_a_new_verb_is_one_module_and_one_row(tree: Path, tiny: Any, tmp_path: Path) -> None:
    counts = {"verb": "count", "corpus": "@corpus", "at_least": 2}
    prepare = {
        "verb": "prepare",
        "sources": [{"path": str(tiny.text / "target.jsonl")}],
        "vocab_size": 290,
        "length": 32,
    }
    recipe = {"name": "counting", "out": str(tmp_path / "run"), "stages": {"corpus": prepare, "counts": counts}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    alone = ["count", "--out", str(tmp_path / "alone"), "--corpus", str(tiny.corpus)]
    run = ["run", str(tmp_path / "recipe.yaml")]
    commands = [
        ["--help"],
        ["count", "--help"],
        alone,
        alone,
        [*alone, "--at_least", "5"],
        [*run, "--dry-run"],
        run,
        run,
    ]
    commands += [[*run, "--dry-run"], ["check", str(tmp_path / "run")]]
    done = run_warm("-c", CHAIN, json.dumps(commands), PYTHONPATH=str(tree))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert [code for code, _ in told] == [0, 0, 0, 0, 2, 0, 0, 0, 0, 0], told
    overview, usage, first, second, other, plan, ran, again, after, checked = (text for _, text in told)
    assert "  count     count the tokens of a corpus\n" in overview
    assert "Leave out tokens that occur less often. [1]" in usage
    assert "tokensieve count --out runs/x/counts --corpus runs/x/corpus" in usage
    assert first == second == f"{tmp_path / 'alone'}\n"
    assert "is done, but from other inputs (at_least 1 -> 5)" in other
    assert json.loads((tmp_path / "run" / "counts" / "counts.json").read_text())
    [row] = [line.split() for line in plan.splitlines() if line.startswith("counts")]
    assert row[:4] == ["counts", "count", "to", "do"]
    assert row[4].startswith("~")
    assert row[-2:] == ["~1", "kB"]
    assert "[2/2] counts (count)" in ran
    assert again.count("done already") == 2
    assert [line.split()[2] for line in after.splitlines() if line.startswith(("corpus", "counts"))] == ["done"] * 2
    assert f"{tmp_path}/run/counts: counts, whole, 1 files" in checked


@pytest.mark.parametrize("name", VERBS)
def test_a_row_is_what_its_module_has(name: str) -> None:
    """A table beside the registry was forgotten by whoever added a verb; what a stage needs stands in its module."""
    verb = VERBS[name]
    assert callable(verb.runner())
    assert verb.config_class().__doc__
    if verb.stage and verb.takes("out"):
        module, of_config = verb.module(), verb.config_module()
        assert isinstance(of_config.KIND, str)
        assert callable(module.work)
        assert callable(module.estimate)
        fields = set(verb.config_class().__dataclass_fields__)
        assert {n.split(".")[0] for n in of_config.NOT_WORK} <= fields
        assert "out" in of_config.NOT_WORK


def test_verbs_that_may_be_a_stage() -> None:
    assert set(stage_verbs()) == {
        "prepare",
        "filter",
        "init",
        "train",
        "score",
        "evaluate",
        "compare",
        "plan",
        "dynamics",
        "check",
        "export",
    }
