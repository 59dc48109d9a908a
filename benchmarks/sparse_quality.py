"""What a sparse backward costs in quality: exact against sparse at equal tokens, paired by seed, beside random and TokenTune.

    python benchmarks/sparse_quality.py --data data/math --out runs/sparse-quality --save

setting   students train on                                                  the reference trained on
maths     the noisy maths corpus                                             curated problems
planted   other curated problems, 3/8 of whose tokens were replaced by       the same
          uniformly drawn ones, in spans of eight

All students start from one base (clm on other text of the corpus) and see the same rows in the same order within a seed. Arms
at each ratio: rho1 exact and sparse, random exact, and random with ``strict``, which is TokenTune's setting; clm beside them.
The target is GSM8K's test, clean in both settings. The first seed's exact rho1 is probed along its training: gradients of the
loss of kept tokens, exact, through the reference gate and through the strict one, on rows that nobody trains on. Every cell
is a file in <out>; what is there is not done again.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from measure import report
from step import make_model
from torch import Tensor, nn

import tokensieve as ts
from tokensieve.analysis.comparison import over_seeds, plus_minus
from tokensieve.data.corpus import open_corpus
from tokensieve.data.scored import join_scores
from tokensieve.evaluation.ngram import NGram
from tokensieve.modeling.flops import token_flops
from tokensieve.modeling.sparse import SparseBackward, gated
from tokensieve.pipeline.recipe import run as recipe
from tokensieve.pipeline.recipe.load import RecipeConfig
from tokensieve.runs.files import read_json, write_json

VOCAB, LENGTH, ROWS = 512, 128, 4  # rows of a step
MODEL = {
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": LENGTH,
    "tie_word_embeddings": True,
    "vocab_size": VOCAB,
}
PLANTED, SPAN = 0.375, 8
PROBE_BATCHES, PROBES = 8, 4  # of ROWS rows; parts of the training


@dataclass(frozen=True)
class Arm:
    rule: str
    ratio: float = 1.0
    backward: str = "exact"
    strict: bool = False

    @property
    def name(self) -> str:
        words = [self.rule] if self.rule == "clm" else [self.rule, f"{self.ratio:g}", self.backward]
        return " ".join([*words, *["strict"] * self.strict])

    def objective(self, seed: int) -> Any:
        options: dict[str, Any] = {} if self.rule == "clm" else {"ratio": self.ratio}
        return ts.objective(self.rule, **options, **({"seed": seed} if self.rule == "random" else {}))


def arms(ratios: Sequence[float]) -> list[Arm]:
    made = [Arm("clm")]
    for ratio in ratios:
        made += [Arm("rho1", ratio), Arm("rho1", ratio, "sparse"), Arm("random", ratio)]
        made.append(Arm("random", ratio, "sparse", strict=True))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/math")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--settings", nargs="+", default=["maths", "planted"], choices=["maths", "planted"])
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.6, 0.3])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--base_steps", type=int, default=2500)
    parser.add_argument("--reference_steps", type=int, default=300)
    parser.add_argument("--steps", type=int, default=120, help="of a student, 512 tokens each")
    parser.add_argument("--learning_rate", type=float, default=3e-3, help="of base and reference")
    parser.add_argument("--student_learning_rate", type=float, default=1e-3)
    parser.add_argument("--tables_only", action="store_true", help="of the cells that are done")
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)
    study = Study(args)
    for controls in (False, True):  # what matters most first: whoever stops it has whole seeds of that
        for setting, seed in product(args.settings, args.seeds):
            for arm in arms(args.ratios):
                if controls == (arm.rule == "random") and not args.tables_only:
                    study.cell(setting, arm, seed)
    study.report()


class Study:
    """Text, base, reference and cells under ``out``, each made once."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.out = args, Path(args.out)
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "cells").mkdir(exist_ok=True)
        self.same_study()
        self.texts = prepared(args)
        self.target = self.texts["gsm8k"]
        self.base = self.trained("base", self.texts["base_text"], None, args.base_steps)
        self.reference = self.trained("reference", self.texts["curated"], self.base, args.reference_steps)
        noisy, planted = plant(self.texts["other_curated"], PLANTED, seed=0)
        ids = {"maths": self.texts["corpus"], "planted": noisy}
        self.planted = {"maths": np.zeros(ids["maths"].shape, bool), "planted": planted}
        self.ids = {name: ids[name] for name in args.settings}
        self.ref_nll = {name: nll_of(model_with(self.reference), rows) for name, rows in self.ids.items()}
        self.levels = {name: self.level(name) for name in self.ids}

    def same_study(self) -> None:
        """Cells of other steps are another study's."""
        path = self.out / "study.json"
        names = ("base_steps", "reference_steps", "steps", "learning_rate", "student_learning_rate")
        mine = {name: getattr(self.args, name) for name in names}
        if not path.exists():
            write_json(path, mine)
        elif read_json(path) != mine:
            raise SystemExit(f"{self.out} holds a study of {read_json(path)}, not of {mine}: give another --out")

    def trained(self, name: str, ids: np.ndarray, start: Any, steps: int) -> Any:
        path = self.out / f"{name}.pt"
        if not path.exists():
            model = model_with(start)
            train(model, ids, None, Arm("clm"), 0, steps, self.args.learning_rate)
            torch.save(model.state_dict(), path)
            print(name, mean_nll(model, self.target), flush=True)
        return torch.load(path)

    def level(self, setting: str) -> dict[str, float]:
        """Target nll of what no student is: base, reference, n-grams of the text that the students saw."""
        path = self.out / f"levels-{setting}.json"
        if not path.exists():
            seen = [*self.texts["base_text"][: self.args.base_steps * ROWS], *self.train_rows(setting)]
            found = {}
            for name, order in (("unigram", 1), ("trigram", 3)):
                ngram = NGram.fit(seen, VOCAB, order)
                found[name] = float(np.nanmean([ngram.nll(row) for row in self.target]))
            found |= {
                n: mean_nll(model_with(m), self.target) for n, m in (("base", self.base), ("reference", self.reference))
            }
            write_json(path, found)
            print(setting, found, flush=True)
        return dict(read_json(path))

    def train_rows(self, setting: str) -> np.ndarray:
        return self.ids[setting][: self.args.steps * ROWS]

    def cell(self, setting: str, arm: Arm, seed: int) -> dict[str, Any]:
        path = self.out / "cells" / f"{setting}-{arm.name.replace(' ', '-')}-{seed}.json"
        if path.exists():
            return dict(read_json(path))
        start, model = time.process_time(), model_with(self.base)
        probes: list[dict[str, Any]] = []
        probed = seed == self.args.seeds[0] and arm.rule == "rho1" and arm.backward == "exact"
        look = (lambda step: probes.append({"step": step, **self.probe(setting, model, arm.ratio)})) if probed else None
        count = self.args.steps * ROWS
        lr = self.args.student_learning_rate
        train(model, self.train_rows(setting), self.ref_nll[setting][:count], arm, seed, self.args.steps, lr, look)
        tokens = count * (LENGTH - 1)
        flops = token_flops(model, LENGTH, sparse=arm.backward == "sparse", strict=arm.strict)
        record = {
            "setting": setting,
            **asdict(arm),
            "arm": arm.name,
            "seed": seed,
            "nll": mean_nll(model, self.target),
            "tokens_seen": tokens,
            "flops_student": float(flops.train(tokens, arm.ratio * tokens)),
            "seconds": time.process_time() - start,
            "probes": probes,
        }
        write_json(path, record)
        print(f"{setting} {arm.name} seed {seed}: {record['nll']:.4f} in {record['seconds']:.0f} s", flush=True)
        return record

    def probe(self, setting: str, model: Any, ratio: float) -> dict[str, Any]:
        """Gradients of the model as it is now, on rows beyond those of the training."""
        copy = model_with({k: v.detach().clone() for k, v in model.state_dict().items()})
        rows = slice(-PROBE_BATCHES * ROWS, None)
        ids, ref, planted = (x[rows] for x in (self.ids[setting], self.ref_nll[setting], self.planted[setting]))
        nll = nll_of(copy, ids)
        groups = [slice(i, i + ROWS) for i in range(0, len(ids), ROWS)]
        keeps = [kept(nll[g], ref[g], ratio) for g in groups]
        share = float(
            np.concatenate([planted[g][:, 1:][k[:, :-1].numpy()] for g, k in zip(groups, keeps, strict=True)]).mean()
        )
        tensors = [torch.tensor(ids[g]) for g in groups]
        ways = {way: [gradients(copy, i, k, way) for i, k in zip(tensors, keeps, strict=True)] for way in GATES}
        return {
            "planted among kept": share,
            **{way: compared(ways["exact"], ways[way]) for way in ("sparse", "strict")},
        }

    def report(self) -> None:
        cells = [read_json(path) for path in sorted((self.out / "cells").glob("*.json"))]
        a = self.args
        size = sum(p.numel() for p in model_with(None).parameters())
        about = (
            f"Llama of {size:,} parameters, vocabulary {VOCAB}, {ROWS} rows of {LENGTH} tokens a step; "
            f"base {a.base_steps} steps, reference {a.reference_steps} more, students {a.steps} from the base; "
            f"learning rate {a.learning_rate:g}, students {a.student_learning_rate:g}; "
            f"seeds {', '.join(map(str, a.seeds))} (order of rows, random masks; one base). "
            "Target nll of GSM8K's test, nats a token; "
            "± is half of the 95 % t interval over seeds. Cosines: of a batch / of the sum over "
            f"{PROBE_BATCHES} batches (ratio of norms), with the exact gradient."
        )
        tables = [levels(self.levels, cells, a), differences(cells, a), cosines(cells)]
        records = {"levels": self.levels, "cells": cells}
        report("sparse-quality", "A sparse backward's quality", about, tables, records, save=a.save)


# --- text ---------------------------------------------------------------------------------------------------------------


def prepared(args: argparse.Namespace) -> dict[str, np.ndarray]:
    """name -> int64 [rows, LENGTH]: whole rows only, so that no row is padded."""
    problems = {"path": f"{args.data}/curated.jsonl.gz", "problem": "problem", "solution": "solution"}
    probe = PROBE_BATCHES * ROWS
    wanted = {
        "base_text": (args.base_steps * ROWS, {"path": f"{args.data}/corpus.jsonl.gz", "split": [0.0, 0.3]}),
        "curated": (args.reference_steps * ROWS, {**problems, "split": [0.0, 0.5]}),
        "corpus": (args.steps * ROWS + probe, {"path": f"{args.data}/corpus.jsonl.gz", "split": [0.3, 1.0]}),
        "other_curated": (args.steps * ROWS + probe, {**problems, "split": [0.5, 1.0]}),
        "gsm8k": (120, {"path": f"{args.data}/eval_gsm8k.jsonl.gz", "problem": "problem", "solution": "solution"}),
    }
    stages: dict[str, Any] = {}
    for name, (rows, source) in wanted.items():
        bounded = {**source, "max_bytes": 600 * rows}
        tokenizer = {"tokenizer": "@base_text"} if stages else {"vocab_size": VOCAB}
        stages[name] = {"verb": "prepare", **tokenizer, "length": LENGTH, "max_rows": rows + 1, "sources": [bounded]}
    path = args.out / "text.yaml"
    path.write_text(yaml.safe_dump({"name": "text", "threads": 1, "stages": stages}, sort_keys=False), encoding="utf-8")
    recipe.run(RecipeConfig(str(path), out=str(args.out / "text")))
    return {name: whole_rows(args.out / "text" / name, rows) for name, (rows, _) in wanted.items()}


def whole_rows(folder: Path, count: int) -> np.ndarray:
    table = join_scores(open_corpus(folder)).with_format("numpy")
    rows = table["input_ids"][:]
    if "labels" in table.column_names:  # where there is padding
        rows = [ids for ids, labels in zip(rows, table["labels"][:], strict=True) if (labels[1:] >= 0).all()]
    if len(rows) < count:
        raise SystemExit(f"{folder} has {len(rows)} whole rows and {count} are needed: fewer steps, or more text")
    return np.stack(rows[:count]).astype(np.int64)


def plant(ids: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids with spans of SPAN tokens drawn uniformly, where) [rows, LENGTH]; ``share`` of the spans of each row."""
    generator = np.random.default_rng(seed)
    spans = ids.shape[1] // SPAN
    drawn = generator.random((len(ids), spans)).argsort(1) < round(share * spans)
    where = np.repeat(drawn, SPAN, axis=1)
    return np.where(where, generator.integers(0, VOCAB, ids.shape), ids), where


# --- training and evaluation ----------------------------------------------------------------------------------------------


def model_with(state: Any) -> Any:
    model = make_model(MODEL, 0, "cpu")
    if state is not None:
        model.load_state_dict(state)
    return model


def train(
    model: Any,
    ids: np.ndarray,
    ref_nll: np.ndarray | None,
    arm: Arm,
    seed: int,
    steps: int,
    learning_rate: float,
    look: Callable[[int], None] | None = None,
    more: Mapping[str, list[Any]] | None = None,
) -> None:
    """One epoch, as recipes/math-tiny.yaml trains. ``look(step)`` before the first step and after each part of PROBES."""
    from datasets import Dataset
    from transformers import TrainerCallback, TrainingArguments

    from tokensieve.training.trainer import SelectiveTrainer

    columns = {"input_ids": list(ids), "labels": list(ids), **(more or {})}
    columns |= {} if ref_nll is None else {"ref_nll": list(ref_nll)}

    class Look(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if look is not None and state.global_step % (steps // PROBES) == 0:
                look(state.global_step)

    if look is not None:
        look(0)
    with tempfile.TemporaryDirectory() as folder:
        options = TrainingArguments(
            folder,
            per_device_train_batch_size=ROWS,
            max_steps=steps,
            learning_rate=learning_rate,
            warmup_steps=0.05,
            weight_decay=0.1,
            adam_beta2=0.95,
            seed=seed,
            report_to="none",
            save_strategy="no",
            logging_steps=10**6,
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        rule, backward = arm.objective(seed), {"backward": arm.backward, "strict": arm.strict}
        trainer = SelectiveTrainer(model, options, train_dataset=Dataset.from_dict(columns), objective=rule, **backward)
        trainer.add_callback(Look())
        trainer.train()
        trainer.seam.close()
    model.zero_grad(set_to_none=True)


@torch.no_grad()
def nll_of(model: Any, ids: np.ndarray) -> np.ndarray:
    """float32 [rows, LENGTH], nats; NaN at a row's first token."""
    model.eval()
    found = np.full(ids.shape, np.nan, np.float32)
    for i in range(0, len(ids), 16):
        found[i : i + 16, 1:] = token_nll(model, torch.tensor(ids[i : i + 16])).numpy()
    model.train()
    return found


def token_nll(model: Any, ids_BT: Tensor) -> Tensor:
    """[B, T - 1]"""
    logits = model(input_ids=ids_BT, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.transpose(1, 2), ids_BT[:, 1:], reduction="none")


def mean_nll(model: Any, ids: np.ndarray) -> float:
    return float(np.nanmean(nll_of(model, ids)))


# --- the two gradients ------------------------------------------------------------------------------------------------------


def kept(nll_BT: np.ndarray, ref_BT: np.ndarray, ratio: float) -> Tensor:
    """What rho1 keeps, at the predicting position. bool [B, T]"""
    excess_BT = torch.tensor(nll_BT - ref_BT)[:, 1:]
    keep = ts.top_fraction(excess_BT, torch.ones_like(excess_BT, dtype=torch.bool), ratio=ratio, scope="batch")
    return F.pad(keep, (0, 1))


@contextmanager
def strictly_gated(model: nn.Module, keep_BT: Tensor) -> Iterator[None]:
    sparse = SparseBackward(model, strict=True)
    try:
        with gated(sparse.blocks, keep_BT, sparse.switch, strict=True):
            yield
    finally:
        sparse.close()


@contextmanager
def exactly(model: Any, keep_BT: Tensor) -> Iterator[None]:
    yield


GATES: dict[str, Callable[[Any, Tensor], Any]] = {
    "exact": exactly,
    "sparse": lambda model, keep_BT: gated(model.model.layers, keep_BT),
    "strict": strictly_gated,
}


def gradients(model: Any, ids_BT: Tensor, keep_BT: Tensor, way: str) -> dict[str, Tensor]:
    """part -> the gradient of the mean nll of kept tokens, flat: each block, and the (tied) embedding."""
    with GATES[way](model, keep_BT):
        token_nll(model, ids_BT)[keep_BT[:, :-1]].mean().backward()
    parts = {f"block {i + 1}": list(block.parameters()) for i, block in enumerate(model.model.layers)}
    parts["embedding"] = [model.model.embed_tokens.weight]
    found = {name: torch.cat([p.grad.flatten().double() for p in ps]) for name, ps in parts.items()}
    found["all"] = torch.cat(list(found.values()))
    model.zero_grad(set_to_none=True)
    return found


def compared(exact: list[dict[str, Tensor]], other: list[dict[str, Tensor]]) -> dict[str, dict[str, float]]:
    """part -> cosine of a batch (mean over batches), cosine and ratio of norms of the gradients summed over batches.

    Where the other gradient were unbiased its difference would average out, and the summed cosine go to 1.
    """
    found = {}
    for part in exact[0]:
        sums = [torch.stack([g[part] for g in grads]).sum(0) for grads in (exact, other)]
        found[part] = {
            "batch": float(np.mean([cosine(a[part], b[part]) for a, b in zip(exact, other, strict=True)])),
            "sum": cosine(*sums),
            "norm": float(sums[1].norm() / sums[0].norm()),
        }
    return found


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


# --- tables -------------------------------------------------------------------------------------------------------------------


def by_seed(cells: list[dict[str, Any]], setting: str, arm: str) -> dict[int, float]:
    """seed -> target nll, of the seeds that are done."""
    return {c["seed"]: c["nll"] for c in cells if (c["setting"], c["arm"]) == (setting, arm)}


def levels(
    outside: dict[str, dict[str, float]], cells: list[dict[str, Any]], args: argparse.Namespace
) -> list[dict[str, str]]:
    rows = []
    for name in next(iter(outside.values())):
        rows.append({"model": name, "student TFLOP": "", **{s: f"{outside[s][name]:.4f}" for s in outside}})
    for arm in (a.name for a in arms(args.ratios)):
        flops = next((f"{c['flops_student'] / 1e12:.3f}" for c in cells if c["arm"] == arm), "")
        shown = {s: plus_minus(over_seeds(by_seed(cells, s, arm).values()), ".4f") for s in outside}
        rows.append({"model": arm, "student TFLOP": flops, **shown})
    return rows


def differences(cells: list[dict[str, Any]], args: argparse.Namespace) -> list[dict[str, str]]:
    """Paired by seed, over the seeds that have both."""
    rows = []
    for setting in args.settings:
        for r in (f"{ratio:g}" for ratio in args.ratios):
            exact, sparse, strict = f"rho1 {r} exact", f"rho1 {r} sparse", f"random {r} sparse strict"
            pairs = [(sparse, exact), (strict, f"random {r} exact"), (sparse, strict), (exact, "clm"), (sparse, "clm")]
            for one, other in pairs:
                a, b = by_seed(cells, setting, one), by_seed(cells, setting, other)
                gaps = [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]
                shown = {"by seed": ", ".join(f"{v:+.4f}" for v in gaps), "mean": plus_minus(over_seeds(gaps), "+.4f")}
                rows.append({"setting": setting, "difference": f"{one} - {other}", **shown})
    return rows


def cosines(cells: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Cosine with the exact gradient: of a batch / of the sum over batches (ratio of norms)."""
    rows = []
    for cell in (c for c in cells if c["probes"]):
        for probe in cell["probes"]:
            for way in ("sparse", "strict"):
                row = {
                    "setting": cell["setting"],
                    "ratio": f"{cell['ratio']:g}",
                    "step": str(probe["step"]),
                    "gate": way,
                }
                for part, value in probe[way].items():
                    row[part] = f"{value['batch']:.3f} / {value['sum']:.3f} ({value['norm']:.2f})"
                rows.append({**row, "planted among kept": f"{probe['planted among kept']:.0%}"})
    return rows


if __name__ == "__main__":
    main()
