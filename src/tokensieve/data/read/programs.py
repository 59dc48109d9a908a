"""RefineX's programs: which characters of a text a program would delete.

remove_lines(1, 1)              Home | Products | About us            ~~~~~~~~~~~~~~~~~~~~~~~~~~
remove_str(2, "H#f*% ")         ... H#f*% turns out, the universe     ... ~~~~~~ turns out, the universe
"""

from __future__ import annotations

import ast
from typing import Any

CharSpans = tuple[tuple[int, int], ...]
PROGRAM_FUNCTIONS: dict[str, list[type]] = {"remove_lines": [int, int], "remove_str": [int, str], "keep_all": []}


class BadProgram(Exception):
    """A program that is none; the sentence says why."""


def deleted_spans(text: str, program: str) -> CharSpans:
    """The characters that ``program`` deletes from ``text``, as spans from, up to, in its order; they may overlap.

    A call a line: ``remove_lines(first, last)`` deletes these lines with their line breaks; ``remove_str(line, part)`` deletes
    a part of a line if it stands there exactly once, else nothing; ``keep_all()`` and an empty program delete nothing. Lines
    are counted from 1, in the text before anything is deleted. The program is read, never run. BadProgram for what is no such
    call, and for a line that the text has not.

    RefineX, Bi et al., arXiv 2507.03253, eq. 1, table 1 and section 3.3; checked against the paper's text (it has no public
    code). What a malformed program does is not said there.
    """
    ends = list[int]()
    for line in text.split("\n"):
        ends.append((ends[-1] + 1 if ends else 0) + len(line))
    spans = list[tuple[int, int]]()
    for name, arguments in _calls(program):
        if name == "keep_all":
            continue
        first, last = arguments if name == "remove_lines" else (arguments[0], arguments[0])
        if not 1 <= first <= last <= len(ends):
            raise BadProgram(f"{name}: a text of {len(ends)} lines has no lines {first} to {last}")
        begin, end = ends[first - 2] + 1 if first > 1 else 0, ends[last - 1]
        if name == "remove_lines":
            spans.append((begin, min(end + 1, len(text))))
        elif (at := _only_place(text[begin:end], arguments[1])) is not None:
            spans.append((begin + at, begin + at + len(arguments[1])))
    return tuple(spans)


def _only_place(line: str, part: str) -> int | None:
    """Where ``part`` stands in ``line``; None where it is not, or twice, overlapping ones counted."""
    at = line.find(part) if part else -1
    return None if at < 0 or line.find(part, at + 1) >= 0 else at


def _calls(program: str) -> list[tuple[str, tuple[Any, ...]]]:
    """(function, its arguments) of each line."""
    try:
        body = ast.parse(program.strip()).body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as e:
        raise BadProgram(f"it cannot be read: {' '.join(str(e).split())[:100]}") from None
    return [_call(statement) for statement in body]


def _call(statement: ast.stmt) -> tuple[str, tuple[Any, ...]]:
    match statement:
        case ast.Expr(ast.Call(ast.Name(name), arguments, [])) if name in PROGRAM_FUNCTIONS:
            values = tuple(a.value if isinstance(a, ast.Constant) else None for a in arguments)
            if [type(v) for v in values] == PROGRAM_FUNCTIONS[name]:
                return name, values
    told = ast.unparse(statement)[:60]
    raise BadProgram(f"{told!r} is none of remove_lines(line, line), remove_str(line, 'text'), keep_all()")
