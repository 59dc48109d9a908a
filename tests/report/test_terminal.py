"""Coloured tokens: wrapped, and deaf to what corpus text would tell the terminal."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokensieve.analysis.table import table
from tokensieve.data.text import visible
from tokensieve.report.terminal import ANSI as ANSI_STYLES
from tokensieve.report.terminal import DROPPED, KEPT, PLAIN, kept_legend, paint_tokens

ANSI = re.compile(r"\x1b\[[0-9;]*m")


def colour_tokens(
    pieces: Sequence[str], keep: Sequence[bool], valid: Sequence[bool], *, color: bool = True, **sizes: int
) -> str:
    """A line of legend, and the text below it, as `show` prints them."""
    styles = [KEPT if k and v else DROPPED if v else PLAIN for k, v in zip(keep, valid, strict=True)]
    texts, kinds = zip(*kept_legend(styles), strict=True)
    legend = paint_tokens(texts, kinds, width=1000, color=color)
    return "\n".join([*legend, *paint_tokens(pieces, styles, color=color, **{"lines": 30, **sizes})])


def columns_of(text: str) -> int:
    return sum(
        0 if unicodedata.category(c) in ("Mn", "Me") else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text
    )


def test_colours() -> None:
    text = colour_tokens(["a", " b", " c", " d"], [True, True, False, True], [True, True, True, False])
    legend, line = text.split("\n")
    assert ANSI.sub("", legend) == "kept / dropped, share kept 67 % of 3 tokens"
    assert line == "\x1b[1;32ma b\x1b[0m\x1b[2m c\x1b[0m d"


def test_without_colour_kept_text_stands_in_brackets() -> None:
    text = colour_tokens(["a", " b", " c", " d"], [True, True, False, True], [True] * 4, color=False)
    assert text.split("\n") == ["[kept] / dropped, share kept 75 % of 4 tokens", "[a b] c[ d]"]
    assert "\x1b" not in text


def test_no_valid_token_is_no_share() -> None:
    assert colour_tokens([], [], [], color=False) == "[kept] / dropped, no valid token"
    assert "no valid token" in colour_tokens(["a"], [True], [False], color=False)


def test_lengths_must_agree() -> None:
    for pieces, keep, valid in ((["a"], [], []), ([], [True], [True]), (["a"], [True], [])):
        with pytest.raises(ValueError, match=r"argument|pieces"):
            colour_tokens(pieces, keep, valid)


@given(
    st.lists(st.tuples(st.text(st.characters(exclude_categories=()), max_size=12), st.booleans(), st.booleans())),
    st.integers(20, 60),
    st.booleans(),
)
def test_corpus_text_cannot_drive_the_terminal(tokens: list[tuple[str, bool, bool]], width: int, color: bool) -> None:
    """Whatever the text: no control or format character but our own colours, each closed on its line, no line too wide."""
    pieces, keep, valid = ([t[i] for t in tokens] for i in range(3))
    text = colour_tokens(pieces, keep, valid, width=width, color=color)
    for line in text.split("\n")[1:]:
        bare = ANSI.sub("", line) if color else line
        assert not [c for c in bare if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")]
        assert columns_of(bare) <= width
        codes = ANSI.findall(line)
        assert codes[1::2] == ["\x1b[0m"] * (len(codes) // 2)
        assert "\x1b[0m" not in codes[::2]
        assert len(codes) % 2 == 0
    text.encode()


@given(
    st.lists(st.tuples(st.text(max_size=6), st.sampled_from(sorted(ANSI_STYLES)))), st.integers(20, 50), st.booleans()
)
def test_lines_of_any_styles_fit(tokens: list[tuple[str, str]], width: int, color: bool) -> None:
    """Runs of two kinds of brackets side by side take four columns, not two. Nothing of the text is lost."""
    pieces, styles = [t[0] for t in tokens], [t[1] for t in tokens]
    lines = paint_tokens(pieces, styles, width=width, color=color)
    bare = [ANSI.sub("", line) for line in lines]
    assert all(columns_of(line) <= width for line in bare)
    if color:
        kept = "".join(map(visible, "".join(pieces))).replace(" ", "")
        assert "".join(bare).replace(" ", "") == kept


@pytest.mark.parametrize(
    ("evil", "shown"),
    [
        ("\x1b]0;title\x07", "␛]0;title␇"),
        ("\x1b[2J", "␛[2J"),
        ("\r", "␍"),
        ("\x7f", "␡"),
        ("\x9b31m", "<U+009B>31m"),
        ("\u202eabc", "<U+202E>abc"),
        ("\u2066", "<U+2066>"),
        ("\u2028", "<U+2028>"),
        ("\ud800", "<U+D800>"),
    ],
)
def test_controls_are_shown_as_symbols(evil: str, shown: str) -> None:
    """An escape sequence in a crawled page could retitle the window, clear it, or hide text; a lone surrogate stops print."""
    assert colour_tokens([evil], [False], [True], color=False).split("\n")[1] == shown
    assert shown in table([{"a": evil}], ["a"])


def test_lines_break_at_spaces_and_newlines() -> None:
    words = [" lorem"] * 8
    text = colour_tokens(["x = 1\n", *words], [False] * 9, [True] * 9, width=20, color=False)
    assert text.split("\n")[1:] == ["x = 1↵", " lorem lorem lorem", "lorem lorem lorem", "lorem lorem"]


def test_wide_characters_take_two_columns() -> None:
    """Counting characters instead of columns doubles the width of a Chinese text."""
    text = colour_tokens(["你" * 25], [True], [True], width=20)
    assert [ANSI.sub("", line) for line in text.split("\n")[1:]] == ["你" * 10, "你" * 10, "你" * 5]
    bracketed = colour_tokens(["你" * 25], [True], [True], width=20, color=False)
    assert bracketed.split("\n")[1:] == [f"[{'你' * 9}]", f"[{'你' * 9}]", f"[{'你' * 7}]"]


def test_a_wide_character_after_a_long_word_keeps_the_width() -> None:
    """Moving a word to the next line together with the wide character that did not fit made a line of width + 1."""
    text = colour_tokens(["x " + "a" * 18 + "你" * 2], [False], [True], width=20, color=False)
    assert text.split("\n")[1:] == ["x", "a" * 18 + "你", "你"]
    text = colour_tokens(["x " + "a" * 18 + "\u202e" * 2], [False], [True], width=20, color=False)
    assert text.split("\n")[1:] == ["x", "a" * 18, "<U+202E><U+202E>"]


def test_what_does_not_fit_is_counted() -> None:
    text = colour_tokens(["a\n"] * 7, [True] * 7, [True] * 7, lines=3, color=False)
    assert text.split("\n")[1:] == ["[a↵]"] * 3 + ["... 4 more tokens"]
    exact = colour_tokens(["a\n"] * 3, [True] * 3, [True] * 3, lines=3, color=False)
    assert exact.split("\n")[1:] == ["[a↵]"] * 3
