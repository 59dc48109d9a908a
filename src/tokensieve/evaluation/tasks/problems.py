"""Rows of a task's file -> problems: what is asked, the answer that counts, and the text that a model is to find likely."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runs.errors import UserError
from .answers import LETTERS, boxed
from .catalogue import PaperTask


@dataclass(frozen=True)
class Problem:
    """A problem as it is asked."""

    question: str
    answer: str
    """What counts as right: a number, LaTeX, a word, or the letter of a choice."""
    solution: str
    """The way to it, without its last sentence; empty where the file has none."""
    where: str
    """``file:line``."""


def task_file(task: PaperTask, folder: Path | str) -> Path | None:
    """The task's file in ``folder``; None if it is not there."""
    return next((path for name in task.files() if (path := Path(folder) / name).is_file()), None)


def read_problems(task: PaperTask, path: Path, most: int | None = None) -> list[Problem]:
    """All problems of a file of JSON lines, or the first ``most``; every line of what is read is checked.

    UserError with ``file:line`` for one that is no JSON object, lacks a field or has a value that makes no problem, and for a
    file without any.
    """
    problems = []
    for where, row in _rows(path):
        try:
            problems.append(_problem(task, row, where))
        except ValueError as e:
            raise UserError(f"{where}: {e}") from None
        if len(problems) == most:
            break
    if not problems:
        raise UserError(f"{path} holds no problem")
    return problems


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(``file:line``, row) of every line that is not blank."""
    number = 0
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig")
            if path.suffix == ".gz"
            else open(path, encoding="utf-8-sig") as f
        ):
            for number, line in enumerate(f, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as e:
                    raise UserError(f"{path}:{number}: not valid JSON: {str(e).split(': line')[0]}") from None
                if not isinstance(row, dict):
                    raise UserError(f"{path}:{number}: a row must be an object")
                if "\\ud" in line.lower() and _half_surrogate(row):
                    raise UserError(
                        f"{path}:{number}: the text holds half of a surrogate pair, which is not valid Unicode"
                    )
                yield f"{path}:{number}", row
    except UnicodeDecodeError:
        raise UserError(f"{path}:{number + 1}: not valid UTF-8") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as e:
        raise UserError(f"{path}:{number + 1}: cannot be unpacked: {e}") from None


def _half_surrogate(row: Mapping[str, Any]) -> bool:
    """Text that no tokenizer takes and no file can hold."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _problem(task: PaperTask, row: Mapping[str, Any], where: str) -> Problem:
    """ValueError for a row that is none."""
    found = {name: _field(row, names) for name, names in {**task.fields, **task.optional}.items()}
    for name, names in task.fields.items():
        if found[name] is None:
            said = f" (or {', '.join(n for n in names if n != name)})" if len(names) > 1 else ""
            raise ValueError(f"no field {name!r}{said}; there are {', '.join(map(str, row)) or 'none'}")
    for name in ("question", "body", "solution", "table", "table_title", "unit"):
        if found.get(name) is not None and not isinstance(found[name], str):
            raise ValueError(f"{name} must be text, this is {type(found[name]).__name__}")
    if not found["question"].strip():
        raise ValueError("question is empty")
    choices = _choices(found.get("choices"))
    if task.answers == "choice" and not choices:
        raise ValueError("choices: a list of them is needed")
    answer, solution = _answer(task, found, choices)
    if not answer:
        raise ValueError("answer is empty")
    question = _question(found, choices, letters=task.answers == "choice")
    return Problem(question, answer, solution, where)


def _field(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _question(found: Mapping[str, Any], choices: list[str], *, letters: bool) -> str:
    body = (found.get("body") or "").strip()
    if body and body[-1] not in ".!?,;:":
        body += "."
    text = f"{body} {found['question'].strip()}".strip()
    if found.get("table") is not None:
        title = f' on "{found["table_title"].strip()}"' if found.get("table_title") else ""
        unit = f" (Unit: {found['unit'].strip()})" if found.get("unit") else ""
        text = f"Read this table{title} and answer the question.\n{found['table'].strip()}\n{text}{unit}"
    if choices:
        marked = " ".join(f"({LETTERS[i]}) {c}" for i, c in enumerate(choices)) if letters else ", ".join(choices)
        text += f"\n{'Answer choices' if letters else 'Choose from'}: {marked}"
    return text


def _choices(value: Any) -> list[str]:
    """A list of choices, or one text as MathQA has it (``a ) 38 , b ) 27.675 , ...``), without their letters."""
    if value is None:
        return []
    if isinstance(value, str):
        parts = re.split(r"(?:^|,)\s*\(?[a-eA-E]\s*\)", value)
        value = parts[1:] if len(parts) > 2 else []
    if not isinstance(value, list) or len(value) > len(LETTERS):
        raise ValueError(f"choices must be a list of at most {len(LETTERS)}")
    return [re.sub(r"^\s*\(?[A-J]\)\s*", "", str(c)).strip().rstrip(",").strip() for c in value]


def _answer(task: PaperTask, found: Mapping[str, Any], choices: list[str]) -> tuple[str, str]:
    """(the answer that counts, the way to it)."""
    given, solution = found.get("answer"), (found.get("solution") or "").strip()
    if isinstance(given, list):  # mawps has lists of one
        given = given[0] if len(given) == 1 else ", ".join(map(str, given))
    if isinstance(given, bool) or not isinstance(given, str | int | float | None):
        raise ValueError(f"answer must be text or a number, this is {type(found['answer']).__name__}")
    if task.answers == "choice":
        return _letter(given, choices), solution
    text = "" if given is None else str(given).strip()
    if "####" in text:  # gsm8k keeps both in one field
        solution, text = (part.strip() for part in text.rsplit("####", 1))
    elif "####" in solution:
        solution = solution.rsplit("####", 1)[0].strip()
    solution = re.sub(r"<<[^<>]*>>", "", solution)  # its notes for a calculator
    if not text and task.answers == "maths":
        text = boxed(solution) or ""
        if not text:
            raise ValueError("solution has no \\boxed answer, and there is no field 'answer'")
    if task.name == "asdiv":
        text = re.sub(r"\s*\([^()]*\)$", "", text)  # 9 (apples)
    if solution in (text, str(given)):
        solution = ""
    if task.answers == "number":
        text = text.replace(",", "").lstrip("$")
        if not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,3})?(/0*[1-9]\d*)?%?", text):
            raise ValueError(f"answer must be a number, not {text!r}")
        text = re.sub(r"\.0+$", "", text)
    return text, solution


def _letter(given: Any, choices: list[str]) -> str:
    """A choice's letter, from its letter, its number from 0 on, or its text."""
    text = "" if given is None else str(given).strip()
    if isinstance(given, int):  # never a choice's text: choices are often numbers
        text = str(given) if 0 <= given < len(choices) else f"number {given}"
    elif text in choices:
        return LETTERS[choices.index(text)]
    if text.isdecimal() and int(text) < len(choices):
        return LETTERS[int(text)]
    letter = text.strip("().").upper()
    if len(letter) == 1 and letter in LETTERS[: len(choices)]:
        return letter
    raise ValueError(f"answer {text!r} is none of the {len(choices)} choices")
