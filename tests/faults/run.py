"""Every fault of docs/reliability.md, its table, and the plain Trainer's fate in the same trials.

    make faults                                     all, and the table in docs/reliability.md is written anew
    python tests/faults/run.py --kills 5 --dry      fewer kills; print the table only

Exit code 1 if one of ours did not survive.
"""

from __future__ import annotations

import argparse
import collections
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "helpers"), str(ROOT / "src")]

import transformers  # noqa: E402
import trials  # noqa: E402
from faults import DAMAGES  # noqa: E402
from incumbent import Incumbent  # noqa: E402

Trial = Callable[[], str | None]
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- table: make faults -->", "<!-- end of table -->"
READ = " (read, not run)"


def ours(stand: trials.Stand, kills: int) -> dict[str, list[Trial]]:
    """Row -> its trials; each gives None or what went wrong."""
    t = trials
    files = t.checkpoint_files(stand)
    return {
        "SIGKILL at a random point of `train`, also while writing": [
            (lambda n=n: t.kill_train(stand, n)) for n in range(kills)
        ],
        "SIGKILL at a random point of `score`, also while writing": [
            (lambda n=n: t.kill_score(stand, n)) for n in range(kills)
        ],
        "SIGTERM, SIGINT, SIGUSR1": [
            (lambda n=n, s=s: t.stop(stand, n, s)) for n in (15, 2, 10) for s in (1, 5, 8, 14)
        ],
        "a file of the last checkpoint truncated, deleted, a bit flipped, half-written": [
            (lambda f=f, h=h: t.damage_checkpoint(stand, f, h)) for f in files for h in DAMAGES
        ],
        "every checkpoint half-written": [lambda: t.damage_all_checkpoints(stand)],
        "the token log damaged": [
            (lambda h=h: t.damage_token_log(stand, h)) for h in ("truncated", "deleted", "bit flipped")
        ],
        "a shard of corpus or scores truncated, deleted, a bit flipped, two swapped": [
            (lambda k=k, h=h: t.damage_shard(stand, k, h))
            for k in ("corpus", "scores")
            for h in ("truncated", "deleted", "bit flipped", "swapped")
        ],
        "scores of another corpus, tokenizer, row length or packing; a shard of another model's": [
            (lambda w=w: t.foreign_scores(stand, w)) for w in (*t.FOREIGN, "model")
        ],
        "a shard damaged between a kill of `score` and its next start": [
            (lambda h=h: t.damage_unfinished_scores(stand, h)) for h in ("truncated", "deleted", "bit flipped")
        ],
        "data, recipe, objective, seed or global batch changed between stop and resume": [
            (lambda w=w: t.change(stand, w)) for w in t.CHANGES
        ],
        "two ranks -> two ranks, mid-epoch": [lambda: t.same_ranks(stand)],
        "two ranks -> one, same global batch": [lambda: t.fewer_ranks(stand, 2)],
        "two ranks -> one, half the global batch": [lambda: t.fewer_ranks(stand, 1)],
        "NaN in nll or gradient": [
            *[(lambda w=w: t.nonfinite(stand, w)) for w in ("nll", "gradient")],
            lambda: t.skipped(stand, False),
            lambda: t.skipped(stand, True),
        ],
        "disk full in `train`": [
            (lambda n=n: t.disk_full(stand, "train", n)) for n in (1_000, 5_000, 10_000, 100_000, 200_000)
        ],
        "disk full in `score`, `prepare`": [
            (lambda v=v, n=n: t.disk_full(stand, v, n)) for v in ("score", "prepare") for n in (300, 900)
        ],
        "out of memory": [lambda: t.out_of_memory(stand)],
        "a second process in the same folder": [(lambda v=v: t.locked_folder(stand, v)) for v in ("train", "score")],
    }


# Tests whose cases name their row before a colon, or that are a row: function -> what stands before, or the row.
CASES = {"test_one_sentence": "bad input: ", "test_refused": "payload: ", "test_ignored": "payload: "}
ROWS = {"pickle": "payload: pickle", "path": "payload: path", "terminal": "payload: terminal sequence in text"}


def of_tests() -> dict[str, tuple[int, int]]:
    """Row -> (tests, passed) for bad inputs and payloads, which are tests of their own."""
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        files = ["tests/faults/test_inputs.py", "tests/security"]
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report.name}", *files]
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
        cases = list(ElementTree.parse(report.name).iter("testcase"))
    found: dict[str, tuple[int, int]] = {}
    for case in cases:
        if row := row_of(case.attrib["name"]):
            tried, good = found.get(row, (0, 0))
            found[row] = tried + 1, good + (len(case) == 0)
    print(said if any(n != good for n, good in found.values()) else said.splitlines()[-1], flush=True)
    return found


def row_of(test: str) -> str | None:
    function, _, case = test.partition("[")
    if function in CASES:
        return CASES[function] + case.removesuffix("]").split(":")[0]
    return ROWS.get(function.split("_")[1])


def theirs(stand: trials.Stand, kills: int) -> dict[str, str]:
    """Row -> what the plain Trainer came to."""
    plain = Incumbent(stand.root, stand.zygote)
    names = list(ours(stand, 1))
    signals = {"SIGTERM": 15, "SIGINT": 2, "SIGUSR1": 10}
    return {
        names[0]: counted(plain.kill(n) for n in range(kills)),
        names[1]: "has no such step",
        names[2]: "; ".join(f"{name}: {plain.stop(number)}" for name, number in signals.items()),
        names[3]: counted(plain.damage(f, h) for f in plain.files() for h in DAMAGES),
        names[9]: f"data: {plain.other_data()}",
        names[11]: "no row repeated" + READ,
        names[12]: "every row repeated, no warning" + READ,
        names[13]: plain.nan(),
        names[14]: counted(plain.disk_full(n) for n in (5_000, 20_000, 100_000)),
        names[16]: "crash at the first step that is too large, with what torch says" + READ,
        names[17]: "nothing stops it" + READ,
    }


def counted(verdicts: Iterable[str]) -> str:
    found = collections.Counter(verdicts)
    return "; ".join(f"{n} of {found.total()} {verdict}" for verdict, n in found.most_common())


def survived(row: str, tries: list[Trial]) -> int:
    good, started = 0, time.monotonic()
    for trial in tries:
        try:
            complaint = trial()
        except Exception:
            complaint = traceback.format_exc()
        good += complaint is None
        if complaint:
            print(f"  NOT SURVIVED: {complaint}", flush=True)
    print(f"{good:3} of {len(tries):3}  {row}  ({time.monotonic() - started:.0f} s)", flush=True)
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--dry", action="store_true", help="do not write docs/reliability.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        stand = trials.make_stand(Path(folder))
        rows = ours(stand, options.kills)
        results = {row: (len(tries), survived(row, tries)) for row, tries in rows.items()}
        results |= of_tests()
        incumbent = theirs(stand, options.kills)
    head = f"| fault | trials | survived | Trainer of transformers {transformers.__version__} |"
    lines = [head, "|---|---|---|---|"]
    other = {r: "not tried" if r.startswith((*CASES.values(),)) else "has no such thing" for r in results} | incumbent
    lines += [f"| {r} | {n} | {good} | {other[r]} |" for r, (n, good) in results.items()]
    print("\n".join(lines))
    if not options.dry:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        text = "\n".join([before + BEGIN, *lines, END]) + rest.partition(END)[2]
        PAGE.write_text(text, encoding="utf-8")
    return int(any(n != good for n, good in results.values()))


if __name__ == "__main__":
    sys.exit(main())
