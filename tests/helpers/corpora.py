"""Small corpora of real text, made by ``prepare``, and models that fit them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny

from tokensieve.data.read.source import SourceConfig
from tokensieve.pipeline import prepare

LENGTH, SHARD_ROWS = 32, 4
SENTENCE = "the token that is worth its loss is kept and every other one is dropped while noise stays noise and "
SENTENCE += "numbers like 1729 or 271828 come and go in lists of names and dates"


def write_text(folder: Path, num_files: int = 9, seed: int = 0) -> Path:
    """Text files of very different lengths."""
    import numpy as np

    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(num_files):
        words = rng.choice(SENTENCE.split(), size=int(rng.integers(3, 70)))
        (folder / f"{i}.txt").write_text(" ".join(words) + ".\n", encoding="utf-8")
    return folder


def corpus(out: Path, text: Path, **fields: Any) -> Path:
    """A corpus of rows of 32 tokens, 4 rows a shard."""
    given = {"vocab_size": 300, "length": LENGTH, "workers": 1, **fields}
    given.setdefault("shard_tokens", SHARD_ROWS * given["length"])
    config = prepare.PrepareConfig(out=str(out), sources=[SourceConfig(path=str(text / "*.txt"))], **given)
    return prepare.run(config, progress=False)


def model_folder(out: Path, seed: int = 0, **fields: Any) -> Path:
    """A tiny Llama with random weights, saved."""
    tiny.llama(seed=seed, vocab_size=300, **fields).save_pretrained(out)
    return out
