"""The answer in what a model wrote, and whether it is the one that counts.

    answer_in(text)      the last \\boxed{...}; else what follows the last "answer is", "answer:", "####"; else the last number
    is_right(answer, gold)   equal as mathematics (math-verify), a letter or a word by its letters

Text is data: sympy evaluates numbers and LaTeX that math-verify has read, nothing is run. What would take it minutes (towers of
powers, factorials of millions) is compared as text.
"""

from __future__ import annotations

import importlib.util
import re
from fractions import Fraction
from typing import NamedTuple

from ...runs.errors import UserError
from .catalogue import Answers

LETTERS = "ABCDEFGHIJ"

_SAYS = re.compile(r"(?i)(?:\banswer\s*(?:is\b(?:\s*:)?|:|=)|####)\s*")
_SIGN = r"(?:(?<![\w)])[-−])?"
"""The - of "10-5" takes away; it makes no number negative."""
_NUMBER = re.compile(_SIGN + r"(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:\s*/\s*\d+(?!\d*\.\d))?|\.\d+)")
_END = re.compile(r"(?<=[^\s.])\.(?=\s|$)|\n")
_DELIMITED = re.compile(r"\$([^$\n]+)\$(?!\d)|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
"""$...$, but not the dollars of "$5 and $6"."""
_LONGEST = 300
"""Characters of an answer that is looked at as mathematics."""
_TOWER = re.compile(r"(?:\^|\*\*)\s*(?:[({]\s*[^(){}]*|\w+\s*)(?:\^|\*\*)|\d{5,}\s*!|!\s*!")
_POWER = re.compile(r"(?:\^|\*\*)\s*[({]?\s*[-+]?(\d+)")
_UNITS = re.compile(r"(?<=\d)\s*(?:\\?%|percent\b|°|\\?\^?\{?\\circ\}?|degrees?\b)")


class Found(NamedTuple):
    """What a text answers."""

    answer: str
    stated: bool
    """It was said to be the answer; else it is the last number, or the only letter."""


def answer_in(text: str, answers: Answers) -> Found | None:
    """What ``text`` answers, as it is written there; None if it answers nothing."""
    if (inside := boxed(text)) is not None and inside.strip():
        return Found(_letter_of(inside) or inside.strip() if answers == "choice" else inside.strip(), True)
    if said := [_sentence(text[m.end() :]) for m in _SAYS.finditer(text)]:
        last = said[-1]
        if answers == "choice":
            last = _letter_of(last) or ""
        elif answers == "number":
            last = _first_number(last) or ""
        if last:
            return Found(last, True)
    if answers == "choice":
        marked = re.findall(r"\(([A-J])\)", text) or re.findall(r"^\s*([A-J])\s*[.)]?\s*$", text)
        return Found(marked[-1], False) if marked else None
    numbers = [m[0] for m in _NUMBER.finditer(text)]
    return Found(numbers[-1], False) if numbers else None


def is_right(answer: str, gold: str, answers: Answers) -> bool:
    """Whether two answers are the same.

    As numbers, fractions, sets, intervals or LaTeX: by value, whatever the notation; units, currency, thousands separators and
    a percent sign beside a number do not count (50 % is 50, and 0.5 too). Words: by their letters, in either case. False for
    an empty answer.
    """
    answer, gold = _bare(answer), _bare(gold)
    if not answer or not gold:
        return False
    if answer.casefold() == gold.casefold():
        return True
    if answers == "choice":
        return False
    words = [_as_word(answer), _as_word(gold)]
    if all(words) and (answers == "text" or max(map(len, words)) > 2):  # as mathematics on would be no
        return words[0] == words[1]
    numbers = [_as_numbers(answer), _as_numbers(gold)]
    if all(numbers):  # most are, and sympy takes a tenth of a second for each
        most = 1 if min(map(len, numbers)) == 2 else 2  # 5 % is not 500 %, though one is 5 and the other may be
        return any(abs(a - g) < 5e-7 for a in numbers[0][:most] for g in numbers[1][:most])
    return any(_equal(a, g) for a in _forms(answer) for g in _forms(gold))


def boxed(text: str) -> str | None:
    """What is inside the last ``\\boxed{...}`` or ``\\fbox{...}`` that is closed; None if there is none."""
    for start in reversed([m.end() for m in re.finditer(r"\\f?boxed\s*\{|\\fbox\s*\{", text)]):
        depth = 1
        for at in range(start, len(text)):
            depth += (text[at] == "{") - (text[at] == "}")
            if depth == 0:
                return text[start:at]
    return None


def check_grader() -> None:
    """UserError if math-verify is not installed."""
    if importlib.util.find_spec("math_verify") is None:
        raise UserError("tasks: math-verify is needed: pip install 'tokensieve[eval]'")


def _sentence(text: str) -> str:
    """Up to the end of the sentence or line; a decimal point, and one inside $...$, ends none."""
    text = text.lstrip().removeprefix("**").lstrip()
    if inside := _DELIMITED.match(text):
        return str(next(filter(None, inside.groups()))).strip()
    end = _END.search(text)
    return text[: end.start() if end else None].replace("**", "").strip()


def _first_number(text: str) -> str | None:
    """A number in a sentence: of ``8 * 3 = 24 apples`` what follows the last ``=``; a sentence of several has its first."""
    after = text.rsplit("=", 1)[-1] if "=" in text else text
    boiled = after.replace("\\$", "").replace("$", "").replace("\\%", "%").replace("{,}", ",").replace("\\!", "")
    if "\\" in boiled:
        return after
    mixed = re.search(_SIGN + r"\d+\s+\d+/\d+", boiled)
    found = mixed or _NUMBER.search(boiled)
    if found is None:
        return None
    percent = re.match(r"\s*(?:%|percent)", boiled[found.end() :])
    return found[0] + ("%" if percent else "")


def _letter_of(text: str) -> str | None:
    """The first letter of a choice in a few words: (B), B., B) 12, option B; not the A of "A train"."""
    bare = re.sub(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}", r"\1", text).strip("$ *")
    found = re.search(r"\(\s*([A-Ja-j])\s*\)", bare) or re.match(
        r"(?:option|choice)?\s*([A-J])(?=\s*(?:$|[.,:;)]))", bare, re.I
    )
    return found[1].upper() if found else None


def _bare(text: str) -> str:
    """Without what dresses an answer: dollars, spacing, markup, a last full stop."""
    text = text.strip().strip("*").strip()
    for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing):
            text = text[len(opening) : -len(closing)].strip()
    text = re.sub(r"\\[!,]|\\(?:left|right|displaystyle)(?![a-zA-Z])", "", text)
    text = re.sub(r"\\[;: ]|\\q?quad(?![a-zA-Z])|~", " ", text)
    text = text.replace("{,}", ",").replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").replace("−", "-")
    return text.rstrip(" .;").strip()


def _as_word(text: str) -> str:
    """``\\text{ Evelyn }`` -> evelyn; empty where there is more than letters: x + 1 and x / 1 are the same letters."""
    inside = re.sub(r"\\(?:text|mathrm|textbf|mathbf|mbox)\s*\{([^{}]*)\}", r"\1", text).strip(" .()")
    return (
        " ".join(inside.split()).casefold()
        if re.fullmatch(r"[^\W\d_][^\W\d_ .,'-]*(?:[ .,'-]+[^\W\d_]+)*", inside)
        else ""
    )


def _as_numbers(text: str) -> list[Fraction]:
    """What a plain number is, 50 % both 50 and 0.5; 1e-05 as programs print it; empty for anything else."""
    currency = r"(?:\\?\$|[€£¥])"
    found = re.fullmatch(
        rf"(?:(-){currency}\s*|{currency}?\s*([-+]?))(\d+\.?\d*(?:[eE][-+]?\d{{1,3}})?|\.\d+)"
        r"(?:\s*/\s*0*([1-9]\d*))?\s*(\\?%|percent)?",
        _ungrouped(text),
    )
    if found is None or len(text) > _LONGEST:
        return []
    value = Fraction((found[1] or found[2] or "") + found[3]) / int(found[4] or 1)
    return [value, value / 100] if found[5] else [value]


def _ungrouped(text: str) -> str:
    """1,234,567 -> 1234567"""
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)


def _forms(text: str) -> list[str]:
    """The text as it is, and as the number that stands in it with its unit, currency or name."""
    number = re.sub(r"^(?:\\?\$|[€£¥])\s*|^[a-zA-Z]\s*=\s*(?=\S)", "", _ungrouped(text))
    mixed = re.fullmatch(r"(-?)(\d+)\s*(?:\s(\d+)\s*/\s*(\d+)|\\frac\s*\{(\d+)\}\s*\{(\d+)\})", number.strip())
    if mixed:  # 2 1/2 is two and a half; as LaTeX it would be a product
        top, bottom = (mixed[3] or mixed[5]), (mixed[4] or mixed[6])
        number = f"{mixed[1]}({mixed[2]}+{top}/{bottom})"
    bare = _UNITS.sub("", number)
    forms = [text, number] if bare == number else [text, number, bare]
    unit = re.fullmatch(
        r"(-?[\d.]+(?:\s*/\s*\d+)?)\s*(?:\\(?:text|mbox)\s*\{[^{}]*\}[\d{}^]*|\s[a-zA-Z]{2}[a-zA-Z .²³^\d]*)", number
    )
    if unit:
        forms.append(unit[1])
    return list(dict.fromkeys(forms))


def _equal(answer: str, gold: str) -> bool:
    """By math-verify; text that it could not read, or not in time, is not equal."""
    from math_verify import LatexExtractionConfig, parse, verify

    if any(len(t) > _LONGEST or _too_large(t) for t in (answer, gold)):
        return False
    read = [parse(f"${t}$", [LatexExtractionConfig()], fallback_mode="no_fallback") for t in (answer, gold)]
    return all(read) and bool(verify(read[1], read[0], float_rounding=6))


def _too_large(text: str) -> bool:
    product = 1
    for digits in _POWER.findall(text):
        product *= max(1, int(digits[:6])) if len(digits) > 1 else 1
    return bool(_TOWER.search(text)) or product > 100_000
