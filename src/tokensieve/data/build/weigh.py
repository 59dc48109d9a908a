"""Weights by rules: which characters of a document a rule speaks of, and what they weigh when all rules have spoken.

text      <user> what is 6*7? <assistant> <think>6*7 = 42</think> It is 42.
weights   [{role: assistant, weight: 1}, {tag: think, weight: 0.5}, {regex: "\\d+", weight: 2}]
          ....................            0.5 . . 2 2 . . . . .    1 1 1 1 2        later rules win
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import regex

from ...runs.errors import UserError
from ..read.documents import Document
from ..weight_rules import SELECTORS, WeightRule, only_source

CharRange = tuple[int, int]
# What a regular expression may take on one document. Linear ones were measured at .03 to .45 s for a million characters.
MATCH_SECONDS = 5.0
SECONDS_A_MILLION = 2.0


def check_rules(rules: Sequence[WeightRule]) -> None:
    """Raise UserError for a rule that speaks of nothing, a weight that is no number, or an expression that is none."""
    for i, rule in enumerate(rules):
        if not rule.told:
            raise UserError(f"weights.{i}: a rule needs one of {', '.join(SELECTORS)}")
        if not math.isfinite(rule.weight):
            raise UserError(f"weights.{i}: weight must be a finite number, not {rule.weight}")
        if any(getattr(rule, name) == "" for name in SELECTORS):
            raise UserError(f"weights.{i}: an empty text selects nothing ({rule.told})")
        try:
            regex.compile(rule.regex or "")
        except regex.error as e:
            raise UserError(f"weights.{i}: {rule.regex!r} is no regular expression: {e}") from None


def weigh_characters(
    document: Document,
    rules: Sequence[WeightRule],
    weights_C: npt.NDArray[np.float32],
    seconds: float | None = None,
) -> list[int]:
    """Put into ``weights_C`` what the document's row and then the rules say; which rules spoke, by index.

    [characters + 1]: the last entry is the EOS that is put behind the text. It belongs to the row, the source and the role that
    reach the end, and to no match of a text.
    UserError naming rule and document where a regular expression takes more than ``seconds``; None: by the document's length.
    """
    length = len(document.text)
    limit = max(MATCH_SECONDS, SECONDS_A_MILLION * length / 1e6) if seconds is None else seconds
    for start, end, weight in document.weights:
        weights_C[start : end + (end == length)] = weight
    spoke = []
    for i, rule in enumerate(rules):
        if rule.source is not None and rule.source != document.source:
            continue
        found = [list(spans) for spans in _selected(document, i, rule, limit)]
        if spans := found[0] if len(found) == 1 else _common(found, len(weights_C)):
            spoke.append(i)
        for start, end in spans:
            weights_C[start:end] = rule.weight
    return spoke


def _selected(document: Document, index: int, rule: WeightRule, seconds: float) -> Iterator[Iterator[CharRange]]:
    """The spans of each selector; of a source alone the whole text."""
    if rule.role is not None:
        mine = (t for t in document.turns if t.role == rule.role and t.start < t.end)
        yield ((t.start, t.end + (t.end == len(document.text))) for t in mine)
    if rule.tag is not None:
        yield _tagged(document.text, rule.tag)
    if rule.regex is not None:
        yield _matched(document, index, rule.regex, seconds)
    if only_source(rule):
        yield iter([(0, len(document.text) + 1)])


def _common(found: Sequence[Sequence[CharRange]], length: int) -> list[CharRange]:
    """The characters that lie in spans of each list, as spans."""
    there_C = np.ones(length, bool)
    for spans in found:
        mine_C = np.zeros(length, bool)
        for start, end in spans:
            mine_C[start:end] = True
        there_C &= mine_C
    bounds = np.flatnonzero(np.diff(there_C, prepend=False, append=False))
    return [(int(a), int(b)) for a, b in bounds.reshape(-1, 2)]


def _tagged(text: str, tag: str) -> Iterator[CharRange]:
    opened, closed = f"<{tag}>", f"</{tag}>"
    end = 0
    while (start := text.find(opened, end)) >= 0:
        end = text.find(closed, start)
        if end < 0:
            return
        end += len(closed)
        yield start, end


def _matched(document: Document, index: int, pattern: str, seconds: float) -> Iterator[CharRange]:
    try:
        for match in regex.compile(pattern).finditer(document.text, timeout=seconds):
            if match.end() > match.start():
                yield match.span()
    except TimeoutError:
        raise UserError(
            f"{document.where}: weights.{index}: the regular expression {pattern!r} ran for more than {seconds:g} s on this "
            "document, as nested repetitions do: write it without them, or keep the document out"
        ) from None


def silent(rules: Sequence[WeightRule], documents: Sequence[int]) -> list[str]:
    """A sentence on each rule that spoke of no document; ``documents``: of how many each did."""
    return [
        f"weights.{i} ({rule.told}) matched nothing in any document"
        for i, (rule, n) in enumerate(zip(rules, documents, strict=True))
        if not n
    ]
