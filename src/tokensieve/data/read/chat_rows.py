"""Rows that are conversations, in whichever columns, as messages; what they look like as text the tokenizer's template says.

messages       [{role, content, tool_calls ...}, ...]                   tools: [...]
conversations  [{from: human | gpt | system ..., value}, ...]           system: text, tools
prompt         messages, and completion: messages                       or both text: that is taken as it is, without a template
instruction    text, input: text or nothing, output: text               system: text

A message's own ``weight`` is that of what it says; a row's is that of all that the assistant says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .documents import BadRow, Chat, Document, Item, Turn, kind
from .weight_values import WEIGHT, BadWeight, text_weights

READ = ("messages", "conversations", "prompt", "completion", "instruction", "input", "output", "system", "tools")
_LAYOUTS = (("messages",), ("conversations",), ("prompt", "completion"), ("instruction", "output"))
_ROLES = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool", "function": "tool"}


class _Bad(Exception):
    """A row that is no conversation; the sentence says why."""


def chat_layout(names: Any, column: str) -> tuple[str, ...]:
    """The columns that hold the conversation, among ``names``; none if there are none. ``column``: one of a name of its own."""
    layouts = (*_LAYOUTS, *(((column,),) if column != "text" else ()))
    return next((layout for layout in reversed(layouts) if {*layout} <= {*names}), ())


def chat_document(
    row: Mapping[str, Any], key: str, label: str, where: str, column: str, ignore: tuple[str, ...]
) -> Item:
    """A row as a document: of messages, which are to be written out by a template, or of a prompt and its completion."""
    layout = chat_layout([n for n in row if row[n] is not None], column)
    try:
        if not layout:
            known = " or ".join(" and ".join(names) for names in _LAYOUTS)
            raise _Bad(f"no columns of a conversation ({known}); there are: {', '.join(map(str, row)) or 'none'}")
        weight = _weight(row.get(WEIGHT) if WEIGHT not in ignore else None)
        if layout == ("prompt", "completion") and isinstance(row["prompt"], str):
            return _plain(row, key, label, where, weight)
        messages = _messages(row, layout)
        if not messages:
            raise _Bad(f"column {layout[0]!r} holds no message")
        weights = [_weight(m.pop(WEIGHT, None), weight) for m in messages]
        return Document(key, label, where, chat=Chat(messages, weights, _tools(row.get("tools"))))
    except (_Bad, BadWeight) as e:
        return BadRow(where, str(e))


def _plain(row: Mapping[str, Any], key: str, label: str, where: str, weight: float) -> Document:
    prompt, completion = row["prompt"], row["completion"]
    if not isinstance(completion, str):
        raise _Bad(f"column 'completion' must be a string, as 'prompt' is, this is {kind(completion)}")
    text, split = prompt + completion, len(prompt)
    if not completion.strip():
        raise _Bad("column 'completion' is empty")
    turns = (Turn("user", 0, split), Turn("assistant", split, len(text)))
    return Document(key, label, where, text, turns=turns, weights=((split, len(text), weight),), masked=True)


def _messages(row: Mapping[str, Any], layout: tuple[str, ...]) -> list[dict[str, Any]]:
    if layout == ("instruction", "output"):
        asked = [row["instruction"], *([row["input"]] if row.get("input") else [])]
        if not all(isinstance(text, str) for text in (*asked, row["output"])):
            raise _Bad("columns 'instruction', 'input' and 'output' must be strings")
        said = [{"role": "user", "content": "\n\n".join(asked)}, {"role": "assistant", "content": row["output"]}]
    elif layout == ("prompt", "completion"):
        said = _said(row["prompt"], "prompt") + _said(row["completion"], "completion")
    else:
        said = _said(row[layout[0]], layout[0])
    system = row.get("system")
    if isinstance(system, str) and system and layout != ("messages",) and said[0]["role"] != "system":
        said.insert(0, {"role": "system", "content": system})
    return said


def _said(values: Any, column: str) -> list[dict[str, Any]]:
    if not isinstance(values, list):
        raise _Bad(f"column {column!r} must be a list of messages, this is {kind(values)}")
    return [_message(value, f"message {i} of {column!r}") for i, value in enumerate(values)]


def _message(value: Any, what: str) -> dict[str, Any]:
    """``{role, content, ...}`` without what is null; the content is text, the arguments of calls are objects."""
    if not isinstance(value, Mapping):
        raise _Bad(f"{what} must be an object, this is {kind(value)}")
    found = _without_null(value)
    role = found.pop("role", None) or found.pop("from", None)
    if not isinstance(role, str):
        raise _Bad(f"{what} has no role ('role' or 'from')")
    content = found.pop("content", found.pop("value", ""))
    if isinstance(content, list):
        content = "".join(_part(part, what) for part in content)
    if not isinstance(content, str):
        raise _Bad(f"{what}: content must be text, this is {kind(content)}")
    for call in found.get("tool_calls") or []:
        call = call.get("function", call) if isinstance(call, dict) else {}
        if isinstance(call.get("arguments"), str):
            call["arguments"] = _object(call["arguments"])
    return {"role": _ROLES.get(role, role), "content": content, **found}


def _part(part: Any, what: str) -> str:
    if isinstance(part, Mapping) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise _Bad(f"{what}: a part of its content is no text, and images and sounds are not read")


def _object(text: str) -> Any:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return found if isinstance(found, dict) else text


def _tools(value: Any) -> list[Any] | None:
    """A list, or its JSON; Parquet keeps schemas of different shapes only as text."""
    if value is None or value in ("", []):
        return None
    try:
        found = json.loads(value) if isinstance(value, str) else _without_null(value)
    except (ValueError, RecursionError) as e:
        raise _Bad(f"column 'tools' is not valid JSON: {e}") from None
    if not isinstance(found, list) or not all(isinstance(tool, dict) for tool in found):
        raise _Bad("column 'tools' must be a list of objects, or that as JSON")
    return found or None


def _without_null(value: Any) -> Any:
    """Arrow gives every message the fields of all; those that a message has not are null."""
    if isinstance(value, Mapping):
        return {str(k): _without_null(v) for k, v in value.items() if v is not None}
    return [_without_null(v) for v in value] if isinstance(value, list) else value


def _weight(value: Any, default: float = 1.0) -> float:
    if value is None:
        return default
    if isinstance(value, (list, str)):
        raise BadWeight("column 'weight' must be a number beside a conversation: what single words weigh, rules say")
    return text_weights(value, 0)[0][2]
