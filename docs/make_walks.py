"""Prints the files that the walks of docs/design.md go through, in order: ``python docs/make_walks.py``. A minute.

A file is on a walk if a function of it is on the call stack when one of the walk's stops is reached, on the straight path: the
proof of a model, checks before a run and what is saved after it are left out. Of another tree: PYTHONPATH=THERE/src.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from tokensieve import cli

PACKAGE = Path(cli.__file__).parent
ASIDE = {
    "_prove",
    "prove",
    "before_training",
    "check_steps",
    "check_targets",
    "save_model",
    "training_texts",
    "_flops_spent",
    "_note",
}
MODEL = "{model_type: llama, hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 1}"
TRAINING = '{max_steps: 2, save_strategy: "no", logging_steps: 1, use_cpu: true, disable_tqdm: true}'

IDS_IN = ("row_document", "encode", "pack", "rows_table", "with_documents", "write")
IDS_OUT = ("_row", "collate", "shift_targets", "inputs", "_capture", "softmax.add", "weighted_sum")
SCORED = ("softmax.add", "_aligned", "stored", "write_score_shard")
KEPT = ("open_scores", "scores", "next_token", "known_stats", "weigh", "excess", "top_fraction", "weighted_sum")
FIELD = ("read_yaml_lines", "from_fields", "value", "located", "one_line", "_fail")
ROW = ("row_document", "one_line", "_fail")


def stack(frame: FrameType | None) -> list[tuple[str, str]]:
    """(file, function) of every frame of ours, outermost first."""
    found = []
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            found.append((str(path.relative_to(PACKAGE)), frame.f_code.co_name))
        frame = frame.f_back
    return found[::-1]


def walked(stops: Sequence[str], *words: Any, code: int = 0) -> dict[str, list[str]]:
    """file -> functions, in the order in which a command comes through them."""
    hits: list[list[tuple[str, str]]] = []

    def called(frame: FrameType, event: str, arg: Any) -> None:
        name, file = frame.f_code.co_name, frame.f_code.co_filename
        if event == "call" and file.startswith(str(PACKAGE)) and {name, f"{Path(file).stem}.{name}"} & {*stops}:
            hits.append(stack(frame))

    said = io.StringIO()
    threading.setprofile(called)
    sys.setprofile(called)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            ended = cli.main([str(w) for w in words])
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    assert ended == code, said.getvalue()
    files: dict[str, list[str]] = {}
    for found in hits:
        if not ASIDE & {name for _, name in found}:
            for file, name in found:
                names = files.setdefault(file, [])
                if name not in (*names, "<genexpr>", "<listcomp>", "<dictcomp>"):
                    names.append(name)
    return files


def told(title: str, *parts: dict[str, list[str]]) -> None:
    """One walk: its files, each once, and their number, the command line's own not counted."""
    print(f"{title}: {len({file for part in parts for file in part} - {'cli.py'})} files")
    for part in parts:
        for file, names in part.items():
            print(f"  {file:32} {', '.join(names)}")


def main(work: Path) -> None:
    text, config = work / "text.jsonl", work / "wrong.yaml"
    text.write_text("".join(json.dumps({"text": f"some words number {i} and {i * i}"}) + "\n" for i in range(60)))
    config.write_text("out: x\ncorpus: y\nmodel: z\nseed: abc\n")
    prepare = ("prepare", "--sources", f"[{{path: {text}}}]", "--vocab_size", 280, "--length", 16, "--workers", 1)
    train = ("train", "--corpus", work / "corpus", "--model", MODEL, "--training", TRAINING)
    rho1 = ("--scores", f"[{work / 'scores'}]", "--objective", "{name: rho1}")
    score = ("score", "--model", work / "clm", "--corpus", work / "corpus", "--device", "cpu")
    ids = walked(IDS_IN, *prepare, "--out", work / "corpus"), walked(IDS_OUT, *train, "--out", work / "clm")
    told("input_ids, from text to loss", *ids)
    kept = walked(SCORED, *score, "--out", work / "scores"), walked(KEPT, *train, *rho1, "--out", work / "rho1")
    told("ref_nll, from the reference to a kept token", *kept)
    told("a wrong field, from the file to the terminal", walked(FIELD, "train", "--config", config, code=2))
    with text.open("a") as f:
        f.write('{"text": 3}\n')
    told("a bad row, from the file to the terminal", walked(ROW, *prepare, "--out", work / "other", code=2))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
