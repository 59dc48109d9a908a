"""The documentation as a site: ``make docs`` builds build/site, strictly and without a network.

The pages are the Markdown files as they stand, README and CHANGELOG included, with the links that work on GitHub; the
sidebar is the list of docs/README.md. Nothing of the package is imported:
docs/api.md and docs/objectives.md are written by scripts.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
INDEX = "docs/README"
# Besides the documentation: what its pages link to, and where pages stand that belong to no list.
SHOWN = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs", "examples", "benchmarks")

project = "tokensieve"
copyright = "The tokensieve authors"
version = re.findall(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text("utf-8"), re.M)[0]
release = version

extensions = ["myst_parser"]
root_doc = INDEX
include_patterns = ["*.md", "docs/**.md", "benchmarks/results/*.md"]
# Folders that are not read at all: .venv, runs, build, and whatever else lies in a checkout.
exclude_patterns = [path.name for path in ROOT.iterdir() if path.name not in SHOWN]
suppress_warnings = ["toc.not_included"]  # pages of figures that other pages link to
nitpicky = True
highlight_language = "text"
myst_heading_anchors = 4
myst_links_external_new_tab = False

html_theme = "furo"
html_title = f"tokensieve {version}"
html_static_path = ["site"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_search_summary = False  # summaries are fetched, which no page from disk may do
html_show_sourcelink = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1d5fa8", "color-brand-content": "#1d5fa8"},
    "dark_css_variables": {"color-brand-primary": "#7fb2ec", "color-brand-content": "#7fb2ec"},
}

LINK = re.compile(r"\[([^\]]+)\]\(([^)#]+\.md)\)")
FOLDER = re.compile(r"(\[[^\]]+\])\((?:\.\./)*(?:[\w.-]+/)*[\w.-]+/?\)")


def sidebar(index: str) -> str:
    """A hidden toctree for each heading of the index, with the pages that its items begin with."""
    trees: dict[str, list[str]] = {}
    for line in index.splitlines():
        if line.startswith("## "):
            trees[line[3:]] = []
        elif line.startswith("- ") and trees and (found := LINK.match(line, 2)):
            page = f"docs/{found[2]}".replace("docs/../", "")
            trees[[*trees][-1]].append(f"{found[1]} </{page.removesuffix('.md')}>")
    lines = [
        ":caption: {}\n:hidden:\n\n{}".format(caption, "\n".join(pages)) for caption, pages in trees.items() if pages
    ]
    return "".join(f"\n```{{toctree}}\n{tree}\n```\n" for tree in lines)


def read(app: Any, docname: str, source: list[str]) -> None:
    """The index brings the sidebar; a link to a folder, which a site cannot show, is its name."""
    page = ROOT / f"{docname}.md"
    if docname == INDEX:
        source[0] += sidebar(source[0])

    def named(link: re.Match[str]) -> str:
        target = link[0].rpartition("(")[2][:-1]
        return link[1][1:-1] if (page.parent / target).is_dir() else link[0]

    source[0] = FOLDER.sub(named, source[0])


def begin_here(app: Any, error: Exception | None) -> None:
    """The site's folder opens at the index."""
    if error is None:
        page = f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={INDEX}.html">'
        link = f'<title>{project}</title><a href="{INDEX}.html">{project}</a>\n'
        (Path(app.outdir) / "index.html").write_text(page + link, encoding="utf-8")


def setup(app: Any) -> None:
    app.connect("source-read", read)
    app.connect("build-finished", begin_here)
