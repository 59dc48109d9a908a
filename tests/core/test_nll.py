"""token_nll, token_nll_from_logits and LinearNLL's first pass: what each token costs, whatever the chunks, shapes, dtypes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tokensieve.core import IGNORE_INDEX, LinearHead, LinearNLL, token_nll, token_nll_from_logits


def make(num_tokens: int = 41, width: int = 8, vocab: int = 23, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(hidden_TD, weight_VD, targets_T) in float64, about a fifth of the targets ignored."""
    g = torch.Generator().manual_seed(seed)
    hidden_TD = torch.randn(num_tokens, width, generator=g, dtype=torch.float64)
    weight_VD = torch.randn(vocab, width, generator=g, dtype=torch.float64)
    targets_T = torch.randint(0, vocab, (num_tokens,), generator=g)
    ignored_T = torch.rand(num_tokens, generator=g) < 0.2
    return hidden_TD, weight_VD, targets_T.masked_fill(ignored_T, IGNORE_INDEX)


def heads(vocab: int = 23, width: int = 8) -> dict[str, LinearHead]:
    g = torch.Generator().manual_seed(1)
    weight = torch.randn(vocab, width, generator=g, dtype=torch.float64)
    bias = torch.randn(vocab, generator=g, dtype=torch.float64)
    return {
        "plain": LinearHead(weight),
        "bias": LinearHead(weight, bias),
        "scale": LinearHead(weight, logit_scale=0.25),
        "softcap": LinearHead(weight, softcap=3.0),
        "everything": LinearHead(weight, bias, logit_scale=1.5, softcap=4.0),
    }


def full_logits(hidden_TD: Tensor, head: LinearHead) -> Tensor:
    """The logits as the models that have such heads write them down."""
    logits_TV = hidden_TD @ head.weight.T
    if head.bias is not None:
        logits_TV = logits_TV + head.bias
    logits_TV = logits_TV * head.logit_scale
    return logits_TV if head.softcap is None else head.softcap * torch.tanh(logits_TV / head.softcap)


def log_softmax_nll(logits_TV: Tensor, targets_T: Tensor) -> Tensor:
    """The definition, a token at a time."""
    log_p_TV = torch.log_softmax(logits_TV, -1)
    rows = [0.0 if t == IGNORE_INDEX else -float(log_p_TV[i, t]) for i, t in enumerate(targets_T.tolist())]
    return torch.tensor(rows, dtype=torch.float64)


def test_shift_of_logits_changes_nothing() -> None:
    """Raw logits taken for a loss: a constant added to a position's logits, which no softmax sees, then changed the fate
    of 34 % of the tokens."""
    g = torch.Generator().manual_seed(0)
    logits_TV = torch.randn(50, 11, generator=g, dtype=torch.float64)
    targets_T = torch.randint(0, 11, (50,), generator=g)
    shifted_TV = logits_TV + 5 * torch.randn(50, 1, generator=g, dtype=torch.float64)
    torch.testing.assert_close(
        token_nll_from_logits(shifted_TV, targets_T), token_nll_from_logits(logits_TV, targets_T), rtol=0, atol=1e-12
    )
    # The same through a head: a bias that is the same for all entries of the vocabulary.
    head = LinearHead(torch.eye(11, dtype=torch.float64), torch.full((11,), 7.0, dtype=torch.float64))
    nll_T = token_nll(logits_TV, head, targets_T)
    torch.testing.assert_close(nll_T, token_nll_from_logits(logits_TV, targets_T), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", heads())
def test_nll_is_minus_log_softmax(name: str) -> None:
    hidden_TD, _, targets_T = make()
    head = heads()[name]
    logits_TV = full_logits(hidden_TD, head)
    truth_T = log_softmax_nll(logits_TV, targets_T)
    torch.testing.assert_close(token_nll(hidden_TD, head, targets_T), truth_T, rtol=0, atol=1e-12)
    torch.testing.assert_close(token_nll_from_logits(logits_TV, targets_T), truth_T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", heads())
def test_entropy_is_that_of_the_softmax(name: str) -> None:
    hidden_TD, _, targets_T = make()
    head = heads()[name]
    p_TV = full_logits(hidden_TD, head).softmax(-1)
    truth_T = -(p_TV * p_TV.log()).sum(-1)
    entropy_T = LinearNLL(hidden_TD, head, targets_T, entropy=True).entropy
    torch.testing.assert_close(entropy_T, truth_T.masked_fill(targets_T == IGNORE_INDEX, 0), rtol=0, atol=1e-12)


def test_entropy_of_the_extremes() -> None:
    """``p log p`` at p = 0 is 0, not NaN; a uniform prediction has ``log V`` nats."""
    hidden_TD = torch.tensor([[0.0], [1e4]])
    head = LinearHead(torch.tensor([[1.0], [0.0], [0.0], [0.0]]))
    entropy_T = LinearNLL(hidden_TD, head, torch.zeros(2, dtype=torch.long), entropy=True).entropy
    torch.testing.assert_close(entropy_T, torch.tensor([4.0, 1.0]).log())


def test_entropy_must_be_asked_for() -> None:
    hidden_TD, weight_VD, targets_T = make()
    with pytest.raises(ValueError, match=r"entropy was not asked for.*statistics"):
        _ = LinearNLL(hidden_TD, weight_VD, targets_T).entropy


def test_targets_are_taken_as_shifted() -> None:
    """A label shift that is missing, or made twice. The oracle's hidden state at t is the one-hot of token t + 1: handed
    targets that are shifted, once, it costs nothing; one place off, everything."""
    g = torch.Generator().manual_seed(0)
    input_ids = torch.randperm(64, generator=g)  # no token twice: a wrong shift can't be right by chance
    hidden_TD = 50 * torch.eye(64)[input_ids[1:]]
    nll_T = token_nll(hidden_TD, torch.eye(64), input_ids[1:])
    assert float(nll_T.max()) < 1e-6
    assert float(token_nll(hidden_TD, torch.eye(64), input_ids[:-1]).min()) > 40


def test_ignored_targets_cost_nothing() -> None:
    """-100 used as an index reads column V - 100 and gives a plausible number."""
    vocab = 130  # larger than 100, so that -100 is a column
    hidden_TD, weight_VD, targets_T = make(vocab=vocab)
    ignored_T = targets_T == IGNORE_INDEX
    assert ignored_T.any()
    head = LinearNLL(hidden_TD, weight_VD, targets_T, entropy=True)
    for values_T in (head.nll, head.entropy, token_nll_from_logits(hidden_TD @ weight_VD.T, targets_T)):
        assert (values_T[ignored_T] == 0).all()
        assert (values_T[~ignored_T] > 0).all()


def test_ignored_rows_may_hold_anything() -> None:
    """Attention over nothing but padding gives NaN hidden states; times zero they are still NaN."""
    hidden_TD, weight_VD, targets_T = make()
    broken_TD = hidden_TD.masked_fill((targets_T == IGNORE_INDEX).unsqueeze(-1), float("nan"))
    head = LinearNLL(broken_TD, weight_VD, targets_T, entropy=True)
    torch.testing.assert_close(head.nll, token_nll(hidden_TD, weight_VD, targets_T), rtol=0, atol=0)
    assert head.entropy.isfinite().all()


@pytest.mark.parametrize("target", [-1, -101, 23])
def test_a_target_outside_the_vocabulary_is_an_error(target: int) -> None:
    """A packer that marks ignored tokens with -1: read as token 0 they are trained on, and nothing tells."""
    hidden_TD, weight_VD, targets_T = make()
    targets_T[3] = target
    with pytest.raises((RuntimeError, IndexError), match="out of bounds"):
        token_nll(hidden_TD, weight_VD, targets_T)
    with pytest.raises((RuntimeError, IndexError), match="out of bounds"):
        token_nll_from_logits(hidden_TD @ weight_VD.T, targets_T)


@pytest.mark.parametrize("slice_columns", [1, 7, 23, 1000, None])
def test_slices_change_nothing(slice_columns: int | None) -> None:
    hidden_TD, _, targets_T = make()
    head = heads()["everything"]
    whole = LinearNLL(hidden_TD, head, targets_T, entropy=True, slice_columns=23)
    parts = LinearNLL(hidden_TD, head, targets_T, entropy=True, slice_columns=slice_columns)
    torch.testing.assert_close(parts.nll, whole.nll, rtol=0, atol=1e-12)
    torch.testing.assert_close(parts.entropy, whole.entropy, rtol=0, atol=1e-12)
    nll_T = token_nll(hidden_TD, head, targets_T, slice_columns=slice_columns)
    torch.testing.assert_close(nll_T, whole.nll, rtol=0, atol=1e-12)


@pytest.mark.parametrize("slice_columns", [0, -1])
def test_a_slice_has_columns(slice_columns: int) -> None:
    """``range(0, V, -1)`` is empty: every nll would be 0."""
    with pytest.raises(ValueError, match="slice_columns"):
        token_nll(*make(), slice_columns=slice_columns)


def test_any_leading_shape() -> None:
    """torchtitan's tokens are flat: [T], [1, T] and [2, T / 2] are the same tokens."""
    hidden_TD, weight_VD, targets_T = make(num_tokens=40)
    flat = LinearNLL(hidden_TD, weight_VD, targets_T, entropy=True)
    logits_TV = hidden_TD @ weight_VD.T
    for shape in ((1, 40), (2, 20), (2, 4, 5)):
        shaped = LinearNLL(hidden_TD.view(*shape, -1), weight_VD, targets_T.view(shape), entropy=True)
        assert shaped.nll.shape == shape
        assert torch.equal(shaped.nll.flatten(), flat.nll)
        assert torch.equal(shaped.entropy.flatten(), flat.entropy)
        of_head = token_nll(hidden_TD.view(*shape, -1), weight_VD, targets_T.view(shape))
        assert torch.equal(of_head, flat.nll.view(shape))
        of_logits = token_nll_from_logits(logits_TV.view(*shape, -1), targets_T.view(shape))
        assert torch.equal(of_logits, token_nll_from_logits(logits_TV, targets_T).view(shape))


def test_strided_input() -> None:
    """Models hand over ``hidden[:, :-1]``: not contiguous."""
    hidden_TD, weight_VD, _ = make(num_tokens=40)
    hidden_BTD, ids_BT = hidden_TD.view(4, 10, -1), torch.arange(40).view(4, 10) % 23
    cut = token_nll(hidden_BTD[:, :-1], weight_VD, ids_BT[:, 1:])
    assert torch.equal(cut, token_nll(hidden_BTD[:, :-1].clone(), weight_VD, ids_BT[:, 1:].clone()))


def test_no_tokens() -> None:
    hidden_TD, weight_VD, targets_T = make()
    assert token_nll(hidden_TD[:0], weight_VD, targets_T[:0]).shape == (0,)
    assert token_nll_from_logits(torch.zeros(2, 0, 5), targets_T[:0].view(2, 0)).shape == (2, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    """A bfloat16 nll has three digits: excess near the threshold is then decided by rounding."""
    hidden_TD, weight_VD, targets_T = make()
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    head = LinearNLL(hidden_TD.to(dtype), weight_VD.to(dtype), targets_T, entropy=True)
    assert head.nll.dtype == head.entropy.dtype == wanted
    assert token_nll_from_logits((hidden_TD @ weight_VD.T).to(dtype), targets_T).dtype == wanted


def test_nll_is_detached() -> None:
    hidden_TD, weight_VD, targets_T = make()
    head = LinearNLL(hidden_TD.requires_grad_(), weight_VD.requires_grad_(), targets_T, entropy=True)
    assert not head.nll.requires_grad
    assert not head.entropy.requires_grad
    assert not token_nll(hidden_TD, weight_VD, targets_T).requires_grad


def test_nll_from_logits_is_differentiable() -> None:
    hidden_TD, weight_VD, targets_T = make()
    logits_TV = (hidden_TD @ weight_VD.T).requires_grad_()
    ours = torch.autograd.grad(token_nll_from_logits(logits_TV, targets_T).sum(), logits_TV)[0]
    truth = torch.autograd.grad(F.cross_entropy(logits_TV, targets_T, reduction="sum"), logits_TV)[0]
    torch.testing.assert_close(ours, truth, rtol=0, atol=1e-12)


def test_autocast_computes_in_its_dtype_and_sums_in_float32() -> None:
    """Under autocast a hand-written head can slip to float32 matmuls (slow) or to bfloat16 sums (wrong)."""
    hidden_TD, weight_VD, targets_T = (x.float() if x.is_floating_point() else x for x in make())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        head = LinearNLL(hidden_TD, weight_VD, targets_T, entropy=True)
    by_hand = LinearNLL(hidden_TD.bfloat16(), weight_VD.bfloat16(), targets_T, entropy=True)
    assert head.nll.dtype == head.entropy.dtype == torch.float32
    assert torch.equal(head.nll, by_hand.nll)
    assert torch.equal(head.entropy, by_hand.entropy)
    assert not torch.equal(head.nll, head.nll.bfloat16().float())


def test_shapes_that_do_not_fit_are_refused() -> None:
    hidden_TD, weight_VD, targets_T = make()
    with pytest.raises(ValueError, match="leading shape"):
        token_nll(hidden_TD, weight_VD, targets_T[:-1])
    with pytest.raises(ValueError, match="leading shape"):
        token_nll_from_logits(hidden_TD, targets_T[:-1])
    with pytest.raises(ValueError, match="width"):
        token_nll(hidden_TD, weight_VD[:, :-1], targets_T)
