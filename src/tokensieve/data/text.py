"""Tokens as text, and text as it may be shown: whole characters, nothing that a terminal or a page would obey."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Any

REPLACEMENT = "\ufffd"


# The bytes of a character lie in four tokens at most: what this many do not finish, nothing finishes.
_WINDOW = 8


def token_pieces(tokenizer: Any, input_ids: Iterable[int]) -> list[str]:
    """The text of each token: joined, the pieces are ``tokenizer.decode(input_ids)``.

    A character whose bytes lie in several tokens belongs to the token of its first byte, and a token that only continues one
    is "". U+FFFD appears only for bytes that are no UTF-8 at all, as at the start of a row cut within a character.
    ``tokenizer``: any fast tokenizer of transformers; special tokens are shown. Takes time in proportion to the tokens.
    """
    ids = [int(i) for i in input_ids]
    pieces = [""] * len(ids)
    runs = _byte_runs(tokenizer, ids)
    # Tokens are decoded in a window: some decoders drop the space of the first token they see, so the group before gives
    # context. `began`: the token at which the U+FFFD that ends the window's text, so far unfinished, began.
    context, begin, emitted = 0, 0, 0
    began: int | None = None
    i = 0
    while i < len(ids):
        stop = runs.get(i, i + 1)
        text = decode(tokenizer, ids[context:stop])
        unfinished = int(text.endswith(REPLACEMENT) and not runs and stop < len(ids))
        finished = text[emitted : len(text) - unfinished]
        if i in runs:
            _share_out(finished, pieces, i, stop)
        else:
            for k, char in enumerate(finished):
                pieces[i if k or began is None else began] += char
        if unfinished and (finished or began is None):
            began = i
        elif not unfinished:
            began = None
        emitted += len(finished)
        if began is None:
            context, begin = begin, stop
            emitted = len(decode(tokenizer, ids[context:begin]))
        elif i - context >= _WINDOW:
            context, begin = max(began - 1, context), began
            emitted = len(decode(tokenizer, ids[context:stop])) - 1
        i = stop
    return pieces


def _byte_runs(tokenizer: Any, ids: list[int]) -> dict[int, int]:
    """start -> stop of runs of tokens of one byte each (``<0xAB>``), where the decoder takes a run as a whole.

    It is text if all of it is UTF-8, and else a U+FFFD a byte: a byte more may change every character before it.
    """
    if "ByteFallback" not in str(tokenizer.backend_tokenizer.decoder):
        return {}
    tokens = tokenizer.convert_ids_to_tokens(ids)
    is_byte = [len(t) == 6 and t.startswith("<0x") and t.endswith(">") for t in tokens]
    runs, i = {}, 0
    while i < len(ids):
        stop = next((k for k in range(i, len(ids)) if not is_byte[k]), len(ids)) if is_byte[i] else i + 1
        if is_byte[i]:
            runs[i] = stop
        i = stop
    return runs


def _share_out(text: str, pieces: list[str], start: int, stop: int) -> None:
    """Each character of a run of bytes to the token of its first byte."""
    whole = len(text.encode("utf-8", "surrogatepass")) == stop - start
    at = start
    for char in text:
        pieces[min(at, stop - 1)] += char
        at += len(char.encode("utf-8", "surrogatepass")) if whole else 1


def decode(tokenizer: Any, ids: list[int]) -> str:
    """The text of ``ids``, special tokens and spaces as they are."""
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def visible(char: str) -> str:
    """``char`` itself, or a symbol for one that a terminal or a page would obey, hide, or reorder its neighbours by."""
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


def visible_text(text: str) -> str:
    """``text`` with a symbol for every character that a terminal would obey or hide, newlines excepted."""
    return "".join(char if char == "\n" else visible(char) for char in text)


def width_of(text: str) -> int:
    """Columns that ``text`` takes: wide (CJK) characters two, combining marks none."""
    return sum(
        0 if unicodedata.category(c) in ("Mn", "Me") else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )
