"""What a step costs, against a loop that adds up every token's products; log, plan and rival of equal compute say the same."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import tiny

from tokensieve.core import Objective, objective
from tokensieve.training.price import share_trained, step_flops

PLACES, KEPT = 4 * tiny.LENGTH, 11


def made(name: str) -> Objective:
    if name == "clm":
        return objective("clm")
    if name.startswith("rho1"):
        return objective("rho1", ratio=0.5, scope=name.split()[1])
    return objective("distill", teacher="x", top_k=4, ratio=0.5, reference=None, scope=name.split()[1])


def products(hidden: int, inter: int, layers: int) -> tuple[int, int, int, int]:
    """Multiplications of a token's forward: (all others, keys and values, attention, head), of heads 16 wide, one for both."""
    others = layers * (2 * hidden * hidden + 3 * hidden * inter + 2 * hidden) + hidden
    return others, layers * 2 * hidden * 16, layers * (hidden // 16) * 16 * tiny.LENGTH, tiny.VOCAB * hidden


def by_hand(first_pass: bool, asked: int, sparse: bool, strict: bool) -> int:
    """A multiplication is two FLOPs; back they are two more products, to the weight and to its input."""
    others, keys, attention, head = products(32, 48, 2)
    bill = 0
    for token in range(PLACES):
        trained = token < KEPT
        bill += 2 * (others + keys + attention + head) * (2 if first_pass else 1)
        bill += 2 * sum(products(32, 48, 1)) * asked
        bill += 2 * 2 * (others + attention) if trained or not sparse else 0
        bill += 2 * 2 * keys if trained or not strict else 0
        bill += 2 * 2 * head if trained else 0
    return bill


CASES = [
    # objective, sparse, strict, first pass, forwards of the teacher
    ("clm", False, False, False, 0),
    ("rho1 batch", True, False, False, 0),
    ("rho1 step", True, True, True, 0),
    ("distill batch", False, False, False, 1),
    ("distill step", True, False, True, 2),
]


@pytest.mark.parametrize(("name", "sparse", "strict", "first_pass", "asked"), CASES)
def test_a_step_by_hand(name: str, sparse: bool, strict: bool, first_pass: bool, asked: int) -> None:
    """The log charged a first pass and a teacher; a plan, and the rival of equal compute, left both out."""
    own, teacher = tiny.llama(), tiny.llama(num_hidden_layers=1)
    price = step_flops(made(name), own, tiny.LENGTH, sparse=sparse, strict=strict, teacher=teacher)
    assert price.of(PLACES, KEPT) == by_hand(first_pass, asked, sparse, strict)
    unknown = step_flops(made(name), own, tiny.LENGTH, sparse=sparse, strict=strict).of(PLACES, KEPT)
    assert math.isnan(unknown) if asked else unknown == price.of(PLACES, KEPT)


def test_a_run_is_charged_with_it(tmp_path: Path) -> None:
    data, teacher = tiny.rows(4), tiny.llama(num_hidden_layers=1)
    trainer = tiny.train(
        tiny.llama(), tiny.arguments(tmp_path, 2, 2), data, made("distill step"), teacher=teacher, backward="sparse"
    )
    (line,) = tiny.log_lines(tmp_path)
    price = step_flops(made("distill step"), tiny.llama(), tiny.LENGTH, sparse=True, teacher=teacher)
    assert line["flops_student"] == price.of(PLACES, line["kept"])
    assert trainer.token_log.flops == price


@pytest.mark.parametrize(
    ("options", "share"),
    [
        ({}, 1.0),
        ({"ratio": 0.3}, 0.3),
        ({"of": {"name": "rho1", "ratio": 0.4}, "share": 0.5}, 0.4),  # distill of a rule: a plan charged all tokens
        ({"of": {"ratio": 0.4}, "instead": {"web": {"ratio": 0.1}}}, 1.0),
        ({"of": [{"ratio": 0.4}]}, 1.0),
        ({"of": "rho1", "points": [[0, 0.5]]}, 1.0),
        ({"ratio": None}, 1.0),
    ],
)
def test_the_share_that_options_say(options: dict[str, Any], share: float) -> None:
    assert share_trained(options) == share
