"""Tokens as text, and text as it may be shown: whole characters, nothing that a terminal or a page would obey."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Any

REPLACEMENT = "\ufffd"


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
        text = decode(tokenizer, ids[context : i + 1])
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
            emitted = len(decode(tokenizer, ids[context:begin]))
    return pieces


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
