"""``tokensieve demo``: the whole method on text that is on every machine where the package is installed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from .. import show
from . import run as recipe
from .load import RecipeConfig


@dataclass(frozen=True)
class DemoConfig:
    """Base model, reference, scores, and three students on the same tokens: full loss, random control, Rho-1."""

    out: str = "runs/demo"
    """Folder of the run."""
    seed: int = 0
    """Seed of weights, row order and random masks."""
    redo: list[str] = field(default_factory=list)
    """Finished `train` stages, or all, that may be removed and done again: for another seed in the same folder."""
    jobs: int = 2
    """Stages at once, one thread each."""
    color: bool | None = None
    """Colours at the end; if not given, where this is a terminal."""


def run(config: DemoConfig) -> str:
    """Run recipes/demo.yaml; the table and some text with kept and dropped tokens."""
    chosen = RecipeConfig("demo", out=config.out, set={"seed": config.seed}, redo=config.redo, jobs=config.jobs)
    recipe.run(chosen)
    out = Path(config.out)
    text = show.run(show.ShowConfig(str(out / "corpus"), run=str(out / "rho1"), color=config.color))
    table = (out / "table" / "table.txt").read_text(encoding="utf-8")
    said = recipe_verdict(out)
    return f"\n{text}\n\n{table}" + ("" if said in table else f"\n{said}")  # tables written before end without it


def recipe_verdict(out: Path) -> str:
    """What the numbers say, whichever way they fell: the sentence that ends the table."""
    from ...analysis.comparison import verdicts
    from ...runs.files import read_json
    from ...runs.manifest import read_manifest

    settings = read_manifest(out / "table", "comparison")["config"]
    rows = read_json(out / "table" / "comparison.json")
    on = "solution" if settings["solution"] else "all"
    return "\n".join(verdicts([rows], settings["baseline"], settings["target"], on))
