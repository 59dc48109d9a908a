"""Plain text for a terminal: tables, and running text whose tokens are coloured by style.

    kept / dropped, share kept 60 % of 1,234 tokens
    def forward(self, hidden): ...                     kept: bold green; dropped: dim; no target: plain

Corpus text is other people's: control characters, escape sequences and bidirectional controls in it are shown as visible
symbols and never reach the terminal.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

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
    "H->H": "\x1b[1;35m",
    "L->H": "\x1b[1;33m",
    "H->L": "\x1b[36m",
    "L->L": "\x1b[2m",
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
REPLACEMENT = "\ufffd"
_WRITTEN_NUMBER = re.compile(r"~?[-+]?\d[\d,]*(\.\d*)?(e[-+]?\d+)?( ?[kMGTPE])?( ?B| ?%)?")


def table(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | Mapping[str, str], *, markdown: bool = False
) -> str:
    """``rows`` as an aligned text table, one line a row, without a newline at its end.

    ``columns`` are the keys to show, in order, or a mapping key -> heading. Columns of numbers are right-aligned; a missing
    key or None is shown as "-". Integers get thousands separators, floats three decimals (or an exponent where those would
    hide the number); hand in a string for anything else: "1.2850", "~3.4 M" and "60 %" still count as numbers.
    """
    headings: dict[str, str] = dict(columns) if isinstance(columns, Mapping) else {c: c for c in columns}
    values: list[list[Any]] = [list(headings.values()), *([row.get(key) for key in headings] for row in rows)]
    right = [_is_numeric([row[c] for row in values[1:]]) for c in range(len(headings))]
    text = [[_cell(v, markdown) for v in row] for row in values]
    widths = [max(3 if markdown else 1, *(width_of(row[c]) for row in text)) for c in range(len(headings))]
    lines = [[_pad(cell, w, r) for cell, w, r in zip(row, widths, right, strict=True)] for row in text]
    if markdown:
        rule = ["-" * (w - 1) + (":" if r else "-") for w, r in zip(widths, right, strict=True)]
        return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])
    rule = ["-" * w for w in widths]
    return "\n".join("  ".join(line).rstrip() for line in [lines[0], rule, *lines[1:]])


def colour_tokens(
    pieces: Sequence[str],
    keep: Sequence[bool],
    valid: Sequence[bool],
    *,
    width: int = 100,
    lines: int = 30,
    color: bool = True,
) -> str:
    """The running text of ``pieces`` (one a token, see :func:`token_pieces`) with kept tokens coloured; a legend comes first.

    At most ``lines`` lines of at most ``width`` columns (20 at least) after the legend, each of which stands for itself:
    colours end with it. What does not fit is counted in one more line. A newline of the text is shown as a sign and ends the
    line. Tokens that are not ``valid`` are plain, whatever ``keep`` says. Without ``color`` kept text stands in [brackets].
    Raises ValueError if the three differ in length.
    """
    styles = [KEPT if k and v else DROPPED if v else PLAIN for k, v in zip(keep, valid, strict=True)]
    legend = "".join(_paint(text, style, color) for text, style in kept_legend(styles))
    return "\n".join([legend, *paint_tokens(pieces, styles, width=width, lines=lines, color=color)])


def paint_tokens(
    pieces: Sequence[str], styles: Sequence[str], *, width: int = 100, lines: int | None = None, color: bool = True
) -> list[str]:
    """The lines of :func:`colour_tokens` below its legend, for styles of any kind: keys of ANSI, one a token.

    Without ``color`` a run of one style stands in the brackets that MARKS has for it. ``lines`` None: all of them.
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


def token_pieces(tokenizer: Any, input_ids: Iterable[int]) -> list[str]:
    """The text of each token: joined, the pieces are ``tokenizer.decode(input_ids)``.

    A character whose bytes lie in several tokens belongs to the token of its first byte, and a token that only continues one
    is "". U+FFFD appears only for bytes that are no UTF-8 at all, as at the start of a row cut within a character.
    ``tokenizer``: any fast tokenizer of transformers; special tokens are shown.
    """
    ids = [int(i) for i in input_ids]
    pieces = [""] * len(ids)
    # Tokens are decoded in a window: some decoders drop the space of the first token they see, so the group before gives
    # context. `starts`: the token at which each U+FFFD that ends the window's text, so far unfinished, began.
    context, begin = 0, 0
    emitted, starts = 0, list[int]()
    for i in range(len(ids)):
        text = _decode(tokenizer, ids[context : i + 1])
        unfinished = len(text) - len(text.rstrip(REPLACEMENT))
        if i == len(ids) - 1:
            unfinished = 0  # nothing can finish it any more
        finished = text[emitted : len(text) - unfinished]
        for k, char in enumerate(finished):
            pieces[starts[k] if k < len(starts) else i] += char
        emitted += len(finished)
        starts = ([] if finished else starts)[:unfinished]
        starts += [i] * (unfinished - len(starts))
        if not unfinished:
            context, begin = begin, i + 1
            emitted = len(_decode(tokenizer, ids[context:begin]))
    return pieces


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


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


def visible_text(text: str) -> str:
    """``text`` with a symbol for every character that a terminal would obey or hide, newlines excepted."""
    return "".join(char if char == "\n" else visible(char) for char in text)


def visible(char: str) -> str:
    """``char`` itself, or a symbol for one that a terminal would obey, hide, or reorder its neighbours by."""
    if char == "\n":
        return "\u21b5"
    if char == "\t":
        return "\u21e5   "
    if ord(char) < 0x20:
        return chr(0x2400 + ord(char))  # Unicode has a picture of each: ESC is ␛
    if char == "\x7f":
        return "\u2421"
    # Other controls, formats (bidi, zero-width, tags), surrogates, private, unassigned, line and paragraph separators.
    if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return f"<U+{ord(char):04X}>"
    return char


def width_of(text: str) -> int:
    """Columns that ``text`` takes: wide (CJK) characters two, combining marks none."""
    return sum(
        0 if unicodedata.category(c) in ("Mn", "Me") else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


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


def _is_numeric(values: list[Any]) -> bool:
    given = [v for v in values if v is not None and v != ""]
    return bool(given) and all(
        bool(_WRITTEN_NUMBER.fullmatch(v)) if isinstance(v, str) else isinstance(v, Real) and not isinstance(v, bool)
        for v in given
    )


def _cell(value: Any, markdown: bool) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return f"{int(value):,}"
    if isinstance(value, Real):
        return _number(float(value))
    text = "".join(map(visible, str(value)))
    return text.replace("\\", "\\\\").replace("|", "\\|") if markdown else text


def _number(x: float) -> str:
    hidden = math.isfinite(x) and x != 0 and not 1e-3 <= abs(x) < 1e6
    return f"{x:.3e}" if hidden else f"{x:.3f}"


def _pad(text: str, width: int, right: bool) -> str:
    space = " " * (width - width_of(text))
    return space + text if right else text + space
