"""What each kind of ``filter`` costs: MB of text a second of processor time, and how memory grows with the text.

    python benchmarks/filter.py --data FOLDER                          speed of every kind on a folder's corpus.jsonl.gz
    python benchmarks/filter.py --data FOLDER --grow 0.25 0.5 1        memory of dedup at so many GB of text made from it
    python benchmarks/filter.py --data FOLDER --judge 0.25 0.5 1       the same without text: signatures are drawn
    python benchmarks/filter.py --grow 0.25 0.5 1 --save               memory alone, of text that is made up
    python benchmarks/filter.py --grow 0.25 0.5 1 --method exact       of exact copies alone
    python benchmarks/filter.py --data FOLDER --model RUN --save       with kind model, too

One process and one thread, whose processor time is taken: others may work on the machine. Everything counts, reading and the
table included. Text of so many GB is the corpus (without one, 20 MB of made-up words) again and again with one word in twelve
replaced, cut to documents of 2 kB. Its memory is what the process itself holds (RssAnon, looked at 20 times a second) above
what it held after a small run; parts that are mapped into memory can be dropped by the system at any time and are told apart
(VmHWM has both).
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from measure import report, spread

from tokensieve.data.filter.dedup import judge_copies
from tokensieve.data.filter.judge import table_rows, write_table
from tokensieve.data.filter.measured import Measured
from tokensieve.data.filter.options import Classifier, Decontaminate, Dedup, Ensemble, Measure
from tokensieve.data.read.source import SourceConfig
from tokensieve.pipeline import filter as filtering
from tokensieve.pipeline.configs.filter import FilterConfig

MADE_UP = (
    "Made-up text: words of a vocabulary of 60,000, as often as Zipf's law says; documents of 2 kB, one process of one thread. "
    "MB/s is of processor time; peak is the process's own memory (RssAnon)."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None, help="corpus.jsonl.gz, curated.jsonl.gz, eval_*.jsonl.gz")
    parser.add_argument("--megabytes", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--grow", type=float, nargs="*", default=[])
    parser.add_argument("--judge", type=float, nargs="*", default=[], help="as --grow, of signatures that are drawn")
    parser.add_argument("--method", default="minhash", choices=["minhash", "exact"], help="of --grow")
    parser.add_argument("--model", default="")
    parser.add_argument("--scratch", type=Path, default=None, help="where the text is written and removed again")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/filter-<date>-<device>.{md,json}")
    args = parser.parse_args()
    if args.one:
        words = json.loads(args.one)
        print(json.dumps(one(words, args.method) if words[0] else drawn(Path(words[1]), int(words[2]))))
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory(dir=args.scratch) as name:
        folder = Path(name)
        rows, records = speeds(folder, args) if args.data else ([], [])
        grown = [grow(folder, args.data, size, args.method) for size in args.grow]
        grown += [grow(folder, args.data, size, draw=True) for size in args.judge]
    memory = [
        {
            "text, GB": f"{g['gigabytes']:.2f}{' (drawn)' if g['drawn'] else ''}",
            "documents": f"{g['documents']:,}",
            "near copies" if g["method"] == "minhash" else "copies": f"{g['near_copies']:,}",
            "peak, MB": f"{g['peak'] / 1e6:.0f}",
            "with mapped parts": f"{g['with_mapped'] / 1e6:.0f}",
            "above start": f"{(g['peak'] - g['start']) / 1e6:.0f}",
            "bytes a document": f"{(g['peak'] - g['start']) / g['documents']:.0f}",
            "parts on disk, MB": f"{g['parts'] / 1e6:.0f}",
            "MB/s": f"{g['gigabytes'] * 1000 / g['seconds']:.1f}",
        }
        for g in grown
    ]
    about = f"{args.megabytes:g} MB of text, {args.rounds} rounds, median (lowest-highest); dedup's memory below."
    name, title = ("filter", "Filters") if args.data else ("dedup-memory", "Memory of dedup by MinHash")
    if args.method == "exact":
        name, title = f"{name}-exact", "Memory of dedup, exact copies"
    report(name, title, about if args.data else MADE_UP, [rows, memory], records + grown, save=args.save)


def speeds(folder: Path, args: Any) -> tuple[list[dict[str, str]], list[dict[str, Any]]]:
    """Of each kind what a further MB takes, by a quarter of the text and all of it; the rest is what it takes to begin."""
    texts = [folder / "quarter.jsonl", folder / "text.jsonl"]
    corpus = args.data / "corpus.jsonl.gz"
    sizes = [copy_text(corpus, path, args.megabytes * share) for path, share in zip(texts, (0.25, 1), strict=True)]
    curated = [SourceConfig(str(args.data / "curated.jsonl.gz"))]
    against = [SourceConfig(str(p)) for p in sorted(args.data.glob("eval_*.jsonl.gz"))]
    kinds: dict[str, dict[str, Any]] = {
        "decontaminate": {"decontaminate": Decontaminate(against)},
        "dedup, exact": {"dedup": Dedup("exact")},
        "dedup, minhash": {"dedup": Dedup()},
        "classifier": {"classifier": Classifier(curated)},
        "ensemble": {},
    }
    for score in ("perplexity", "retrieval") if args.model else ():
        kinds[f"model, {score}"] = {"model": Measure(args.model, score, length=256, max_tokens=1024)}
    rows, records = [], []
    for name, fields in kinds.items():
        rates, begins = [], []
        for i in range(args.rounds):
            seconds = []
            for path in ([texts[0]] if not i else []) + texts:  # the first time is for what a process loads once
                out = folder / f"{name} {i} {path.stem}"
                shutil.rmtree(out, ignore_errors=True)
                if name == "ensemble":
                    tables = [str(folder / f"classifier {k} {path.stem}") for k in (0, args.rounds - 1)]
                    fields = {"ensemble": Ensemble(tables), "share": 0.1}
                config = FilterConfig(str(out), name.split(",")[0], [SourceConfig(str(path))], workers=1, **fields)  # type: ignore[arg-type]
                start = time.process_time()
                filtering.run(config, progress=False)
                seconds.append(time.process_time() - start)
            seconds = seconds[-2:]
            each = (seconds[1] - seconds[0]) / (sizes[1] - sizes[0])
            rates.append(1 / each)
            begins.append(seconds[1] - each * sizes[1])
        manifest = json.loads((out / "manifest.json").read_text())
        keys = ("stats", "classifier", "sets", "exact_copies", "near_copies", "heads")
        told = {key: manifest[key] for key in keys if key in manifest}
        print(name, rates, begins, {k: v for k, v in told.items() if k != "stats"}, flush=True)
        records.append({"kind": name, "megabytes": sizes, "rates": rates, "begins": begins, **told})
        rows.append({"kind": name, "MB/s": spread(rates), "s to begin": spread(begins)})
    return rows, records


def copy_text(corpus: Path, path: Path, megabytes: float) -> float:
    """The first so many MB of text; how many there are."""
    size = 0
    with gzip.open(corpus, "rt", encoding="utf-8") as lines, open(path, "w", encoding="utf-8") as out:
        for line in lines:
            out.write(line)
            size += len(json.loads(line)["text"].encode())
            if size >= megabytes * 1e6:
                break
    return size / 1e6


def grow(
    folder: Path, data: Path | None, gigabytes: float, method: str = "minhash", draw: bool = False
) -> dict[str, Any]:
    """Write the text, filter it in a process of its own, and remove both."""
    path, out = folder / "grown.jsonl", folder / "grown"
    if not draw:
        write_text(corpus_texts(data), path, int(gigabytes * 1e9))
    words = ["" if draw else str(path), str(out), str(int(gigabytes * 1e9 / 2000))]
    command = [sys.executable, __file__, "--method", method, "--one", json.dumps(words)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    path.unlink(missing_ok=True)
    shutil.rmtree(out, ignore_errors=True)
    found = {"gigabytes": gigabytes, "drawn": draw, "method": method, **json.loads(done.stdout.splitlines()[-1])}
    print(found, flush=True)
    return found


def drawn(out: Path, number: int) -> dict[str, Any]:
    """Judge so many documents whose signatures are drawn: four of five share about half of theirs with one in five, one in
    fifty nearly all of it. What measuring takes is not in it: a unit of text at a time, whatever the number."""
    out.mkdir()
    rng, paths = np.random.default_rng(0), []
    for lo in range(0, number, 8192):
        n = min(8192, number - lo)
        signatures = rng.integers(0, 1 << 32, (n, 128), np.uint32)
        heads = np.arange(n) // 5 * 5
        share = np.where(np.arange(n) % 50 == 7, 0.95, 0.5)[:, None]
        signatures = np.where(rng.random((n, 128)) < share, signatures[heads], signatures)
        ids = [str(lo + i) for i in range(n)]
        columns = {
            "text_hash": rng.integers(0, 1 << 63, n).astype(np.uint64),
            "key": rng.integers(0, 1 << 63, n).astype(np.uint64),
            "bytes": np.full(n, 2000),
            "id": ids,
            "source": ["s"] * n,
            "place": [f"grown.jsonl:{i}" for i in ids],
            "minhash": pa.FixedSizeListArray.from_arrays(pa.array(signatures.reshape(-1)), 128),
            "runs": np.full(n, 300, np.int32),
        }
        table = pa.table(columns).replace_schema_metadata({b"tokensieve": b"{}"})
        paths.append(out / f"{lo:09d}.arrow")
        with pa.OSFile(str(paths[-1]), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    with watched() as memory:
        measured = Measured(paths)
        judgement = judge_copies(Dedup(), measured)
        write_table(out, table_rows(measured, judgement))
    parts = sum(path.stat().st_size for path in paths)
    return {**memory, "documents": len(measured), "near_copies": judgement.told["near_copies"], "parts": parts}


@contextlib.contextmanager
def watched() -> Iterator[dict[str, Any]]:
    """Processor seconds, and the most memory that the process itself holds, of what is done inside."""
    found, done, begun = {"start": status("RssAnon"), "peak": 0}, threading.Event(), time.process_time()

    def look() -> None:
        while not done.wait(0.05):
            found["peak"] = max(found["peak"], status("RssAnon"))

    thread = threading.Thread(target=look)
    thread.start()
    yield found
    done.set()
    thread.join()
    found |= {
        "peak": max(found["peak"], found["start"]),
        "with_mapped": status("VmHWM"),
        "seconds": time.process_time() - begun,
    }


def corpus_texts(data: Path | None) -> list[str]:
    """The texts of a folder's corpus; without one 10,000 of 300 made-up words."""
    if data is not None:
        with gzip.open(data / "corpus.jsonl.gz", "rt", encoding="utf-8") as lines:
            return [json.loads(line)["text"] for line in lines]
    rng = np.random.default_rng(1)
    letters, sizes = np.array(list("etaoinshrdlcumwfgypb")), rng.integers(2, 11, 60_000)
    words = np.array(["".join(rng.choice(letters, n)) for n in sizes])
    often = 1 / np.arange(1, len(words) + 1)
    return [" ".join(words[drawn]) for drawn in rng.choice(len(words), (10_000, 300), p=often / often.sum())]


def write_text(texts: list[str], path: Path, size: int) -> None:
    """Documents of about 2 kB; from the second pass over the corpus on, one word in twelve is replaced: each document has
    relatives of a Jaccard similarity of about .5 (runs of five words), which the bands must look at."""
    rng, written, number = np.random.default_rng(0), 0, 0
    with open(path, "w", encoding="utf-8") as out:
        while True:
            for text in texts:
                for start in range(0, len(text), 2000):
                    piece = text[start : start + 2000]
                    if number >= len(texts):
                        words = piece.split(" ")
                        for at in rng.integers(0, len(words), len(words) // 12):
                            words[at] = f"q{rng.integers(10**6)}"
                        piece = " ".join(words)
                    out.write(json.dumps({"id": str(number), "text": piece}) + "\n")
                    number, written = number + 1, written + len(piece)
                    if written >= size:
                        return


def one(words: list[str], method: Any) -> dict[str, Any]:
    """Filter a file in this process; what it took."""
    (path, out), dedup = words[:2], Dedup(method)
    filtering.run(FilterConfig(f"{out} warm", "dedup", [SourceConfig(first_rows(path))], dedup=dedup), progress=False)
    parts: list[int] = []
    real = filtering.Measured

    def counted(paths: list[Path]) -> Any:
        parts.append(sum(p.stat().st_size for p in paths))
        return real(paths)

    filtering.Measured = counted  # type: ignore[misc, assignment]
    with watched() as memory:
        filtering.run(FilterConfig(out, "dedup", [SourceConfig(path)], workers=1, dedup=dedup), progress=False)
    manifest = json.loads((Path(out) / "manifest.json").read_text())
    shutil.rmtree(f"{out} warm")
    return {
        **memory,
        "documents": manifest["stats"]["documents"],
        "near_copies": manifest.get("near_copies", manifest["exact_copies"]),
        "parts": parts[0],
    }


def first_rows(path: str) -> str:
    """The first 2,000 rows as a file of their own: what a process holds anyway is then there before it is measured."""
    few = f"{path}.few.jsonl"
    with open(path, encoding="utf-8") as lines, open(few, "w", encoding="utf-8") as out:
        out.writelines(line for line, _ in zip(lines, range(2000), strict=False))
    return few


def status(name: str) -> int:
    """A line of the process's status, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(name)))


if __name__ == "__main__":
    main()
