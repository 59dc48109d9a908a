"""One tiny experiment, made by the command line itself, that tests of verbs, faults and security look at and never change."""

from __future__ import annotations

import contextlib
import io
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import spawn
from pathlib import Path

import pytest
import warm

from tokensieve import cli

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "ran", "over", "seven", "small", "hills", "to", "see", "π", "é"]
# 0.02, the usual scale of new weights, gives nearly uniform predictions: sums over the wrong tokens would look right.
MODEL = (
    "{model_type: llama, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2, num_attention_heads: 2, "
    "num_key_value_heads: 1, max_position_embeddings: 64, initializer_range: 0.3}"
)
ONE_STEP = {
    "max_steps": 1,
    "per_device_train_batch_size": 4,
    "use_cpu": True,
    "save_strategy": "no",
    "disable_tqdm": True,
}
TRAINING = ("--training.max_steps", "4", "--training.save_steps", "2", "--training.logging_steps", "1")


@dataclass(frozen=True)
class Done:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The last line of stderr; progress bars stand before it."""
        return self.err.strip().split("\n")[-1].split("\r")[-1]


Command = Callable[..., Done]


def run_command(*arguments: object) -> Done:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main([str(a) for a in arguments])
    return Done(code, out.getvalue(), err.getvalue())


def write_text(path: Path, prefix: str, num_documents: int, seed: int) -> Path:
    rng = random.Random(seed)
    rows = [{"id": f"{prefix}{i}", "text": " ".join(rng.choices(WORDS, k=30))} for i in range(num_documents)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Tiny:
    """Folders of the experiment, and the model its base was made from."""

    root: Path
    corpus: Path
    target: Path
    maths: Path
    isolated: Path
    base: Path
    scores: Path
    clm: Path
    rho1: Path
    text: Path
    model: str = MODEL


@pytest.fixture(scope="session")
def tokensieve() -> Command:
    """``tokensieve("check", folder)`` runs the command line in this process."""
    return run_command


@pytest.fixture(scope="module")
def warm_pools() -> Iterator[None]:
    """Processes that pools of this one start are forks of the warm process, as are those of a command that is one itself."""
    before = spawn.get_executable()
    spawn.set_executable(warm.python())
    yield
    spawn.set_executable(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    root = tmp_path_factory.mktemp("tiny")
    t = Tiny(
        root, *(root / n for n in ("corpus", "target", "maths", "isolated", "base", "scores", "clm", "rho1", "text"))
    )
    t.text.mkdir()
    write_text(t.text / "corpus.jsonl", "c", 40, 0)
    write_text(t.text / "target.jsonl", "t", 12, 1)
    sums = [{"problem": f"what is {i} + {i}", "solution": f"it is {2 * i} é"} for i in range(20)]
    (t.text / "maths.jsonl").write_text("".join(json.dumps(r) + "\n" for r in sums))

    def make(verb: str, out: Path, *arguments: object) -> None:
        done = run_command(verb, "--out", out, *arguments)
        assert done.code == 0, done.err

    def prepare(out: Path, source: str, *arguments: object) -> None:
        make("prepare", out, "--sources", f"[{{path: {t.text}/{source}}}]", "--length", 32, *arguments)

    prepare(t.corpus, "corpus.jsonl", "--vocab_size", 290)
    prepare(t.target, "target.jsonl", "--tokenizer", t.corpus)
    prepare(t.maths, "maths.jsonl, problem: problem, solution: solution", "--tokenizer", t.corpus)
    prepare(t.isolated, "target.jsonl", "--tokenizer", t.corpus, "--isolate-documents")
    make("train", t.base, "--corpus", t.corpus, "--model", MODEL, *TRAINING)
    make("score", t.scores, "--model", t.base, "--corpus", t.corpus)
    start = ("--corpus", t.corpus, "--model", t.base, *TRAINING, "--token_log_every", 2, "--token_log_rows", 3)
    make("train", t.clm, *start)
    make("train", t.rho1, *start, "--scores", t.scores, "--objective.name", "rho1", "--objective.ratio", 0.6)
    return t
