"""show: the logged rows as text, and every way to ask for what was not logged."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tokensieve.data.corpus import open_corpus

ESCAPE = re.compile(r"\x1b\[[\d;]*m")


@pytest.fixture(scope="module")
def logged(tiny: Any) -> dict[int, dict[int, bool]]:
    """row -> position -> keep, at the last step."""
    columns = pq.read_table(tiny.rho1 / "tokens" / "step-00000004.parquet").to_pydict()
    rows: dict[int, dict[int, bool]] = {}
    for row, position, keep in zip(columns["row"], columns["position"], columns["keep"], strict=True):
        rows.setdefault(row, {})[position] = keep
    return rows


def blocks(text: str) -> dict[int, list[str]]:
    """row -> the lines of its block, without the legend; every block at step 4."""
    found = {}
    for block in text.rstrip("\n").split("\n\n"):
        legend, *lines = block.split("\n")
        row, step = re.match(r"row (\d+), step (\d+): ", ESCAPE.sub("", legend)).groups()  # type: ignore[union-attr]
        assert step == "4"
        found[int(row)] = lines
    return found


def test_brackets_are_around_the_kept_tokens(tiny: Any, logged: Any, tokensieve: Any) -> None:
    """The bracketed text is what the log says was kept: a column off by one, or another row's, would show other words."""
    done = tokensieve("show", tiny.rho1, "--corpus", tiny.corpus, "--width", 1000, "--lines", 200, "--color", "false")
    assert done.code == 0, done.err
    corpus = open_corpus(tiny.corpus)
    shown = blocks(done.out)
    assert sorted(shown) == sorted(logged)
    for row, keep in logged.items():
        kept = [t for t, k in keep.items() if k]
        ids = corpus.rows[row]["input_ids"]
        runs = re.findall(r"\[(.*?)\]", "".join(shown[row]).replace("][", ""))
        assert "".join(runs) == "".join(corpus.tokenizer().decode([ids[t]]) for t in kept).replace("\n", "↵")
        assert 0 < len(kept) < len(keep)


def test_colours_and_brackets_say_the_same(tiny: Any, tokensieve: Any) -> None:
    command = ("show", tiny.rho1, "--corpus", tiny.corpus, "--width", 1000, "--lines", 200)
    coloured, plain = (tokensieve(*command, "--color", c).out for c in ("true", "false"))
    assert "\x1b[1;32m" in coloured
    assert "\x1b" not in plain
    as_brackets = re.sub(r"\x1b\[1;32m(.*?)\x1b\[0m", r"[\1]", coloured)
    assert ESCAPE.sub("", as_brackets) == plain


@pytest.mark.parametrize(
    ("no_color", "tty", "colours"), [(False, True, True), (True, True, False), (False, False, False)]
)
def test_colours_only_where_they_are_wanted(
    no_color: bool, tty: bool, colours: bool, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io
    import sys

    from tokensieve import cli

    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return tty

    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "")
    assert cli.main(["show", str(tiny.rho1), "--corpus", str(tiny.corpus)]) == 0
    assert ("\x1b[" in screen.getvalue()) is colours


@pytest.mark.parametrize("width", [20, 33, 80])
def test_lines_fit(width: int, tiny: Any, tokensieve: Any) -> None:
    done = tokensieve("show", tiny.rho1, "--corpus", tiny.corpus, "--width", width, "--lines", 12)
    assert len(done.out.rstrip("\n").split("\n")) <= 12 + 1  # one more says how much is left out
    for lines in blocks(done.out).values():
        assert all(len(line) <= width for line in lines if not line.startswith("..."))


def test_one_row_and_one_step(tiny: Any, logged: Any, tokensieve: Any) -> None:
    row = sorted(logged)[1]
    done = tokensieve("show", tiny.rho1, "--corpus", tiny.corpus, "--row", row)
    assert list(blocks(done.out)) == [row]
    first = tokensieve("show", tiny.rho1, "--corpus", tiny.corpus, "--step", 1)
    assert first.out.startswith("row ")
    assert ", step 1: " in first.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--corpus", "{target}"], "was trained on another corpus than {target}"),
        (["--corpus", "{corpus}", "--step", "3"], "step 3 was not logged; logged steps: 1, 2, 4"),
        (["--corpus", "{corpus}", "--row", "99999"], "row 99999 was not logged at step 4; logged rows: {rows}"),
        (["--corpus", "{corpus}", "--lines", "0"], "lines must be at least 3"),
        (["--corpus", "{rho1}"], "holds 'model', 'corpus' is needed here"),
    ],
)
def test_what_is_wrong(arguments: list[str], said: str, tiny: Any, logged: Any, tokensieve: Any) -> None:
    places = {name: getattr(tiny, name) for name in ("corpus", "target", "rho1")}
    done = tokensieve("show", tiny.rho1, *(a.format(**places) for a in arguments))
    assert done.code == 2
    assert said.format(**places, rows=", ".join(map(str, sorted(logged)))) in done.error


def test_a_run_without_a_log(tiny: Any, tokensieve: Any) -> None:
    done = tokensieve("show", tiny.base, "--corpus", tiny.corpus)
    assert (done.code, "train with token_log_every" in done.error) == (2, True)
    assert "holds 'corpus', 'model' is needed here" in tokensieve("show", tiny.corpus, "--corpus", tiny.corpus).error


def test_an_unfinished_run(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    done = tokensieve("show", tmp_path, "--corpus", tiny.corpus)
    assert f"{tmp_path} has no manifest.json: it is not finished" in done.error
