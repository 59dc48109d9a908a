"""One self-contained HTML file: opens from disk, asks for nothing, and runs no script but its own.

Names and texts that come from folders are escaped; corpus text is only in a JSON block that the page's script reads, and
enters the page as text. The Content-Security-Policy names script and style sheet by hash, so nothing else can run.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..analysis.comparison import PLUS_MINUS
from . import svg
from .explorer import views
from .figures import Figure, figures
from .folders import Run
from .pieces import PieceTable, shown_text
from .style import RC
from .verdict import arms_table, verdict

HERE = Path(__file__).parent / "page"
SECTIONS = {
    "target": ("Target", "Did it get better at what the reference model was trained for?"),
    "forgetting": ("Forgetting", "And what happened to the rest?"),
    "selection": ("What was kept", "Which tokens stood in the loss."),
    "time": ("Kept and dropped over time", "What became of the tokens that were trained on, and of the others."),
    "scores": ("Scores", "What the tokens were ranked by, and where the line was drawn."),
    "dynamics": ("Dynamics", "How the nll of each token moved from checkpoint to checkpoint."),
}


def write(
    runs: Sequence[Run], out: Path, figure_folder: Path, *, max_tokens: int = 1_000_000, max_bytes: int = 20_000_000
) -> None:
    """Write the page and, beside it, each figure as SVG and PNG. ``runs`` are the same recipe with other seeds."""
    import matplotlib as mpl

    from ..runs import atomic_file

    sections: dict[str, list[str]] = {}
    with mpl.rc_context(RC):
        for figure in figures(runs):
            svg.save(figure.drawing, figure_folder, figure.name)
            sections.setdefault(figure.section, []).append(_figure(figure))
    pieces = PieceTable()
    shown = views(runs[0], pieces, max_tokens, max_bytes)
    with atomic_file(out, "w") as f:
        f.write(page(runs, sections, {"pieces": pieces.strings, "views": shown}))


def page(runs: Sequence[Run], sections: Mapping[str, Sequence[str]], data: Any) -> str:
    """The HTML: ``sections`` are figures by section, ``data`` is what the explorer reads."""
    run = runs[0]
    script, style = ((HERE / name).read_text(encoding="utf-8") for name in ("explorer.js", "page.css"))
    there = [key for key in SECTIONS if sections.get(key)]
    links = [(key, SECTIONS[key][0]) for key in there] + [("explorer", "Tokens"), ("details", "What ran")]
    if not data["views"]:
        links = [link for link in links if link[0] != "explorer"]
    body = [_summary(runs)]
    body += [_section(key, *SECTIONS[key], f'<div class="figures">{"".join(sections[key])}</div>') for key in there]
    body.append(_explorer(run) if data["views"] else _no_tokens())
    body.append(_section("details", "What ran", "", _details(runs)))
    return filled(
        (HERE / "page.html").read_text(encoding="utf-8"),
        policy=f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'",
        title=text(f"{run.name}: tokensieve report"),
        style=style,
        nav="".join(f'<a href="#{key}">{text(name)}</a>' for key, name in links),
        body="\n".join(body),
        data=embedded(data),
        script=script,
    )


def filled(template: str, **parts: str) -> str:
    """``{{name}}`` replaced by its part, once and in one pass, so that a part may hold what looks like a placeholder."""
    return re.sub(r"\{\{(\w+)\}\}", lambda m: parts[m[1]], template)


def text(value: object) -> str:
    """Any value as HTML text: escaped, and what a page would obey or hide made visible."""
    return html.escape(shown_text(str(value)))


def embedded(data: Any) -> str:
    """JSON that may stand in a script element: nothing in it can end the element or a line of script."""
    dumped = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for char in "<>&\u2028\u2029":
        dumped = dumped.replace(char, f"\\u{ord(char):04x}")
    return dumped


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


# --- parts -----------------------------------------------------------------------------------------------------------------


def _section(key: str, title: str, lead: str, content: str) -> str:
    said = f'<p class="lead">{text(lead)}</p>' if lead else ""
    return f'<section id="{key}"><h2>{text(title)}</h2>{said}{content}</section>'


def _figure(figure: Figure) -> str:
    drawing = svg.inline(figure.drawing, figure.name, f"{figure.title}. {figure.caption}")
    caption = f"<figcaption>{text(figure.caption)}</figcaption>"
    return f'<figure id="figure-{text(figure.name)}"><h3>{text(figure.title)}</h3>{drawing}{caption}</figure>'


def _summary(runs: Sequence[Run]) -> str:
    run = runs[0]
    parts = [f"<h1>{text(_headline(run))}</h1>"]
    parts += [f'<p class="verdict" id="verdict">{text(verdict(runs))}</p>', _facts(runs)]
    if run.rows:
        heads, rows = arms_table(runs)
        spread = f" Means over {len(runs)} seeds; {PLUS_MINUS}." if len(runs) > 1 else " One seed."
        note = "nll in nats a token on the target; FLOPs are those that an ideal implementation needs."
        parts.append(f"<section><h2>Arms</h2>{_table(heads, rows)}<p class='note'>{text(note + spread)}</p></section>")
    return "\n".join(parts)


def _headline(run: Run) -> str:
    names = [a.name for a in run.arms]
    return f"{run.name}: {', '.join(names)}" if len(names) < 6 else run.name


def _facts(runs: Sequence[Run]) -> str:
    run = runs[0]
    facts: list[tuple[str, object]] = [("run", run.name), ("seed" if len(runs) == 1 else "seeds", _seeds(runs))]
    if run.arms:
        trained = max(run.arms, key=lambda a: a.summary["tokens_seen"])
        facts.append(("tokens seen by each arm", f"{trained.summary['tokens_seen']:,}"))
    if corpus := next((c for c in run.corpora if run.arms and c.path == run.arms[0].corpus), None):
        stats = corpus.manifest["stats"]
        facts.append(("training corpus", f"{stats['documents']:,} documents, {stats['tokens']:,} tokens"))
        facts.append(("sources", ", ".join(stats["by_source"])))
    if run.target:
        tokens = next((r["tokens"] for r in run.results if r["set"] == run.target and r["on"] == run.on), 0)
        facts.append(("target set", f"{run.target}, {tokens:,} tokens"))
    versions = run.manifest["versions"]
    facts.append(("tokensieve", _version(versions)))
    return _list(facts)


def _seeds(runs: Sequence[Run]) -> str:
    return ", ".join("not noted" if r.seed is None else str(r.seed) for r in runs)


def _version(versions: Mapping[str, str]) -> str:
    revision = versions.get("revision", "")
    changed = " with changes" if revision.endswith("+dirty") else ""
    return ", ".join(filter(None, [versions.get("tokensieve"), revision and f"revision {revision[:10]}{changed}"]))


def _list(facts: Iterable[tuple[str, object]]) -> str:
    items = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in facts)
    return f'<dl class="facts">{items}</dl>'


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]], kind: str = "") -> str:
    head = "".join(f"<th scope='col'>{text(h)}</th>" for h in heads)
    body = "".join("<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="table"><table class="{kind}">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _details(runs: Sequence[Run]) -> str:
    run = runs[0]
    parts = []
    if stages := run.manifest.get("stages"):
        rows = [(name, s["verb"], s["fingerprint"].removeprefix("sha256:")[:16]) for name, s in stages.items()]
        parts.append("<h3>Stages</h3>" + _table(["stage", "verb", "fingerprint"], rows, "words"))
    arms = [(a.name, _told(a.manifest["config"]["objective"]), a.summary["scope"],
             a.summary["steps"], f"{a.summary['seconds']:,.0f}") for a in run.arms]  # fmt: skip
    parts.append("<h3>Training</h3>" + _table(["arm", "objective", "scope", "steps", "seconds"], arms, "words"))
    parts.append("<h3>Versions</h3>" + _list(run.manifest["versions"].items()))
    return "".join(f'<div class="detail">{p}</div>' for p in parts)


def _told(objective: Mapping[str, Any]) -> str:
    """An objective in words: its name, and the fields that it was given."""
    given = (f"{k} {v}" for k, v in objective.items() if k != "name" and v not in (None, [], {}))
    return ", ".join([str(objective["name"]), *given])


def _no_tokens() -> str:
    said = (
        "No tokens to show: train with token_log_every, or add a dynamics stage. A training run that stands alone also needs "
        "its corpus."
    )
    return _section("explorer", "Tokens", said, "")


def _explorer(run: Run) -> str:
    def select(name: str, label: str) -> str:
        return f'<label>{label}<select id="{name}"></select></label>'

    controls = (
        select("view", "what")
        + select("mode", "colour by")
        + '<label class="steps"><span>step: <output id="frame"></output></span><input id="step" type="range" min="0" value="0">'
        + '</label><label class="check"><input id="every" type="checkbox">every step</label>'
        + select("source", "source")
        + select("kept", "kept")
        + select("class", "class")
        + '<label>search<input id="search" type="search" autocomplete="off" spellcheck="false"></label>'
        + select("sort", "sort by")
    )
    keys = (
        "Point at a token, or focus the text and use ← and →; with shift they jump from hit to hit. [ and ] move through the "
        "steps."
    )
    return _section(
        "explorer",
        "Tokens",
        "The text itself, a colour for every token.",
        f'<div class="controls">{controls}</div><div class="legend" id="legend"></div>'
        '<div class="stage"><div class="pane" id="pane" tabindex="0" role="group" aria-label="Documents, token by token">'
        '<p class="empty" id="empty" hidden>No passage fits these filters.</p><div class="sheet" id="sheet"></div></div>'
        f'<aside class="card" id="card" aria-live="polite"><p class="note">{text(keys)}</p></aside></div>'
        '<p class="note"><span id="count" role="status"></span>. <span id="note"></span></p>',
    )
