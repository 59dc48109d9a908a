"""The tutorials as their reader would do them: every shell block of a page, in order, in a folder with what the page asks for.

    make tutorials        all of them; `make test` has those that are not marked slow

A block is given to ``sh`` as it stands, but for what SMALLER says; ``tokensieve`` and ``torchrun`` there are forks of the warm
process. The reader's own files are made here, those that a page shows are taken from it.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import warm
from processes import environment

PAGES = Path(__file__).resolve().parents[2] / "docs"
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```", re.M | re.S)
# What is another word here: two steps instead of many, two processes instead of eight, and no bf16, as the pages say of a CPU.
SMALLER = {
    "own_data": {"max_steps: 1000": "max_steps: 2", ", bf16: true": ""},
    "sft": {", bf16: true": "", "length: 2048": "length: 128", "accumulation_steps: 8": "accumulation_steps: 2"},
    "quickstart": {"max_steps: 200": "max_steps: 2", ", bf16: true": ""},
    "many_gpus": {
        "  bf16: true\n": "  use_cpu: true\n",
        "--nproc-per-node 8": "--nproc-per-node 2",
        "--training.max_steps 20": "--training.max_steps 2",
        "max_steps: 1000": "max_steps: 2",
        "per_device_train_batch_size: 4": "per_device_train_batch_size: 1",
        "gradient_accumulation_steps: 4": "gradient_accumulation_steps: 2",
    },
}
# Commands that are not done: an installation, the demo (`make demo`), a recipe of gigabytes.
LEFT_OUT = ("pip install", "tokensieve demo", "runs/demo/", "--only corpus curated", "runs/rho1-math-1b/")
SENTENCE = "a rule keeps the tokens that are worth their loss and drops noise like 1729 or 271828 from lists of names"


def blocks(page: str, language: str) -> list[str]:
    return [text for kind, text in FENCE.findall((PAGES / f"{page}.md").read_text("utf-8")) if kind == language]


def commands(page: str) -> list[str]:
    """The commands of the shell blocks, a line each, with smaller numbers; each of SMALLER is used."""
    joined = "".join(blocks(page, "sh"))
    lines = [line for line in re.sub(r"\\\n\s*", " ", joined).splitlines() if line.strip()]
    kept = [line for line in lines if not any(part in line for part in LEFT_OUT)]
    if page == "many_gpus":  # the last of them goes on with what was left out
        assert kept.pop() == "tokensieve run rho1-math-1b"
    return [smaller(page, line) for line in kept]


def smaller(page: str, text: str) -> str:
    for shown, here in SMALLER[page].items():
        text = text.replace(shown, here)
    return text


# --- what a reader has ---------------------------------------------------------------------------------------------------


def texts(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(SENTENCE.split(), k=rng.randint(200, 400))) for _ in range(count)]


def write_rows(path: Path, rows: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8") as out:
        out.writelines(json.dumps({"text": text}) + "\n" for text in rows)


def write_model(folder: Path) -> None:
    """A Llama of two blocks and a tokenizer of its own with a chat template."""
    import tiny
    from byte_tokenizers import byte_level

    tokenizer = byte_level()
    turn = "{% generation %}{{ m['content'] }}<eos>{% endgeneration %}"
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {% if m['role'] == 'assistant' %}"
        + turn
        + "{% else %}{{ m['content'] }} {% endif %}{% endfor %}"
    )
    tokenizer.save_pretrained(folder)
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "max_position_embeddings": 2048}
    tiny.llama(vocab_size=len(tokenizer), **ends).save_pretrained(folder)


def own_data(here: Path) -> None:
    write_rows(here / "web" / "a.jsonl", texts(30, 0))
    write_rows(here / "good" / "b.jsonl", texts(12, 1))
    write_rows(here / "test.jsonl", texts(8, 2))


def quickstart(here: Path) -> None:
    write_rows(here / "web" / "a.jsonl.gz", texts(30, 0))
    write_model(here / "path" / "to" / "reference")


def sft(here: Path) -> None:
    [chat], [config] = blocks("sft", "json"), blocks("sft", "yaml prepare")
    (here / "chats.jsonl").write_text(chat * 16, "utf-8")
    (here / "sft.yaml").write_text(smaller("sft", config), "utf-8")


def many_gpus(here: Path) -> None:
    """The page's config, without its last word: sharding wants a GPU. Corpus and scores as another page makes them."""
    [config] = blocks("many_gpus", "yaml train")
    assert "  fsdp: true\n" in config
    (here / "train.yaml").write_text(smaller("many_gpus", config.replace("  fsdp: true\n", "")), "utf-8")
    (here / "score.yaml").write_text("{out: runs/x/scores, model: path/to/model, corpus: runs/x/corpus}\n", "utf-8")
    own_data(here)
    prepare = "tokensieve prepare --out runs/x/corpus --sources '[{path: web/}]' --tokenizer path/to/model --length 128"
    for line in (prepare, "tokensieve score --config score.yaml"):
        shell(line, here)


HAS: dict[str, Callable[[Path], None]] = {
    "own_data": own_data,
    "quickstart": quickstart,
    "sft": sft,
    "many_gpus": many_gpus,
}
# What is there at the end.
LEAVES = {
    "own_data": ("table/comparison.json", "dynamics/manifest.json"),
    "quickstart": ("rho1/tokens.jsonl",),
    "sft": ("dft/tokens.jsonl",),
    "many_gpus": ("rho1/tokens.jsonl",),
}


# --- and does ------------------------------------------------------------------------------------------------------------


def shell(line: str, here: Path) -> str:
    """A command of a page; what it wrote. AssertionError with the command where it fails."""
    programs = here / "bin"
    if not programs.exists():
        programs.mkdir()
        for name, module in (("tokensieve", "tokensieve"), ("torchrun", "torch.distributed.run")):
            (programs / name).write_text(f'#!/bin/sh\nexec "{warm.python()}" -m {module} "$@"\n')
            (programs / name).chmod(0o755)
    env = environment(PATH=f"{programs}{os.pathsep}{os.environ['PATH']}")
    done = subprocess.run(
        ["sh", "-c", line], cwd=here, env=env, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout + done.stderr


FAST = ("quickstart", "sft")


@pytest.mark.parametrize("page", [p if p in FAST else pytest.param(p, marks=pytest.mark.slow) for p in HAS])
def test_a_tutorial_works_as_it_is_written(page: str, tmp_path: Path) -> None:
    shown = commands(page)
    given = "".join([*blocks(page, "sh"), *blocks(page, "yaml train"), *blocks(page, "yaml prepare")])
    assert [s for s in SMALLER[page] if s not in given] == [], "a number that the page no longer shows"
    write_model(tmp_path / "path" / "to" / "model")
    HAS[page](tmp_path)
    for line in shown:
        shell(line, tmp_path)
    runs = tmp_path / "runs" / ("sft" if page == "sft" else "x")
    assert [name for name in LEAVES[page] if not (runs / name).is_file()] == []
