"""Run a recipe with several seeds and say what came out: means, paired differences, verdict.

    python benchmarks/study.py demo --seeds 0 1 2 --out runs/study-demo
    python benchmarks/study.py math-tiny --seeds 0 --out runs/study-math --set '{data: data/math}'

Each seed is a run of its own (<out>/seed-0 ...): what is done is skipped, so a study that was stopped goes on. The seed
changes weights, row order and random masks; text and tokenizer stay the same. Writes study.md and study.json.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from tokensieve.analysis.comparison import (
    PLUS_MINUS,
    difference,
    kept_by_source,
    over_seeds,
    plus_minus,
    reached_cell,
    rises,
    rivals,
    trained,
    verdicts,
)
from tokensieve.analysis.table import table
from tokensieve.pipeline.recipe import run as recipe
from tokensieve.pipeline.recipe.load import RecipeConfig
from tokensieve.runs.files import read_json, write_json
from tokensieve.runs.manifest import read_manifest
from tokensieve.runs.versions import versions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", type=yaml.safe_load, default={}, help="settings of the recipe, as YAML")
    parser.add_argument("--baseline", default="clm")
    args = parser.parse_args()
    runs = {}
    for seed in args.seeds:
        folder = args.out / f"seed-{seed}"
        print(f"== seed {seed}", flush=True)
        recipe.run(RecipeConfig(args.recipe, out=str(folder), set={**args.set, "seed": seed}))
        runs[seed] = read_json(folder / "table" / "comparison.json")
        compared = read_manifest(folder / "table", "comparison")["config"]
    write_json(args.out / "study.json", {"environment": environment(), "recipe": args.recipe, "seeds": runs})
    text = render(args.recipe, runs, args.baseline, compared["target"], "solution" if compared["solution"] else "all")
    (args.out / "study.md").write_text(text, encoding="utf-8")
    print(text)


def render(name: str, runs: dict[int, list[dict[str, Any]]], baseline: str, target: str, on: str = "all") -> str:
    """The study as Markdown: arms, paired differences, verdict, what was kept of each source, environment."""
    arms = [row["arm"] for row in next(iter(runs.values()))]
    by_arm = {arm: [next(r for r in rows if r["arm"] == arm) for rows in runs.values()] for arm in arms}
    parts = [
        f"Recipe `{name}`, seeds {', '.join(map(str, runs))}; means; {PLUS_MINUS}.",
        table([_arm(by_arm[arm]) for arm in arms], list(_arm(by_arm[arms[0]])), markdown=True),
        "Paired differences in target nll (same seed, same base, same batches; negative: the first is better):",
        table(
            _differences(list(runs.values()), baseline),
            ["difference", "by seed", "sd", "mean ± half of the 95 % interval"],
            markdown=True,
        ),
        *rises(list(runs.values()), baseline),
        *verdicts(list(runs.values()), baseline, target, on),
    ]
    if shares := _shares(runs):
        parts += [
            "Share of valid tokens kept, by source (mean over seeds):",
            table(shares, list(shares[0]), markdown=True),
        ]
    env = environment()
    parts.append("Measured " + ", ".join(f"{k} {v}" for k, v in env.items()) + ".")
    return "\n\n".join(parts) + "\n"


def _arm(rows: list[dict[str, Any]]) -> dict[str, str]:
    cells = {"arm": rows[0]["arm"], "target nll": _spread([r["nll"] for r in rows], ".4f")}
    cells["bits/byte"] = _spread([r["bits_per_byte"] for r in rows], ".4f")
    for other in rows[0]["others"]:
        cells[f"{other} nll"] = _spread([r["others"][other] for r in rows], ".4f")
    for key, scale, form, heading in (
        ("tokens_seen", 1e6, ".3f", "Mtok seen"),
        ("tokens_trained", 1e6, ".3f", "Mtok trained"),
        ("flops_student", 1e12, ".2f", "student TFLOP"),
        ("flops_scoring", 1e12, ".2f", "+ scoring"),
        ("flops_reference", 1e12, ".2f", "+ reference"),
        ("seconds", 1, ".0f", "seconds"),
    ):
        cells[heading] = (
            _spread([None if r[key] is None else r[key] / scale for r in rows], form) if key in rows[0] else ""
        )
    missing = any(r.get("speedup") is None for r in rows)
    cells["tokens to the baseline's end"] = "" if missing else reached_cell(rows)
    return cells


def _spread(values: Iterable[float | None], form: str) -> str:
    return plus_minus(over_seeds(values), form)


def _differences(seeds: list[list[dict[str, Any]]], baseline: str) -> list[dict[str, str | None]]:
    """Every trained arm against what it is held against: baseline, random control, the controls that share its suffix."""
    rows, lines = seeds[0], []
    for arm in (a for a in trained(rows) if a != baseline):
        for other in rivals(rows, arm, baseline):
            gap = difference(seeds, arm, other)
            lines.append(
                {
                    "difference": f"{arm} - {other}",
                    "by seed": ", ".join(f"{v:+.4f}" for v in gap.values),
                    "sd": None if gap.sd is None else f"{gap.sd:.4f}",
                    "mean ± half of the 95 % interval": plus_minus(gap, "+.4f"),
                }
            )
    return lines


def _shares(runs: dict[int, list[dict[str, Any]]]) -> list[dict[str, str]]:
    """Share of each source that the selective arms kept, mean over seeds."""
    by_seed = [kept_by_source(rows) for rows in runs.values()]
    lines = []
    for same_source in zip(*by_seed, strict=True):
        arms = [k for k in same_source[0] if k != "source"]
        means = {}
        for arm in arms:
            mean = over_seeds(row[arm] for row in same_source).mean
            means[arm] = "" if mean is None else f"{mean:.1%}"
        lines.append({"source": same_source[0]["source"], **means})
    return lines


def environment() -> dict[str, str]:
    """When and on what."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "",
    )
    found = versions()
    keep = {k: found[k] for k in ("tokensieve", "torch", "transformers", "python", "revision") if k in found}
    threads = os.environ.get("OMP_NUM_THREADS", "default")
    return {
        "on": datetime.date.today().isoformat(),
        "cpu": cpu or platform.processor(),
        "cores": str(os.cpu_count()),
        "threads": threads,
        "allocator": Path(os.environ.get("LD_PRELOAD") or "the system's").name,
        **keep,
    }


if __name__ == "__main__":
    main()
