"""Conversations as text: what a tokenizer's chat template writes, and which characters of it each role says.

    messages   user: "hi"   assistant: "ho"
    text       <|user|>hi<|end|><|assistant|>ho<|end|>
                         ^^                  ^^^^^^^      user, assistant: what it must write itself, the end of its turn too

Where the template marks what the assistant says ({% generation %}), that is what it says. Where it does not, places are found
by writing the same conversation with other words in it: what stays is the template's, what is replaced is the role's. An
assistant's turn begins where the template's own generation prompt ends. What cannot be told in this way is refused, and never
guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from ..read.documents import BadRow, Chat, Document, Turn

_OPEN, _CLOSE = "\ue0f0", "\ue0f1"  # around the number of a text that stands for another: of no language, and no space
_HOLDERS = re.compile(f"{_OPEN}(\\d+){_CLOSE}")
_TAGS = re.compile(r"(</?(?:think|tool_call|tool_response)>)")  # templates look for these, so they stay
_TEXTS = ("content", "reasoning_content", "reasoning", "thinking")  # of a message
_MOST_FRAMES = 4096
_DATE = "26 Jul 2024"  # what templates that want a date write where they know none: the same text on every day


class Untold(Exception):
    """Where a turn is cannot be told."""


class _Frame(NamedTuple):
    """A conversation with numbers in place of its words."""

    text: str
    turns: list[Turn]  # in that text
    messages: list[int]  # of each turn


@dataclass
class Template:
    """A tokenizer's chat template."""

    text: str
    special: dict[str, Any]
    """bos_token and the like, as templates name them."""
    control: tuple[str, ...] = ()
    """Control tokens: written out in a message they would end its turn."""
    _frames: dict[str, _Frame | None] = field(default_factory=dict, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return Template, (self.text, self.special, self.control)

    @cached_property
    def marked(self) -> bool:
        return re.search(r"\{%-?\s*generation\s*-?%\}", self.text) is not None

    @cached_property
    def control_pattern(self) -> re.Pattern[str] | None:
        tokens = sorted((t for t in self.control if not _TAGS.fullmatch(t)), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, tokens))) if tokens else None

    def render(self, messages: Sequence[Any], tools: Any, *, prompt: bool = False) -> str:
        return self._rendered(messages, tools, add_generation_prompt=prompt)[0]

    def _rendered(self, messages: Sequence[Any], tools: Any, **options: Any) -> tuple[str, Any]:
        # Not at the top: a worker that reads no chat starts without transformers, in a tenth of the time.
        from transformers.utils.chat_template_utils import render_jinja_template

        texts, marks = render_jinja_template(
            [list(messages)], tools=tools, chat_template=self.text, date_string=_DATE, **self.special, **options
        )
        return texts[0], marks[0] if marks else []

    def written(self, chat: Chat) -> tuple[str, list[Turn], list[int]]:
        """(text, what each role says in it, the message of each turn). Untold where that cannot be told."""
        messages, tools = chat.messages, chat.tools
        text, marks = self._rendered(messages, tools, **({"return_assistant_tokens_mask": True} if self.marked else {}))
        skeleton, words = _skeleton(messages)
        frame = self._frame(skeleton, tools)
        turns, numbers = _in_text(frame, words, text) if frame is not None else (None, [])
        if turns is None:  # the template does something with the words themselves
            turns, numbers = self._turns(messages, tools, text, {})
        if self.marked:
            spoken = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
            others = [(t, n) for t, n in zip(turns, numbers, strict=True) if t.role != "assistant"]
            if len(spoken) != len(marks) and len({chat.weights[i] for i in spoken}) > 1:
                raise Untold(
                    "the chat template marks other parts than the assistant's messages, which have different weights"
                )
            numbers = [n for _, n in others] + [spoken[min(i, len(spoken) - 1)] for i in range(len(marks))]
            turns = [t for t, _ in others] + [Turn("assistant", *mark) for mark in marks]
        elif missing := [i for i, m in enumerate(messages) if m["role"] == "assistant" and i not in numbers]:
            raise Untold(f"where message {missing[0]} stands in what the chat template writes cannot be told")
        return text, turns, numbers

    def _frame(self, skeleton: list[dict[str, Any]], tools: Any) -> _Frame | None:
        """The frame of all conversations of this skeleton, made once; None if its words do not stand in it once each."""
        key = json.dumps([skeleton, tools], sort_keys=True)
        if key not in self._frames:
            if len(self._frames) >= _MOST_FRAMES:
                self._frames.clear()
            self._frames[key] = self._made_frame(skeleton, tools)
        return self._frames[key]

    def _made_frame(self, skeleton: list[dict[str, Any]], tools: Any) -> _Frame | None:
        text = self.render(skeleton, tools)
        places: dict[int, tuple[int, int]] = {}
        for match in _HOLDERS.finditer(text):
            if int(match[1]) in places:
                return None
            places[int(match[1])] = match.span()
        said = {i: [places[n] for n in _numbers(m) if n in places] for i, m in enumerate(skeleton)}
        return _Frame(text, *self._turns(skeleton, tools, text, said))

    def _turns(
        self, messages: Sequence[Any], tools: Any, text: str, said: dict[int, list[tuple[int, int]]]
    ) -> tuple[list[Turn], list[int]]:
        """Turns of a text that is written, and the message of each. ``said``: where words of each message stand, if known."""
        turns, numbers = [], []
        for i, message in enumerate(messages):
            words = sorted(said.get(i, []))
            start, end = (words[0][0], words[-1][1]) if words else (None, None)
            if message["role"] == "assistant":
                following = next(
                    (w[0][0] for j in range(i + 1, len(messages)) if (w := sorted(said.get(j, [])))), len(text)
                )
                start = self._began(messages[:i], tools, text, start)
                end = self._ended(messages[: i + 1], tools, text, end, following)
            if start is not None and end is not None and start < end:
                turns.append(Turn(message["role"], start, end))
                numbers.append(i)
        return turns, numbers

    def _began(self, before: Sequence[Any], tools: Any, text: str, word: int | None) -> int | None:
        """Where the generation prompt behind the messages before ends, if the text begins with it; else at its first word."""
        asked = self._prefix(before, tools, prompt=True)
        if asked is not None and text.startswith(asked) and (word is None or len(asked) <= word):
            return len(asked)
        return word

    def _ended(self, until: Sequence[Any], tools: Any, text: str, word: int | None, following: int) -> int | None:
        """Behind what ends the turn: what the conversation up to it ends in, without the spaces behind."""
        whole = self._prefix(until, tools)
        if whole is not None and text.startswith(whole):
            return len(whole.rstrip())
        if word is None:
            return None
        place = text.find(self._terminator, word) if self._terminator else -1
        return place + len(self._terminator) if 0 <= place < following else None

    def _prefix(self, messages: Sequence[Any], tools: Any, *, prompt: bool = False) -> str | None:
        try:
            return self.render(messages, tools, prompt=prompt) if messages else None
        except Exception:  # of a conversation that is cut in the middle, whatever the template raises
            return None

    @cached_property
    def _terminator(self) -> str:
        """What the template writes behind the last word of an assistant."""
        two = [{"role": "user", "content": f"{_OPEN}0{_CLOSE}"}, {"role": "assistant", "content": f"{_OPEN}1{_CLOSE}"}]
        written = self._prefix(two, None)
        return "" if written is None else written.rpartition(f"{_OPEN}1{_CLOSE}")[2].rstrip()


def as_text(document: Document, template: Template, *, parses: bool = False) -> Document | BadRow:
    """The document with its conversation written out; a BadRow for one that the template refuses or whose turns cannot be told.

    ``parses``: control tokens written out in a message are meant as such.
    """
    chat = document.chat
    assert chat is not None
    if not parses and (found := _control(chat.messages, template)) is not None:
        return BadRow(document.where, found)
    try:
        text, turns, numbers = template.written(chat)
    except Untold as e:
        return BadRow(document.where, f"{e}: a template with {{% generation %}} would say it")
    except Exception as e:  # templates raise whatever they like
        return BadRow(
            document.where, f"the chat template refuses it: {' '.join(str(e).split())[:200] or type(e).__name__}"
        )
    weights = tuple(
        (t.start, t.end, chat.weights[n]) for t, n in zip(turns, numbers, strict=True) if t.role == "assistant"
    )
    return document._replace(text=text, turns=tuple(turns), weights=weights, masked=True, control=True, chat=None)


def _control(messages: Sequence[dict[str, Any]], template: Template) -> str | None:
    """A sentence on the first control token that a message has written out, or on what stands for words here."""
    for i, message in enumerate(messages):
        for text in (message[name] for name in _TEXTS if isinstance(message.get(name), str)):
            if _OPEN in text or _CLOSE in text:
                return f"message {i} holds U+E0F0 or U+E0F1, which are of no language and used here"
            if template.control_pattern is not None and (match := template.control_pattern.search(text)):
                return (
                    f"message {i} has the control token {match[0]!r} written out, which would be taken as such: leave it out, "
                    "or set parse_special_tokens if it is meant"
                )
    return None


def _skeleton(messages: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """(the messages with a number in place of all words between tags, the words by number). Spaces around them stay."""
    words: list[str] = []
    made = []
    for message in messages:
        same = dict(message)
        for name in _TEXTS:
            if isinstance(message.get(name), str):
                same[name] = "".join(_held(part, words) for part in _TAGS.split(message[name]))
        made.append(same)
    return made, words


def _held(part: str, words: list[str]) -> str:
    core = part.strip()
    if not core or _TAGS.fullmatch(part):
        return part
    words.append(core)
    start = part.index(core)
    return f"{part[:start]}{_OPEN}{len(words) - 1}{_CLOSE}{part[start + len(core) :]}"


def _numbers(message: dict[str, Any]) -> list[int]:
    return [int(n) for name in _TEXTS if isinstance(message.get(name), str) for n in _HOLDERS.findall(message[name])]


def _in_text(frame: _Frame, words: Sequence[str], text: str) -> tuple[list[Turn] | None, list[int]]:
    """The frame's turns where its numbers are words again; None if that is not the text."""
    places = [(m.start(), m.end(), words[int(m[1])]) for m in _HOLDERS.finditer(frame.text)]
    if _HOLDERS.sub(lambda m: words[int(m[1])], frame.text) != text:
        return None, []

    def moved(place: int) -> int:
        return place + sum(len(word) - (end - start) for start, end, word in places if end <= place)

    return [Turn(t.role, moved(t.start), moved(t.end)) for t in frame.turns], frame.messages
