"""What an import costs, what it shows, and what no file of ours may name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "datasets", "numpy", "pyarrow", "matplotlib", "accelerate", "tokenizers")
PUBLIC = (
    *("token_nll", "token_nll_from_logits", "excess", "top_fraction", "weighted_nll", "LinearNLL"),
    *("objective", "SelectiveTrainer", "load_scored"),
)
# Written so that it does not find itself.
PRIVATE_PATH = re.compile(r"(?<![\w.-])(?:/wor[k]/|/tmp/ven[v]|/roo[t]/|/opt/(?:pypi|wheels))")

needs_cli = pytest.mark.skipif(not (ROOT / "src/tokensieve/cli.py").is_file(), reason="there is no cli.py yet")


def heavy_after(code: str) -> list[str]:
    """The heavy packages in ``sys.modules`` of a fresh interpreter that ran ``code``."""
    script = f"""
import contextlib, io, sys
with contextlib.redirect_stdout(io.StringIO()):
    try:
        {code}
    except SystemExit as e:
        assert not e.code, e.code
print(*[m for m in {HEAVY!r} if m in sys.modules])
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_probe_sees_a_heavy_import() -> None:
    assert "numpy" in heavy_after("import numpy")


def test_import_is_light() -> None:
    assert heavy_after("import tokensieve") == []


@needs_cli
def test_help_is_light() -> None:
    """`tokensieve --help` that takes ten seconds because a verb's module imports transformers at its top."""
    assert (
        heavy_after(
            "import runpy; sys.argv = ['tokensieve', '--help']; runpy.run_module('tokensieve', run_name='__main__')"
        )
        == []
    )


@needs_cli
def test_what_help_and_parsing_import_is_light() -> None:
    """A verb defers one import, its work: configs stand apart from what they configure."""
    package = ROOT / "src/tokensieve/pipeline"
    files = [
        *package.glob("configs/*.py"),
        *package.glob("config/*.py"),
        package / "recipe/load.py",
        package / "verbs.py",
    ]
    names = [".".join(("tokensieve", *f.relative_to(package.parent).with_suffix("").parts)) for f in sorted(files)]
    names = [name for name in names if not name.endswith("__init__")]
    assert len(names) > 12
    assert heavy_after(f"import {', '.join(names)}") == []


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name(name: str) -> None:
    import tokensieve

    assert callable(getattr(tokensieve, name))
    assert name in dir(tokensieve)


def test_no_file_names_a_private_path() -> None:
    """A path of the machine it was written on makes a script fail on every other."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout: there is no list of tracked files")
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_file():
            text = path.read_bytes().decode("utf-8", errors="ignore")
            found += [f"{name}: {hit}" for hit in PRIVATE_PATH.findall(text)]
    assert found == []


def test_private_paths_are_found() -> None:
    assert PRIVATE_PATH.search("open('/" + "work/x')")
    assert not PRIVATE_PATH.search("https://example.org/" + "work/x")
