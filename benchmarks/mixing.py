"""What mixing and each transform cost ``prepare``: MB of text a second of processor time, and the speed of plain, in turns.

    python benchmarks/mixing.py                     some minutes
    python benchmarks/mixing.py --megabytes 4 --rounds 5 --save

Two sources of pieces of the standard library, of 4,000 characters; one process and one thread, whose processor time is taken:
others may work on the machine. Everything of `prepare` counts. MB are those of the text that is read, once; a case that takes
its rows twice writes twice as many. Speed is the time of plain over that of the case, round by round: .5 is twice the time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from measure import ratios, report, spread
from prepare import in_turns, pieces

from tokensieve.data.corpus import open_corpus
from tokensieve.data.read.source import SourceConfig
from tokensieve.data.replay import ReplaySource
from tokensieve.pipeline import prepare as preparing
from tokensieve.pipeline.configs.prepare import PrepareConfig

TRANSFORMS: dict[str, dict[str, Any]] = {
    "fim, half of the documents": {"name": "fim"},
    "repository, of 8 files": {"name": "repository"},
    "stochastok, a tenth": {"name": "stochastok"},
    "deletions, of every document": {"name": "deletions"},
    "tipa, a tenth of the documents": {"name": "tipa"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vocab_size", type=int, default=8000)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/mixing-<date>-<device>.{md,json}")
    args = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        megabytes = write_text(folder, int(args.megabytes * 1e6))
        calls = cases(folder, args.vocab_size)
        seconds = in_turns(calls, args.rounds)
    speed = {case: [1 / r for r in ratios(seconds, case, "plain")] for case in calls}
    rows = [
        {
            "what": case,
            "MB/s": spread([megabytes / s for s in seconds[case]]),
            "speed of plain": spread(speed[case]),
        }
        for case in calls
    ]
    records = [{"case": case, "seconds": seconds[case], "speed": speed[case]} for case in calls]
    about = (
        f"{megabytes:.2f} MB of text in pieces of 4,000 characters, vocabulary {args.vocab_size}, {args.rounds} rounds in "
        "turns, processor time of one process; median (lowest-highest)."
    )
    report("mixing", "Mixing and transforms in prepare", about, [rows], records, save=args.save)


def write_text(folder: Path, total: int) -> float:
    """Two files of pieces: each names its place in a repository of 8 files, and a program that deletes its first lines."""
    size = 0
    texts = pieces(4000, total)
    for half in range(2):
        with open(folder / f"{half}.jsonl", "w", encoding="utf-8") as out:
            for i, text in enumerate(texts[half::2]):
                lines = f"remove_lines(1, {min(3, text.count(chr(10)) + 1)})"
                out.write(json.dumps({"id": f"{half}-{i // 8}/{i % 8}.py", "text": text, "program": lines}) + "\n")
                size += len(text.encode())
    return size / 1e6


def cases(folder: Path, vocab_size: int) -> dict[str, Any]:
    """What is timed: a call each."""

    def sources(**settings: Any) -> list[SourceConfig]:
        return [SourceConfig(str(folder / f"{half}.jsonl"), **settings) for half in range(2)]

    given = [TRANSFORMS[name] for name in TRANSFORMS if name.startswith(("fim", "repository"))]
    earlier = PrepareConfig(str(folder / "earlier"), sources(), vocab_size=vocab_size, transforms=given, workers=1)
    preparing.run(earlier, progress=False)
    rows = open_corpus(earlier.out).num_rows
    configs: dict[str, tuple[list[SourceConfig], dict[str, Any]]] = {
        "plain": (sources(), {}),
        "temperature 2, of 4 epochs": (sources(epochs=4), {"temperature": 2, "max_rows": rows}),
        "2 epochs": (sources(epochs=2), {}),
        "replay, a fifth": (sources(), {"replay": [ReplaySource(earlier.out, 0.2)]}),
    }
    for name, transform in TRANSFORMS.items():
        read = sources(program="program") if transform["name"] == "deletions" else sources()
        configs[name] = (read, {"transforms": [transform]})
    out = str(folder / "out")
    return {
        name: partial(once, PrepareConfig(out, read, tokenizer=earlier.out, workers=1, **fields))
        for name, (read, fields) in configs.items()
    }


def once(config: PrepareConfig) -> None:
    shutil.rmtree(config.out, ignore_errors=True)
    preparing.run(config, progress=False)


if __name__ == "__main__":
    main()
