"""``tokensieve demo``: the whole method on text that is on every machine where the package is installed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from . import recipe, show


@dataclass(frozen=True)
class DemoConfig:
    """Base model, reference, scores, and three students on the same tokens: full loss, random control, Rho-1."""

    out: str = "runs/demo"
    """Folder of the run."""
    seed: int = 0
    """Seed of weights, row order and random masks."""
    redo: list[str] = field(default_factory=list)
    """Finished `train` stages, or all, that may be removed and done again: for another seed in the same folder."""
    color: bool | None = None
    """Colours at the end; if not given, where this is a terminal."""


def run(config: DemoConfig) -> str:
    """Run recipes/demo.yaml; the table and some text with kept and dropped tokens."""
    chosen = recipe.RecipeConfig("demo", out=config.out, set={"seed": config.seed}, redo=config.redo)
    recipe.run(chosen)
    out = Path(config.out)
    text = show.run(show.ShowConfig(str(out / "corpus"), run=str(out / "rho1"), color=config.color))
    table = (out / "table" / "table.txt").read_text(encoding="utf-8")
    return f"\n{text}\n\n{table}\n{recipe_verdict(out)}"


def recipe_verdict(out: Path) -> str:
    """One sentence on what the numbers say, whichever way they fell."""
    from ..runs import read_json

    rows = {row["arm"]: row for row in read_json(out / "table" / "comparison.json")}
    clm, random, rho1 = (rows[arm]["nll"] for arm in ("clm", "random", "rho1"))
    sides = [
        f"{abs(rho1 - other):.3f} nats {'below' if rho1 < other else 'above'} {name}"
        for name, other in (("clm", clm), ("random", random))
    ]
    return f"On held-out docstrings rho1 ends {sides[0]} and {sides[1]}, at equal tokens seen (one seed)."
