"""Plain text for a terminal: running text whose tokens are coloured by style.

    kept / dropped, share kept 60 % of 1,234 tokens
    def forward(self, hidden): ...                     kept: bold green; dropped: dim; no target: plain

Corpus text is other people's: control characters, escape sequences and bidirectional controls in it are shown as visible
symbols and never reach the terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ..analysis.token_classes import CLASSES
from ..data.text import visible, width_of

KEPT, DROPPED, PLAIN = "kept", "dropped", "plain"
# Colours of the terminal's own palette, which its owner chose to be readable on his background. The five steps of a value
# and the classes also differ by more than hue.
ANSI = {
    KEPT: "\x1b[1;32m",
    DROPPED: "\x1b[2m",
    "low": "\x1b[2m",
    "lower": "",
    "middle": "\x1b[36m",
    "higher": "\x1b[33m",
    "high": "\x1b[1;35m",
    "far below": "\x1b[1;36m",
    "below": "\x1b[36m",
    "near": "\x1b[2m",
    "above": "\x1b[33m",
    "far above": "\x1b[1;33m",
    **dict(zip(CLASSES, ("\x1b[1;35m", "\x1b[1;33m", "\x1b[36m", "\x1b[2m"), strict=True)),
}
# What stands around a run of tokens where there are no colours.
MARKS = {
    KEPT: "[]",
    "middle": "()",
    "higher": "[]",
    "high": "{}",
    "far below": "<>",
    "below": "()",
    "above": "[]",
    "far above": "{}",
    "H->H": "{}",
    "L->H": "[]",
    "H->L": "()",
}
RESET = "\x1b[0m"
MIN_WIDTH = 20


def paint_tokens(
    pieces: Sequence[str], styles: Sequence[str], *, width: int = 100, lines: int | None = None, color: bool = True
) -> list[str]:
    """The running text of ``pieces`` (a text a token, of ``data.text.token_pieces``) in ``styles``, which are keys of ANSI.

    At most ``lines`` lines (None: all) of at most ``width`` columns, 20 at least, each of which stands for itself: colours
    end with it. What does not fit is counted in one more line. A newline of the text is shown as a sign and ends the line.
    Without ``color`` a run of one style stands in the brackets that MARKS has for it. ValueError if the two differ in length.
    """
    if len(pieces) != len(styles):
        raise ValueError(f"{len(pieces)} pieces, but {len(styles)} tokens")
    out: list[str] = []
    for line in _wrap(_glyphs(pieces, styles), max(width, MIN_WIDTH), mark_width=0 if color else 2):
        if len(out) == lines:
            out.append(f"... {len(pieces) - line[0].token:,} more tokens")
            break
        out.append(_paint_line(line, color))
    return out


def kept_legend(styles: Sequence[str]) -> list[tuple[str, str]]:
    """(text, style) parts: kept / dropped, and the share of valid tokens that are kept."""
    kept, valid = styles.count(KEPT), len(styles) - styles.count(PLAIN)
    share = f"share kept {100 * kept / valid:.0f} % of {valid:,} tokens" if valid else "no valid token"
    return [(KEPT, KEPT), (" / ", PLAIN), (DROPPED, DROPPED), (f", {share}", PLAIN)]


class _Glyph(NamedTuple):
    """One character as it is shown."""

    text: str
    width: int
    style: str
    token: int
    ends_line: bool


def _glyphs(pieces: Sequence[str], styles: Sequence[str]) -> Iterator[_Glyph]:
    for token, (piece, style) in enumerate(zip(pieces, styles, strict=True)):
        for char in piece:
            text = visible(char)
            yield _Glyph(text, width_of(text), style, token, char == "\n")


def _wrap(glyphs: Iterable[_Glyph], width: int, mark_width: int) -> Iterator[list[_Glyph]]:
    """Lines of at most ``width`` columns, broken at the last space, which is dropped, or else anywhere.

    A run of marked glyphs takes ``mark_width`` more columns, for its brackets.
    """
    line: list[_Glyph] = []
    for glyph in glyphs:
        line.append(glyph)
        while _line_width(line, mark_width) > width and len(line) > 1:
            space = max((i for i, g in enumerate(line) if i and g.text == " "), default=None)
            yield line[: space or -1]
            line = line[-1:] if space is None else line[space + 1 :]
        if glyph.ends_line:
            yield line
            line = []
    if line:
        yield line


def _line_width(line: list[_Glyph], mark_width: int) -> int:
    runs = sum(g.style in MARKS and (i == 0 or line[i - 1].style != g.style) for i, g in enumerate(line))
    return sum(g.width for g in line) + mark_width * runs


def _paint_line(line: list[_Glyph], color: bool) -> str:
    runs: list[tuple[str, str]] = []
    for glyph in line:
        if runs and runs[-1][0] == glyph.style:
            runs[-1] = (glyph.style, runs[-1][1] + glyph.text)
        else:
            runs.append((glyph.style, glyph.text))
    return "".join(_paint(text, style, color) for style, text in runs)


def _paint(text: str, style: str, color: bool) -> str:
    if color:
        return f"{ANSI[style]}{text}{RESET}" if ANSI.get(style) else text
    return text.join(MARKS[style]) if style in MARKS else text
