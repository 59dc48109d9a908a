"""Rules that look at sets of tokens: whole documents, single sources, and the control that is like a kept set."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rule_batches import batch, stats_of
from torch import Tensor

from tokensieve.core import TokenStats, objective

SCOPES = ["batch", "sequence", "step"]
RHO1 = {"name": "rho1", "ratio": 0.5}


def made_stats(seed: int = 0) -> TokenStats:
    """Four rows of 23 tokens in three to four documents each, from two sources by document."""
    stats = stats_of(batch(seed))
    g = torch.Generator().manual_seed(seed)
    segment = (torch.rand(stats.valid.shape, generator=g) < 0.15).long().cumsum(-1)
    return replace(stats, segment=segment, source_id=(segment + stats.row_id) % 2, sources=("web", "books"))


def chosen(weight_BT: Tensor) -> set[tuple[int, int]]:
    return {(b, t) for b, t in weight_BT.nonzero().tolist()}


# --- documents ------------------------------------------------------------------------------------------------------------


def documents(stats: TokenStats, score_BT: Tensor, ratio: float, scope: str) -> set[tuple[int, int]]:
    """Whole documents from the highest mean, until at least k tokens are kept, with Python's sort."""
    kept = set()
    rows = [[b] for b in range(len(stats.valid))] if scope == "sequence" else [list(range(len(stats.valid)))]
    for group in rows:
        members: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for b in group:
            for t in stats.valid[b].nonzero().flatten().tolist():
                members.setdefault((b, int(stats.segment[b, t])), []).append((b, t))  # type: ignore[index]
        k = max(1, int(ratio * sum(map(len, members.values())) + 0.5))
        mean = {d: sum(float(score_BT[place]) for place in at) / len(at) for d, at in members.items()}
        so_far = 0
        for d in sorted(members, key=lambda d: -mean[d]):
            if so_far < k:
                kept |= set(members[d])
                so_far += len(members[d])
    return kept


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("ratio", [0.05, 0.4, 0.75, 1.0])
def test_documents_are_kept_whole_by_their_mean(ratio: float, scope: str) -> None:
    """A sum instead of a mean keeps the longest; a count of documents instead of tokens keeps another share."""
    for seed in range(3):
        stats = made_stats(seed)
        made = objective("rho1", ratio=ratio, scope=scope, unit="document")
        wanted = documents(stats, stats.nll.double() - stats.ref_nll.double(), ratio, scope)  # type: ignore[union-attr]
        weight_BT = made.weigh(stats)
        assert chosen(weight_BT) == wanted
        assert torch.equal(made.weigh(stats.map(torch.flatten)), weight_BT.flatten())
        assert made.needs == {"nll", "ref_nll", "segment"}
        assert made.count(stats) is None


def test_documents_of_a_static_rule_are_counted_beforehand() -> None:
    stats, made = made_stats(), objective("rho1_low_ref", ratio=0.5, unit="document")
    assert float(made.count(stats)) == float(made.weigh(stats).sum())  # type: ignore[arg-type]
    assert objective("rho1", unit="token").count(stats) is not None


def test_random_documents_know_nothing_of_their_length() -> None:
    """By the mean of their tokens' numbers a ranking would end with the short ones at both ends, never a long one."""
    segment = torch.tensor([[0] * 2 + [1] * 60]).expand(300, 62)
    valid = torch.ones_like(segment, dtype=torch.bool)
    row_id = torch.arange(300)[:, None].expand_as(segment)
    position = torch.arange(1, 63).expand_as(segment)
    stats = TokenStats(valid, row_id=row_id, position=position, segment=segment)
    weight_BT = objective("random", ratio=0.5, unit="document").weigh(stats)
    short, long = float(weight_BT[:, 0].mean()), float(weight_BT[:, -1].mean())
    assert 0.35 < short < 0.65  # 300 documents: four standard errors are .12
    assert 0.35 < long < 0.65
    assert torch.equal(weight_BT[:, 2], weight_BT[:, -1])


@pytest.mark.parametrize(
    ("name", "unit", "says"),
    [("dft", "document", "'dft' does not keep a ratio"), ("rho1", "page", "unknown unit 'page'"),
     ("rho1_union", "document", "nothing to rank documents by"), ("distill", "document", "'distill' does not keep")],
)  # fmt: skip
def test_units_that_make_no_sense(name: str, unit: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        objective(name, unit=unit)


# --- sources --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", SCOPES)
def test_each_source_is_ranked_by_itself(scope: str) -> None:
    """Ranked together, the source with the larger excess gets all of it."""
    stats = made_stats()
    stats = replace(stats, nll=stats.nll + 50 * stats.source_id)  # type: ignore[operator]
    made = objective("by_source", of={**RHO1, "scope": scope}, instead={"books": {"ratio": 0.25}})
    weight_BT = made.weigh(stats)
    for number, ratio in ((0, 0.5), (1, 0.25)):
        own = replace(stats, valid=stats.valid & (stats.source_id == number))
        wanted = objective("rho1", ratio=ratio, scope=scope).weigh(own)
        assert torch.equal(weight_BT[own.valid], wanted[own.valid])
    assert made.needs == {"nll", "ref_nll", "source_id"}
    assert made.selects
    assert float(made.count(stats)) == float(weight_BT.sum())  # type: ignore[arg-type]
    assert torch.equal(made.weigh(stats.map(torch.flatten)), weight_BT.flatten())


def test_a_rule_of_its_own_for_a_source() -> None:
    stats = made_stats()
    made = objective("by_source", of=RHO1, instead={"books": {"name": "clm"}})
    weight_BT = made.weigh(stats)
    assert (weight_BT[stats.valid & (stats.source_id == 1)] == 1).all()
    soft = objective("by_source", of={"name": "prior"}, instead={"web": {"alpha": 2.0}})
    for number in (0, 1):  # a mean of 1 within each
        own = stats.valid & (stats.source_id == number)
        assert float(soft.weigh(stats)[own].mean()) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"of": RHO1, "instead": {"web": {"name": "dft"}}}, "divided by different things"),
        ({"of": RHO1, "instead": {"web": {"scope": "step"}}}, "one scope"),
        ({"of": RHO1, "instead": {"web": 0.4}}, "instead.web: options"),
        ({"of": "rho1"}, "of: an objective"),
        ({"of": {"name": "distill"}}, "put by_source into the of of 'distill'"),
    ],
)
def test_sources_that_cannot_be_put_together(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        objective("by_source", **options)


def test_sources_that_are_not_there() -> None:
    made = objective("by_source", of=RHO1, instead={"film": {"ratio": 0.1}})
    with pytest.raises(ValueError, match="no source is called 'film', there are web, books"):
        made.weigh(made_stats())
    with pytest.raises(ValueError, match="not told the names of its sources"):
        made.weigh(replace(made_stats(), sources=()))


# --- the control ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", SCOPES)
def test_random_like_has_the_kept_sets_tokens(scope: str) -> None:
    """As many of each id as the rule keeps, within its scope, elsewhere; in another order of rows the same places."""
    stats = made_stats()
    of = {**RHO1, "scope": scope}
    made, rule = objective("random_like", of=of), objective(**of)
    kept, weight_BT = rule.weigh(stats), made.weigh(stats)
    ids = stats.input_ids
    assert ids is not None

    def profile(which: Tensor) -> Any:
        rows = range(len(ids)) if scope == "sequence" else [slice(None)]
        return [Counter(ids[r][which[r] != 0].tolist()) for r in rows]

    assert profile(weight_BT) == profile(kept)
    assert not torch.equal(weight_BT, kept)
    assert (weight_BT[~stats.valid] == 0).all()
    assert made.count(stats) == rule.count(stats)
    assert torch.equal(made.weigh(stats.map(torch.flatten)), weight_BT.flatten())
    turned = stats.map(lambda t: t.flip(0))
    assert torch.equal(made.weigh(turned), weight_BT.flip(0))
    for other in (replace(stats, step=1), stats):
        seeded = objective("random_like", of=of, seed=0 if other is not stats else 1).weigh(other)
        assert not torch.equal(seeded, weight_BT)


@pytest.mark.parametrize("of", [{"name": "dft"}, {"name": "distill"}])
def test_random_like_what_keeps_nothing(of: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no set to be like"):
        objective("random_like", of=of)


# --- over tokens ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "ratio"), [(0, 1.0), (100, 1.0), (200, 0.8), (900, 0.6)])
def test_a_ratio_that_falls_with_the_tokens(tokens: int, ratio: float) -> None:
    points = [[100, 1.0], [300, 0.6]]
    made = objective("schedule", of={"name": "rho1"}, option="ratio", points=points, over="tokens")
    fixed = objective("rho1", ratio=ratio)
    for seen in (tokens, torch.tensor(tokens)):
        stats = replace(stats_of(batch()), tokens_seen=seen, step=7)
        assert torch.equal(made.weigh(stats), fixed.weigh(stats))
        assert made.count(stats) == fixed.count(stats)
    assert "tokens_seen" in made.needs
    with pytest.raises(ValueError, match="over is 'epochs'"):
        objective("schedule", of={"name": "rho1"}, option="ratio", points=points, over="epochs")


# --- one's own ------------------------------------------------------------------------------------------------------------


def test_the_objective_that_the_page_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """It fits on a screen, and does what it says."""
    docs = Path(__file__).resolve().parents[2] / "docs"
    assert len((docs / "own_objective.py").read_text().splitlines()) <= 24
    monkeypatch.syspath_prepend(str(docs))
    stats = made_stats()
    made = objective("own_objective:late_excess", ratio=0.3, skip=3)
    weight_BT = made.weigh(stats)
    place = stats.document_position
    assert place is not None
    assert weight_BT.dtype == torch.float32
    assert (weight_BT[(place < 3) | ~stats.valid] == 0).all()
    assert int((weight_BT != 0).sum()) == int(0.3 * place.numel())
