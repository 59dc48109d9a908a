"""Every family of docs/families.md: its facts measured, and the page's tables written anew.

    make families                                    all of them
    python tests/families/run.py "Qwen2.5" Mamba     some; print their rows only

Exit code 1 if a fact does not hold of a family.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "helpers"), str(ROOT / "src")]
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402
import transformers  # noqa: E402
from families import FAMILIES, NOT_CAUSAL, class_of  # noqa: E402
from family_facts import FACTS, refusal, row  # noqa: E402

PAGE = ROOT / "docs" / "families.md"
WRONG = "**wrong**"


def measured(name: str) -> dict[str, str]:
    """A family's cells; what went wrong is printed."""
    started = time.process_time()
    with tempfile.TemporaryDirectory(prefix="families-") as folder:
        cells = row(FAMILIES[name], Path(folder), on_error=lambda fact: WRONG)
    print(" | ".join([name, *cells.values()]), f"({time.process_time() - started:.1f} s)", flush=True)
    return cells


def tables(rows: Mapping[str, Mapping[str, str]]) -> tuple[list[str], list[str]]:
    """(lines of the table of families, lines of the table of what is no causal language model)."""
    lines = [f"| family | class | kind | {' | '.join(FACTS)} |", "|" + "---|" * (3 + len(FACTS))]
    for name, cells in rows.items():
        family = FAMILIES[name]
        lines.append(f"| {name} | `{class_of(family)}` | {family.kind} | {' | '.join(cells.values())} |")
    refused = ["| model | told |", "|---|---|", *(f"| {name} | {refusal(name)} |" for name in NOT_CAUSAL)]
    return lines, refused


def put(text: str, name: str, lines: list[str]) -> str:
    """``text`` with the lines between the two marks of a table."""
    begin, end = f"<!-- {name}: make families -->", f"<!-- end of {name} -->"
    before, _, rest = text.partition(begin)
    return "\n".join([before + begin, *lines, end]) + rest.partition(end)[2]


def main(names: list[str]) -> int:
    if unknown := [name for name in names if name not in FAMILIES]:
        print(f"no family {unknown[0]!r}: one of {', '.join(FAMILIES)}", file=sys.stderr)
        return 2
    gc.freeze()  # each training ends with a collection of all there is
    chosen, started = names or list(FAMILIES), time.monotonic()
    # Two processes, as `make test` has: forks, so that both have imported what takes longer than eight families.
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        rows = dict(zip(chosen, pool.map(measured, chosen), strict=True))
    if not names:
        known, refused = tables(rows)
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        told = (
            f"Made with transformers {transformers.__version__} and torch {torch.__version__}, {len(rows)} families: "
            f"{sum(u.ru_utime + u.ru_stime for u in used):.0f} s of processor time in two processes, "
            f"{max(u.ru_maxrss for u in used) / 2**20:.2f} GiB at most in one."
        )
        text = PAGE.read_text(encoding="utf-8")
        for name, lines in (("families", [told, "", *known]), ("refused", refused)):
            text = put(text, name, lines)
        PAGE.write_text(text, encoding="utf-8")
        print(f"{told} {time.monotonic() - started:.0f} s on the clock.")
    return int(any(WRONG in cells.values() for cells in rows.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
