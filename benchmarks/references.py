"""What a smaller reference costs and what it chooses: the first 4, 2 and 1 of the student's 4 blocks, trained alike.

    python benchmarks/references.py --data data/math --out runs/references --save

The recipe is recipes/math-tiny.yaml, shortened (--rows, a vocabulary of 1024): base, then for each size `init --layers n`,
training on curated text, scores and a rho1 student of all 4 blocks at ratio .6; clm beside them. One seed. What is done is
skipped. The selections are of the corpus in groups of 4 rows, by excess of the student at its start (base) and at its end
(clm); overlap is the share of the same-size reference's choice that the smaller one chooses too: by chance, the ratio.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from measure import report
from scipy.stats import spearmanr

from tokensieve import excess, top_fraction
from tokensieve.data.corpus import open_corpus
from tokensieve.data.scored import join_scores
from tokensieve.pipeline.recipe import run as recipe
from tokensieve.pipeline.recipe.load import RecipeConfig, find_recipe
from tokensieve.runs.files import read_json
from tokensieve.runs.manifest import read_manifest

SIZES, RATIOS, GROUP = (4, 2, 1), (0.6, 0.3), 4
AT = {"start": "base", "end": "clm"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/math")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--rows", type=int, default=650, help="of base text, curated text and corpus each, 256 tokens a row"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "references.yaml"
    path.write_text(yaml.safe_dump(shortened(args.rows), sort_keys=False), encoding="utf-8")
    made = {"data": args.data, "seed": args.seed}
    recipe.run(RecipeConfig(str(path), out=str(args.out / "run"), set=made))
    records = measured(args.out / "run")
    about = (
        f"{args.rows} rows of 256 tokens of base text, curated text and corpus; seed {args.seed}; FLOPs in units of 1e12; "
        "start and end: by the student's nll before and after training. Target: GSM8K test, nll of whole texts."
    )
    report(
        "references",
        "References of fewer blocks",
        about,
        [lines(records["sizes"]), records["arms"]],
        records,
        save=args.save,
    )


def shortened(rows: int) -> dict[str, Any]:
    """The recipe: stages of math-tiny for one target, and a reference, scores and a student for each size."""
    source = yaml.safe_load(find_recipe("math-tiny").read_text(encoding="utf-8"))
    old = source["stages"]
    stages = {name: old[name] for name in ("base_text", "curated", "corpus", "gsm8k")}
    for name in ("base_text", "curated", "corpus"):
        stages[name]["max_rows"] = rows
    stages["gsm8k"]["sources"][0]["max_bytes"] = 60000
    stages["base_text"]["vocab_size"] = 1024  # in a larger model, too, blocks are most of it
    stages["base"] = old["base"]
    for n in SIZES:
        stages[f"start_{n}"] = {"verb": "init", "model": "@base", "layers": n}
        stages[f"reference_{n}"] = {**old["reference"], "model": f"@start_{n}"}
        stages[f"scores_{n}"] = {**old["scores"], "model": f"@reference_{n}"}
    stages["clm"] = old["clm"]
    for name in AT.values():
        stages[f"nll_{name}"] = {
            "verb": "score",
            "model": f"@{name}",
            "corpus": "@corpus",
            "columns": {f"{name}_nll": "nll"},
        }
    for n in SIZES:
        stages[f"rho1_{n}"] = {**old["rho1"], "scores": [f"@scores_{n}"]}
    arms = {name: f"@{name}" for name in ("clm", *(f"rho1_{n}" for n in SIZES))}
    beside = {name: f"@{name}" for name in ("base", *(f"reference_{n}" for n in SIZES))}
    stages["evaluation"] = {
        **old["evaluation"],
        "checkpoints": False,
        "models": {**beside, **arms},
        "sets": {"gsm8k": "@gsm8k"},
    }
    stages["table"] = {**old["table"], "runs": arms, "others": []}
    return {"name": "references", "settings": source["settings"], "threads": 1, "stages": stages}


def measured(run: Path) -> dict[str, Any]:
    corpus = open_corpus(run / "corpus")
    student = {at: nll_of(corpus, run / f"nll_{name}", f"{name}_nll") for at, name in AT.items()}
    ref = {n: nll_of(corpus, run / f"scores_{n}", "ref_nll") for n in SIZES}
    compared = {row["arm"]: row for row in read_json(run / "table" / "comparison.json")}
    sizes = [size(run, n, compared, chosen(student, ref, n)) for n in SIZES]
    arms = [{"model": name, "target nll": f"{row['nll']:.4f}"} for name, row in compared.items()]
    return {"sizes": sizes, "arms": arms}


def nll_of(corpus: Any, scores: Path, column: str) -> torch.Tensor:
    """float32 [rows, T]; NaN where there is no target."""
    return torch.tensor(np.stack(join_scores(corpus, scores).with_format("numpy")[column][:]).astype(np.float32))


def chosen(student: dict[str, torch.Tensor], ref: dict[int, torch.Tensor], n: int) -> dict[str, float]:
    """Overlap at each ratio and rank correlation of excess, with the reference of all blocks."""
    found = {}
    for at, nll_BT in student.items():
        valid = nll_BT.isfinite()
        mine, theirs = (excess(nll_BT, ref[m]) for m in (n, SIZES[0]))
        found[f"spearman {at}"] = float(spearmanr(mine[valid].numpy(), theirs[valid].numpy()).statistic)
        for ratio in RATIOS:
            one, other = (selection(score, valid, ratio) for score in (mine, theirs))
            found[f"overlap {ratio} {at}"] = int((one & other).sum()) / int(other.sum())
    return found


def selection(score_BT: torch.Tensor, valid_BT: torch.Tensor, ratio: float) -> torch.Tensor:
    """What a step of GROUP rows keeps."""
    groups = zip(score_BT.split(GROUP), valid_BT.split(GROUP), strict=True)
    return torch.cat([top_fraction(score, valid, ratio=ratio, scope="batch") for score, valid in groups])


def size(run: Path, n: int, compared: dict[str, Any], choice: dict[str, float]) -> dict[str, Any]:
    summary = read_manifest(run / f"reference_{n}")["summary"]
    return {
        "blocks": n,
        "num_parameters": read_manifest(run / f"start_{n}")["num_parameters"],
        "flops_training": summary["flops_student"],
        "flops_scoring": read_manifest(run / f"scores_{n}")["flops"],
        "seconds_training": summary["seconds"],
        **choice,
        "reference_nll": compared[f"reference_{n}"]["nll"],
        "student_nll": compared[f"rho1_{n}"]["nll"],
        "flops_student": compared[f"rho1_{n}"]["flops_student"],
    }


def lines(sizes: list[dict[str, Any]]) -> list[dict[str, str]]:
    shown = []
    for s in sizes:
        cells = {"blocks": str(s["blocks"]), "parameters": f"{s['num_parameters']:,}"}
        for key in ("training", "scoring"):
            share = s[f"flops_{key}"] / sizes[0][f"flops_{key}"]
            cells[f"{key} FLOPs"] = f"{s[f'flops_{key}'] / 1e12:.2f} ({share:.2f})"
        cells |= {k: f"{s[k]:.3f}" for k in s if k.startswith(("overlap", "spearman"))}
        cells |= {"reference nll": f"{s['reference_nll']:.4f}", "student nll": f"{s['student_nll']:.4f}"}
        shown.append(cells)
    return shown


if __name__ == "__main__":
    main()
