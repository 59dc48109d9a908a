"""What ``tokensieve run`` is told: a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

KIND = "run"
# What others read in the manifest of a run of a recipe.
MANIFEST_KEYS = ("stages",)


@dataclass(frozen=True)
class RecipeConfig:
    """Run the stages of a recipe that are not done yet."""

    recipe: str
    """YAML file, or the name of one that is shipped (demo, study-tiny, sweep-tiny, rho1-math-1b ...: docs/recipes.md)."""
    out: str | None = None
    """Folder of the run; the recipe's own `out` if not given."""
    set: dict[str, Any] = field(default_factory=dict)
    """Values for the recipe's settings."""
    seeds: list[int] = field(default_factory=list)
    """Once for each of these ${seed}, and the arms compared over all of them; the recipe's own seeds if not given."""
    only: list[str] = field(default_factory=list)
    """Only these stages, or all cells of them; their inputs must be there."""
    allow_changed: bool = False
    """Of unfinished `train` stages: go on from their checkpoints although the recipe or its data changed since."""
    redo: list[str] = field(default_factory=list)
    """These finished `train` stages, or all, may be removed and done again where the recipe or its data changed since."""
    jobs: int = 1
    """So many stages at once that do not need each other: processes, with a GPU each where there are any."""
    allow_code: bool = False
    """Let objectives be code (package.module:factory). A recipe cannot say this for itself."""
    dry_run: bool = False
    """Print the plan with tokens, FLOPs and disk, and do nothing."""
