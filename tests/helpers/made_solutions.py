"""Made-up maths problems with solutions that use a tool, as conversations: the shipped tool-solutions.jsonl.

python tests/helpers/made_solutions.py > src/tokensieve/recipes/tool-solutions.jsonl
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Callable
from typing import Any

NAMES = ("Ada", "Ben", "Chi", "Dora", "Emil", "Fay", "Gus", "Hana", "Ivo", "Jun")
THINGS = ("apples", "books", "coins", "eggs", "tickets", "pencils", "plums", "shells")
Draw = Callable[..., Any]


def drawn(number: int) -> Draw:
    """(what, choices) -> one of them, the same for each (number, what): no generator that another Python may change."""

    def pick(what: str, choices: Any) -> Any:
        digest = hashlib.sha256(f"{number} {what}".encode()).digest()
        return choices[int.from_bytes(digest[:8], "big") % len(choices)]

    return pick


def bought(pick: Draw) -> tuple[str, str, str]:
    name, thing, count, price = (
        pick("who", NAMES),
        pick("thing", THINGS),
        pick("n", range(3, 40)),
        pick("p", range(2, 15)),
    )
    return (
        f"{name} buys {count} {thing} at {price} dollars each. How many dollars does {name} pay?",
        f"Each of the {count} {thing} costs {price} dollars, so the cost is their product.",
        f"count = {count}\nprice = {price}\nprint(count * price)",
    )


def left(pick: Draw) -> tuple[str, str, str]:
    name, thing, had, given = (
        pick("who", NAMES),
        pick("thing", THINGS),
        pick("n", range(50, 99)),
        pick("g", range(5, 45)),
    )
    return (
        f"{name} has {had} {thing} and gives {given} of them away. How many {thing} are left?",
        f"What is given away is taken from {had}.",
        f"had = {had}\ngiven = {given}\nprint(had - given)",
    )


def travelled(pick: Draw) -> tuple[str, str, str]:
    name, speed, hours, more = (
        pick("who", NAMES),
        pick("v", range(4, 30)),
        pick("h", range(2, 9)),
        pick("m", range(1, 20)),
    )
    return (
        f"{name} rides {hours} hours at {speed} km an hour and then {more} km more. How many km is that in all?",
        "The distance is speed times hours, and what comes after is added.",
        f"speed, hours, more = {speed}, {hours}, {more}\nprint(speed * hours + more)",
    )


def solved(pick: Draw) -> tuple[str, str, str]:
    factor, root, added = pick("a", range(2, 12)), pick("x", range(2, 30)), pick("b", range(1, 40))
    return (
        f"Solve {factor}x + {added} = {factor * root + added} for x.",
        f"Subtract {added} on both sides, then divide by {factor}.",
        f"right = {factor * root + added}\nprint((right - {added}) // {factor})",
    )


KINDS = (bought, left, travelled, solved)


def printed(program: str) -> str:
    """What one of our own programs prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(program, {})
    return out.getvalue().strip()


def solutions(count: int = 240) -> list[dict[str, Any]]:
    rows = []
    for number in range(count):
        problem, thought, program = KINDS[number % len(KINDS)](drawn(number))
        answer = printed(program)
        messages = [
            {"role": "user", "content": problem},
            {"role": "assistant", "content": f"{thought}\n```python\n{program}\n```"},
            {"role": "tool", "content": answer},
            {"role": "assistant", "content": f"The answer is \\boxed{{{answer}}}."},
        ]
        rows.append({"id": f"tool-{number}", "messages": messages})
    return rows


def as_lines() -> str:
    return "".join(json.dumps(row) + "\n" for row in solutions())


if __name__ == "__main__":
    print(as_lines(), end="")
