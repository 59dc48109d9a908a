"""Every token rule against its definition written as a loop over tokens in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rule_batches import batch, stats_of
from rule_oracles import ORACLES
from torch import Tensor

from tokensieve.core import OBJECTIVES, TokenStats, objective
from tokensieve.core.objectives import NOT_SERVED

RANKED = ("rho1", "rho1_low_ref", "rho1_low_entropy", "rho1_intersection", "rho1_union", "token_cleaning", "high_loss")
CASES: list[tuple[str, dict[str, Any]]] = [
    ("clm", {}),
    *((name, {"ratio": ratio, "scope": scope}) for name in (*RANKED, "middle_loss", "entropy_top") for ratio, scope in
      ((0.6, "batch"), (0.35, "sequence"), (1.0, "step"))),
    ("rho1", {"ratio": 0.3, "scope": "batch", "reverse": True}),
    *(("eslm", {"alpha": a, "by": by, "scope": s}) for a, by, s in
      ((0.4, "nll", "batch"), (0.0, "nll", "sequence"), (0.7, "entropy", "sequence"), (1.0, "nll", "step"))),
    *(("prior", {"alpha": a, "scope": s}) for a, s in ((1.0, "batch"), (2.0, "sequence"), (0.0, "step"))),
    ("cal", {"low": 1.0, "high": 5.0}),
    ("cal", {"low": 0.2, "high": 0.9}),
    *(("goldfish", o) for o in ({"k": 4, "h": 5}, {"k": 2, "h": 1}, {"k": 3, "h": 2}, {"k": 2, "h": 13, "exempt": (7, 8)})),
    ("dft", {"power": 1.0}),
    ("dft", {"power": 0.3}),
    *(("profit", o) for o in ({"tau": 0.2, "keep": "likely"}, {"tau": 0.2, "keep": "unlikely"},
                              {"tau": 0.2, "keep": "middle", "high": 0.5})),
    ("low_prob_scale", {"alpha": 0.3}),
    ("griffin", {"top_k": 40}),
    *(("long_context", {"form": f, o: v}) for f, o, v in
      (("dense", "least", 0.5), ("sparse", "ratio", 0.4), ("longce", "most", 2.0))),
    *(("tsallis", {"exponent": e}) for e in ("deft", "cayley", 0.5)),
    ("eaft", {"alpha": 1.0}),
    ("eaft", {"alpha": 2.0}),
    *(("mile", {"gamma": 1.0, "scope": s}) for s in ("batch", "sequence")),
    ("position_ramp", {"scale": 10.0}),
    *(("huber", {"c": c, "scope": s}) for c, s in ((3.0, "batch"), (0.5, "sequence"))),
    ("likelihood_gap", {"alpha": 1.0, "least": 0.1}),
    ("likelihood_gap", {"alpha": 4.0, "least": 0.8}),
    ("wit", {"prompt": 0.1, "response": 0.9}),
    ("influence", {}),
    ("learning_time", {"low": 0.2, "high": 1.4}),
    ("smooth", {"of": {"name": "dft", "power": 2.0}}),
    ("distill", {"of": {"name": "rho1", "ratio": 0.3, "scope": "sequence"}, "share": 0.5}),
]  # fmt: skip
OPTION_OF_FORM = {"dense": "least", "sparse": "ratio", "longce": "most"}


def wanted(name: str, options: dict[str, Any], made: dict[str, Tensor]) -> Tensor:
    told = dict(options)
    if name == "long_context":
        told = {"form": options["form"], "option": options[OPTION_OF_FORM[options["form"]]]}
    return torch.tensor(ORACLES[name]({n: v.tolist() for n, v in made.items()}, **told), dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "options"), CASES, ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v.values()))
)
def test_rule_is_its_definition(name: str, options: dict[str, Any]) -> None:
    """A sign, a missing / 3, a mean over padding, weights that bleed into the next row: each has been published."""
    for seed in range(2):
        made = batch(seed)
        weight_BT = objective(name, **options).weigh(stats_of(made))
        torch.testing.assert_close(weight_BT.double(), wanted(name, options, made), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "options"), CASES, ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v.values()))
)
def test_rows_laid_end_to_end_are_the_same_rows(name: str, options: dict[str, Any]) -> None:
    """[T] with its row ids gives the weights of [B, T]: nothing reaches over the end of a row."""
    stats, made = stats_of(batch()), objective(name, **options)
    torch.testing.assert_close(made.weigh(stats.map(torch.flatten)), made.weigh(stats).flatten())


def test_every_rule_has_its_definition() -> None:
    """All but those by chance, which have no other definition than their hash; they have tests of their own."""
    assert {name for name, _ in CASES} == set(ORACLES) == set(OBJECTIVES) - {"random", "random_like"}


@pytest.mark.parametrize("name", ["dft", "huber", "likelihood_gap", "eslm", "high_loss", "rho1", "tsallis"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_stands_at_no_target_counts_for_nothing(name: str, value: float) -> None:
    """A stored column is NaN where there is no target, and so may be anything that is made of it."""
    made = batch()
    stats = stats_of(made)
    broken = stats.with_values({n: v.masked_fill(~stats.valid, value) for n, v in stats.per_token().items()
                                if v.is_floating_point()})  # fmt: skip
    assert torch.equal(objective(name).weigh(broken), objective(name).weigh(stats))


def test_goldfish_drops_the_same_text_everywhere() -> None:
    """The same 13 ids before and with a token: the same choice, in any row and at any place; about 1 of 4 is dropped."""
    g = torch.Generator().manual_seed(0)
    passage = torch.randint(0, 50, (200,), generator=g)
    rows = torch.randint(0, 50, (2, 300), generator=g)
    rows[0, 20:220], rows[1, 77:277] = passage, passage
    shape = (2, 299)
    stats = TokenStats(
        torch.ones(shape, dtype=torch.bool),
        input_ids=rows[:, 1:],
        context_ids=rows[:, :-1],
        position=torch.arange(1, 300).expand(shape),
    )
    weight = objective("goldfish").weigh(stats)
    assert torch.equal(weight[0, 31:219], weight[1, 88:276])
    assert 0.68 < weight.mean() < 0.82


@pytest.mark.parametrize("name", sorted(NOT_SERVED))
def test_what_is_not_served_says_why(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}.*is not served: it"):
        objective(name)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("eslm", {"alpha": 1.5}, "alpha is 1.5"),
        ("eslm", {"by": "ref_nll"}, "by is 'ref_nll'"),
        ("prior", {"alpha": -1}, "alpha is -1"),
        ("prior", {"reference": "nll"}, "a statistic of the student's"),
        ("cal", {"low": 2.0, "high": 1.0}, "high is 1.0"),
        ("goldfish", {"k": 1}, "k is 1"),
        ("profit", {"keep": "most"}, "keep is 'most'"),
        ("tsallis", {"exponent": "def"}, "exponent is 'def'"),
        ("long_context", {"form": "longer"}, "form is 'longer'"),
        ("position_ramp", {"scale": 0}, "scale is 0"),
        ("griffin", {"top_k": 0}, "top_k is 0"),
        ("mile", {"gamma": float("nan")}, "gamma is nan"),
        ("learning_time", {"low": 0.5, "high": 0.1}, "high is 0.1"),
        ("huber", {"scope": "corpus"}, "scope 'corpus' is one threshold over the whole data set"),
        ("influence", {"denominator": "weight"}, "may be negative"),
    ],
)
def test_options_that_make_no_sense(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        objective(name, **options)
