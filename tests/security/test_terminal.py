"""Text and names that would drive a terminal, through the command line: they are shown and not obeyed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tokensieve import cli

SEQUENCES = {
    "title": "\x1b]0;owned\x07",
    "clear": "\x1b[2J\x1b[H",
    "link": "\x1b]8;;http://x\x1b\\click\x1b]8;;\x1b\\",
    "eight bit": "\x9b2J\x90q\x9c",
    "carriage": "all good\r\x08\x08",
    "bidi": "\u202egnp.exe\u2066",
    "invisible": "a\u200bb\U000e0041",
}


@pytest.mark.parametrize("sequence", SEQUENCES)
@pytest.mark.parametrize("color", ["--color", "--no-color"])
def test_terminal_sequence_in_text(sequence: str, color: str, tiny: Any, tmp_path: Path, tokensieve: Any) -> None:
    """In a document, its name and its source's: a crawled page could retitle the window, or hide what stands beside it."""
    text = SEQUENCES[sequence]
    row = {"id": f"id{text}", "text": f"the cat {text} sat on the mat " * 9, "source": f"web{text}"}
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
    source = f"[{{path: {tmp_path}/x.jsonl}}]"
    made = tokensieve(
        "prepare", "--out", tmp_path / "c", "--sources", source, "--tokenizer", tiny.corpus, "--length", 32
    )
    assert made.code == 0, made.err
    scored = tokensieve("score", "--out", tmp_path / "s", "--model", tiny.base, "--corpus", tmp_path / "c")
    assert scored.code == 0, scored.err
    shown = tokensieve(
        "show", "--corpus", tmp_path / "c", "--scores", tmp_path / "s", "--by", "ref_nll", "--row", 0, color
    )
    assert shown.code == 0, shown.err
    checked = tokensieve("check", tmp_path / "c")
    ours = (
        ["\x1b[0m", *(f"\x1b[{n}m" for n in ("1;32", "2", "36", "33", "1;35", "1;36", "1;33"))]
        if color == "--color"
        else []
    )
    for done in (made, shown, checked):
        seen = done.out
        for code in ours:
            seen = seen.replace(code, "")
        left = {c for c in seen if not (c.isprintable() or c == "\n")}
        assert not left, f"{left} in {seen!r}"
    assert "cat" in shown.out


def test_terminal_sequence_in_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An error quotes what it refuses."""
    name = "\x1b]0;owned\x07corpus"
    assert cli.main(["check", str(tmp_path / name)]) == 2
    assert "\x1b" not in capsys.readouterr().err
