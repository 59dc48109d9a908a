"""What a start is worth on a toy: inherited blocks against new weights, and a pruned model recovered by nll or by a teacher.

    python benchmarks/starts.py --scratch /tmp/starts --steps 60 --seeds 0 1
    python benchmarks/starts.py --scratch /tmp/starts --teacher runs/base --corpus runs/corpus --held runs/held --steps 240

Text is this project's own Python; the base is a Llama of 4 blocks. With ``--teacher`` a trained model is the base, its corpora
are given, and only what recovers a pruned model is compared. Every arm sees the same rows in the same order of its seed.
Prints one JSON line: nll of text that no arm saw, in nats a token, by steps after the start.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from tokensieve.pipeline import init, prepare, score, train
from tokensieve.pipeline.config.fields import from_fields
from tokensieve.pipeline.configs.init import InitConfig, PruneConfig
from tokensieve.pipeline.configs.prepare import PrepareConfig
from tokensieve.pipeline.configs.score import ScoreConfig
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
    out: Path,
    model: Any,
    corpora: tuple[str, str],
    given: argparse.Namespace,
    steps: int,
    seed: int,
    every: int,
    **fields: Any,
) -> dict[int, float]:
    """step -> nll of the held-out text, 0 included."""
    training = {
        "max_steps": steps, "per_device_train_batch_size": given.batch, "learning_rate": given.rate, "warmup_steps": 10,
        "use_cpu": True, "save_strategy": "no", "disable_tqdm": True, "eval_on_start": True, "eval_steps": every,
        "logging_steps": every,
    }  # fmt: skip
    config = TrainConfig(
        str(out), corpora[0], model, eval_sets={"held": corpora[1]}, training=training, seed=seed, **fields
    )
    train.run(config)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {line["step"]: round(line["eval_held_nll"], 4) for line in lines if "eval_held_nll" in line}


def recovery(given: argparse.Namespace) -> dict[str, Any]:
    """A pruned model recovered at equal tokens: by nll, by its teacher's distribution, and on some tokens of it."""
    scratch, there, every = given.scratch, (given.corpus, given.held), max(1, given.steps // 4)
    blocks = PruneConfig(given.corpus, 64, layers=given.layers, intermediate_size=given.intermediate_size)
    pruned = str(init.run(InitConfig(str(scratch / "pruned"), given.teacher, prune=blocks)))
    whole = {"name": "distill", "teacher": given.teacher}
    arms: dict[str, dict[str, Any]] = {
        "nll": {"name": "clm"},
        "teacher": whole,
        "teacher on the fifth of highest entropy": {**whole, "of": {"name": "entropy_top", "ratio": 0.2}},
        "teacher on the .4 furthest behind a reference": {**whole, "ratio": 0.4},
    }
    found: dict[str, Any] = {name: [] for name in arms}
    for seed in given.seeds:
        for i, (name, objective) in enumerate(arms.items()):
            fields: dict[str, Any] = {"objective": objective}
            if "ratio" in objective:  # of the arm that was distilled on all tokens
                asked = {"ref_divergence": "divergence"}
                out = str(scratch / f"divergence-{seed}")
                distilled = str(scratch / f"recovery1-{seed}")
                score.run(ScoreConfig(out, given.corpus, distilled, teacher=given.teacher, columns=asked))
                fields["scores"] = [out]
            out = scratch / f"recovery{i}-{seed}"
            found[name].append(curve(out, pruned, there, given, given.steps, seed, every, **fields))
            print(json.dumps({name: found[name][-1]}), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--base", type=int, default=240, help="steps of the base")
    parser.add_argument("--steps", type=int, default=60, help="steps of each arm")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--teacher", help="a trained model, in place of a base made here")
    parser.add_argument("--corpus", help="with --teacher: what arms are trained on")
    parser.add_argument("--held", help="with --teacher: what they are judged by")
    parser.add_argument("--layers", type=int, default=3, help="with --teacher: what is left of it")
    parser.add_argument("--intermediate-size", type=int, default=176)
    parser.add_argument("--rate", type=float, default=RATE, help="largest learning rate")
    parser.add_argument("--batch", type=int, default=BATCH, help="rows of a step")
    given = parser.parse_args()
    started = time.process_time()
    found = recovery(given) if given.teacher else starts(given)
    print(json.dumps({**found, "processor_seconds": round(time.process_time() - started)}, indent=1))


def starts(given: argparse.Namespace) -> dict[str, Any]:
    """Inherited blocks against new ones, and a pruned model recovered from a base that is made here."""
    scratch = given.scratch
    there = corpora(scratch)
    every = max(1, given.steps // 3)
    found: dict[str, Any] = {"base": curve(scratch / "base", MODEL, there, given, given.base, 0, given.base)}
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
            found.setdefault(name, []).append(curve(out, model, there, given, given.steps, seed, every, **fields))
    return found


if __name__ == "__main__":
    main()
