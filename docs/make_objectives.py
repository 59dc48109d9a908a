"""Writes docs/objectives.md from the code: ``python docs/make_objectives.py``. A test holds that the page is what it writes."""

from __future__ import annotations

import inspect
from pathlib import Path

from tokensieve.core import OBJECTIVES, STATISTICS, objective
from tokensieve.core.objectives import COMBINED, NOT_SERVED, combined

HEAD = """# Objectives and statistics

*Written by `docs/make_objectives.py` from the code; change it there.*

`objective: {name: NAME, option: value}` in a config, `tokensieve.objective("NAME", option=value)` in Python; an objective of
your own is `package.module:factory`. Every objective also takes `denominator`: what `sum(weight * nll)` is divided by, once a
step, over all micro-batches and ranks. One that keeps a ratio by a score takes `unit: document` as well: whole
documents are kept, by the mean score of their tokens in a row, until the ratio is reached; the last one may go beyond it.

| denominator | divides by |
|---|---|
| `weight` | the sum of the weights; refused for weights that may be negative |
| `valid` | tokens with a target |
| `nonzero` | tokens with a weight other than 0 |
| `abs` | the sum of absolute weights |

A column `weight` of the data set multiplies what any objective gives; tokens of weight 0 are neither ranked nor counted in k,
the denominator `valid` counts them, and `weight` becomes `abs`: [weights.md](weights.md).
"""

SECOND = {
    "columns": "the columns `topk_ids` and `topk_logp`, or a `teacher`",
    "similar": "the input embeddings of the model as training begins, or of `embeddings`",
}

COMPOSED = """```yaml
objective: {name: intersect, of: [{name: rho1, ratio: 0.6}, {name: goldfish}]}
objective: {name: intersect, of: [{name: dft}, {name: rho1, ratio: 0.6}]}   # soft weights of what is kept
objective: {name: schedule, of: {name: rho1}, option: ratio, points: [[0, 1.0], [1000, 0.6]]}
objective: {name: schedule, of: {name: rho1}, option: ratio, points: [[0, 1.0], [2e9, 0.6]], over: tokens}
objective: {name: by_source, of: {name: rho1}, instead: {web: {ratio: 0.4}, books: {name: clm}}}   # by the sources' names
objective: {name: rho1, unit: document}
objective: {name: random_like, of: {name: rho1}}   # a control: as many of each token id as rho1 keeps, anywhere
objective: {name: distill, teacher: runs/large, share: 0.5, of: {name: rho1}}   # half nll, half KL, on the tokens kept
```
"""


OWN = """## Write your own

A function from statistics to weights, named by `package.module:factory`; the table below says what there is to read. This is
`docs/own_objective.py`:

```python
{code}```

```
PYTHONPATH=docs tokensieve train ... --objective '{{name: own_objective:late_excess, ratio: 0.5}}' --allow_code
```

`needs` has the run refused before it starts where a column is missing, and entropy computed only where it is asked for. `scope`
says which tokens `weigh` sees together: over all ranks. A rule that knows its denominator before the forward says so
(`known_count`, or `static` if it reads nothing of the student's): then gradients need no second scaling.
"""


def page() -> str:
    """The whole page."""
    parts = [
        HEAD,
        *(section(name) for name in OBJECTIVES),
        composed(),
        own(),
        not_served(),
        "## Statistics\n",
        statistics(),
    ]
    return "\n".join(parts)


def section(name: str) -> str:
    """One objective: its docstring, its options with their defaults, what it needs and is divided by."""
    made, factory = objective(name), OBJECTIVES[name]
    options = inspect.signature(factory).parameters.values()
    told = ", ".join(f"`{o.name}: {o.default}`" for o in options) or "none"
    needs = ", ".join(f"`{n}`" for n in sorted(made.needs)) or "nothing"
    counted = "known before the forward" if made.counts_ahead else "known after the forward, gradients are divided then"
    facts = [f"options: {told}", f"needs: {needs}", f"denominator: `{made.denominator}`, {counted}"]
    if made.second is not None:
        facts.insert(2, f"second target: {SECOND[made.second.origin]}")
    return f"## {name}\n\n{inspect.getdoc(factory)}\n\n" + "\n".join(f"- {f}" for f in facts) + "\n"


def composed() -> str:
    """Objectives made of objectives."""
    made = {**COMBINED, "schedule": combined.schedule, "by_source": combined.by_source}
    parts = [f"### {name}\n\n{inspect.getdoc(factory)}\n" for name, factory in made.items()]
    return "\n".join(["## Objectives of objectives\n", COMPOSED, *parts])


def own() -> str:
    """How to write a rule of one's own."""
    return OWN.format(code=Path(__file__).with_name("own_objective.py").read_text(encoding="utf-8"))


def not_served() -> str:
    """Published rules that are none here."""
    return "\n".join(["## Not served\n", *(f"- `{name}`: {why}." for name, why in NOT_SERVED.items()), ""])


def statistics() -> str:
    """The list of statistics as a table."""
    rows = [f"| `{name}` | {s.origin} | {s.about} |" for name, s in STATISTICS.items()]
    return (
        "What an objective may need; any other name is a score column of the data set. `rows`: from the data set's rows,\n"
        "`run`: a number for the whole step, `column`: a score column that you give, `head`: from the student's forward,\n"
        "`second`: from it too, where the objective has a second target.\n\n"
        "| name | from | what it is |\n|---|---|---|\n" + "\n".join(rows) + "\n"
    )


if __name__ == "__main__":
    Path(__file__).with_name("objectives.md").write_text(page(), encoding="utf-8")
