"""Planted noise: which tokens rho1 keeps where it is known which are spoilt, and how few tokens it then needs.

    python benchmarks/planted_noise.py --data data/math --out runs/planted-noise --save

Students train on curated problems that the reference has not seen, 3/8 of whose tokens, in spans of eight, were replaced by
uniformly drawn ones; the target is GSM8K's test, clean. Base, reference and text are those of ``sparse_quality.py``. Every run
is one whose own schedule ends at its length: full loss over all steps, over 1/2 and 1/3; rho1 with a sparse backward over
1/2, 1/3 and 1/4; ``oracle`` trains on every token that was not replaced and no other. Precision: clean among kept;
recall: kept among clean; both on rows that nobody trains on. Every cell is a file in <out>; what is there is not done again.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import report
from sparse_quality import LENGTH, PLANTED, PROBE_BATCHES, ROWS, Arm, Study, kept, mean_nll, model_with, nll_of, train

import tokensieve as ts
from tokensieve.analysis.comparison import over_seeds, plus_minus
from tokensieve.modeling.flops import token_flops
from tokensieve.runs.files import read_json, write_json

SETTING = "planted"
CLEAN = "clean"


@dataclass(frozen=True)
class Run(Arm):
    """An arm that ends at ``1 / part`` of full loss's steps."""

    part: int = 1

    @property
    def name(self) -> str:
        words = [self.rule] if self.ratio == 1.0 else [self.rule, f"{self.ratio:g}"]
        return " ".join([*words, *([] if self.part == 1 else [f"1/{self.part}"])])

    def objective(self, seed: int) -> Any:
        return ts.objective("column", weight=CLEAN) if self.rule == "oracle" else super().objective(seed)


RUNS = (
    *(Run("clm", part=part) for part in (1, 2, 3)),
    *(Run("rho1", ratio, "sparse", part=part) for ratio, part in ((0.6, 2), (0.6, 3), (0.6, 4), (0.3, 3), (0.3, 4))),
    Run("oracle"),
    Run("oracle", part=3),
    Run("random", 0.6),
)
BILLS = ("student", "+ scoring", "+ reference")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/math")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--base_steps", type=int, default=2500)
    parser.add_argument("--reference_steps", type=int, default=300)
    parser.add_argument("--steps", type=int, default=360, help="of full loss, 512 tokens each")
    parser.add_argument("--learning_rate", type=float, default=3e-3, help="of base and reference")
    parser.add_argument("--student_learning_rate", type=float, default=1e-3)
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    args.settings, args.ratios = [SETTING], []
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)
    study = Study(args)
    cells = [cell(study, run, seed) for seed in args.seeds for run in RUNS]
    tables = [ends(study, cells), differences(cells), chosen(cells)]
    report(
        "planted-noise", "Planted noise", about(args), tables, {"levels": study.levels, "cells": cells}, save=args.save
    )


def cell(study: Study, run: Run, seed: int) -> dict[str, Any]:
    path = study.out / "cells" / f"{run.name.replace(' ', '-').replace('/', 'of')}-{seed}.json"
    if path.exists():
        return dict(read_json(path))
    model, steps = model_with(study.base), study.args.steps // run.part
    rows, probes = slice(0, steps * ROWS), []
    look: Callable[[int], None] | None = None
    if run.rule == "rho1":

        def look(step: int) -> None:
            probes.append({"step": step, **choice(study, model, run.ratio)})

    columns = {CLEAN: list(1.0 - study.planted[SETTING][rows])} if run.rule == "oracle" else {}
    rate = study.args.student_learning_rate
    train(model, study.ids[SETTING][rows], study.ref_nll[SETTING][rows], run, seed, steps, rate, look, columns)
    tokens = steps * ROWS * (LENGTH - 1)
    record = {
        "arm": run.name,
        "seed": seed,
        "nll": mean_nll(model, study.target),
        "tokens_seen": tokens,
        "flops": bill(study, model, run, tokens),
        "probes": probes,
    }
    write_json(path, record)
    print(f"{run.name} seed {seed}: {record['nll']:.4f}", flush=True)
    return record


def bill(study: Study, model: Any, run: Run, tokens: int) -> dict[str, float]:
    """FLOPs of the student, of scoring what it reads, and of training the reference, which is as large as the student."""
    each, whole = token_flops(model, LENGTH, sparse=run.backward == "sparse"), token_flops(model, LENGTH)
    rule = run.rule == "rho1"
    trained = 1 - PLANTED if run.rule == "oracle" else run.ratio
    read = study.args.reference_steps * ROWS * (LENGTH - 1)
    found = (each.train(tokens, trained * tokens), rule * whole.forward(tokens), rule * whole.train(read, read))
    return dict(zip(BILLS, map(float, found), strict=True))


def choice(study: Study, model: Any, ratio: float) -> dict[str, float]:
    """Precision and recall of what rho1 would keep of the probe's rows now, and what chance would come to."""
    rows = slice(-PROBE_BATCHES * ROWS, None)
    ids, ref, planted = (x[rows] for x in (study.ids[SETTING], study.ref_nll[SETTING], study.planted[SETTING]))
    nll, found = nll_of(model, ids), []
    for i in range(0, len(ids), ROWS):
        group = slice(i, i + ROWS)
        found.append(kept(nll[group], ref[group], ratio)[:, :-1].numpy())
    keep, clean = np.concatenate(found), ~planted[:, 1:]
    return {
        "precision": float(clean[keep].mean()),
        "recall": float(keep[clean].mean()),
        "clean": float(clean.mean()),
    }


# --- tables -------------------------------------------------------------------------------------------------------------------


def by_seed(cells: list[dict[str, Any]], arm: str) -> dict[int, float]:
    return {c["seed"]: c["nll"] for c in cells if c["arm"] == arm}


def ends(study: Study, cells: list[dict[str, Any]]) -> list[dict[str, str]]:
    rows = [{"run": name, "target nll": f"{nll:.4f}"} for name, nll in study.levels[SETTING].items()]
    for run in RUNS:
        first = next(c for c in cells if c["arm"] == run.name)
        costs = [first["flops"][name] / 1e12 for name in BILLS]
        shown = {name: f"{cost:.3f}" for name, cost in zip(BILLS, costs, strict=True)}
        mean = plus_minus(over_seeds(by_seed(cells, run.name).values()), ".4f")
        seen = {"tokens seen": f"{first['tokens_seen']:,}"}
        rows.append({"run": run.name, "target nll": mean, **seen, **shown, "total TFLOP": f"{sum(costs):.3f}"})
    columns = rows[-1]
    return [{column: row.get(column, "") for column in columns} for row in rows]


def differences(cells: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Paired by seed with full loss over all steps."""
    whole, rows = by_seed(cells, "clm"), []
    for run in RUNS[1:]:
        gaps = [nll - whole[seed] for seed, nll in sorted(by_seed(cells, run.name).items())]
        each = ", ".join(f"{gap:+.4f}" for gap in gaps)
        rows.append({"difference": f"{run.name} - clm", "by seed": each, "mean": plus_minus(over_seeds(gaps), "+.4f")})
    return rows


def chosen(cells: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Means over seeds, by step."""
    rows = []
    for run in (r for r in RUNS if r.rule == "rho1"):
        each = [c["probes"] for c in cells if c["arm"] == run.name]
        for probes in zip(*each, strict=True):
            mean = {k: float(np.mean([p[k] for p in probes])) for k in ("precision", "recall", "clean")}
            shown = {k: f"{mean[k]:.3f}" for k in ("precision", "recall")}
            rows.append(
                {
                    "run": run.name,
                    "step": str(probes[0]["step"]),
                    **shown,
                    "by chance": f"{mean['clean']:.3f} / {run.ratio:g}",
                }
            )
    return rows


def about(args: argparse.Namespace) -> str:
    seeds = ", ".join(map(str, args.seeds))
    return (
        f"Text, model (0.49M parameters), base ({args.base_steps} steps) and reference ({args.reference_steps} more, on clean "
        f"problems) as in sparse-quality; full loss {args.steps} steps of {ROWS} rows of {LENGTH} tokens; learning rate of "
        f"students {args.student_learning_rate:g}; seeds {seeds} (order of rows, random masks; one base, one reference). "
        "Target nll of GSM8K's test, nats a token; ± is half of the 95 % t interval over seeds."
    )


if __name__ == "__main__":
    main()
