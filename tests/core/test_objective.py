"""Objectives: what they need, what they keep, and a count that is known before the forward and true after it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokensieve.core import OBJECTIVES, STATISTICS, Objective, TokenStats, excess, objective, top_fraction
from tokensieve.core.stats import score_columns

SCOPES = ["sequence", "batch", "step"]


def make_stats(rows: int = 4, length: int = 25, seed: int = 0, share: float = 0.7) -> TokenStats:
    """Every statistic there is, [B, T]."""
    g = torch.Generator().manual_seed(seed)

    def values() -> torch.Tensor:
        return 3 * torch.rand(rows, length, generator=g)

    return TokenStats(
        valid=torch.rand(rows, length, generator=g) < share,
        nll=values(),
        entropy=values(),
        ref_nll=values(),
        ref_entropy=values(),
        input_ids=torch.randint(0, 100, (rows, length), generator=g),
        row_id=torch.arange(rows).unsqueeze(1).expand(rows, length),
        position=torch.arange(length).expand(rows, length),
        segment=torch.arange(length).expand(rows, length) // 9,
        document_position=torch.arange(length).expand(rows, length) + 40,
        context_ids=torch.randint(0, 100, (rows, length), generator=g),
        source_id=torch.randint(0, 3, (rows, length), generator=g),
        sum_p2=torch.rand(rows, length, generator=g),
        target_rank=torch.randint(0, 100, (rows, length), generator=g),
        top_entropy=values(),
        divergence=values(),
    )


def flat(stats: TokenStats) -> TokenStats:
    return stats.map(torch.flatten)


def only(stats: TokenStats, names: frozenset[str]) -> TokenStats:
    columns = {n: v for n, v in stats.columns.items() if n in names}
    return replace(stats, **{n: None for n in STATISTICS if n not in (*names, "step", "tokens_seen")}, columns=columns)


def built_ins() -> list[Objective]:
    """Every objective there is, in every scope that it can be told: a new one is tested by being in the dict."""
    made = []
    for name, factory in OBJECTIVES.items():
        takes = inspect.signature(factory).parameters
        options = {"ratio": 0.3} if "ratio" in takes else {}
        made += [
            objective(name, **options, **({"scope": s} if s else {})) for s in (SCOPES if "scope" in takes else [""])
        ]
    return made


def stats_for(obj: Objective, **fields: Any) -> TokenStats:
    """:func:`make_stats` with the score columns that an objective reads."""
    stats = make_stats(**fields)
    g = torch.Generator().manual_seed(7)
    names = [n for n in score_columns(obj.needs) if n not in STATISTICS]
    return replace(stats, columns={n: 3 * torch.rand(stats.valid.shape, generator=g) for n in names})


def label(obj: Objective) -> str:
    return f"{obj.name}-{obj.scope}"


def test_every_built_in_is_called_by_its_name() -> None:
    assert {o.name for o in built_ins()} == set(OBJECTIVES)


@pytest.mark.parametrize("obj", built_ins(), ids=label)
def test_needs_are_what_is_read(obj: Objective) -> None:
    """A need that is not declared fails at step one, after the hours of scoring; one declared too many costs a pass."""
    stats = stats_for(obj)
    weight_BT = obj.weigh(only(stats, obj.needs))
    assert torch.equal(weight_BT, obj.weigh(stats))
    for name in obj.needs - {"step", "tokens_seen"}:
        with pytest.raises(ValueError, match=name):
            obj.weigh(only(stats, obj.needs - {name}))


@pytest.mark.parametrize("obj", built_ins(), ids=label)
@pytest.mark.parametrize("share", [0.0, 0.05, 0.7, 1.0])
def test_weights_and_their_count(obj: Objective, share: float) -> None:
    """k from all positions instead of the valid ones: the denominator promised before the forward is then not the weight
    that was given."""
    for seed in range(3):
        stats = stats_for(obj, seed=seed, share=share)
        for shaped in (stats, flat(stats)):
            weight = obj.weigh(shaped)
            assert weight.dtype == torch.float32
            assert weight.shape == shaped.valid.shape
            assert not weight.requires_grad
            assert obj.signed or (weight >= 0).all()
            assert not obj.selects or ((weight == 0) | (weight == 1)).all()
            assert (weight[~shaped.valid] == 0).all()
            for denominator in ("weight", "valid", "nonzero", "abs"):
                if obj.signed and denominator == "weight":
                    continue
                named = replace(obj, denominator=denominator)
                came, count = named.denominator_of(weight, shaped.valid), named.count(shaped)
                assert (count is not None) == named.counts_ahead
                if count is not None:
                    assert count.shape == ()
                    assert count.item() == pytest.approx(came.item(), rel=1e-6)
            if obj.most_rows is not None and shaped.valid.dim() > 1:
                assert int((weight != 0).sum()) <= obj.most_rows(*weight.shape)


@pytest.mark.parametrize("obj", built_ins(), ids=label)
def test_rows_may_stand_in_any_order_and_be_padded(obj: Objective) -> None:
    """Ties aside, neither the place of a row in its batch nor padding behind it changes a token's weight."""
    stats = stats_for(obj, rows=5)
    weight_BT, order = obj.weigh(stats), torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(obj.weigh(stats.map(lambda t: t[order])), weight_BT[order])
    padded = stats.map(lambda t: torch.nn.functional.pad(t, (0, 6)))
    torch.testing.assert_close(obj.weigh(padded)[:, :25], weight_BT)
    assert not obj.weigh(padded)[:, 25:].any()


@given(st.integers(1, 5), st.integers(1, 12), st.floats(0.01, 1.0), st.integers(0, 2**31))
def test_a_flat_batch_keeps_its_rows(rows: int, length: int, ratio: float, seed: int) -> None:
    """4 rows of 8 tokens at ratio .5 kept 4, 4, 4, 4 tokens as [B, T] and 5, 2, 5, 4 laid end to end: ``sequence`` ranked
    them all together, and the count was wrong in the same way. In any order of rows, and of any ids."""
    stats, obj = make_stats(rows, length, seed), objective("rho1", ratio=ratio, scope="sequence")
    ids = torch.randperm(1000, generator=torch.Generator().manual_seed(seed))[:rows]
    stats = replace(stats, row_id=ids[:, None].expand(rows, length))
    laid = flat(stats)
    assert torch.equal(obj.weigh(laid), obj.weigh(stats).flatten())
    order = torch.randperm(rows * length, generator=torch.Generator().manual_seed(seed))
    if len(set(laid.nll.tolist())) == laid.nll.numel():  # without ties the order of tokens does not count either
        assert torch.equal(obj.weigh(laid.map(lambda t: t[order])), obj.weigh(laid)[order])
    count = obj.count(replace(laid, nll=None, ref_nll=None))
    assert count is not None
    assert int(count) == int(obj.weigh(stats).sum())


@pytest.mark.parametrize("name", ["rho1", "random"])
def test_a_flat_batch_without_rows_is_refused(name: str) -> None:
    stats, obj = replace(flat(make_stats()), row_id=None), objective(name, scope="sequence")
    for call in (obj.weigh, obj.count):
        with pytest.raises(ValueError, match="row_id"):
            call(stats)


def test_segments_never_change_what_a_sequence_is() -> None:
    """``sequence`` is the row, whatever documents or turns stand in it."""
    stats, obj = make_stats(), objective("rho1", ratio=0.3, scope="sequence")
    parted = replace(stats, segment=torch.arange(25).expand(4, 25) // 7)
    assert torch.equal(obj.weigh(parted), obj.weigh(stats))


def test_the_reference_may_have_another_name() -> None:
    stats, obj = make_stats(), objective("rho1", ratio=0.3, reference="other_nll")
    assert obj.needs == {"nll", "other_nll"}
    renamed = replace(stats, ref_nll=None, columns={"other_nll": stats.ref_nll})
    assert torch.equal(obj.weigh(renamed), objective("rho1", ratio=0.3).weigh(stats))
    with pytest.raises(ValueError, match="'entropy' is a statistic of the student's"):
        objective("rho1", reference="entropy")


@given(st.integers(1, 4), st.integers(1, 12), st.floats(0.01, 1.0), st.sampled_from(SCOPES), st.integers(0, 2**31))
def test_count_is_the_weight_sum(rows: int, length: int, ratio: float, scope: str, seed: int) -> None:
    stats, obj = make_stats(rows, length, seed), objective("rho1", ratio=ratio, scope=scope)
    count = obj.count(stats)
    assert count is not None
    assert count.item() == obj.weigh(stats).sum().item()


def test_the_denominator_may_be_the_valid_tokens() -> None:
    """PRIOR, DFT: their papers divide by all valid tokens, whatever the weights."""
    valid_T = torch.tensor([True, True, False, True])
    soft = Objective("soft", weigh=lambda stats: stats.valid * 0.25, denominator="valid")
    assert int(soft.count(TokenStats(valid_T))) == 3
    assert (
        replace(soft, denominator="weight").count(TokenStats(valid_T)) is None
    )  # not known before the forward: deferred


def test_clm_weighs_every_valid_token_once() -> None:
    stats = make_stats()
    assert torch.equal(objective("clm").weigh(stats), stats.valid.float())
    assert objective("clm").needs == frozenset()


@pytest.mark.parametrize("scope", SCOPES)
def test_rho1_keeps_the_top_by_excess(scope: str) -> None:
    """Softmax weights instead of a selection, or the reference's loss in the student's place."""
    stats = make_stats()
    obj = objective("rho1", ratio=0.6, scope=scope)
    assert stats.nll is not None
    assert stats.ref_nll is not None
    keep = top_fraction(stats.nll - stats.ref_nll, stats.valid, 0.6, scope)
    assert torch.equal(obj.weigh(stats), keep.float())
    assert obj.score is not None
    assert torch.equal(obj.score(stats), excess(stats.nll, stats.ref_nll))
    assert set(obj.weigh(stats).unique().tolist()) == {0.0, 1.0}


def test_the_selection_follows_the_student() -> None:
    """A mask computed once from the first losses: as the student learns a token, the token must leave the selection."""
    stats = make_stats(share=1.0)
    obj = objective("rho1", ratio=0.3)
    before = obj.weigh(stats).bool()
    assert stats.nll is not None
    learned = replace(stats, nll=torch.where(before, 0.0, stats.nll))
    assert not torch.equal(obj.weigh(learned).bool(), before)


def test_rho1_gives_no_gradient_to_the_selection() -> None:
    stats = make_stats()
    assert stats.nll is not None
    assert not objective("rho1").weigh(replace(stats, nll=stats.nll.clone().requires_grad_())).requires_grad


def test_reference_scores_are_nan_where_there_is_no_target() -> None:
    """A stored column is NaN on a row's first token and on padding: NaN ranks highest in a sort and would be kept."""
    stats = make_stats()
    assert stats.ref_nll is not None
    stored = replace(stats, ref_nll=stats.ref_nll.masked_fill(~stats.valid, float("nan")).half())
    for scope in SCOPES:
        obj = objective("rho1", ratio=0.6, scope=scope)
        assert (obj.weigh(stored)[~stats.valid] == 0).all()
        assert obj.weigh(stored).sum() == obj.weigh(stats).sum()


@pytest.mark.parametrize("scope", SCOPES)
def test_random_masks_differ_by_row_and_step(scope: str) -> None:
    """One mask for every row or every step is no control: it never trains on some positions."""
    stats = make_stats(rows=6, length=64, share=1.0)
    obj = objective("random", ratio=0.5, scope=scope)
    masks = [obj.weigh(replace(stats, step=step)) for step in range(3)]
    for mask_BT in masks:
        assert len({tuple(row.tolist()) for row in mask_BT}) == 6
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[1], masks[2])
    assert not torch.equal(objective("random", ratio=0.5, scope=scope, seed=1).weigh(stats), masks[0])
    assert torch.equal(obj.weigh(stats), masks[0])


def test_random_masks_follow_the_corpus_row() -> None:
    """Rows dealt to two ranks, or shuffled, keep their masks: the key is the corpus row, not the place in the batch, nor
    the rank. (Ranks that seed alike and key by place all draw the same mask: seen in a published reproduction.)"""
    stats = make_stats(rows=6, length=64, share=1.0)
    obj = objective("random", ratio=0.5, scope="sequence")
    whole = obj.weigh(stats)
    for rows in ([0, 2, 4], [1, 3, 5], [5, 0]):
        needed = only(stats, obj.needs)
        part = replace(needed, **{n: getattr(needed, n)[rows] for n in ("valid", "row_id", "position")})
        assert torch.equal(obj.weigh(part), whole[rows])


def test_random_masks_are_the_same_on_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank in the key: the scope is gathered over ranks, each rank ranks it by other numbers and keeps another set."""
    stats, obj = make_stats(), objective("random", ratio=0.5)
    masks = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        masks.append(obj.weigh(stats))
    assert torch.equal(masks[0], masks[1])


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(ValueError, match=r"rho2.*clm, random, .*rho1, .*package\.module:factory"):
        objective("rho2")


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: objective("rho1", ratio=0.0), "ratio"),
        (lambda: objective("rho1", ratio=60), "ratio"),
        (lambda: objective("random", ratio=-1), "ratio"),
        (lambda: objective("rho1", scope="microbatch"), "microbatch"),
        (lambda: objective("rho1", ration=0.5), "ration"),
        (lambda: objective("clm", ratio=0.5), "ratio"),
        (lambda: objective("rho1", ratio="much"), "rho1"),
        (lambda: objective("tokensieve_no_such_module:make"), "no_such_module"),
        (lambda: objective("math:no_such_name"), "no_such_name"),
        (lambda: objective("math:pi"), "math:pi"),
        (lambda: objective("math:sqrt"), "math:sqrt"),
    ],
)
def test_bad_options_are_refused_before_the_run(make: Callable[[], Objective], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make()


OWN = """
from tokensieve.core import Objective

def short(limit=3):
    return Objective("short", weigh=lambda s: (s.valid & (s.position < limit)).float(), needs=frozenset({"position"}))

def wrong():
    return "rho1"
"""


def test_ones_own_objective(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_objectives.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    obj = objective("own_objectives:short", limit=2)
    stats = make_stats(share=1.0)
    assert obj.weigh(only(stats, obj.needs)).sum(-1).tolist() == [2.0] * 4
    assert obj.count(stats) is None
    with pytest.raises(ValueError, match="str, not an Objective"):
        objective("own_objectives:wrong")
    with pytest.raises(ValueError, match="limits"):
        objective("own_objectives:short", limits=2)
