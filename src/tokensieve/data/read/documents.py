"""What a reader yields: documents, bad rows, and what is left out; and the blocks that readers read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from .programs import CharSpans

NO_TARGET = -100
"""``IGNORE_INDEX`` of core, which cannot be imported here: processes that read text do not wait for torch."""


class Turn(NamedTuple):
    """Characters of a text that a role says."""

    role: str
    start: int
    end: int


class Chat(NamedTuple):
    """A conversation: messages as templates take them, the weight of each, and the tools that may be called."""

    messages: list[dict[str, Any]]
    weights: list[float]
    tools: list[Any] | None = None


class TextPart(NamedTuple):
    """Characters of a text, or a control token that stands between such."""

    start: int = 0
    end: int = 0
    token: str = ""


class Document(NamedTuple):
    """One document. Either ``text``, or ``tokens`` where it came tokenised; ``where`` names file and line in messages."""

    id: str
    source: str
    where: str
    text: str = ""
    solution: int = 0  # characters before the solution; 0 where all of the text counts
    tokens: list[int] | None = None
    labels: list[int] | None = None  # of the tokens: -100 no target, else the token; None: all are targets
    token_weights: list[float] | None = None
    turns: tuple[Turn, ...] = ()
    weights: tuple[tuple[int, int, float], ...] = ()  # of characters of the text: from, up to, their weight; else 1
    masked: bool = False  # only characters that ``weights`` name are targets
    control: bool = False  # control tokens written out are such: a template wrote them
    chat: Chat | None = None  # a conversation that a template is yet to write out as text
    place: str = ""  # file and number in it, whatever its id is; the same on every machine
    label: float | None = None  # a number that its row has, see ``SourceConfig.label``
    parts: tuple[TextPart, ...] = ()  # the order in which its text is encoded, each part by itself; none: as it stands
    touched: tuple[int, ...] = ()  # the transforms that changed it
    program: CharSpans = ()  # characters that its row's program would delete, see ``SourceConfig.program``
    deleted: CharSpans = ()  # characters that are no targets, whatever weights and rules say
    taken_by: str = ""  # the first pattern of its source's ``only`` that names it

    @property
    def size(self) -> int:
        """Bytes of text (4 a token where there is no text)."""
        if self.chat is not None:
            return sum(len(m["content"].encode("utf-8", "replace")) for m in self.chat.messages)
        return 4 * len(self.tokens) if self.tokens is not None else len(self.text.encode())


class BadRow(NamedTuple):
    """A row that is not what the source's settings say."""

    where: str
    reason: str


class Skipped(NamedTuple):
    """A document left out without being wrong: ``empty``, ``short``, ``unparsable``, ``other source`` (of `only`)."""

    reason: str


Item = Document | BadRow | Skipped


@dataclass(frozen=True)
class Block:
    """A bounded part of a source."""

    payload: Any
    file: str = ""  # relative name, in keys
    path: str = ""  # as the user wrote it, in messages
    start: int = 1  # number of its first line or row in the file
    cost: int = 0  # bytes of input, for progress
    size: int = 0  # bytes it brings into memory: short blocks of several files make a unit together


def kind(value: Any) -> str:
    names = {str: "a string", int: "a number", float: "a number", bool: "a boolean", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
