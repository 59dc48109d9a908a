"""``tokensieve demo``: the whole method on text that is on every machine where the package is installed."""

from __future__ import annotations

from pathlib import Path

from ...analysis.comparison import verdicts
from ...runs.files import read_json
from ...runs.manifest import read_manifest
from .. import show
from ..configs.demo import DemoConfig
from ..configs.run import RecipeConfig
from ..configs.show import ShowConfig
from . import run as recipe


def run(config: DemoConfig) -> str:
    """Run recipes/demo.yaml; the table and some text with kept and dropped tokens."""
    chosen = RecipeConfig("demo", out=config.out, set={"seed": config.seed}, redo=config.redo, jobs=config.jobs)
    recipe.run(chosen)
    out = Path(config.out)
    text = show.run(ShowConfig(str(out / "corpus"), run=str(out / "rho1"), color=config.color))
    table = (out / "table" / "table.txt").read_text(encoding="utf-8")
    missing = [s for s in recipe_verdict(out).splitlines() if s not in table]  # tables written before end without it
    return "\n".join([f"\n{text}\n\n{table}", *missing])


def recipe_verdict(out: Path) -> str:
    """What the numbers say, whichever way they fell: the sentence that ends the table."""
    settings = read_manifest(out / "table", "comparison")["config"]
    rows = read_json(out / "table" / "comparison.json")
    on = "solution" if settings["solution"] else "all"
    return "\n".join(verdicts([rows], settings["baseline"], settings["target"], on, settings.get("rivals") or None))
