"""One self-contained HTML file: opens from disk, asks for nothing, and runs no script but its own.

The HTML is in page/*.html. Whatever a template puts in is escaped, unless it is Markup, which only this module makes. Corpus
text is in a JSON block alone, which the page's script reads and shows as text. The Content-Security-Policy names script and
style sheet by hash, so nothing else can run.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..analysis.comparison import PLUS_MINUS
from ..analysis.folders import Run
from . import svg
from .explorer import views
from .figures import figures, spent_before
from .pieces import PieceTable, shown_text
from .style import RC, Figure
from .verdict import arms_table, verdict

HERE = Path(__file__).parent / "page"
SECTIONS = {
    "target": ("Target", "Did it get better at what the reference model was trained for?"),
    "forgetting": ("Forgetting", "And what happened to the rest?"),
    "selection": ("What was kept", "Which tokens stood in the loss."),
    "time": ("Kept and dropped over time", "What became of the tokens that were trained on, and of the others."),
    "scores": ("Scores", "What the tokens were ranked by, and where the line was drawn."),
    "dynamics": ("Dynamics", "How the nll of each token moved from checkpoint to checkpoint."),
    "measures": ("Measures", "What else changed from checkpoint to checkpoint."),
    "plan": ("Plan", "What these runs say of larger ones."),
}


def shown(value: object) -> str:
    """What a template shows of a value: text whose controls are made visible, to be escaped after that; Markup as it is."""
    return value if isinstance(value, Markup) else shown_text(str(value))


TEMPLATES = Environment(
    loader=FileSystemLoader(HERE),
    autoescape=True,
    undefined=StrictUndefined,  # a name that nobody hands over is an error, not an empty place on the page
    finalize=shown,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write(
    runs: Sequence[Run], out: Path, figure_folder: Path, *, max_tokens: int = 1_000_000, max_bytes: int = 20_000_000
) -> None:
    """Write the page and, beside it, each figure as SVG and PNG. ``runs`` are the same recipe with other seeds."""
    import matplotlib as mpl

    from ..runs.files import atomic_file

    sections: dict[str, list[Figure]] = {}
    with mpl.rc_context(RC):
        for figure in figures(runs):
            drawn = svg.save(figure.drawing, figure_folder, figure.name)
            sections.setdefault(figure.section, []).append(_inlined(figure, drawn))
    pieces = PieceTable()
    seen = views(runs[0], pieces, max_tokens, max_bytes)
    with atomic_file(out, "w") as f:
        f.write(page(runs, sections, {"pieces": pieces.strings, "views": seen}))


def page(runs: Sequence[Run], sections: Mapping[str, Sequence[Figure]], data: Any) -> str:
    """The HTML: ``sections`` are figures by section, their drawings as Markup; ``data`` is what the explorer reads."""
    run = runs[0]
    script, style = ((HERE / name).read_text(encoding="utf-8") for name in ("explorer.js", "page.css"))
    there = [key for key in SECTIONS if sections.get(key)]
    tokens = [("explorer", "Tokens")] if data["views"] else []
    return TEMPLATES.get_template("page.html").render(
        policy=f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'",
        title=f"{run.name}: tokensieve report",
        style=Markup(style),  # ours; escaped, its hash in the policy would not be that of what the browser reads
        nav=[*((key, SECTIONS[key][0]) for key in there), *tokens, ("details", "What ran")],
        headline=_headline(run),
        verdict=verdict(runs),
        run_facts=_facts(runs),
        arms=_arms(runs) if run.rows else None,
        sections=[(key, *SECTIONS[key], sections[key]) for key in there],
        has_tokens=bool(data["views"]),
        stages=_stages(run),
        trainings=_trainings(run),
        versions=list(run.manifest["versions"].items()),
        data=Markup(embedded(data)),  # a script element is read raw, and nothing in this can end it
        script=Markup(script),  # ours, by hash as the style sheet
    )


def embedded(data: Any) -> str:
    """JSON that may stand in a script element: nothing in it can end the element or a line of script."""
    dumped = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for char in "<>&\u2028\u2029":
        dumped = dumped.replace(char, f"\\u{ord(char):04x}")
    return dumped


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


# --- what the templates are given ------------------------------------------------------------------------------------------


def _inlined(figure: Figure, drawn: str) -> Figure:
    """The figure, its drawing as an ``<svg>`` element."""
    drawing = svg.inline(drawn, figure.name, f"{figure.title}. {figure.caption}")
    return dataclasses.replace(
        figure, drawing=Markup(drawing)
    )  # serialised from known elements, its text escaped by that


def _arms(runs: Sequence[Run]) -> dict[str, Any]:
    heads, rows = arms_table(runs)
    spread = f"Means over {len(runs)} seeds; {PLUS_MINUS}." if len(runs) > 1 else "One seed."
    note = f"nll in nats a token on the target; FLOPs are those that an ideal implementation needs. {spread}"
    return {"heads": heads, "rows": rows, "note": note}


def _headline(run: Run) -> str:
    names = [a.name for a in run.arms]
    return f"{run.name}: {', '.join(names)}" if len(names) < 6 else run.name


def _seen(tokens: Sequence[int]) -> tuple[str, str]:
    """What arms saw: of equal compute those see more that cost less. (The most was told as what each of them had seen.)"""
    least, most = min(tokens), max(tokens)
    return (
        ("tokens seen by each arm", f"{most:,}")
        if least == most
        else ("tokens seen by an arm", f"{least:,} to {most:,}")
    )


def _facts(runs: Sequence[Run]) -> list[tuple[str, object]]:
    run = runs[0]
    facts: list[tuple[str, object]] = [("run", run.name), ("seed" if len(runs) == 1 else "seeds", _seeds(runs))]
    if run.arms:
        seen = [arm.summary["tokens_seen"] + spent_before(run, arm, "tokens_seen") for arm in run.arms]
        facts.append(_seen([round(tokens) for tokens in seen]))  # as in the table
    if corpus := next((c for c in run.corpora if run.arms and c.path == run.arms[0].corpus), None):
        stats = corpus.manifest["stats"]
        facts.append(("training corpus", f"{stats['documents']:,} documents, {stats['tokens']:,} tokens"))
        facts.append(("sources", ", ".join(stats["by_source"])))
    if run.target:
        facts.append(_target(run))
    facts.append(("tokensieve", _version(run.manifest["versions"])))
    return facts


def _target(run: Run) -> tuple[str, str]:
    """A declared mean is of several sets, and none by itself. (It was told as a set of 0 tokens.)"""
    found = {r["set"]: r["tokens"] for r in reversed(run.results) if r["on"] == run.on}
    if run.target in found or not (sets := run.compared.get("mean")):
        return "target set", f"{run.target}, {found.get(run.target, 0):,} tokens"
    return "target", f"mean of {', '.join(f'{name} ({found.get(name, 0):,} tokens)' for name in sets)}"


def _seeds(runs: Sequence[Run]) -> str:
    return ", ".join("not noted" if r.seed is None else str(r.seed) for r in runs)


def _version(versions: Mapping[str, str]) -> str:
    revision = versions.get("revision", "")
    changed = " with changes" if revision.endswith("+dirty") else ""
    return ", ".join(filter(None, [versions.get("tokensieve"), revision and f"revision {revision[:10]}{changed}"]))


def _stages(run: Run) -> list[tuple[str, str, str]]:
    """name, verb and fingerprint of each stage; none of a training run alone."""
    stages = run.manifest.get("stages", {})
    return [(name, s["verb"], s["fingerprint"].removeprefix("sha256:")[:16]) for name, s in stages.items()]


def _trainings(run: Run) -> list[tuple[object, ...]]:
    return [(a.name, _objective_text(a.manifest["config"]["objective"]), a.summary["scope"],
             a.summary["steps"], f"{a.summary['seconds']:,.0f}") for a in run.arms]  # fmt: skip


def _objective_text(objective: Mapping[str, Any]) -> str:
    """An objective in words: its name, and the fields that it was given."""
    given = (f"{k} {v}" for k, v in objective.items() if k != "name" and v not in (None, [], {}))
    return ", ".join([str(objective["name"]), *given])
