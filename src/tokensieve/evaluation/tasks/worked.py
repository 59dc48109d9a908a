"""Worked examples that tasks are asked with, written for this project, and how a problem becomes a prompt.

The paper's harness asks with 8 (word problems), 4 (MATH), 4 (MathQA) and 4 (MMLU-STEM, SAT) examples in the manner of "chain of
thought"; its examples are other people's and are not here.
"""

from __future__ import annotations

from dataclasses import dataclass

from .catalogue import PaperTask
from .problems import Problem


@dataclass(frozen=True)
class Style:
    """How problems of a kind are asked and answered."""

    ask: str
    """The prompt of a question; it ends where the answer begins, without a space."""
    answer: str
    """What follows: {solution} and {answer}."""
    until: tuple[str, ...]
    """An answer ends before the first of these."""
    between: str = " "
    """Stands between the prompt and the answer."""


_PLAIN = Style("Question: {question}\nAnswer:", "{solution} The answer is {answer}.", ("\n\n", "Question:"))
_CHOICE = Style("Question: {question}\nAnswer:", "{solution} The answer is ({answer}).", ("\n\n", "Question:"))
_LATEX = Style(
    "Problem:\n{question}\n\nSolution:",
    "{solution}\nFinal Answer: The final answer is ${answer}$. I hope it is correct.",
    ("Problem:", "I hope it is correct"),
)
_PROGRAM = Style("Question: {question}\n```python", "{solution}\n```", ("```", "\n\nQuestion:"), "\n")
STYLES = {"words": _PLAIN, "latex": _LATEX, "choices": _CHOICE, "stem": _CHOICE, "programs": _PROGRAM}


def style_of(task: PaperTask, programs: bool = False) -> Style:
    """How the task is asked; ``programs``: to be answered by one."""
    return STYLES["programs" if programs else task.examples]


def prompt_of(style: Style, question: str) -> str:
    """A question as it is asked, without examples."""
    return style.ask.replace("{question}", question)


def gold_text(style: Style, problem: Problem) -> str:
    """What a right answer looks like, in the examples' form: the problem's own solution, if it has one, and its answer."""
    return style.answer.replace("{answer}", problem.answer).replace("{solution}", problem.solution).strip()


def worked_examples(task: PaperTask, programs: bool = False) -> list[Problem]:
    """As many as the paper's harness asks this task with; of programs four."""
    return [Problem(q, a, s, "worked.py") for q, s, a in EXAMPLES["programs" if programs else task.examples]]


EXAMPLES: dict[str, list[tuple[str, str, str]]] = {
    "words": [
        (
            "A baker puts 6 rolls into each bag. She fills 7 bags and has 5 rolls left over. How many rolls did she bake?",
            "In the bags are 6 * 7 = 42 rolls. With the 5 that are left over she baked 42 + 5 = 47 rolls.",
            "47",
        ),
        (
            "Omar had 50 stamps. He gave 18 to his sister and then bought 9 new ones. How many stamps has he now?",
            "After giving some away he had 50 - 18 = 32 stamps. Then he bought 9, so he has 32 + 9 = 41 stamps.",
            "41",
        ),
        (
            "A train goes 80 miles in an hour. How many miles does it go in two and a half hours?",
            "In two hours it goes 80 * 2 = 160 miles, and in half an hour 80 / 2 = 40 miles. Together: 160 + 40 = 200 miles.",
            "200",
        ),
        (
            "Three friends share the cost of a boat equally. The boat costs $24 for an hour and they take it for 4 hours. "
            "How many dollars does each of them pay?",
            "For 4 hours the boat costs 24 * 4 = 96 dollars. Each of the three pays 96 / 3 = 32 dollars.",
            "32",
        ),
        (
            "There are 120 seats in a hall. A quarter are taken by children and 35 by their parents. How many are free?",
            "The children take 120 / 4 = 30 seats. Taken are 30 + 35 = 65 seats, so 120 - 65 = 55 are free.",
            "55",
        ),
        (
            "A jacket costs 60 dollars. In a sale its price is lowered by 15 percent. What does it cost in the sale?",
            "15 percent of 60 dollars are 60 * 0.15 = 9 dollars. In the sale it costs 60 - 9 = 51 dollars.",
            "51",
        ),
        (
            "Lena reads 12 pages on Monday. On Tuesday she reads twice as many, and on Wednesday 4 fewer than on Tuesday. "
            "How many pages does she read in the three days?",
            "On Tuesday she reads 12 * 2 = 24 pages and on Wednesday 24 - 4 = 20. In all these are 12 + 24 + 20 = 56 pages.",
            "56",
        ),
        (
            "A water tank holds 90 liters. It loses 3 liters every hour and is full at noon. How many liters has it at 8 pm?",
            "From noon to 8 pm are 8 hours, in which it loses 3 * 8 = 24 liters. Then 90 - 24 = 66 liters are in it.",
            "66",
        ),
    ],
    "latex": [
        (
            "Solve $5x - 7 = 2x + 11$ for $x$.",
            "Subtracting $2x$ from both sides gives $3x - 7 = 11$. Adding $7$ gives $3x = 18$, so $x = \\boxed{6}$.",
            "6",
        ),
        (
            "What is the area of a triangle whose sides are $5$, $12$ and $13$?",
            "Since $5^2 + 12^2 = 169 = 13^2$, the triangle has a right angle between the sides $5$ and $12$. Its area is "
            "$\\frac{1}{2} \\cdot 5 \\cdot 12 = \\boxed{30}$.",
            "30",
        ),
        (
            "Two fair dice are rolled. What is the probability that the sum of the numbers is $9$?",
            "There are $6 \\cdot 6 = 36$ equally likely results. A sum of $9$ comes from $(3,6)$, $(4,5)$, $(5,4)$ and $(6,3)$."
            " The probability is $\\frac{4}{36} = \\boxed{\\frac{1}{9}}$.",
            "\\frac{1}{9}",
        ),
        (
            "For which $x$ is $\\sqrt{6 - 2x}$ a real number? Give your answer in interval notation.",
            "The square root is real where $6 - 2x \\ge 0$, that is $2x \\le 6$ or $x \\le 3$. So $x$ is in "
            "$\\boxed{(-\\infty, 3]}$.",
            "(-\\infty, 3]",
        ),
    ],
    "choices": [
        (
            "A shop buys a lamp for 40 dollars and sells it at a profit of 30 percent. At what price in dollars does it sell "
            "the lamp?\nAnswer choices: (A) 43 (B) 48 (C) 52 (D) 70 (E) none of these",
            "The profit is 40 * 0.3 = 12 dollars, so the price is 40 + 12 = 52 dollars.",
            "C",
        ),
        (
            "The mean of five numbers is 14. Four of them are 10, 12, 15 and 16. What is the fifth?\n"
            "Answer choices: (A) 17 (B) 14 (C) 13 (D) 18 (E) 20",
            "The sum of all five is 5 * 14 = 70. The four have the sum 10 + 12 + 15 + 16 = 53, so the fifth is 70 - 53 = 17.",
            "A",
        ),
        (
            "Two pipes fill a pool in 6 hours and in 12 hours. In how many hours do they fill it together?\n"
            "Answer choices: (A) 9 (B) 18 (C) 3 (D) 4 (E) 8",
            "In an hour they fill 1/6 + 1/12 = 3/12 = 1/4 of the pool, so together they need 4 hours.",
            "D",
        ),
        (
            "If 3a = 2b and b = 9, what is a + b?\nAnswer choices: (A) 12 (B) 15 (C) 18 (D) 21 (E) 24",
            "With b = 9 we have 3a = 18, so a = 6. Then a + b = 6 + 9 = 15.",
            "B",
        ),
    ],
    "stem": [
        (
            "A ball is dropped and falls freely for 3 seconds. With g = 10 m/s^2, how fast is it then?\n"
            "Answer choices: (A) 3 m/s (B) 10 m/s (C) 30 m/s (D) 45 m/s",
            "The speed in free fall is g * t = 10 * 3 = 30 m/s.",
            "C",
        ),
        (
            "How many subsets has a set of 5 elements?\nAnswer choices: (A) 10 (B) 32 (C) 25 (D) 120",
            "Each of the 5 elements is in a subset or not, so there are 2^5 = 32 subsets.",
            "B",
        ),
        (
            "What is the pH of a solution whose concentration of hydrogen ions is 0.001 mol/L?\n"
            "Answer choices: (A) 1 (B) 2 (C) 11 (D) 3",
            "The pH is -log10(0.001) = 3.",
            "D",
        ),
        (
            "If f(x) = x^2 - 4x + 1, what is the least value of f?\nAnswer choices: (A) -3 (B) 1 (C) 2 (D) -4",
            "Completing the square gives f(x) = (x - 2)^2 - 3, whose least value is -3.",
            "A",
        ),
    ],
    "programs": [
        (
            "A baker puts 6 rolls into each bag. She fills 7 bags and has 5 rolls left over. How many rolls did she bake?",
            "in_bags = 6 * 7\nprint(in_bags + 5)",
            "47",
        ),
        (
            "A jacket costs 60 dollars. In a sale its price is lowered by 15 percent. What does it cost in the sale?",
            "price = 60\nlowered = price * 15 / 100\nprint(price - lowered)",
            "51",
        ),
        (
            "Solve $x^2 + 6 = 5x$ for the larger $x$.",
            "from sympy import solve, symbols\nx = symbols('x')\nprint(max(solve(x**2 + 6 - 5 * x, x)))",
            "3",
        ),
        (
            "How many whole numbers from 1 to 100 are divisible by 3 but not by 4?",
            "print(sum(1 for n in range(1, 101) if n % 3 == 0 and n % 4 != 0))",
            "25",
        ),
    ],
}
"""(question, solution, answer) of each kind."""
