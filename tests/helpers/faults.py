"""A small experiment, processes to hurt while they work on it, and what an unhurt one leaves."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import corpora
import hurt
import torch
import warm
from processes import environment, start_ranks
from transformers.trainer_pt_utils import safe_globals

QUIET = {"TRANSFORMERS_VERBOSITY": "error"}
STEPS, SAVE, LOG = 14, 4, 3  # log lines and checkpoints fall on different steps
# Dropout: a resumed run must draw the masks of the run that it goes on from. Two steps of this make most of an epoch.
MODEL = (
    "{model_type: llama, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 1, num_attention_heads: 2, "
    "num_key_value_heads: 1, max_position_embeddings: 64, initializer_range: 0.3, attention_dropout: 0.2}"
)


@dataclass
class Result:
    code: int
    log: str

    @property
    def error(self) -> str:
        """The last line of stderr."""
        return self.log.strip().split("\n")[-1].split("\r")[-1]

    @property
    def told(self) -> list[str]:
        """What was said beside progress bars."""
        lines = [line.split("\r")[-1] for line in self.log.split("\n")]
        return [line for line in lines if line.startswith("tokensieve")]


class Zygote:
    """``zygote(argv, kill=...)`` runs a command in a fork of the warm process; see hurt.py for what can be done to it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.number = folder, 0

    def __call__(self, *argv: object, **faults: Any) -> Result:
        self.log = self._next_log()
        with open(self.log, "wb") as log:
            command = [warm.python(), *self._command(argv, self.log, faults)]
            code = subprocess.run(command, env=environment(**QUIET), stdout=log, stderr=log, check=False).returncode
        return Result(code, self.log.read_text(errors="replace"))

    def ranks(self, *argv: object, size: int, signals: dict[str, list[list[int]]]) -> list[Result]:
        """The same command as ranks 0 .. size - 1, with what torchrun sets and the signals of each rank."""
        logs = [self._next_log() for _ in range(size)]
        commands = [self._command(argv, log, {"signals": signals.get(str(rank))}) for rank, log in enumerate(logs)]
        codes = [rank.wait() for rank in start_ranks(commands, logs, **QUIET)]
        return [Result(code, log.read_text(errors="replace")) for code, log in zip(codes, logs, strict=True)]

    def events(self, *argv: object, folder: Path) -> int:
        """How often an unhurt command writes below ``folder``; it must succeed."""
        done = self(*argv, kill={"folder": str(folder), "at": 0, "delay": 0})
        assert done.code == 0, done.log
        return int(Path(f"{self.log}.events").read_text())

    def _next_log(self) -> Path:
        self.number += 1
        return self.folder / f"{self.number}.log"

    def _command(self, argv: Sequence[object], log: Path, faults: dict[str, Any]) -> list[str]:
        return [hurt.__file__, json.dumps({"log": str(log), **faults}), *map(str, argv)]


@dataclass(frozen=True)
class Bench:
    """Folders to train and score on."""

    corpus: Path
    model: Path
    scores: Path

    def train(self, out: Path, **fields: object) -> list[str]:
        given: dict[str, object] = {
            "out": out,
            "corpus": self.corpus,
            "model": MODEL,
            "scores": self.scores,
            "objective": "{name: rho1, ratio: 0.5, scope: step}",
            "token_log_every": 5,
            "training.max_steps": STEPS,
            "training.save_steps": SAVE,
            "training.logging_steps": LOG,
            "training.per_device_train_batch_size": 2,
            "training.gradient_accumulation_steps": 2,
            "training.learning_rate": 0.003,
            **fields,
        }
        return ["train", *(str(word) for name, value in given.items() for word in (f"--{name}", value))]

    def score(self, out: Path) -> list[str]:
        return ["score", "--out", str(out), "--model", str(self.model), "--corpus", str(self.corpus)]


def make_bench(root: Path) -> Bench:
    from tokensieve.pipeline import score

    text = corpora.write_text(root / "text", num_files=12)
    corpus = corpora.corpus(root / "corpus", text)
    model = corpora.model_folder(root / "model")
    score.run(score.ScoreConfig(out=str(root / "scores"), model=str(model), corpus=str(corpus), device="cpu"))
    return Bench(corpus, model, root / "scores")


def outcome(run: Path, *, checkpoint: int | None = STEPS) -> dict[str, Any]:
    """What must not depend on faults: hash of weights, logs and scores, and of every number in the last checkpoint."""
    names = ["tokens.jsonl", "metrics.jsonl", "model/model.safetensors", "model/config.json"]
    files = [run / n for n in names if (run / n).exists()] + sorted(run.glob("tokens/*")) + sorted(run.glob("*.arrow"))
    found: dict[str, Any] = {str(p.relative_to(run)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    last = run / f"checkpoint-{checkpoint}"
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        if (last / name).exists():
            with safe_globals():
                found[name] = plain(torch.load(last / name, weights_only=True))
    return found


def plain(value: Any) -> Any:
    """Tensors and arrays as bytes, so that == compares every bit."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value.numpy().tobytes() if isinstance(value, torch.Tensor) else getattr(value, "tobytes", lambda: value)()


Spoil = Callable[[Path], None]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def delete(path: Path) -> None:
    path.unlink()


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def half_write(path: Path) -> None:
    """As a kill would leave it that came before the manifest: half of the file, and no manifest."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (path.parent / "manifest.json").unlink(missing_ok=True)


DAMAGES: dict[str, Spoil] = {
    "truncated": truncate,
    "deleted": delete,
    "bit flipped": flip_bit,
    "half-written": half_write,
}
