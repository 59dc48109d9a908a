"""Scores: excess with its sign, and randomness that depends on the token alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokensieve.core import SCORES, TokenStats, excess, random_uniform, top_fraction

INT64 = st.integers(-(2**63), 2**63 - 1)


def test_excess_has_its_sign() -> None:
    """``ref_nll - nll``, the commonest bug: it trains on what the student knows better than the reference. And ``abs``,
    which calls a token learned long ago as worthy as one not learned yet."""
    nll_T = torch.tensor([3.0, 1.0, 2.0])
    ref_nll_T = torch.tensor([1.0, 4.0, 2.0])
    assert excess(nll_T, ref_nll_T).tolist() == [2.0, -3.0, 0.0]


def test_the_learnable_token_is_kept() -> None:
    """Of two tokens as far from the reference, the one the student is *worse* at is the one to train on."""
    nll_T, ref_nll_T = torch.tensor([1.0, 4.0]), torch.tensor([4.0, 1.0])
    keep_T = top_fraction(excess(nll_T, ref_nll_T), torch.ones(2, dtype=torch.bool), 0.5)
    assert keep_T.tolist() == [False, True]


def test_noise_is_dropped() -> None:
    """A token that both models find impossible has a high nll and little excess. With the student's losses overwritten by
    the reference's (a real notebook), every excess is 0 and position decides."""
    nll_T = torch.tensor([12.0, 3.0, 0.1])  # noise, learnable, learned
    ref_nll_T = torch.tensor([11.9, 1.0, 0.1])
    valid_T = torch.ones(3, dtype=torch.bool)
    scores_T = SCORES["excess"](TokenStats(valid_T, nll=nll_T, ref_nll=ref_nll_T))
    assert top_fraction(scores_T, valid_T, 1 / 3).tolist() == [False, True, False]


def test_excess_is_detached() -> None:
    nll_T = torch.ones(3, requires_grad=True)
    assert not excess(nll_T, nll_T).requires_grad


@pytest.mark.parametrize("shape", [(6,), (1, 6), (2, 3)])
def test_scores_keep_the_shape(shape: tuple[int, ...]) -> None:
    values = torch.arange(6.0).view(shape)
    stats = TokenStats(values > 0, nll=values, entropy=values, ref_nll=values / 2, ref_entropy=values / 2)
    for name, score in SCORES.items():
        assert score(stats).shape == shape, name
        assert score(stats).dtype == torch.float32, name


def test_low_scores_rank_low_values_high() -> None:
    """Self-reference (App. H): the lower the reference's loss or entropy, the likelier the token."""
    values_T = torch.tensor([1.0, 2.0, 3.0])
    stats = TokenStats(values_T > 0, ref_nll=values_T, ref_entropy=values_T, nll=values_T, entropy=values_T)
    for name, best in (("low_ref_nll", 0), ("low_ref_entropy", 0), ("nll", 2), ("entropy", 2)):
        assert int(SCORES[name](stats).argmax()) == best, name


@pytest.mark.parametrize("name", SCORES)
def test_a_missing_statistic_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=r"needs '(ref_)?(nll|entropy)', which was not given"):
        SCORES[name](TokenStats(torch.ones(3, dtype=torch.bool)))


def splitmix(x: int) -> int:
    """splitmix64's step and finaliser on Python's integers."""
    mask = (1 << 64) - 1
    x = (x + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


@given(INT64, st.integers(0, 2**31), INT64, INT64)
def test_random_uniform_is_splitmix(seed: int, step: int, row_id: int, position: int) -> None:
    """The masks of a run must come again on another device and in a later version: they are pinned to a published hash."""
    key = splitmix(splitmix(seed % 2**64) + step)
    bits = splitmix(splitmix((key + row_id) % 2**64) + position)
    found = random_uniform(seed, step, torch.tensor([row_id]), torch.tensor([position]))
    assert found.dtype == torch.float64
    assert found.item() == (bits >> 11) / 2**53


def grid(rows: int = 200, length: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    """(row_id, position), both [B, T]."""
    return torch.arange(rows).unsqueeze(1).expand(rows, length), torch.arange(length).expand(rows, length)


def test_random_uniform_is_uniform() -> None:
    u = random_uniform(0, 0, *grid()).flatten()
    counts = torch.histc(u, bins=64, min=0, max=1)
    expected = u.numel() / 64
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    assert float(((counts - expected) ** 2 / expected).sum()) < 63 + 5 * (2 * 63) ** 0.5  # chi-squared, 5 sigma
    assert len(u.unique()) == u.numel()


@pytest.mark.parametrize("what", ["row", "position", "step", "seed"])
def test_random_uniform_differs_by(what: str) -> None:
    """One mask for every row, or the same at every step: a control that always trains on the same positions."""
    row_id, position = grid()
    base = random_uniform(0, 0, row_id, position)
    other = {
        "row": lambda: random_uniform(0, 0, row_id + 1, position),
        "position": lambda: random_uniform(0, 0, row_id, position + 1),
        "step": lambda: random_uniform(0, 1, row_id, position),
        "seed": lambda: random_uniform(1, 0, row_id, position),
    }[what]()
    assert (base == other).double().mean() < 1e-3
    correlation = float(torch.corrcoef(torch.stack([base.flatten(), other.flatten()]))[0, 1])
    assert abs(correlation) < 5 / base.numel() ** 0.5


def test_random_uniform_knows_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank in the key: two ranks with four rows then train on other tokens than one rank with eight, and no run can be
    repeated on another number of machines. (Masks that are the same on all ranks are the opposite bug: the corpus row
    in the key prevents that.)"""
    row_id, position = grid(rows=8, length=64)
    whole = random_uniform(5, 3, row_id, position)
    parts = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        parts.append(random_uniform(5, 3, row_id[rank::2], position[rank::2]))
    assert torch.equal(parts[0], whole[0::2])
    assert torch.equal(parts[1], whole[1::2])
    assert not torch.equal(parts[0], parts[1])


def test_random_uniform_has_no_state() -> None:
    """A generator's state depends on what drew from it before: dropout, the data order, a resume."""
    row_id, position = grid(rows=2, length=16)
    first = random_uniform(0, 0, row_id, position)
    before = torch.get_rng_state()
    torch.manual_seed(123)
    torch.rand(7)
    assert torch.equal(random_uniform(0, 0, row_id, position), first)
    torch.set_rng_state(before)


def test_random_uniform_of_any_shape() -> None:
    row_id, position = grid(rows=3, length=5)
    whole = random_uniform(1, 2, row_id, position)
    assert torch.equal(random_uniform(1, 2, row_id.flatten(), position.flatten()), whole.flatten())
    assert torch.equal(random_uniform(1, 2, row_id[:, :1], position[:1]), whole)  # broadcasts
    assert torch.equal(random_uniform(1, 2, row_id.int(), position.int()), whole)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(0))
    assert torch.equal(random_uniform(1, 2, row_id.flatten()[order], position.flatten()[order]), whole.flatten()[order])
