"""Rows of the nine tasks' files, in the forms in which people have them, as problems; broken lines by file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tokensieve.evaluation.tasks.catalogue import PAPER_GENERAL, PAPER_MATHS, chosen_tasks
from tokensieve.evaluation.tasks.problems import Problem, read_problems, task_file
from tokensieve.evaluation.tasks.worked import EXAMPLES, gold_text, prompt_of, style_of, worked_examples
from tokensieve.runs.errors import UserError


def read(task: str, *rows: Any, tmp_path: Path) -> list[Problem]:
    path = tmp_path / f"{task}.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return read_problems(PAPER_MATHS[task], path)


@pytest.mark.parametrize(
    ("task", "row", "question", "answer", "solution"),
    [
        (
            "gsm8k",
            {"question": "How many?", "answer": "3 + 4 = <<3+4=7>>7 in all.\n#### 1,007"},
            "How many?",
            "1007",
            "3 + 4 = 7 in all.",
        ),
        (
            "gsm8k",
            {"text": "x", "problem": "How many?", "solution": "Seven.\n#### 7", "answer": "7"},
            "How many?",
            "7",
            "Seven.",
        ),
        (
            "math",
            {"problem": "What is $x$?", "solution": "So $x = \\boxed{\\frac{1}{2}}$."},
            "What is $x$?",
            "\\frac{1}{2}",
            "So $x = \\boxed{\\frac{1}{2}}$.",
        ),
        ("math", {"problem": "x?", "solution": "It is 2.", "answer": "2"}, "x?", "2", "It is 2."),
        ("svamp", {"Body": "There are 3 pens", "Question": "How many?", "Answer": 3.0}, "There are 3 pens. How many?", "3", ""),
        ("svamp", {"problem": "How many?", "solution": "145.0", "answer": "145.0"}, "How many?", "145", ""),
        ("asdiv", {"body": "7 red apples.", "question": "How?", "answer": "9 (apples)"}, "7 red apples. How?", "9", ""),
        ("mawps", {"input": "How many?", "target": "8.5"}, "How many?", "8.5", ""),
        ("mawps", {"sQuestion": "How many?", "lSolutions": [12.0]}, "How many?", "12", ""),
        (
            "tabmwp",
            {"question": "More?", "answer": "yes", "table": "a | 1\nb | 2", "table_title": "Pens", "choices": ["yes", "no"]},
            'Read this table on "Pens" and answer the question.\na | 1\nb | 2\nMore?\nChoose from: yes, no',
            "yes",
            "",
        ),
        (
            "mathqa",
            {"Problem": "How much?", "Rationale": "twice", "options": "a ) 38 , b ) 2.5 , c ) rs . 30 , d ) 4", "correct": "b"},
            "How much?\nAnswer choices: (A) 38 (B) 2.5 (C) rs . 30 (D) 4",
            "B",
            "twice",
        ),
        (
            "mmlu_stem",
            {"question": "Which?", "choices": ["2", "3", "0", "1"], "answer": 3},
            "Which?\nAnswer choices: (A) 2 (B) 3 (C) 0 (D) 1",
            "D",
            "",
        ),
        ("mmlu_stem", {"question": "Q?", "choices": ["x", "y"], "answer": 0}, "Q?\nAnswer choices: (A) x (B) y", "A", ""),
        ("sat_math", {"question": "Q?", "options": ["(A)5", "(B)6"], "label": "B"}, "Q?\nAnswer choices: (A) 5 (B) 6", "B", ""),
    ],
)  # fmt: skip
def test_rows(task: str, row: Any, question: str, answer: str, solution: str, tmp_path: Path) -> None:
    (found,) = read(task, row, tmp_path=tmp_path)
    assert found == Problem(question, answer, solution, f"{tmp_path}/{task}.jsonl:1")


@pytest.mark.parametrize(
    ("task", "line", "says"),
    [
        ("gsm8k", "{", "not valid JSON"),
        ("gsm8k", "[1]", "a row must be an object"),
        ("gsm8k", {"question": "x"}, "no field 'answer'"),
        ("gsm8k", {"answer": "1"}, "no field 'question' (or problem, Problem"),
        ("gsm8k", {"question": " ", "answer": "1"}, "question is empty"),
        ("gsm8k", {"question": 3, "answer": "1"}, "question must be text, this is int"),
        ("gsm8k", {"question": "x", "answer": "many"}, "answer must be a number, not 'many'"),
        ("gsm8k", {"question": "x", "answer": {"a": 1}}, "answer must be text or a number, this is dict"),
        ("gsm8k", {"question": "x", "answer": True}, "answer must be text or a number, this is bool"),
        ("math", {"problem": "x", "solution": "no box"}, "solution has no \\boxed answer"),
        ("mathqa", {"Problem": "x", "options": "none", "correct": "a"}, "choices: a list of them is needed"),
        ("mathqa", {"Problem": "x", "options": ["1", "2"], "correct": "c"}, "answer 'c' is none of the 2 choices"),
        (
            "mmlu_stem",
            {"question": "x", "choices": ["1", "2"], "answer": 2},
            "answer 'number 2' is none of the 2 choices",
        ),
        ("tabmwp", {"question": "x", "answer": "1"}, "no field 'table'"),
    ],
)
def test_a_broken_line_is_named(task: str, line: Any, says: str, tmp_path: Path) -> None:
    good = {"question": "x", "solution": "\\boxed{1}", "answer": 1, "table": "t", "choices": ["0", "1"]}
    with pytest.raises(UserError) as e:
        read(task, good, "", line, tmp_path=tmp_path)
    assert str(e.value).startswith(f"{tmp_path}/{task}.jsonl:3: ")
    assert says in str(e.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "gsm8k.jsonl"
    path.write_bytes(b'{"question": "x", "answer": 1}\n\xff\xfe\n')
    with pytest.raises(UserError, match=r"gsm8k.jsonl:\d: not valid UTF-8"):
        read_problems(PAPER_MATHS["gsm8k"], path)
    path = tmp_path / "gsm8k.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"question": "x", "answer": 1}\n' * 9)[:-12])
    with pytest.raises(UserError, match=r"gsm8k.jsonl.gz:\d+: cannot be unpacked"):
        read_problems(PAPER_MATHS["gsm8k"], path)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(UserError, match="holds no problem"):
        read_problems(PAPER_MATHS["gsm8k"], tmp_path / "empty.jsonl")


def test_which_file_is_read(tmp_path: Path) -> None:
    task = PAPER_MATHS["svamp"]
    assert task_file(task, tmp_path) is None
    for name in ("eval_svamp.jsonl.gz", "svamp.jsonl.gz", "svamp.jsonl"):
        (tmp_path / name).touch()
        assert task_file(task, tmp_path) == tmp_path / name


def test_the_paper_s_tasks() -> None:
    maths, general = chosen_tasks(["paper-math", "paper-general", "gsm8k"])
    columns = ["GSM8K", "MATH", "SVAMP", "ASDiv", "MAWPS", "TAB", "MQA", "MMLU-STEM", "SAT"]
    assert [t.column for t in maths] == columns
    assert general == list(PAPER_GENERAL)
    assert len(general) == 15
    assert [len(worked_examples(t)) for t in maths] == [8, 4, 8, 8, 8, 8, 4, 4, 4]
    with pytest.raises(UserError, match="unknown task 'gsm'; there are paper-math, paper-general, gsm8k"):
        chosen_tasks(["gsm"])


def test_worked_examples_are_right() -> None:
    """A slip in a worked example teaches every model the wrong thing: each equation in them is computed."""
    import re

    equations = 0
    for kind, examples in EXAMPLES.items():
        for question, solution, answer in examples if kind != "programs" else ():
            for left, right in re.findall(r"(?<![\d.^])(\d[\d.]*(?: [-+*/] \d[\d.]*)+) = (\d[\d.]*\d|\d)", solution):
                equations += 1
                assert abs(eval(left) - float(right)) < 1e-9, (left, right)
            if kind == "words":
                assert re.findall(r"\d+", solution)[-1] == answer
            if kind == "latex":
                assert f"\\boxed{{{answer}}}" in solution
            if kind in ("choices", "stem"):
                choice = re.search(rf"\({answer}\) ([-\d]+)", question)
                assert choice is not None
                assert choice[1] in re.findall(r"-?\d+", solution)[-2:]
    assert equations > 25


def test_prompts_and_right_answers() -> None:
    words, latex, choice = (PAPER_MATHS[name] for name in ("gsm8k", "math", "mathqa"))
    assert prompt_of(style_of(words), "How {many}?") == "Question: How {many}?\nAnswer:"
    assert gold_text(style_of(words), Problem("q", "7", "3 + 4 = 7.", "")) == "3 + 4 = 7. The answer is 7."
    assert gold_text(style_of(words), Problem("q", "7", "", "")) == "The answer is 7."
    assert gold_text(style_of(choice), Problem("q", "B", "", "")) == "The answer is (B)."
    assert prompt_of(style_of(latex), "x?") == "Problem:\nx?\n\nSolution:"
    said = "So \\boxed{2}.\nFinal Answer: The final answer is $2$. I hope it is correct."
    assert gold_text(style_of(latex), Problem("q", "2", "So \\boxed{2}.", "")) == said
