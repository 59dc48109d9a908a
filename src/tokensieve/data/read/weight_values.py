"""The column ``weight`` of a row, as it is given: a number, one a token, one a character, or spans of characters.

weight: 0.5                         the whole document
weight: [1, 1, 0, -0.5]             beside input_ids: of each token; beside a text: of each character
weight: [[0, 4, 0], [10, 14, 2]]    beside a text: [start, end, weight] in characters; 1 elsewhere, later ones win
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from .documents import kind

WEIGHT = "weight"
WeightSpan = tuple[int, int, float]  # characters from, up to, their weight


class BadWeight(Exception):
    """A weight that cannot be meant; the sentence says why."""


def token_weights(value: Any, length: int) -> list[float] | None:
    """A weight for each of ``length`` tokens; None where the row gives none."""
    if value is None:
        return None
    if _is_number(value):
        return [_checked(value, "")] * length
    if not isinstance(value, list):
        raise BadWeight(f"column 'weight' must be a number or a list of numbers, this is {kind(value)}")
    if len(value) != length:
        raise BadWeight(f"column 'weight' has {len(value)} entries for {length} tokens")
    return [_checked(v, f" at token {i}") for i, v in enumerate(value)]


def text_weights(value: Any, length: int) -> tuple[WeightSpan, ...]:
    """The weight of each character of a text of ``length``, as spans; none where the row gives none."""
    if value is None or value == []:
        return ()
    if _is_number(value):
        return ((0, length, _checked(value, "")),)
    if not isinstance(value, list):
        raise BadWeight(f"column 'weight' must be a number or a list, this is {kind(value)}")
    if isinstance(value[0], list):
        return tuple(_span(v, i, length) for i, v in enumerate(value))
    if len(value) != length:
        raise BadWeight(
            f"column 'weight' has {len(value)} entries for {length} characters: give one a character, or spans "
            "[start, end, weight]"
        )
    each = [_checked(v, f" at character {i}") for i, v in enumerate(value)]
    bounds = [0, *(i for i in range(1, length) if each[i] != each[i - 1]), length]
    return tuple((start, end, each[start]) for start, end in pairwise(bounds))


def _span(value: Any, index: int, length: int) -> WeightSpan:
    if not isinstance(value, list) or len(value) != 3:
        raise BadWeight(f"column 'weight', span {index}: [start, end, weight] is needed, not {value}")
    start, end, weight = (_checked(v, f" in span {index}") for v in value)
    if not (0 <= start <= end <= length and start == int(start) and end == int(end)):
        raise BadWeight(
            f"column 'weight', span {index}: {value[0]} to {value[1]} are no whole numbers within the text's {length} "
            "characters"
        )
    return int(start), int(end), weight


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _checked(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadWeight(f"column 'weight' holds {kind(value)}{where}, a number is needed")
    if not abs(value) <= 3.4e38:
        raise BadWeight(f"column 'weight' holds {value}{where}, a finite number is needed")
    return float(value)
