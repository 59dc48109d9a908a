"""The papers: every page is found from the index, every link leads somewhere, and what they say of the code is there."""

from __future__ import annotations

import ast
import builtins
import functools
import re
import signal
from pathlib import Path

import pytest

from tokensieve.runs.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "tokensieve"
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"])
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def links(page: Path) -> list[tuple[Path, str]]:
    """(file, anchor) of each relative link of a page; code is no text."""
    text = re.sub(r"```.*?```|`[^`\n]*`", lambda m: re.sub(r"[()]", "", m[0]), page.read_text("utf-8"), flags=re.S)
    found = (target.partition("#") for target in LINK.findall(text) if not re.match(r"[a-z]+:", target))
    return [((page.parent / name).resolve() if name else page, anchor) for name, _, anchor in found]


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    heads = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """A page that was moved, a heading that was worded otherwise: nobody sees it but the reader."""
    for target, anchor in links(page):
        assert target.exists(), f"{target} is not there"
        assert not anchor or anchor in anchors(target), f"{target.name} has no heading #{anchor}"


def test_every_page_is_found_from_the_index() -> None:
    index = DOCS / "README.md"
    assert index in {target for target, _ in links(ROOT / "README.md")}, "the README does not link to the index"
    seen, waiting = {index}, [index]
    while waiting:
        new = {t for t, _ in links(waiting.pop()) if t.suffix == ".md" and t.is_relative_to(DOCS)} - seen
        seen |= new
        waiting += new
    assert set(DOCS.rglob("*.md")) - seen == set()


@functools.cache
def parsed(file: str) -> ast.Module:
    return ast.parse((PACKAGE / file).read_text("utf-8"))


# Raised and caught within reading and preparing: users see them as bad rows, or as the UserError of a bad row.
CAUGHT = {"BadWeight", "BadProgram", "Untold"}


def error_classes() -> dict[str, tuple[str, str]]:
    """(base, file) of the package's public exceptions by name, from the source: to import all of it takes half a minute."""
    bases: dict[str, tuple[str, str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        heads = re.findall(r"^class (\w+)\((\w+)", path.read_text("utf-8"), re.M)
        bases |= {name: (base, str(path.relative_to(PACKAGE))) for name, base in heads}
    builtin = {
        name for name, made in vars(builtins).items() if isinstance(made, type) and issubclass(made, BaseException)
    }

    def is_error(name: str) -> bool:
        return name in builtin or (name in bases and is_error(bases[name][0]))

    return {
        name: at for name, at in bases.items() if is_error(name) and not name.startswith("_") and name not in CAUGHT
    }


def code_of(name: str, file: str) -> str | None:
    """What the class itself says its ``code`` is: a number, or something else ("*"); None if it says nothing."""
    for node in ast.walk(next(n for n in parsed(file).body if isinstance(n, ast.ClassDef) and n.name == name)):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("code", "self.code"):
            return {"code": "*"}.get(ast.unparse(node.value), ast.unparse(node.value))
    return None


def test_every_error_is_on_its_page() -> None:
    """With the code that the command line exits with, and the file it stands in."""
    page = (DOCS / "errors.md").read_text("utf-8")
    classes = error_classes()
    assert {"UserError", "Stopped", "NonFinite", "StagesFailed"} <= set(classes)
    tree = {m[1]: (m[2], m[3]) for m in re.finditer(r"── (\w+) +(\S+|128 \+ n)  .*?(\S+)$", page, re.M)}
    assert set(tree) - {"ValueError"} == set(classes)
    for name, (base, file) in classes.items():
        assert name in ("UserError", "Stopped") or base in classes, f"{name} would be told as unexpected"
        code = code_of(name, file) or code_of(base, classes[base][1]) or "?"
        code = code.replace("signal_number", "n")
        assert tree[name] == (code, "tokensieve.UserError" if name == "UserError" else file)
        assert f"`{name}`" in page or f"**{name}" in page, f"nothing says what to do about {name}"


def test_exit_codes_are_on_the_page() -> None:
    page = (DOCS / "errors.md").read_text("utf-8")
    codes = {int(c) for c in re.findall(r"^\| (\d+) \|", page, re.M)}
    assert codes == {0, 1, UserError.code, 3, *(128 + n for n in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM))}


def test_files_that_the_design_names_exist() -> None:
    """`layout.py` was named for months after it had become `runs/layout.py`."""
    for page in (DOCS / "design.md", ROOT / "CONTRIBUTING.md", *sorted((DOCS / "design").glob("*.md"))):
        for name in re.findall(r"`([\w/]+/[\w]+\.\w+)(?:[:`])", page.read_text("utf-8")):
            assert any((base / name).exists() for base in (ROOT, PACKAGE, DOCS)), f"{page.name} names {name}"


def test_walks_name_what_is_there() -> None:
    """A walk is of use while each function still stands in the file it names."""
    walks = (DOCS / "design.md").read_text("utf-8").partition("## Walks")[2]
    stops = re.findall(r"^\d+\. `([\w/]+\.py)` ((?:`[\w.]+`(?:, )?)+)", walks, re.M)
    assert len(stops) > 30
    for file, names in stops:
        defined = {n.name for n in ast.walk(parsed(file))
                   if isinstance(n, (ast.FunctionDef, ast.ClassDef))}  # fmt: skip
        for name in re.findall(r"`([\w.]+)`", names):
            assert set(name.split(".")) <= defined, f"{file} has no {name}"
