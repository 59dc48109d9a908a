"""What a text answers, and whether it is right: more than a hundred answers made by hand, right, wrong and odd."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokensieve.evaluation.tasks.answers import answer_in, boxed, is_right
from tokensieve.evaluation.tasks.catalogue import PAPER_MATHS
from tokensieve.evaluation.tasks.kept import KeptAnswers
from tokensieve.evaluation.tasks.problems import _problem

pytest.importorskip("math_verify")

R, W, N = "right", "wrong", "none"

# (text, gold, kind of answers, what it is)
NUMBERS = [
    # --- said plainly
    ("He has 3 + 4 = 7 apples. The answer is 7.", "7", R),
    ("He has 3 + 4 = 7 apples. The answer is 8.", "7", W),
    ("The answer is 7", "7", R),
    ("The answer is: 7", "7", R),
    ("the answer is 7 apples.", "7", R),
    ("So the answer is 7 apples, since 3 + 4 = 7 and 9 are left.", "7", R),
    ("The answer is **7**.", "7", R),
    ("The answer is $7$.", "7", R),
    ("The answer is \\(7\\).", "7", R),
    ("Answer: 7", "7", R),
    ("Answer = 7", "7", R),
    ("3 + 4 = 7\n#### 7", "7", R),
    ("3 + 4 = 7\n#### 17", "7", W),
    ("The final answer is 7. I hope it is correct.", "7", R),
    ("The answer is -7.", "-7", R),
    ("The answer is -7.", "7", W),
    ("The answer is 0.", "0", R),
    ("The answer is 007.", "7", R),
    ("The answer is 7.0.", "7", R),
    ("The answer is 7.", "7.0", R),
    ("The answer is 7.5.", "7", W),
    ("The answer is .5", "0.5", R),
    ("The answer is 3 * 8 = 24 apples.", "24", R),
    ("The answer is 3 * 8 = 24 apples.", "3", W),
    # --- thousands separators and currency
    ("The answer is 1,234.", "1234", R),
    ("The answer is 1,234.", "1,234", R),
    ("The answer is 1234.", "1,234", R),
    ("The answer is $1,234.50.", "1234.5", R),
    ("The answer is \\$70,000.", "70000", R),
    ("The answer is $70,000", "70000", R),
    ("The answer is 70000 dollars.", "70000", R),
    ("The answer is 70.", "70000", W),
    ("The answer is 1{,}234.", "1234", R),
    ("The answer is 12,345,678 dollars", "12345678", R),
    ("The answer is €15.", "15", R),
    # --- percentages
    ("The answer is 50%.", "50", R),
    ("The answer is 50 percent.", "50", R),
    ("The answer is 50\\%.", "50", R),
    ("The answer is 5%.", "50", W),
    ("The answer is 12.5%.", "12.5", R),
    ("The answer is 50%.", "0.5", R),
    ("The answer is 0.5.", "50", W),
    ("The answer is 0.3333333.", "1/3", R),
    ("The answer is 0.333.", "1/3", W),
    ("The answer is 1/0.", "7", W),
    # --- fractions
    ("The answer is 1/2.", "0.5", R),
    ("The answer is 1/2.", "1/2", R),
    ("The answer is 2/4.", "1/2", R),
    ("The answer is 1/3.", "1/2", W),
    ("The answer is 2 1/2 hours.", "2.5", R),
    ("The answer is 2 1/2 hours.", "21/2", W),
    # --- trailing prose, several answers, none
    ("The answer is 7. Next we ask how many pears there are, and there are 12.", "7", R),
    ("The answer is 7. No, wait: the answer is 8.", "8", R),
    ("The answer is 7. No, wait: the answer is 8.", "7", W),
    ("First there were 12, now there are 7", "7", R),
    ("First there were 12, now there are 7", "12", W),
    ("There are 7 apples.", "7", R),
    ("I do not know.", "7", N),
    ("", "7", N),
    ("   \n ", "7", N),
    ("The answer is many.", "7", N),
    ("The answer is many, at least 5.", "7", W),
    ("The answer is seven.", "7", N),
    ("\\boxed{7}", "7", R),
    ("It is \\boxed{7} and not \\boxed{8}", "8", R),
    ("It is \\boxed{7} and not \\boxed{8}", "7", W),
    ("\\boxed{7", "7", R),  # not closed: the last number
    ("\\boxed{}  The answer is 7.", "7", R),
    ("The answer is 16 - 3 - 4 = 9.", "9", R),
]
MATHS = [
    # --- LaTeX
    ("$\\boxed{\\frac{1}{2}}$", "\\frac{1}{2}", R),
    ("$\\boxed{\\dfrac{1}{2}}$", "\\frac{1}{2}", R),
    ("$\\boxed{\\frac12}$", "\\frac{1}{2}", R),
    ("$\\boxed{0.5}$", "\\frac{1}{2}", R),
    ("$\\boxed{1/2}$", "\\frac{1}{2}", R),
    ("$\\boxed{\\frac{2}{4}}$", "\\frac{1}{2}", R),
    ("$\\boxed{\\frac{1}{3}}$", "\\frac{1}{2}", W),
    ("$\\boxed{-\\frac{1}{2}}$", "\\frac{-1}{2}", R),
    ("$\\boxed{\\frac{\\sqrt{3}}{3}}$", "\\frac{1}{\\sqrt{3}}", R),
    ("$\\boxed{2\\sqrt{3}}$", "\\sqrt{12}", R),
    ("$\\boxed{\\sqrt{2}}$", "1.4142", W),
    ("$\\boxed{\\pi}$", "\\pi", R),
    ("$\\boxed{2\\pi}$", "\\pi", W),
    ("$\\boxed{x^2+2x+1}$", "(x+1)^2", R),
    ("$\\boxed{x^2+2x+2}$", "(x+1)^2", W),
    ("$\\boxed{x=5}$", "5", R),
    ("$\\boxed{5}$", "x=5", R),
    ("$\\boxed{10^5}$", "100000", R),
    ("$\\boxed{1,000,000}$", "1000000", R),
    ("$\\boxed{10,\\!000}$", "10000", R),
    ("$\\boxed{3\\frac{1}{2}}$", "\\frac{7}{2}", R),
    ("$\\boxed{3\\frac{1}{2}}$", "\\frac{3}{2}", W),
    ("$\\boxed{\\left(\\frac{1}{2},3\\right)}$", "(\\frac{1}{2}, 3)", R),
    ("$\\boxed{(3,\\frac{1}{2})}$", "(\\frac{1}{2}, 3)", W),
    # --- intervals and sets
    ("$\\boxed{(-\\infty, 3]}$", "(-\\infty,3]", R),
    ("$\\boxed{(-\\infty, 3)}$", "(-\\infty,3]", W),
    ("$\\boxed{[2,5]}$", "[2, 5]", R),
    ("$\\boxed{[2,5)}$", "[2, 5]", W),
    ("$\\boxed{(-2,1)\\cup(3,\\infty)}$", "(-2, 1) \\cup (3, \\infty)", R),
    ("$\\boxed{\\{1,2,3\\}}$", "\\{3,2,1\\}", R),
    ("$\\boxed{\\{1,2\\}}$", "\\{1,2,3\\}", W),
    # --- units, degrees, words
    ("$\\boxed{12\\text{ cm}}$", "12", R),
    ("$\\boxed{12}$", "12\\text{ cm}^2", R),
    ("$\\boxed{13\\text{ cm}}$", "12", W),
    ("$\\boxed{90^\\circ}$", "90", R),
    ("$\\boxed{90}$", "90^\\circ", R),
    ("$\\boxed{45^\\circ}$", "90^\\circ", W),
    ("$\\boxed{50\\%}$", "50", R),
    ("$\\boxed{\\$5.25}$", "5.25", R),
    ("$\\boxed{\\text{even}}$", "\\text{even}", R),
    ("$\\boxed{\\text{odd}}$", "\\text{even}", W),
    ("$\\boxed{\\text{Evelyn}}$", "\\text{ Evelyn}", R),
    ("$\\boxed{\\text{(B)}}$", "\\text{(B)}", R),
    ("$\\boxed{5x}$", "5", W),  # x is no unit
    ("$\\boxed{5x}$", "5y", W),
    ("$\\boxed{2x+3}$", "2x \\cdot 3", W),
    ("$\\boxed{12 \\text{ cm}^2}$", "12", R),
    ("$\\boxed{12 cm}$", "12\\text{ cm}", R),
    # --- how it is said
    ("Final Answer: The final answer is $\\frac{1}{2}$. I hope it is correct.", "\\frac{1}{2}", R),
    ("Final Answer: The final answer is $0.5$. I hope it is correct.", "\\frac{1}{2}", R),
    ("Final Answer: The final answer is $\\frac{1}{3}$. I hope it is correct.", "\\frac{1}{2}", W),
    ("The answer is \\(x = \\frac{7}{2}\\).", "\\frac{7}{2}", R),
    ("$\\boxed{5}$ or rather $\\boxed{6}$", "6", R),
    ("$\\boxed{5}$ or rather $\\boxed{6}$", "5", W),
    ("so that $x = 5$", "5", R),
    ("nothing follows", "5", N),
    ("$\\boxed{\\frac{1}{2}$ is not closed", "3", W),
    ("$\\fbox{12}$", "12", R),
    ("$\\boxed{\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}}$", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", R),
    ("$\\boxed{\\begin{pmatrix} 1 \\\\ 3 \\end{pmatrix}}$", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", W),
    ("$\\boxed{1 + 2i}$", "2i+1", R),
    ("$\\boxed{11_{2}}$", "11_2", R),
]
WORDS = [
    ("The answer is yes.", "yes", R),
    ("The answer is Yes", "yes", R),
    ("The answer is no.", "yes", W),
    ("The answer is Tuesday.", "tuesday", R),
    ("The answer is 9 apples.", "9", R),
    ("The answer is 9", "9", R),
    ("The answer is 3:5.", "3:5", R),
    ("The answer is 6:20 P.M.", "6:20 P.M.", R),
    ("The answer is surplus.", "shortage", W),
    ("The answer is on.", "no", W),  # as mathematics the same product
    ("The answer is 1,250.00.", "1250", R),
]
CHOICES = [
    ("The answer is (B).", "B", R),
    ("The answer is B.", "B", R),
    ("The answer is B", "B", R),
    ("The answer is b) 12", "B", R),
    ("The answer is option B.", "B", R),
    ("The answer is \\text{(B)}.", "B", R),
    ("The answer is $\\boxed{B}$.", "B", R),
    ("\\boxed{\\text{B}}", "B", R),
    ("The answer is (C).", "B", W),
    ("First (A) is excluded, so (B)", "B", R),
    ("First (B) is excluded, so (C)", "B", W),
    ("B", "B", R),
    ("B.", "B", R),
    ("The answer is 12.", "B", N),
    ("A train leaves at noon.", "A", N),
    ("The answer is A train.", "A", N),
    ("The answer is (A). No, the answer is (B).", "B", R),
]
CASES = [
    *((*c, "number") for c in NUMBERS),
    *((*c, "maths") for c in MATHS),
    *((*c, "text") for c in WORDS),
    *((*c, "choice") for c in CHOICES),
]


def test_there_are_more_than_a_hundred() -> None:
    assert len(set(CASES)) == len(CASES) > 140
    assert sum(c[2] == W for c in CASES) > 35


@pytest.mark.parametrize(("text", "gold", "what", "kind"), CASES)
def test_answer(text: str, gold: str, what: str, kind: str) -> None:
    found = answer_in(text, kind)  # type: ignore[arg-type]
    if what == N:
        assert found is None
    else:
        assert found is not None
        assert is_right(found.answer, gold, kind) == (what == R), found  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "stated"), [("The answer is 7.", True), ("\\boxed{7}", True), ("there are 7", False)])
def test_an_answer_is_stated_or_the_last_number(text: str, stated: bool) -> None:
    found = answer_in(text, "number")
    assert found == ("7", stated)


def test_boxed_takes_the_last_that_is_closed() -> None:
    assert boxed("\\boxed{a} \\boxed{b{c}d} \\boxed{e") == "b{c}d"
    assert boxed("no box") is None


@pytest.mark.parametrize(
    "answer",
    [
        "9^{9^{9^{9}}}",
        "9^9^9^9",
        "9**9**9**9",
        "((9^{99})^{999})^{9999}",
        "9999999!",
        "9!!!!!!",
        "(" * 500 + "1" + ")" * 500,
        "1" * 5000,
    ],
)
def test_what_would_take_forever_is_not_right(answer: str) -> None:
    """A tower of powers is one long multiplication of integers, which no alarm interrupts: the evaluation would stand still."""
    assert not is_right(answer, "7", "maths")
    assert not is_right("7", answer, "maths")


def test_an_empty_answer_is_never_right() -> None:
    assert not is_right("", "", "number")
    assert not is_right("$", "7", "number")


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        ("The answer is −5.", "-5", True),
        ("The answer is −5.", "5", False),
        ("So she has −1 1/2.", "-1.5", False),  # the last number alone: a mixed one only where it is said
        ("The answer is −1 1/2.", "-1.5", True),
        ("He had 10-5", "5", True),
        ("so x=-5", "-5", True),
        ("\\boxed{-\\$5}", "-5", True),
        ("\\boxed{5\\%}", "500%", False),
        ("\\boxed{5\\%}", "5%", True),
        ("\\boxed{0.05}", "5%", True),
        ("\\boxed{5}", "5%", True),
    ],
)
def test_signs_and_percentages(text: str, gold: str, right: bool) -> None:
    """A typographic minus was dropped, so that -5 was right where 5 was; the - of "10-5" made 5 negative; -$5 was no number;
    and 5 % was 500 %, since one of them is 5 and so may be the other."""
    found = answer_in(text, "number")
    assert found is not None
    assert is_right(found.answer, gold, "number") is right


@pytest.mark.parametrize(("printed", "gold"), [("1e-05", "0.00001"), ("1e+16", "10000000000000000"), ("1000", "1e3")])
def test_numbers_as_programs_print_them(printed: str, gold: str) -> None:
    """Python prints large and small floats with an exponent, which was read as e times one, less five. Golds may, too."""
    assert is_right(printed, gold, "number")
    assert not is_right(printed, "2", "number")


def test_kept_answers_may_hold_any_line_end(tmp_path: Path) -> None:
    """U+2028 and U+0085 end a line for str.splitlines but not in a file: such a batch was asked again after every kill."""
    kept = KeptAnswers(tmp_path / "kept.jsonl")
    kept.add(["a", "b"], ["one\u2028two\x85three\x0bfour\n", [-1.5, True]])
    assert KeptAnswers(kept.path).answers == {"a": "one\u2028two\x85three\x0bfour\n", "b": [-1.5, True]}


def test_a_number_that_nothing_equals_is_refused() -> None:
    """1/0 was taken as a right answer, so that the problem could never be solved."""
    with pytest.raises(ValueError, match="answer must be a number, not '1/0'"):
        _problem(PAPER_MATHS["gsm8k"], {"question": "q", "answer": "1/0"}, "x:1")
