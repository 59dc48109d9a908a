"""What a start is worth on a toy: inherited blocks against new weights, and a pruned model recovered by nll or by a teacher.

    python benchmarks/starts.py --scratch /tmp/starts --steps 60 --seeds 0 1

Text is this project's own Python; the base is a Llama of 4 blocks. Every arm sees the same rows in the same order of its seed.
Prints one JSON line: nll of text that no arm saw, in nats a token, by steps after the start.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from tokensieve.pipeline import init, prepare, train
from tokensieve.pipeline.config.fields import from_fields
from tokensieve.pipeline.configs.init import InitConfig, PruneConfig
from tokensieve.pipeline.configs.prepare import PrepareConfig
from tokensieve.pipeline.configs.train import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
MODEL = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
VOCAB, LENGTH, BATCH, RATE = 1024, 128, 16, 3e-3


def corpora(scratch: Path) -> tuple[str, str]:
    train_on = {"path": str(ROOT / "src" / "tokensieve" / "**" / "*.py"), "format": "text"}
    held_out = {"path": str(ROOT / "tests" / "core" / "*.py"), "format": "text"}
    common = {"length": LENGTH, "workers": 1}
    made = [
        {"out": str(scratch / "corpus"), "sources": [train_on], "vocab_size": VOCAB, **common},
        {"out": str(scratch / "held"), "sources": [held_out], "tokenizer": str(scratch / "corpus"), **common},
    ]
    for fields in made:
        prepare.run(from_fields(PrepareConfig, fields))
    return made[0]["out"], made[1]["out"]


def curve(
    out: Path, model: Any, corpora: tuple[str, str], steps: int, seed: int, every: int, **fields: Any
) -> dict[int, float]:
    """step -> nll of the held-out text, 0 included."""
    training = {
        "max_steps": steps, "per_device_train_batch_size": BATCH, "learning_rate": RATE, "warmup_steps": 10, "use_cpu": True,
        "save_strategy": "no", "disable_tqdm": True, "eval_on_start": True, "eval_steps": every, "logging_steps": every,
    }  # fmt: skip
    config = TrainConfig(
        str(out), corpora[0], model, eval_sets={"held": corpora[1]}, training=training, seed=seed, **fields
    )
    train.run(config)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {line["step"]: round(line["eval_held_nll"], 4) for line in lines if "eval_held_nll" in line}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--base", type=int, default=240, help="steps of the base")
    parser.add_argument("--steps", type=int, default=60, help="steps of each arm")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    given = parser.parse_args()
    scratch, started = given.scratch, time.process_time()
    there = corpora(scratch)
    every = max(1, given.steps // 3)
    found: dict[str, Any] = {"base": curve(scratch / "base", MODEL, there, given.base, 0, given.base)}
    base = str(scratch / "base")
    half = str(init.run(InitConfig(str(scratch / "half"), base, layers=2)))
    pruned = str(
        init.run(
            InitConfig(str(scratch / "pruned"), base, prune=PruneConfig(there[0], 64, layers=3, intermediate_size=88))
        )
    )
    teacher = {"objective": {"name": "distill", "teacher": base}}
    part = {"objective": {"name": "distill", "teacher": base, "of": {"name": "entropy_top", "ratio": 0.5}}}
    arms: dict[str, tuple[Any, dict[str, Any]]] = {
        "first two blocks": (half, {}),
        "two new blocks": ({**MODEL, "num_hidden_layers": 2}, {}),
        "pruned, nll": (pruned, {}),
        "pruned, teacher": (pruned, teacher),
        "pruned, teacher on the half of highest entropy": (pruned, part),
    }
    for seed in given.seeds:
        for i, (name, (model, fields)) in enumerate(arms.items()):
            out = scratch / f"arm{i}-{seed}"
            found.setdefault(name, []).append(curve(out, model, there, given.steps, seed, every, **fields))
    print(json.dumps({**found, "processor_seconds": round(time.process_time() - started)}, indent=1))


if __name__ == "__main__":
    main()
