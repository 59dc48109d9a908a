"""What the pages show: Python runs, the command line takes commands and recipes, and every public name is there."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tokensieve as ts
from tokensieve import cli
from tokensieve.core import objective
from tokensieve.pipeline.config.fields import WrongFields
from tokensieve.pipeline.config.yaml_text import read_value
from tokensieve.pipeline.configs.run import RecipeConfig
from tokensieve.pipeline.recipe.extends import read_recipe
from tokensieve.pipeline.recipe.load import KEYS, find_recipe, load
from tokensieve.pipeline.verbs import VERBS, make_config

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```", re.M | re.S)


def blocks(*languages: str) -> list[tuple[str, str, str]]:
    """(page, words after the language, text) of each fenced block."""
    found = [(page.name, *m.groups()) for page in PAGES for m in FENCE.finditer(page.read_text("utf-8"))]
    return [(page, words.strip(), text) for page, language, words, text in found if language in languages]


# --- shell -----------------------------------------------------------------------------------------------------------------


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command in a block: lines that end in a backslash go on, what stands behind # is none."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        line = re.sub(r"bash -c '(.*)'", r"\1", line)
        if "tokensieve " in line:
            yield shlex.split(line, comments=True)


def shown_commands() -> list[tuple[str, list[str]]]:
    """(page, words from the verb on) of every call of tokensieve on the pages, in blocks and in the text's own code."""
    found = [(page, words) for page, _, text in blocks("sh", "bash", "") for words in commands(text)]
    for page in PAGES:
        text = FENCE.sub("", page.read_text("utf-8"))
        found += [(page.name, shlex.split(" ".join(m.split()))) for m in re.findall(r"`(tokensieve [^`]+)`", text)]
    calls = [(page, words[words.index("tokensieve") + 1 :]) for page, words in found if "tokensieve" in words]
    return [(page, words) for page, words in calls if words and words[0].isalpha() and words[0].islower()]


def check_command(words: list[str]) -> None:
    """Verb, flags, types of values, the rule and its options, a shipped recipe and its settings. ``...`` leaves things out."""
    verb, *rest = words
    assert verb in VERBS, f"no verb {verb}"
    rest = [word for word in rest if word not in ("...", "--json", "--print_config", "--debug", "--help")]
    if "--config" in rest:  # a file of the reader's
        at = rest.index("--config")
        del rest[at : at + 2]
    config = cli.given(verb, rest).config(partial=True)
    check_fields(verb, {f.name: getattr(config, f.name) for f in dataclasses.fields(config)})
    if verb == "run" and config.recipe and not config.recipe.endswith(".yaml") and config.recipe.islower():
        settings = read_recipe(find_recipe(config.recipe), find_recipe).get("settings", {})
        assert set(config.set) <= set(settings), f"{config.recipe} has no setting {set(config.set) - set(settings)}"


def check_fields(verb: str, fields: dict[str, Any]) -> None:
    """What no type says: rules and their options, and fields of TrainingArguments."""
    rule = fields.get("objective") or {}
    if rule and ":" not in rule.get("name", ""):
        objective(**rule)
    if verb == "train" and fields.get("training"):
        from transformers import TrainingArguments

        names = {f.name for f in dataclasses.fields(TrainingArguments)}
        assert set(fields["training"]) <= names | {"activation_checkpointing"}, set(fields["training"]) - names


def test_commands_are_taken() -> None:
    """A flag was renamed, and the page went on saying the old one."""
    shown = shown_commands()
    assert len(shown) > 60
    assert {verb for verb in VERBS if verb not in {words[0] for _, words in shown}} == set(), (
        "a verb that no page shows"
    )
    wrong = []
    for page, words in shown:
        try:
            check_command(words)
        except (AssertionError, ValueError) as e:
            wrong.append(f"{page}: {' '.join(words)}: {e}")
    assert wrong == []


@pytest.mark.parametrize(
    "line",
    ["trian --out x", "train --outt x", "train --seed x", "score --out", "run pilot --set '{wbe: x}'",
     "train --objective '{name: rho1, ration: 1}'", "train --training '{max_step: 1}'"],
)  # fmt: skip
def test_what_is_wrong_is_found(line: str) -> None:
    with pytest.raises((AssertionError, WrongFields, ValueError)):
        check_command(shlex.split(line))


# --- YAML ------------------------------------------------------------------------------------------------------------------


def test_yaml_is_a_recipe_or_a_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``yaml VERB``: its fields. A whole recipe is loaded; of one with ``...`` keys and verbs are read. Stages, rules."""
    monkeypatch.chdir(tmp_path)
    kinds = set()
    for page, words, text in blocks("yaml"):
        lines = [line for line in text.splitlines() if line.startswith("objective: ")]
        if lines:
            kinds.add("rules")
            for line in lines:
                rule = read_value(line)["objective"]
                assert rule["name"] in ("distill", "by_source") or objective(**rule), page
            continue
        said = read_value(re.sub(r"\.\.\.(, )?", "", text))
        if words:
            kinds.add("config")
            fields = (
                {**dict.fromkeys(("out", "corpus", "model"), "x"), **said} if words == "train" else {"out": "x", **said}
            )
            make_config(words, fields, page)
            check_fields(words, fields)
        elif "..." in text:
            kinds.add("sketch")
            assert set(said) <= set(KEYS), page
            assert {stage["verb"] for stage in said["stages"].values()} <= set(VERBS)
        elif {"stages", "extends"} & set(said):
            kinds.add("recipe")
            (tmp_path / "shown.yaml").write_text(text, encoding="utf-8")
            assert load(RecipeConfig("shown.yaml")).stages, page
        else:
            kinds.add("stage")
            assert all(stage["verb"] in VERBS for stage in said.values()), page
    assert kinds == {"rules", "config", "sketch", "recipe", "stage"}


# --- Python ----------------------------------------------------------------------------------------------------------------


def test_python_names_what_is_there() -> None:
    """Of every block: it parses, and what it calls of ours takes these arguments."""
    for page, _, text in blocks("python"):
        if page == "api.md":
            continue  # signatures
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ts":
                assert node.attr in ts.__all__, f"{page}: ts.{node.attr}"
            if isinstance(node, ast.Call) and re.fullmatch(r"ts\.\w+", ast.unparse(node.func)):
                taken = inspect.signature(getattr(ts, ast.unparse(node.func)[3:])).parameters
                every = any(p.kind is p.VAR_KEYWORD for p in taken.values())
                assert every or {k.arg for k in node.keywords} <= set(taken), f"{page}: {ast.unparse(node)}"


RUN = [
    (page, i, text) for i, (page, words, text) in enumerate(blocks("python")) if words == "run" and page != "README.md"
]


@pytest.mark.parametrize(("page", "text"), [(page, text) for page, _, text in RUN], ids=[f"{p}-{i}" for p, i, _ in RUN])
def test_python_runs(page: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks marked ``python run``. Those of the README: test_readme.py; other trainers: tests/examples."""
    monkeypatch.chdir(tmp_path)
    exec(compile(text, page, "exec"), {"__name__": "page"})
    for log in tmp_path.glob("runs/*/tokens.jsonl"):
        assert json.loads(log.read_text().splitlines()[-1])["kept"] > 0


# --- names -----------------------------------------------------------------------------------------------------------------


def test_the_page_of_names_is_what_the_code_says() -> None:
    """`python docs/make_api.py` writes it. It raises for a name without a docstring."""
    made = runpy.run_path(str(ROOT / "docs" / "make_api.py"))
    page = (ROOT / "docs" / "api.md").read_text("utf-8")
    assert page == made["page"](), "python docs/make_api.py"
    heads = set(re.findall(r"^### (\w+)$", page, re.M))
    assert {"tokensieve", "tokensieve.core"} <= set(made["packages"]())
    for package, names in made["packages"]().items():
        assert set(names) <= heads, package
    assert {name for names in made["GROUPS"].values() for name in names} == set(ts.__all__)


def test_the_sidebar_has_every_page_of_the_index() -> None:
    """The site is built by `make docs`, in `make check`; here only what this project does in it."""
    conf = runpy.run_path(str(ROOT / "docs" / "conf.py"))
    made = conf["sidebar"]((ROOT / "docs" / "README.md").read_text("utf-8"))
    listed = re.findall(r"</([\w/]+)>", made)
    assert len(listed) == len(set(listed))
    assert all((ROOT / f"{page}.md").is_file() for page in listed)
    pages = {f"docs/{p.relative_to(ROOT / 'docs').with_suffix('')}" for p in (ROOT / "docs").rglob("*.md")}
    assert pages - {"docs/README"} <= set(listed)
