"""Writes docs/objectives.md from the code: ``python docs/make_objectives.py``. A test holds that the page is what it writes."""

from __future__ import annotations

import inspect
from pathlib import Path

from tokensieve.core import OBJECTIVES, STATISTICS, objective

HEAD = """# Objectives and statistics

*Written by `docs/make_objectives.py` from the code; change it there.*

`objective: {name: NAME, option: value}` in a config, `tokensieve.objective("NAME", option=value)` in Python; an objective of
your own is `package.module:factory`. Every objective also takes `denominator`: what `sum(weight * nll)` is divided by, once a
step, over all micro-batches and ranks.

| denominator | divides by |
|---|---|
| `weight` | the sum of the weights; refused for weights that may be negative |
| `valid` | tokens with a target |
| `nonzero` | tokens with a weight other than 0 |
| `abs` | the sum of absolute weights |
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD, *(section(name) for name in OBJECTIVES), "## Statistics\n", statistics()]
    return "\n".join(parts)


def section(name: str) -> str:
    """One objective: its docstring, its options with their defaults, what it needs and is divided by."""
    made, factory = objective(name), OBJECTIVES[name]
    options = inspect.signature(factory).parameters.values()
    told = ", ".join(f"`{o.name}: {o.default}`" for o in options) or "none"
    needs = ", ".join(f"`{n}`" for n in sorted(made.needs)) or "nothing"
    counted = "known before the forward" if made.counts_ahead else "known after the forward, gradients are divided then"
    facts = [f"options: {told}", f"needs: {needs}", f"denominator: `{made.denominator}`, {counted}"]
    return f"## {name}\n\n{inspect.getdoc(factory)}\n\n" + "\n".join(f"- {f}" for f in facts) + "\n"


def statistics() -> str:
    """The list of statistics as a table."""
    rows = [f"| `{name}` | {s.origin} | {s.about} |" for name, s in STATISTICS.items()]
    return (
        "What an objective may need; any other name is a score column of the data set. `rows`: from the data set's rows,\n"
        "`run`: a number for the whole step, `column`: a score column that you give, `head`: from the student's forward.\n\n"
        "| name | from | what it is |\n|---|---|---|\n" + "\n".join(rows) + "\n"
    )


if __name__ == "__main__":
    Path(__file__).with_name("objectives.md").write_text(page(), encoding="utf-8")
