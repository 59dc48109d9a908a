"""Text by the gigabyte through `prepare`, `score` and `train`: memory of all processes together, and whether it grows.

    python benchmarks/scale.py --data FOLDER --grow 0.25 0.5 1 --save    everything, of a folder's corpus.jsonl.gz
    python benchmarks/scale.py --data FOLDER --grow 1 --again 20         20 MB read again and again: no more text is encoded,
                                                                         its rows are written, and scores drawn
    python benchmarks/scale.py --data FOLDER --bare 8 --rounds 5         speed alone: prepare against a bare tokenizer
    python benchmarks/scale.py --data FOLDER --grow 1 --scratch FOLDER   the same command again goes on where it was stopped

Text is the corpus again and again, each time with its paragraphs in another order (seeded) and under other ids, in files of 64
MB; without --data 20 MB of made-up words. Commands are those of a user, two workers and two ranks. Four times a second the
memory of a command and of all that it started is added up: RSS, which has a page that two processes map twice, and what of it
is their own (RssAnon); the rest is files mapped into memory, which the system takes back when it wants to. Seconds are
processor time of all of them. The model is tiny: what grows with the text is looked for, not what a model costs. How a verb's
memory grows while it works is read off as well: the most until a quarter and a half of the bytes that it writes were there (of
prepare, parts and then rows: until half and all of the text was encoded).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np
from filter import corpus_texts
from measure import ratios, report, spread
from tokenizers import Tokenizer

from tokensieve.data.corpus import open_corpus
from tokensieve.data.read.source import SourceConfig
from tokensieve.pipeline import prepare
from tokensieve.pipeline.configs.prepare import PrepareConfig

FILE_BYTES = 64_000_000
PARTS = {"quarter": 0.25, "half": 0.5}
MODEL = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None, help="a folder with corpus.jsonl.gz")
    parser.add_argument("--grow", type=float, nargs="*", default=[], help="GB of text")
    parser.add_argument("--again", type=float, default=0, help="MB of text that is read again and again; 0: none is")
    parser.add_argument(
        "--bare", type=float, default=8, help="MB of text of the rounds against a bare tokenizer; 0: none"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vocab_size", type=int, default=1024)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=0, help="of train; 0: through the whole corpus once")
    parser.add_argument("--stages", nargs="*", default=["prepare", "score", "train"])
    parser.add_argument(
        "--scratch",
        type=Path,
        default=None,
        help="where text and folders are written, and stay for the same command again",
    )
    parser.add_argument("--name", default="scale")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/NAME-<date>-<device>.{md,json}")
    args = parser.parse_args()
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with contextlib.ExitStack() as ended:
        folder = args.scratch or Path(ended.enter_context(tempfile.TemporaryDirectory()))
        texts = corpus_texts(args.data)
        small = begin(folder, texts, args)
        speed, rounds = against_bare(folder, texts, small, args) if args.bare else ([], {})
        grown = list[dict[str, Any]]()
        with contextlib.suppress(KeyboardInterrupt):  # what was measured until then is told
            for size in args.grow:
                for found in stages(folder, texts, small, size, args):
                    grown.append(found)
    rows = [
        {
            "text, GB": f"{g['gigabytes']:g}",
            "tokens, M": f"{g['tokens'] / 1e6:.0f}",
            "verb": g["verb"],
            "peak RSS, MB": f"{g['rss'] / 1e6:.0f}",
            "its own, MB": f"{g['anon'] / 1e6:.0f}",
            "at a quarter, half": "" if g["verb"] == "train" else f"{g['quarter'] / 1e6:.0f}, {g['half'] / 1e6:.0f}",
            "seconds": f"{g['seconds']:.0f}",
            "MB/s": "" if g["verb"] == "train" and args.steps else f"{g['gigabytes'] * 1000 / g['seconds']:.2f}",
        }
        for g in grown
    ]
    again = f" {args.again:g} MB of it are read again and again, scores are drawn." if args.again else ""
    steps = f" train: {args.steps} steps of 16 rows, drawn from all." if args.steps else ""
    about = (
        f"Vocabulary {args.vocab_size}, rows of {args.length}, a model of one block of 16 channels, rho1; processor seconds "
        f"and peak memory of all processes of a verb together.{again}{steps}"
    )
    report(args.name, "Memory by the size of the text", about, [speed, rows], [rounds, *grown], save=args.save)


# ---- text ----


def copies(texts: list[str], size: int) -> Iterator[str]:
    """Rows of JSON with ``size`` bytes of text: the texts again and again, from the second time on in another order inside."""
    written = copy = 0
    while True:
        draw = random.Random(copy)
        for i, text in enumerate(texts):
            parts = text.split("\n\n")
            if copy:
                draw.shuffle(parts)
            made = "\n\n".join([*parts, f"copy {copy}"] if copy else parts)
            yield json.dumps({"id": f"{copy}-{i}", "text": made}, ensure_ascii=False) + "\n"
            written += len(made.encode())
            if written >= size:
                return
        copy += 1


def write_text(texts: list[str], folder: Path, size: int) -> Path:
    """Files of rows; a folder that is there is whole, and stays."""
    if folder.exists():
        return folder
    made = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    rows = copies(texts, size)
    for number in count():
        filled = 0
        with open(made / f"{number:04d}.jsonl", "w", encoding="utf-8") as out:
            for row in rows:
                filled += out.write(row)
                if filled >= FILE_BYTES:
                    break
        if filled < FILE_BYTES:
            break
    made.rename(folder)
    return folder


def begin(folder: Path, texts: list[str], args: Any) -> Path:
    """A corpus of 1 MB, whose tokenizer the others take, and the model that scores."""
    text, small = write_text(texts, folder / "small text", 1_000_000), folder / "small"
    sources = [SourceConfig(str(text))]
    prepare.run(PrepareConfig(str(small), sources, vocab_size=args.vocab_size, length=args.length, workers=1), False)
    training = {"max_steps": 2, "per_device_train_batch_size": 8}
    if not args.again:
        model = {**MODEL, "max_position_embeddings": args.length}
        watched("train", {"out": folder / "reference", "corpus": small, "model": model, "training": training})
    return small


# ---- speed ----


def against_bare(folder: Path, texts: list[str], small: Path, args: Any) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """Processor seconds of ``prepare`` in one process and of ``encode_batch_fast`` on the same text, in turns."""
    text = write_text(texts, folder / "bare", int(args.bare * 1e6))
    plain = [json.loads(row)["text"] for row in copies(texts, int(args.bare * 1e6))]
    tokenizer = Tokenizer.from_file(str(small / "tokenizer" / "tokenizer.json"))
    config = PrepareConfig(
        str(folder / "bare out"), [SourceConfig(str(text))], tokenizer=str(small), length=args.length, workers=1
    )
    seconds: dict[str, list[float]] = {"bare": [], "prepare": []}
    for number in range(args.rounds + 1):
        for name in ("bare", "prepare") if number % 2 else ("prepare", "bare"):
            shutil.rmtree(config.out, ignore_errors=True)
            start = time.process_time()
            tokenizer.encode_batch_fast(plain) if name == "bare" else prepare.run(config, progress=False)
            if number:
                seconds[name].append(time.process_time() - start)
    share = ratios(seconds, "bare", "prepare")
    print(f"prepare / bare: {spread(share)}", flush=True)
    row = {name: spread([args.bare / s for s in found]) for name, found in seconds.items()}
    return [{"MB/s, bare tokenizer": row["bare"], "MB/s, prepare": row["prepare"], "share": spread(share)}], seconds


# ---- growth ----


def stages(folder: Path, texts: list[str], small: Path, size: float, args: Any) -> Iterator[dict[str, Any]]:
    """What each verb took of so many GB of text."""
    corpus, scores, run, text = (folder / f"{what} {size:g}" for what in ("corpus", "scores", "run", "text"))
    told = {"gigabytes": size}
    if not corpus.exists() or not corpus.with_name(f"{corpus.name}.found.json").exists():
        write_text(texts, text, int((args.again / 1000 or size) * 1e9))
    source = {"path": str(text), **({"epochs": size * 1000 / args.again} if args.again else {})}
    found = watched(
        "prepare", {"out": corpus, "sources": [source], "tokenizer": small, "length": args.length, "workers": 2}
    )
    told["tokens"] = open_corpus(corpus).stats["tokens"]
    yield {**told, "verb": "prepare", **found}
    shutil.rmtree(text, ignore_errors=True)
    if "score" in args.stages:
        if args.again:
            found = watched("score", {"out": scores, "corpus": corpus, "from_file": drawn(folder, corpus)})
        else:
            found = watched("score", {"out": scores, "corpus": corpus, "model": folder / "reference"}, ranks=2)
        yield {**told, "verb": "score" if not args.again else "score --from", **found}
    if "train" in args.stages:
        training = {
            "per_device_train_batch_size": 16,
            "save_strategy": "no",
            "max_steps": args.steps or -1,
            "num_train_epochs": 1,
        }
        objective, model = {"name": "rho1", "ratio": 0.6}, {**MODEL, "max_position_embeddings": args.length}
        words = {"out": run, "corpus": corpus, "scores": [str(scores)], "model": model, "objective": objective}
        yield {**told, "verb": "train", **watched("train", {**words, "training": training})}
    if not args.scratch:
        for path in (corpus, scores, run):
            shutil.rmtree(path)


def drawn(folder: Path, corpus: Path) -> Path:
    """A number for each entry of a corpus's rows."""
    opened, path = open_corpus(corpus), folder / "drawn.npy"
    made = np.lib.format.open_memmap(path, "w+", np.float16, (opened.num_rows, opened.length))
    for start in range(0, len(made), 4096):
        made[start : start + 4096] = np.random.default_rng(start).random(made[start : start + 4096].shape, np.float32)
    made.flush()
    path.with_name("drawn.npy.json").write_text(json.dumps({"corpus_hash": opened.content_hash}))
    return path


# ---- a command, watched ----


def watched(verb: str, fields: dict[str, Any], ranks: int = 1) -> dict[str, Any]:
    """Run a verb; the most memory of its processes together, and their processor time. Once found, it is not run again."""
    out = Path(fields["out"])
    noted = out.with_name(f"{out.name}.found.json")
    if noted.is_file():
        return dict(json.loads(noted.read_text()))
    shutil.rmtree(out, ignore_errors=True)  # it was stopped: what it took until then nobody knows
    words = ["-m", "tokensieve", verb]
    for name, value in fields.items():
        words += [f"--{name}", json.dumps(value) if isinstance(value, (dict, list)) else str(value)]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    before, errors = resource.getrusage(resource.RUSAGE_CHILDREN), out.with_name(f"{out.name}.stderr")
    with open(errors, "wb") as said:
        child = subprocess.Popen(
            [sys.executable, *launcher, *words], start_new_session=True, stdout=subprocess.DEVNULL, stderr=said
        )
    samples = list[tuple[int, int, int]]()  # bytes in the folder, RSS, RssAnon
    while child.poll() is None:
        time.sleep(0.25)
        samples.append((written(out), *held(child.pid)))
    if child.returncode:
        raise SystemExit(f"{' '.join(words)}\n{errors.read_bytes()[-2000:].decode(errors='replace')}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    most = max(size for size, _, _ in samples)
    found = {
        "rss": max(rss for _, rss, _ in samples),
        "anon": peak(samples),
        **{name: peak(takewhile(lambda s, part=part: s[0] <= part * most, samples)) for name, part in PARTS.items()},
        "seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }
    noted.write_text(json.dumps(found))
    print(verb, out, found, flush=True)
    return found


def peak(samples: Iterable[tuple[int, int, int]]) -> int:
    return max((anon for _, _, anon in samples), default=0)


def written(folder: Path) -> int:
    """Bytes of what lies in a folder at the moment."""
    size = 0
    with contextlib.suppress(FileNotFoundError):  # a file was removed meanwhile
        for path in folder.rglob("*"):
            size += path.stat().st_size
    return size


def held(process: int) -> tuple[int, int]:
    """(RSS, RssAnon) of a process and all that it started, bytes. /proc is not searched: that took as long as a worker."""
    rss = anon = 0
    with contextlib.suppress(OSError, IndexError, ValueError):  # it has ended
        status = Path(f"/proc/{process}/status").read_text()
        told = dict(line.split(":", 1) for line in status.splitlines())
        rss, anon = (1024 * int(told.get(name, "0").split()[0]) for name in ("VmRSS", "RssAnon"))
        for thread in Path(f"/proc/{process}/task").iterdir():
            for child in (thread / "children").read_text().split():
                more = held(int(child))
                rss, anon = rss + more[0], anon + more[1]
    return rss, anon


if __name__ == "__main__":
    main()
