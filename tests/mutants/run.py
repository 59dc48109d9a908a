"""Break the method on purpose, one bug at a time, and demand that the tests named for it fail.

    make mutants                                        all of them
    python tests/mutants/run.py sign-of-excess k-from-T   some

    mutants.toml: name, bug, file, old -> new, tests
    src/ --copy--> tmp/src --old -> new--> pytest of the named tests, importing the copy --> failed: killed; else: survived

The working tree is never touched. Exit code 1 if a mutant survives, or if a named test fails on the tree as it is.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIST = Path(__file__).with_name("mutants.toml")
# A line of pytest's summary: outcome, test, message.
SUMMARY = re.compile(r"^(PASSED|FAILED|ERROR) (\S+?::\S+?)(?:\[.*?\])?(?: - (.*))?$", re.M)
# What a replacement that is no longer Python that fits gives: such a test failed, but not because of the bug.
BROKEN = (
    "NameError",
    "SyntaxError",
    "IndentationError",
    "ImportError",
    "ModuleNotFoundError",
    "AttributeError",
    "TypeError",
)


@dataclass(frozen=True)
class Mutant:
    name: str
    bug: str
    file: str
    """Below ``src/tokensieve``."""
    old: str
    new: str
    tests: tuple[str, ...]
    """Node ids without parameters: a parametrised test has failed when one of its cases has."""


def load(path: Path = LIST) -> list[Mutant]:
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]
    return [Mutant(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]


def mutated(mutant: Mutant, root: Path = ROOT) -> str:
    """The text of the mutant's file with the bug in it. ValueError unless ``old`` occurs there exactly once."""
    text = (root / "src" / "tokensieve" / mutant.file).read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise ValueError(f"mutant {mutant.name}: its old text occurs {text.count(mutant.old)} times in {mutant.file}")
    return text.replace(mutant.old, mutant.new)


def outcomes(copy: Path, tests: Iterable[str]) -> dict[str, list[tuple[str, str]]]:
    """Run tests with the package imported from ``copy``: node id without parameters -> [(outcome, message)] of its cases."""
    env = {
        **os.environ,
        "PYTHONPATH": str(copy / "src"),
        # A bytecode file is trusted by time and size: two mutants of one second and one size would be taken for one.
        "PYTHONDONTWRITEBYTECODE": "1",
        "COLUMNS": "250",
    }
    command = [sys.executable, "-m", "pytest", "-rA", "--tb=no", "--color=no", "-p", "no:cacheprovider"]
    # pyproject's own pythonpath would put the working tree before the copy.
    command += ["-o", f"pythonpath={copy / 'src'}", "--rootdir", str(ROOT), *tests]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    found: dict[str, list[tuple[str, str]]] = {}
    for outcome, test, message in SUMMARY.findall(done.stdout):
        found.setdefault(test, []).append((outcome, message))
    if not found:
        raise RuntimeError(f"pytest ran nothing:\n{done.stdout}\n{done.stderr}")
    return found


def complaint(cases: list[tuple[str, str]], *, on_mutant: bool) -> str | None:
    """What is wrong with a test's outcome; None where it passed on the tree, or failed on the mutant, as it should."""
    bad = [(outcome, message) for outcome, message in cases if outcome != "PASSED"]
    if not cases:
        return "did not run"
    if not on_mutant:
        return f"fails without any mutant: {bad[0][1]}" if bad else None
    if not bad:
        return "still passes"
    broken = [message for outcome, message in bad if outcome == "ERROR" or message.startswith(BROKEN)]
    return f"the replacement is broken: {broken[0]}" if broken else None


def report(name: str, complaints: dict[str, str | None], seconds: float) -> bool:
    """One line for a mutant, one more for each test that did not do its part. True if there was none."""
    bad = {test: text for test, text in complaints.items() if text}
    short = ", ".join(test.partition("::")[2] for test in complaints)
    print(f"{'SURVIVED' if bad else 'killed':9} {name:34} {seconds:5.1f} s  {short}", flush=True)
    for test, text in bad.items():
        print(f"          {test} {text}", flush=True)
    return not bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="mutants to run; all if none is named")
    names = parser.parse_args().names
    mutants = load()
    if unknown := set(names) - {m.name for m in mutants}:
        parser.error(f"no mutant is named {', '.join(sorted(unknown))}")
    chosen = [m for m in mutants if not names or m.name in names]
    with tempfile.TemporaryDirectory(prefix="mutants-") as tmp:
        copy = Path(tmp)
        shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        texts = {m.name: mutated(m, copy) for m in chosen}  # all of them first: a list that rotted fails at once

        start = time.monotonic()
        tests = list(dict.fromkeys(t for m in chosen for t in m.tests))
        found = outcomes(copy, tests)
        complaints = {t: complaint(found.get(t, []), on_mutant=False) for t in tests}
        for test, text in complaints.items():
            if text:
                print(f"{test} {text}")
        if any(complaints.values()):
            return 1
        print(f"{len(tests)} tests pass on the tree as it is ({time.monotonic() - start:.1f} s)", flush=True)

        killed = 0
        for mutant in chosen:
            start, path = time.monotonic(), copy / "src" / "tokensieve" / mutant.file
            original = path.read_text(encoding="utf-8")
            path.write_text(texts[mutant.name], encoding="utf-8")
            found = outcomes(copy, mutant.tests)
            path.write_text(original, encoding="utf-8")
            complaints = {t: complaint(found.get(t, []), on_mutant=True) for t in mutant.tests}
            killed += report(mutant.name, complaints, time.monotonic() - start)
    print(f"{killed} of {len(chosen)} mutants killed")
    return 0 if killed == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
