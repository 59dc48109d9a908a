"""Objectives made of objectives: what is kept, what is counted beforehand, and what cannot be put together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from rule_batches import batch, stats_of

from tokensieve.core import objective

RHO1 = {"name": "rho1", "ratio": 0.5}
GOLDFISH = {"name": "goldfish", "k": 3, "h": 2}
DFT = {"name": "dft"}
BY_ROW = {"name": "rho1_low_ref", "ratio": 0.7, "scope": "sequence"}


@pytest.mark.parametrize("parts", [[RHO1, GOLDFISH], [RHO1, BY_ROW], [DFT, RHO1], [RHO1, GOLDFISH, BY_ROW], [RHO1]])
@pytest.mark.parametrize("name", ["intersect", "union"])
def test_parts_are_weighed_each_by_itself(name: str, parts: list[dict[str, Any]]) -> None:
    """Ranking the second part among what the first has kept would make the order of parts count."""
    stats = stats_of(batch())
    each = torch.stack([objective(**part).weigh(stats) for part in parts])
    made = objective(name, of=parts)
    torch.testing.assert_close(made.weigh(stats), each.prod(0) if name == "intersect" else each.amax(0))
    torch.testing.assert_close(objective(name, of=parts[::-1]).weigh(stats), made.weigh(stats))
    if made.most_rows is not None:
        assert int((made.weigh(stats) != 0).sum()) <= made.most_rows(*stats.valid.shape)
    if (count := made.count(stats)) is not None:
        assert float(count) == pytest.approx(float(made.denominator_of(made.weigh(stats), stats.valid)))


def test_static_parts_are_counted_beforehand() -> None:
    made = objective("intersect", of=[BY_ROW, GOLDFISH])
    assert made.static
    assert made.counts_ahead
    assert not objective("intersect", of=[RHO1, GOLDFISH]).counts_ahead


@pytest.mark.parametrize(("step", "ratio"), [(0, 1.0), (5, 1.0), (10, 0.8), (15, 0.6), (99, 0.6)])
def test_a_ratio_that_falls(step: int, ratio: float) -> None:
    """1 until step 5, then linear to .6 at step 15; the count beforehand follows it."""
    stats = replace(stats_of(batch()), step=step)
    made = objective("schedule", of={"name": "rho1"}, option="ratio", points=[[5, 1.0], [15, 0.6]])
    fixed = objective("rho1", ratio=ratio)
    assert torch.equal(made.weigh(stats), fixed.weigh(stats))
    assert made.count(stats) == fixed.count(stats)
    assert made.most_rows is not None
    assert int(made.weigh(stats).sum()) <= made.most_rows(*stats.valid.shape)
    assert torch.equal(made.score(stats), fixed.score(stats))  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("intersect", {"of": []}, "at least one"),
        ("intersect", {"of": [RHO1, {"name": "rho1", "scope": "step"}]}, "one scope"),
        ("intersect", {"of": [{"name": "rho2"}]}, "unknown objective 'rho2'"),
        ("union", {"of": [RHO1, {"name": "influence"}]}, "may be negative"),
        ("union", {"of": [RHO1], "ratio": 0.5}, "ratio"),
        ("union", {"of": [RHO1], "denominator": "tokens"}, "unknown denominator"),
        ("schedule", {"of": RHO1, "option": "ratio", "points": []}, "rising steps"),
        ("schedule", {"of": RHO1, "option": "ratio", "points": [[5, 1], [5, 0.5]]}, "rising steps"),
        ("schedule", {"of": RHO1, "option": "ratio", "points": [[0, 1], [5, 0]]}, "ratio is 0.0"),
        ("schedule", {"of": RHO1, "option": "share", "points": [[0, 1]]}, "share"),
        ("schedule", {"of": RHO1, "points": [[0, 1]]}, "option"),
    ],
)
def test_what_cannot_be_put_together(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        objective(name, **options)


@pytest.mark.parametrize(("step", "k"), [(0, 2), (1, 3), (2, 4), (9, 6)])
def test_an_option_that_is_a_whole_number_stays_one(step: int, k: int) -> None:
    """The bug: ``k`` came as 2.0, a hash of 62 bits modulo 2.0 is 0 in float32, and every token was dropped."""
    stats = replace(stats_of(batch()), step=step)
    made = objective("schedule", of={"name": "goldfish", "h": 2}, option="k", points=[[0, 2], [4, 6]])
    assert torch.equal(made.weigh(stats), objective("goldfish", h=2, k=k).weigh(stats))


def test_weights_reach_every_source_where_one_reads_them_itself() -> None:
    """The bug: a rule that names the column is not multiplied by it, and with it went the rules of all other sources."""
    stats = stats_of(batch())
    n = torch.arange(stats.valid.numel()).view(stats.valid.shape)
    weight, source = torch.tensor([0.5, 0.0, -1.0, 2.0])[n % 4], n % 3 // 2
    stats = replace(stats, sources=("a", "b"), source_id=source, columns={**stats.columns, "weight": weight})
    made = objective("by_source", of={"name": "rho1", "ratio": 0.5}, instead={"b": {"name": "column"}})
    found = made.weigh(stats)
    shown = replace(stats, valid=stats.valid & (source == 0) & (weight != 0))
    kept = objective("rho1", ratio=0.5).weigh(shown).bool()
    there = stats.valid & ((source == 1) | kept)
    assert torch.equal(found, torch.where(there, weight, torch.zeros_like(found)))
    assert made.denominator == "abs"
    assert made.signed
