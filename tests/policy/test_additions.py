"""How many files one touches to add something: done in a copy of the tree, and found wherever users and tests look for it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from processes import run_warm

ROOT = Path(__file__).resolve().parents[2]

OBJECTIVE = '''

def every_third(seed: int = 0) -> Objective:
    """Keep every third position of a row: a rule made up for a test."""

    def weigh(stats: TokenStats) -> Tensor:
        return (stats.valid & ((stats.need("position") + seed) % 3 == 0)).float()

    needs = frozenset({"position"})
    return Objective("every_third", weigh, needs, scope="sequence", selects=True, static=True)
'''

ROW_STATISTIC = '''
def _half(row: Mapping[str, Any], length: int) -> np.ndarray:
    """Which half of its row a token stands in, 0 or 1."""
    return np.arange(length) * 2 // length


# Statistics that are made of a row'''

HEAD_STATISTIC = '''
class LargestLogit(Extra):
    """``max_v l_v``."""

    def value(self) -> Tensor:
        return self.softmax.largest_T


# name -> what computes it'''

USE = """
import sys, tempfile
sys.path.insert(0, sys.argv[1])
import tiny, torch
from tokensieve.core import Objective
seen = []
def weigh(stats):
    seen.append(stats.need(sys.argv[2]))
    return stats.valid.float()
made = Objective("user", weigh, frozenset({sys.argv[2]}), scope="sequence")
model = tiny.llama()
with torch.no_grad():
    largest = model(input_ids=torch.tensor(tiny.rows(4)["input_ids"])).logits.amax(-1)
tiny.train(model, tiny.arguments(tempfile.mkdtemp(), 4), tiny.rows(4), made)
valid = torch.tensor(tiny.rows(4)["labels"])[:, 1:] != -100
wanted = {"half": torch.arange(1, 16).expand(4, 15) * 2 // 16, "largest_logit": largest[:, :-1]}[sys.argv[2]]
torch.testing.assert_close(seen[0][:, :-1][valid].double(), wanted[valid].double(), rtol=1e-4, atol=1e-4)
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what a change touches."""
    for name in ("src", "docs", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "*.png", "faults", "mutants", "*.egg-info")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def change(path: Path, *pairs: tuple[str, str]) -> None:
    text = path.read_text(encoding="utf-8")
    for old, new in pairs:
        assert text.count(old) == 1, (path.name, old)
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


def python(tree: Path, *args: str) -> str:
    done = run_warm(*args, folder=tree, PYTHONPATH=str(tree / "src"))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_objective_is_a_function_and_a_line(tree: Path) -> None:
    """Names, help, docs page and the tests of every rule: all of them read the one dict."""
    family = tree / "src" / "tokensieve" / "core" / "objectives"
    change(
        family / "placed.py",
        ("\n\ndef wit(", f"{OBJECTIVE}\n\ndef wit("),
    )
    change(
        family / "__init__.py",
        ('    "wit": placed.wit,', '    "every_third": placed.every_third,\n    "wit": placed.wit,'),
    )
    names = python(
        tree, "-c", "import tokensieve as ts; print(*ts.OBJECTIVES, ts.objective('every_third', seed=1).options)"
    )
    assert "every_third" in names
    assert "every_third" in python(tree, "-m", "tokensieve", "train", "--help")
    python(tree, "docs/make_objectives.py")
    assert "a rule made up for a test" in (tree / "docs" / "objectives.md").read_text(encoding="utf-8")
    told = python(
        tree, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/core/test_objective.py", "-k", "every_third"
    )
    assert "[100%]" in told


@pytest.mark.parametrize("name", ["half", "largest_logit"])
def test_a_statistic_is_two_files(tree: Path, name: str) -> None:
    """Where it is listed, and where it is computed; the trainer, the scope and the ranks take it from there."""
    package, of_rows = tree / "src" / "tokensieve", name == "half"
    origin = "rows" if of_rows else "head"
    change(
        package / "core" / "stats.py",
        (
            '    "step": Statistic(',
            f'    "{name}": Statistic("{origin}", "made up for a test"),\n    "step": Statistic(',
        ),
        ("    sum_p2: Tensor | None = None\n", f"    sum_p2: Tensor | None = None\n    {name}: Tensor | None = None\n"),
    )
    if of_rows:
        change(
            package / "data" / "rows.py",
            ("\n# Statistics that are made of a row", ROW_STATISTIC),
            ('    "source_id": ((', '    "half": (("input_ids",), _half),\n    "source_id": (('),
        )
    else:
        change(
            package / "core" / "softmax.py",
            ("\n# name -> what computes it", HEAD_STATISTIC),
            ('    "sum_p2": SumP2,\n', '    "sum_p2": SumP2,\n    "largest_logit": LargestLogit,\n'),
        )
    python(tree, "-c", USE, str(tree / "tests" / "helpers"), name)


def test_the_page_of_objectives_is_what_the_code_says(tree: Path) -> None:
    before = (tree / "docs" / "objectives.md").read_text(encoding="utf-8")
    python(tree, "docs/make_objectives.py")
    assert (tree / "docs" / "objectives.md").read_text(encoding="utf-8") == before
