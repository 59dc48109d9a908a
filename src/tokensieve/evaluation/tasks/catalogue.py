"""The paper's tasks: where each one's file lies, which fields it has, how it is asked. Imports nothing heavy.

Nine maths tasks of its Table 1 (arXiv 2404.07965) are asked from files in a folder of the user's; fifteen general ones of its
Figure 5 are lm-evaluation-harness's own, by the harness's names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ...runs.errors import UserError

Answers = Literal["number", "maths", "text", "choice"]
"""What answers are: a number; anything mathematical; a number or a word; the letter of a choice."""

MATHS_SET, GENERAL_SET = "paper-math", "paper-general"


@dataclass(frozen=True)
class PaperTask:
    """A maths task of the paper's Table 1."""

    name: str
    column: str
    """Its column in the table."""
    answers: Answers
    examples: str
    """Which of the worked examples it is asked with: see :mod:`.worked`."""
    fields: dict[str, tuple[str, ...]]
    """What a row must have -> the names that it may have in the file; the first one is the one to use."""
    optional: dict[str, tuple[str, ...]]
    """The same of what it may have."""
    rows: int
    """Rows of the paper's test set: for estimates where the file is not here."""
    max_tokens: int = 512
    """Most tokens of an answer."""

    def files(self) -> tuple[str, ...]:
        """The names that its file may have, the first one that is there is read."""
        stems = (self.name, f"eval_{self.name}")
        return tuple(f"{stem}.jsonl{suffix}" for stem in stems for suffix in ("", ".gz"))

    def told(self) -> str:
        """``svamp.jsonl (question, answer; optional: solution)``: the file that is expected, for a message."""
        more = f"; optional: {', '.join(self.optional)}" if self.optional else ""
        return f"{self.name}.jsonl ({', '.join(self.fields)}{more})"


_QUESTION = ("question", "problem", "Problem", "input", "query", "sQuestion")
_ANSWER = ("answer", "target", "Answer", "label", "lSolutions", "correct")
_SOLUTION = ("solution", "rationale", "Rationale")
_CHOICES = ("choices", "options")

PAPER_MATHS: dict[str, PaperTask] = {
    t.name: t
    for t in (
        PaperTask(
            "gsm8k",
            "GSM8K",
            "number",
            "words",
            {"question": _QUESTION, "answer": _ANSWER},
            {"solution": _SOLUTION},
            1319,
        ),
        PaperTask(
            "math",
            "MATH",
            "maths",
            "latex",
            {"question": _QUESTION, "solution": _SOLUTION},
            {"answer": _ANSWER},
            500,
            1024,
        ),
        PaperTask(
            "svamp",
            "SVAMP",
            "number",
            "words",
            {"question": (*_QUESTION, "Question"), "answer": _ANSWER},
            {"body": ("body", "Body"), "solution": _SOLUTION},
            1000,
        ),
        PaperTask(
            "asdiv",
            "ASDiv",
            "text",
            "words",
            {"question": _QUESTION, "answer": _ANSWER},
            {"body": ("body", "Body"), "solution": _SOLUTION},
            2215,
        ),
        PaperTask(
            "mawps",
            "MAWPS",
            "number",
            "words",
            {"question": _QUESTION, "answer": _ANSWER},
            {"solution": _SOLUTION},
            2065,
        ),
        PaperTask(
            "tabmwp",
            "TAB",
            "text",
            "words",
            {"question": _QUESTION, "answer": _ANSWER, "table": ("table",)},
            {"table_title": ("table_title",), "unit": ("unit",), "choices": _CHOICES, "solution": _SOLUTION},
            1000,
        ),
        PaperTask(
            "mathqa",
            "MQA",
            "choice",
            "choices",
            {"question": _QUESTION, "choices": _CHOICES, "answer": ("answer", "correct", "label")},
            {"solution": _SOLUTION},
            1000,
        ),
        PaperTask(
            "mmlu_stem",
            "MMLU-STEM",
            "choice",
            "stem",
            {"question": _QUESTION, "choices": _CHOICES, "answer": ("answer", "label", "gold")},
            {"solution": _SOLUTION},
            3018,
        ),
        PaperTask(
            "sat_math",
            "SAT",
            "choice",
            "stem",
            {"question": _QUESTION, "choices": _CHOICES, "answer": ("answer", "label", "gold")},
            {"solution": _SOLUTION},
            32,
        ),
    )
}
"""name -> task, in the order of the paper's columns. The paper's MATH is a subset of 500 problems of it."""

PAPER_GENERAL: dict[str, str] = {
    "mmlu": "MMLU",
    "bbh": "BBH",
    "minerva_math": "MATH",
    "gsm8k_cot": "GSM8K",
    "mbpp": "MBPP",
    "humaneval": "HumanEval",
    "agieval": "AGIEval",
    "arc_challenge": "ARC-C",
    "arc_easy": "ARC-E",
    "boolq": "BoolQ",
    "piqa": "PIQA",
    "hellaswag": "HellaSwag",
    "winogrande": "WinoGrande",
    "openbookqa": "OBQA",
    "tydiqa": "TydiQA",
}
"""The harness's name -> its column, in the order of the paper's Figure 5."""


def chosen_tasks(tasks: Sequence[str]) -> tuple[list[PaperTask], list[str]]:
    """(maths tasks, the harness's tasks) that these names stand for, each once, in the order of the tables.

    ``paper-math`` and ``paper-general`` stand for all of theirs; ``gsm8k`` alone is the maths task. UserError for others.
    """
    known = [MATHS_SET, GENERAL_SET, *PAPER_MATHS, *PAPER_GENERAL]
    if wrong := [name for name in tasks if name not in known]:
        raise UserError(f"tasks: unknown task {wrong[0]!r}; there are {', '.join(known)}")
    maths = [t for name, t in PAPER_MATHS.items() if {name, MATHS_SET} & set(tasks)]
    return maths, [name for name in PAPER_GENERAL if {name, GENERAL_SET} & set(tasks)]
