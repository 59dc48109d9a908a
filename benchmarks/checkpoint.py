"""What a sealed checkpoint costs over one that is only made durable.

    python benchmarks/checkpoint.py --parameters 25 --rounds 7

A Llama of so many million parameters in float32 with AdamW's moments, saved by the trainer itself, in alternation:

    plain     the Trainer's files, as it writes them
    durable   the same, then fsync of every file
    sealed    ours: fsync, xxh3-128 of every file, manifest, beside the training that goes on

``blocked`` is how long training stands still, ``done`` when all is on the disk. Medians over rounds in seconds, to a folder
that is emptied each time; the median of the quotients of each round.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from tokensieve.runs.files import sync
from tokensieve.training import guarded
from tokensieve.training.trainer import SelectiveTrainer


def make_trainer(folder: Path, millions: int) -> Any:
    """A trainer one step into a run: there are moments to save."""
    hidden = 512
    layers = max(1, round(millions * 1e6 / (hidden * hidden * 12)))
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
    )
    args = TrainingArguments(
        str(folder),
        max_steps=1,
        per_device_train_batch_size=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    rows = Dataset.from_dict({"input_ids": [list(range(16))] * 4})
    trainer = SelectiveTrainer(LlamaForCausalLM(config), args, train_dataset=rows)
    trainer.train()
    return trainer


def durable(checkpoint: Path, *_: Any, **__: Any) -> None:
    for path in checkpoint.rglob("*"):
        sync(path)
    sync(checkpoint)


WAYS: dict[str, Callable[..., None]] = {"plain": lambda *_, **__: None, "durable": durable, "sealed": guarded.seal}
BLOCKED, DONE = 0, 1


def seconds(trainer: Any, folder: Path, way: str) -> tuple[float, float]:
    """(until training goes on, until all is written)."""
    for old in folder.glob("checkpoint-*"):
        shutil.rmtree(old)
    os.sync()
    guarded.seal = WAYS[way]
    started = time.perf_counter()
    trainer._save_checkpoint(trainer.model, None)
    blocked = time.perf_counter() - started
    trainer.finish_seal()
    done = time.perf_counter() - started
    return (done if way == "durable" else blocked), done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=25, help="millions")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", help="where; a new folder below it is used and removed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="checkpoint-cost-") as name:
        folder = Path(name)
        trainer = make_trainer(folder, options.parameters)
        times: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        for _ in range(options.rounds + 1):
            for way in WAYS:
                times[way].append(seconds(trainer, folder, way))
        megabytes = sum(p.stat().st_size for p in folder.glob("checkpoint-*/*")) / 1e6
    times = {way: found[1:] for way, found in times.items()}  # the first round warms up
    for way, found in times.items():
        blocked, done = (statistics.median(t[i] for t in found) for i in (BLOCKED, DONE))
        print(f"{way:8} blocked {blocked:6.3f} s, done {done:6.3f} s")
    print(f"{megabytes:.0f} MB")
    for one, other, what in (("sealed", "plain", BLOCKED), ("sealed", "durable", BLOCKED), ("sealed", "durable", DONE)):
        pairs = zip(times[one], times[other], strict=True)
        share = statistics.median(a[what] / b[what] - 1 for a, b in pairs)
        print(f"{one} over {other}, {'blocked' if what == BLOCKED else 'done'}: {share:+.1%}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {sys.platform}")


if __name__ == "__main__":
    main()
