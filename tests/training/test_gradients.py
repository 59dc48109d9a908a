"""One optimizer step's gradients against float64 autograd on full logits, however its rows are split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from tokensieve.core import Objective, TokenStats, above_threshold, excess, objective, random_uniform
from tokensieve.runs.errors import UserError

SPLITS = [(8, 1), (4, 2), (2, 4), (1, 8)]
ROWS = tiny.rows(8)
BATCH: dict[str, Any] = ROWS.to_dict()
ALL = [range(8)]


def micro_batches(size: int) -> list[range]:
    return [range(i, i + size) for i in range(0, 8, size)]


def assert_gradients(found: dict[str, Tensor], weigh: Any) -> None:
    assert tiny.gap(found, tiny.truth_gradients(tiny.llama(dtype=torch.float64), BATCH, weigh)) < 1e-6


def test_rows_are_uneven() -> None:
    """What the tests below stand on: rows with very different numbers of targets."""
    counts = tiny.valid_targets(BATCH).sum(1)
    assert counts.max() > 4 * counts.min()


@pytest.mark.parametrize(("batch", "accumulate"), SPLITS)
def test_clm(tmp_path: Path, batch: int, accumulate: int) -> None:
    """A mean of micro-batch means is wrong whenever their numbers of targets differ: HF's bug of 2024."""
    found = tiny.step_gradients(tmp_path, ROWS, objective("clm"), batch, accumulate)
    assert_gradients(found, torch.ones_like)


def test_a_mean_of_means_would_be_seen() -> None:
    """The trap has teeth here: on these rows a mean of means is another gradient by far more than the tolerance."""
    model = tiny.llama(dtype=torch.float64)
    truth = tiny.truth_gradients(model, BATCH, torch.ones_like)
    parts = [tiny.truth_gradients(model, ROWS.select(group).to_dict(), torch.ones_like) for group in micro_batches(1)]
    mean_of_means = {n: sum(p[n] for p in parts) / len(parts) for n in truth}
    assert tiny.gap(mean_of_means, truth) > 0.05


@pytest.mark.parametrize(("batch", "accumulate"), SPLITS)
def test_rho1_by_sequence(tmp_path: Path, batch: int, accumulate: int) -> None:
    """Ranked row by row, a step does not depend on how its rows are split."""
    found = tiny.step_gradients(tmp_path, ROWS, objective("rho1", ratio=0.4, scope="sequence"), batch, accumulate)
    assert_gradients(found, lambda nll: tiny.rho1_keep(nll, BATCH, 0.4, micro_batches(1)))


@pytest.mark.parametrize(("batch", "accumulate"), SPLITS)
def test_rho1_by_batch(tmp_path: Path, batch: int, accumulate: int) -> None:
    """Ranked over a micro-batch, summed over the step, divided once by all that was kept."""
    found = tiny.step_gradients(tmp_path, ROWS, objective("rho1", ratio=0.4), batch, accumulate)
    assert_gradients(found, lambda nll: tiny.rho1_keep(nll, BATCH, 0.4, micro_batches(batch)))


@pytest.mark.parametrize(("batch", "accumulate"), SPLITS)
@pytest.mark.parametrize("ratio", [0.4, 0.07])
def test_rho1_by_step(tmp_path: Path, batch: int, accumulate: int, ratio: float) -> None:
    """Ranked over the whole step. Its k is that of the step's valid tokens, not the sum of the micro-batches' k: at a
    small ratio each of those is rounded up to 1, and the loss is divided by more tokens than were kept."""
    found = tiny.step_gradients(tmp_path, ROWS, objective("rho1", ratio=ratio, scope="step"), batch, accumulate)
    assert_gradients(found, lambda nll: tiny.rho1_keep(nll, BATCH, ratio, ALL))


def random_keep(seed: int, step: int, groups: list[range]) -> Tensor:
    valid = tiny.valid_targets(BATCH)
    keep = torch.zeros_like(valid)
    for group in groups:
        places = [(b, t) for b in group for t in range(valid.shape[1]) if valid[b, t]]
        scores = {p: float(random_uniform(seed, step, *map(torch.tensor, p))) for p in places}
        for place in tiny.top(scores, 0.4):
            keep[place] = True
    return keep


@pytest.mark.parametrize("scope", ["sequence", "step"])
@pytest.mark.parametrize(("batch", "accumulate"), [(8, 1), (2, 4)])
def test_random(tmp_path: Path, scope: str, batch: int, accumulate: int) -> None:
    """The random control's mask is a matter of seed, step, row and position, not of how rows are split."""
    found = tiny.step_gradients(tmp_path, ROWS, objective("random", ratio=0.4, scope=scope, seed=7), batch, accumulate)
    assert_gradients(found, lambda _: random_keep(7, 0, micro_batches(1) if scope == "sequence" else ALL))


# --- weight sums that are known only after the forward ---------------------------------------------------------------


def threshold(at: float) -> Objective:
    """Keep every token whose excess is at least ``at``: how many that are depends on the forward."""
    return Objective(
        "threshold",
        weigh=lambda s: above_threshold(excess(s.nll, s.ref_nll), s.valid, at).float(),
        needs=frozenset({"nll", "ref_nll"}),
        scope="sequence",
    )


def soft(stats: TokenStats) -> Tensor:
    return torch.sigmoid(excess(stats.nll, stats.ref_nll)) * stats.valid


SOFT = Objective("soft", weigh=soft, needs=frozenset({"nll", "ref_nll"}), scope="sequence")
REF_NLL = torch.tensor(BATCH["ref_nll"]).nan_to_num()


@pytest.mark.parametrize(("batch", "accumulate"), SPLITS)
def test_threshold(tmp_path: Path, batch: int, accumulate: int) -> None:
    """Deferred scaling: raw sums are added up and divided once. Divided too early, the micro-batches count wrongly."""
    found = tiny.step_gradients(tmp_path, ROWS, threshold(1.0), batch, accumulate)
    assert_gradients(found, lambda nll: nll - REF_NLL >= 1.0)


@pytest.mark.parametrize(("batch", "accumulate"), SPLITS)
def test_soft_weights(tmp_path: Path, batch: int, accumulate: int) -> None:
    found = tiny.step_gradients(tmp_path, ROWS, SOFT, batch, accumulate)
    assert_gradients(found, lambda nll: torch.sigmoid(nll.float() - REF_NLL))


def test_deferred_scaling_comes_before_clipping(tmp_path: Path) -> None:
    """Clipped first, the raw sum's norm is divided away a second time, and the step is a hundred times too small."""
    found = tiny.step_gradients(tmp_path, ROWS, SOFT, 4, 2, max_grad_norm=0.5)
    norm = torch.stack([g.norm() for g in found.values()]).norm()
    assert norm.item() == pytest.approx(0.5, rel=1e-5)
    truth = tiny.truth_gradients(
        tiny.llama(dtype=torch.float64), BATCH, lambda nll: torch.sigmoid(nll.float() - REF_NLL)
    )
    total = torch.stack([g.norm() for g in truth.values()]).norm()
    assert tiny.gap(found, {n: g * 0.5 / total for n, g in truth.items()}) < 1e-5


def test_deferred_loss_that_is_logged_is_the_mean(tmp_path: Path) -> None:
    """Under deferred scaling the Trainer would log the raw sum of the last micro-batch."""
    model = tiny.llama(dtype=torch.float64)
    nll = tiny.shifted_nll(model, BATCH).detach()
    weight = torch.sigmoid(nll.float() - REF_NLL) * tiny.valid_targets(BATCH)
    trainer = tiny.train(model, tiny.arguments(tmp_path, 2, 4), ROWS, SOFT)
    logged = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert logged == [pytest.approx(((weight * nll).sum() / weight.sum()).item(), rel=1e-5)]


@pytest.mark.parametrize(("batch", "accumulate"), [(8, 1), (2, 4)])
def test_denominator_of_all_valid_tokens(tmp_path: Path, batch: int, accumulate: int) -> None:
    """An objective whose paper divides by all valid tokens; divided by the kept ones its gradient is 1 / ratio too large."""
    made = Objective(
        "top-nll",
        weigh=lambda s: above_threshold(s.nll, s.valid, 5.0).float(),
        needs=frozenset({"nll"}),
        scope="sequence",
        denominator="valid",
    )
    found = tiny.step_gradients(tmp_path, ROWS, made, batch, accumulate)
    model = tiny.llama(dtype=torch.float64)
    valid = tiny.valid_targets(BATCH)
    kept = (tiny.shifted_nll(model, BATCH).detach() >= 5.0) & valid
    share = kept.sum() / valid.sum()
    assert 0.05 < share < 0.95
    truth = tiny.truth_gradients(model, BATCH, lambda nll: nll >= 5.0)
    assert tiny.gap(found, {n: g * share for n, g in truth.items()}) < 1e-6


@pytest.mark.parametrize(("batch", "accumulate"), [(8, 1), (2, 4)])
def test_router_loss_is_averaged_over_micro_batches(tmp_path: Path, batch: int, accumulate: int) -> None:
    """Router losses added once a micro-batch and not divided: accumulation by 4 makes them 4 times as strong."""
    model = tiny.mixtral()
    found = tiny.step_gradients(tmp_path, ROWS, objective("clm"), batch, accumulate, model=tiny.mixtral())
    nll, valid = tiny.shifted_nll(model, BATCH), tiny.valid_targets(BATCH)
    parts = [model(input_ids=torch.tensor(ROWS.select(g)["input_ids"])).aux_loss for g in micro_batches(batch)]
    ((nll * valid).sum() / valid.sum() + 3.0 * torch.stack(parts).mean()).backward()
    assert tiny.gap(found, {n: p.grad for n, p in model.named_parameters()}) < 1e-6


def test_deferred_scaling_with_a_router_loss_is_refused(tmp_path: Path) -> None:
    """The one division would divide the router loss's gradients too."""
    with pytest.raises(UserError, match=r"'soft' knows its weight sum only after the forward.*output_router_logits"):
        tiny.train(tiny.mixtral(), tiny.arguments(tmp_path), ROWS, SOFT)


# --- empty is legal ----------------------------------------------------------------------------------------------------


def ignored(*which: int) -> Any:
    """ROWS with the labels of some rows all ignored."""
    labels = [[-100] * tiny.LENGTH if i in which else row for i, row in enumerate(BATCH["labels"])]
    return tiny.rows(8).remove_columns("labels").add_column("labels", labels)


EVERY = [objective("clm"), objective("rho1", scope="step"), objective("rho1"), objective("random"), SOFT]


@pytest.mark.parametrize("made", EVERY, ids=lambda o: f"{o.name}-{o.scope}")
def test_a_step_without_a_target_is_zero(tmp_path: Path, made: Objective) -> None:
    """0 / 0: the Trainer's own loss is NaN for an all-masked batch, and one such step makes the weights NaN for good."""
    model = tiny.llama()
    before = tiny.weights(model)
    trainer = tiny.train(
        model, tiny.arguments(tmp_path, 1, 4), ignored(*range(4)), made
    )  # a step of the first four rows
    assert all(torch.equal(before[n], w) for n, w in tiny.weights(model).items())
    logged = trainer.state.log_history[0]
    assert (logged["loss"], logged["grad_norm"]) == (0.0, 0.0)


@pytest.mark.parametrize("made", EVERY, ids=lambda o: f"{o.name}-{o.scope}")
def test_a_micro_batch_without_a_target_adds_nothing(tmp_path: Path, made: Objective) -> None:
    """An all-padding micro-batch counted as one of four shrinks the others, or brings a NaN."""
    without = tiny.step_gradients(tmp_path, ROWS.select([0, 1, 4, 5]), made, 2, 2)
    with_empty = tiny.step_gradients(tmp_path, ignored(2, 3, 6, 7), made, 2, 4)
    if made.name == "random":  # keyed by row: other rows, other masks
        assert all(g.isfinite().all() for g in with_empty.values())
    else:
        assert tiny.gap(with_empty, without) < 1e-6


def test_a_threshold_that_nothing_passes_is_zero(tmp_path: Path) -> None:
    found = tiny.step_gradients(tmp_path, ROWS, threshold(1e9), 4, 2)
    assert all(not g.any() for g in found.values())
