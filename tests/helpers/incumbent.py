"""The plain Trainer of transformers under the same faults, used as its documentation says; what it came to, in words.

main([out, options])    options, JSON: nan_at, data_seed, jit, signal: [step, number]; resumes if there is a checkpoint
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import faults
import tiny

STEPS = faults.STEPS


def main(argv: list[str]) -> int:
    """Train in this process. Raises what the Trainer raises."""
    from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

    out, options = argv[0], json.loads(argv[1])

    class Callback(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if options.get("signal", [0])[0] == state.global_step:
                os.kill(os.getpid(), options["signal"][1])
                time.sleep(3.3)  # it waits three seconds before it believes a SIGTERM

    class Broken(Trainer):  # type: ignore[misc]
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            return loss * float("nan") if self.state.global_step + 1 == options.get("nan_at") else loss

    args = TrainingArguments(
        out,
        max_steps=STEPS,
        save_steps=faults.SAVE,
        logging_steps=faults.LOG,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=0.003,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
        enable_jit_checkpoint=bool(options.get("jit")),
    )
    data = tiny.rows(31, seed=options.get("data_seed", 0)).remove_columns("ref_nll")
    model = tiny.llama(attention_dropout=0.2)
    trainer = Broken(model, args, train_dataset=data, data_collator=default_data_collator, callbacks=[Callback()])
    trainer.train(resume_from_checkpoint=True if list(Path(out).glob("checkpoint-*")) else None)
    if trainer.state.global_step >= STEPS:  # resumed from its last checkpoint in the middle of an epoch it goes on
        trainer.save_model(f"{out}/model")
        left_out = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos")
        log = [{k: v for k, v in line.items() if k not in left_out} for line in trainer.state.log_history]
        Path(out, "log.json").write_text(json.dumps(log))
    return 0


def outcome(out: Path) -> dict[str, Any]:
    """Weights, optimizer and log, to compare."""
    found = faults.outcome(out)
    found["log"] = (out / "log.json").read_text() if (out / "log.json").exists() else None
    return {k: v for k, v in found.items() if k in ("model/model.safetensors", "optimizer.pt", "log")}


class Incumbent:
    """Trials like those of trials.py. Each answers in one of these words: exact, or what went wrong."""

    def __init__(self, root: Path, zygote: faults.Zygote) -> None:
        self.root, self.zygote, self.number = root, zygote, 0
        self.events = self.zygote_events(self.folder())
        self.whole = outcome(self.last)

    def folder(self) -> Path:
        self.number += 1
        self.last = self.root / f"incumbent-{self.number}"
        return self.last

    def run(self, out: Path, *, faults: dict[str, Any] | None = None, **options: Any) -> faults.Result:
        return self.zygote(str(out), json.dumps(options), main="incumbent:main", **(faults or {}))

    def zygote_events(self, out: Path) -> int:
        done = self.run(out, faults={"kill": {"folder": str(out), "at": 0, "delay": 0}})
        assert done.code == 0, done.log
        return int(Path(f"{self.zygote.log}.events").read_text())

    def verdict(self, done: faults.Result, out: Path) -> str:
        if done.code:
            return f"crash: {done.error.split(':')[0].split('.')[-1]}"
        if any(int(p.name.split("-")[1]) > STEPS for p in out.glob("checkpoint-*")):
            return "steps past max_steps, silently"
        found = outcome(out)
        if found.get("model/model.safetensors") != self.whole["model/model.safetensors"]:
            return "other weights, silently"
        return "exact" if found == self.whole else "same weights, other log"

    def kill(self, seed: int) -> str:
        rng, out = random.Random(f"train {seed}"), self.folder()
        for _ in range(2 if seed % 3 == 0 else 1):
            kill = {
                "folder": str(out),
                "at": rng.randint(1, self.events),
                "delay": rng.choice([0.0, rng.uniform(0, 0.02)]),
            }
            self.run(out, faults={"kill": kill})
        return self.verdict(self.run(out), out)

    def interrupted(self) -> Path:
        """Checkpoints 4 and 8, as after a kill."""
        kept = self.root / "incumbent-interrupted"
        if not kept.exists():
            self.run(kept)
            for name in ("checkpoint-12", "checkpoint-14", "model"):
                shutil.rmtree(kept / name)
            (kept / "log.json").unlink()
        out = self.folder()
        shutil.copytree(kept, out)
        return out

    def files(self) -> list[str]:
        return sorted(p.name for p in (self.interrupted() / "checkpoint-8").iterdir())

    def damage(self, file: str, how: str) -> str:
        out = self.interrupted()
        faults.DAMAGES[how](out / "checkpoint-8" / file)
        return self.verdict(self.run(out), out)

    def stop(self, number: int) -> str:
        out = self.folder()
        stopped = self.run(out, jit=True, signal=[6, number])
        saved = "a checkpoint" if (out / "checkpoint-6").exists() else "no checkpoint"
        return f"exit code {stopped.code}, {saved}, then {self.verdict(self.run(out), out)}"

    def nan(self) -> str:
        from safetensors.torch import load_file

        out = self.folder()
        done = self.run(out, nan_at=6)
        broken = [
            p.parent.name
            for p in sorted(out.glob("checkpoint-*/model.safetensors"))
            if not all(bool(t.isfinite().all()) for t in load_file(p).values())
        ]
        return f"exit code {done.code}, NaN weights in {', '.join(broken) or 'no checkpoint'}"

    def other_data(self) -> str:
        out = self.interrupted()
        return self.verdict(self.run(out, data_seed=1), out)

    def disk_full(self, limit: int) -> str:
        out = self.folder()
        full = self.run(out, faults={"file_limit": limit})
        if not full.code:
            return "no file that large"
        return f"{self.verdict(full, out)}; with room again: {self.verdict(self.run(out), out)}"
