"""show: rows as text coloured by what is known of them, and every way to ask for what is not."""

from __future__ import annotations

import json
import re
import unicodedata
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from tokensieve.data.corpus import open_corpus
from tokensieve.data.scored import load_scored
from tokensieve.data.text import token_pieces, visible

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
    """The legend too: it was one line of 46 columns on a terminal of 40."""
    done = tokensieve("show", tiny.rho1, "--corpus", tiny.corpus, "--width", width, "--lines", 12)
    lines = done.out.rstrip("\n").split("\n")
    legend = 1 if width == 80 else 4
    assert len(lines) <= 12 + legend  # one more says how much is left out
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


@pytest.fixture(scope="module")
def hostile(tiny: Any, tokensieve: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(corpus, scores, dynamics) of text that would drive a terminal, in characters of every width."""
    root = tmp_path_factory.mktemp("hostile")
    evil = "\x1b[2J\x1b]0;x\x07 \u202egnp.exe\u2066 你好世界 😀👩\u200d👧 e\u0301u\u0308 \x9b31m \r\x00\n<script>\u2028"
    (root / "t.jsonl").write_text("".join(json.dumps({"id": str(i), "text": evil * 3}) + "\n" for i in range(3)))
    for verb, out, *more in (
        ("prepare", "corpus", "--sources", f"[{{path: {root}/t.jsonl}}]", "--tokenizer", tiny.corpus, "--length", 64),
        ("score", "scores", "--model", tiny.base, "--corpus", root / "corpus"),
        ("dynamics", "dynamics", "--models", tiny.base / "model", tiny.clm, "--corpus", root / "corpus"),
    ):
        done = tokensieve(verb, "--out", root / out, *more)
        assert done.code == 0, done.err
    return root / "corpus", root / "scores", root / "dynamics"


@pytest.mark.parametrize("numbers", [False, True])
@pytest.mark.parametrize("color", ["--color", "--no-color"])
@pytest.mark.parametrize("by", ["excess", "nll", "ref_nll", "class"])
def test_no_text_drives_the_terminal(by: str, color: str, numbers: bool, hostile: Any, tokensieve: Any) -> None:
    """On 40 columns, in every view: no control or bidi character but our own colours, no line too wide."""
    corpus, scores, dynamics = hostile
    more = ["--numbers"] if numbers else []
    done = tokensieve(
        *("show", "--corpus", corpus, "--scores", scores, "--dynamics", dynamics, "--by", by, "--row", 1),
        *("--width", 40, "--lines", 40, color, *more),
    )
    assert done.code == 0, done.err
    bare = ESCAPE.sub("", done.out) if color == "--color" else done.out
    controls = {c for c in bare if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")}
    assert controls == {"\n"}
    for line in bare.rstrip("\n").split("\n"):
        wide = sum(
            0 if unicodedata.category(c) in ("Mn", "Me") else 1 + (unicodedata.east_asian_width(c) in "WF")
            for c in line
        )
        assert wide <= 40, line
    assert ("\x1b[" in done.out) == (color == "--color" and not numbers)
    if not numbers:
        assert "␛" in bare
        assert "你" in bare


def test_brackets_are_around_the_right_classes(tiny: Any, hostile: Any, tokensieve: Any) -> None:
    """What stands in square brackets is what the dynamics folder calls L->H, in round ones H->L."""
    corpus, _, dynamics = hostile
    done = tokensieve("show", "--corpus", corpus, "--dynamics", dynamics, "--width", 2000, "--no-color", "--lines", 99)
    body = "".join(done.out.rstrip("\n").split("\n")[1:])
    opened = open_corpus(corpus)
    pieces = token_pieces(opened.tokenizer(), opened.rows[0]["input_ids"])
    classes = Dataset.from_file(str(dynamics / "tokens.arrow"))[0]["class"]
    want = ""
    for k, run in groupby(zip(classes, pieces, strict=True), key=lambda pair: pair[0]):
        text = "".join(visible(c) for _, piece in run for c in piece)
        left, right = ("{}", "[]", "()", ("", ""), ("", ""))[k]
        want += f"{left}{text}{right}" if text else ""
    merge = re.compile(r"\]\[|\)\(|\}\{")  # at the end of a line a run's bracket closes and opens again
    assert merge.sub("", body) == merge.sub("", want)


def test_numbers_are_those_of_the_folders(tiny: Any, logged: Any, tokensieve: Any) -> None:
    row = sorted(logged)[0]
    done = tokensieve(
        *("show", tiny.rho1, "--corpus", tiny.corpus, "--scores", tiny.scores, "--row", row, "--numbers", "--lines", 99)
    )
    heading, _, *lines = done.out.rstrip("\n").split("\n")[1:]
    assert re.split(" {2,}", heading) == ["at", "token", "nll", "ref_nll", "excess", "kept"]
    ref_nll = load_scored(tiny.corpus, tiny.scores)[row]["ref_nll"]
    for position, keep in logged[row].items():
        *_, nll, ref, excess, kept = lines[position].split()
        assert (kept == "yes") == keep
        assert float(ref) == pytest.approx(ref_nll[position], abs=0.0051)
        assert float(excess) == pytest.approx(float(nll) - float(ref), abs=0.011)


def test_colouring_by_what_is_not_there(tiny: Any, tokensieve: Any) -> None:
    command = ("show", tiny.rho1, "--corpus", tiny.corpus, "--by")
    assert "excess is not known here (kept, nll are)" in tokensieve(*command, "excess").error
    assert "class is not known here (kept, nll are): it needs --dynamics" in tokensieve(*command, "class").error
    alone = ("show", "--corpus", tiny.corpus)
    assert "name a run that logged tokens, or scores or dynamics" in tokensieve(*alone).error
    scored = (*alone, "--scores", tiny.scores)
    assert "kept is not known here (ref_nll are)" in tokensieve(*scored, "--by", "kept").error
    assert "it has rows 0 to" in tokensieve(*scored, "--row", 99999).error


def test_a_run_without_a_log(tiny: Any, tokensieve: Any) -> None:
    done = tokensieve("show", tiny.base, "--corpus", tiny.corpus)
    assert (done.code, "train with token_log_every" in done.error) == (2, True)
    assert "holds 'corpus', 'model' is needed here" in tokensieve("show", tiny.corpus, "--corpus", tiny.corpus).error


def test_an_unfinished_run(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    done = tokensieve("show", tmp_path, "--corpus", tiny.corpus)
    assert f"{tmp_path} has no manifest.json: it is not finished" in done.error
