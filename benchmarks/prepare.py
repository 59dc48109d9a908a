"""What weights cost ``prepare``: the same text with rules and without, and conversations against their text, in turns.

    python benchmarks/prepare.py                     about two minutes
    python benchmarks/prepare.py --megabytes 16 --rounds 7 --save

Text is cut from the standard library's sources; a quarter of the pieces has a part between <think> and </think>. Everything of
`prepare` counts: reading, rules, encoding, packing, writing. One process and one thread, whose processor time is taken: others
may work on the machine. Speed is the time without weights over that with them: 1 is no cost, .5 twice the time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sysconfig
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from measure import ratios, report, spread
from tokenizers import AddedToken

from tokensieve.data.build.chat import Template
from tokensieve.data.read.source import SourceConfig
from tokensieve.data.tokenizer import load_tokenizer
from tokensieve.data.weight_rules import WeightRule
from tokensieve.pipeline import prepare
from tokensieve.pipeline.configs.prepare import PrepareConfig

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTROL = ("<|im_start|>", "<|im_end|>")
ONE = [WeightRule(0.5, regex=r"\d+")]
FOUR = [*ONE, WeightRule(0.8, tag="think"), WeightRule(2.0, regex=r"(?m)^def .*$"), WeightRule(0.9, source="text")]
ROLES = [WeightRule(0.1, role="user"), WeightRule(0.5, tag="think"), WeightRule(2.0, role="assistant", regex=r"\d+")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vocab_size", type=int, default=16000)
    parser.add_argument(
        "--save", action="store_true", help="write benchmarks/results/prepare-<date>-<device>.{md,json}"
    )
    args = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = make_tokenizer(folder, args.vocab_size)
        rows, records = [], []
        for size in (400, 4000):
            texts = pieces(size, int(args.megabytes * 1e6))
            write_inputs(folder, texts)
            calls = {
                "text": call(folder, tokenizer, "text.jsonl", []),
                "text, 1 rule": call(folder, tokenizer, "text.jsonl", ONE),
                "text, 4 rules": call(folder, tokenizer, "text.jsonl", FOUR),
                "chat as text": call(folder, tokenizer, "written.jsonl", []),
                "chat": call(folder, tokenizer, "chat.jsonl", []),
                "chat, 3 rules": call(folder, tokenizer, "chat.jsonl", ROLES),
            }
            seconds = in_turns(calls, args.rounds)
            for case in calls:
                base = "chat as text" if case.startswith("chat") else "text"
                speed = [1 / r for r in ratios(seconds, case, base)]
                megabytes = (folder / ("chat.jsonl" if "chat" in case else "text.jsonl")).stat().st_size / 1e6
                records.append({"size": size, "case": case, "seconds": seconds[case], "speed": speed})
                rate = spread([megabytes / s for s in seconds[case]])
                rows.append({"characters": f"{size:,}", "what": case, "MB/s": rate, "speed of without": spread(speed)})
    about = (
        f"{args.megabytes:g} MB of text in pieces, speed by processor time over that without weights, {args.rounds} rounds in "
        "turns, median (lowest-highest)."
    )
    report("prepare", "Weights in prepare", about, [rows], records, save=args.save)


def in_turns(calls: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """Processor seconds of each call in each round, after one that warms up; the order turns by one each round."""
    names, seconds = list(calls), {name: [] for name in calls}
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = time.process_time()
            calls[name]()
            if number:
                seconds[name].append(time.process_time() - start)
    return seconds


def make_tokenizer(folder: Path, vocab_size: int) -> Path:
    """Trained on the same sources, with control tokens and a chat template."""
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in pieces(4000, 1_000_000)))
    config = PrepareConfig(
        str(folder / "trained"), [SourceConfig(str(folder / "train.jsonl"))], vocab_size=vocab_size, workers=1
    )
    made = load_tokenizer(prepare.run(config, progress=False))
    made.add_tokens([AddedToken(t, special=True, normalized=False) for t in CONTROL])
    made.chat_template = CHATML
    made.save_pretrained(str(folder / "tokenizer"))
    return folder / "tokenizer"


def pieces(size: int, total: int) -> list[str]:
    """Pieces of the standard library's sources of ``size`` characters, every fourth with a part in tags."""
    found: list[str] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("**/*.py")):
        if "site-packages" in path.parts or len(found) * size >= total:
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        for start in range(0, len(text) - size, size):
            piece = text[start : start + size].strip() or "pass"
            half = len(piece) // 2
            found.append(f"<think>{piece[:half]}</think>{piece[half:]}" if len(found) % 4 == 0 else piece)
    return found


def write_inputs(folder: Path, texts: list[str]) -> None:
    """The pieces as rows; as conversations of four; and these as a template writes them."""
    template = Template(CHATML, {}, CONTROL)
    talks = [
        [
            {"role": role, "content": text}
            for role, text in zip(("user", "assistant") * 2, texts[i : i + 4], strict=True)
        ]
        for i in range(0, len(texts) - 3, 4)
    ]
    rows: dict[str, list[dict[str, Any]]] = {
        "text": [{"text": text, "source": "text"} for text in texts],
        "chat": [{"messages": talk} for talk in talks],
        "written": [{"text": template.render(talk, None)} for talk in talks],
    }
    for name, found in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")


def call(folder: Path, tokenizer: Path, name: str, rules: list[WeightRule]) -> Any:
    source = SourceConfig(str(folder / name), format="chat" if name == "chat.jsonl" else "jsonl")
    parses = name == "written.jsonl"
    config = PrepareConfig(
        str(folder / "out"),
        [source],
        tokenizer=str(tokenizer),
        workers=1,
        weights=rules,
        parse_special_tokens=parses,
    )
    return partial(once, config)


def once(config: PrepareConfig) -> None:
    shutil.rmtree(config.out, ignore_errors=True)
    prepare.run(config, progress=False)


if __name__ == "__main__":
    main()
