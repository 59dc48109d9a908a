"""What a weighted sum is divided by, whatever the weights are: by name, exact, and held against what the objective says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from tokensieve.core import Objective, TokenStats, objective, top_fraction
from tokensieve.runs.errors import UserError
from tokensieve.training.guards import GuardConfig, NonFinite
from tokensieve.training.step import RankScope

ROWS = tiny.rows(8)
BATCH: dict[str, Any] = ROWS.to_dict()
REF_NLL = torch.tensor(BATCH["ref_nll"]).nan_to_num().double()  # [B, T], as stored: entry t belongs to token t
VALID = tiny.valid_targets(BATCH)
NEEDS = frozenset({"nll", "ref_nll"})
DENOMINATORS = ("weight", "valid", "nonzero", "abs")


def soft(nll: Tensor, ref_nll: Tensor) -> Tensor:
    return torch.sigmoid(nll.double() - ref_nll.double())


def signed(nll: Tensor, ref_nll: Tensor) -> Tensor:
    """Negative, zero and positive."""
    gap = torch.tanh((nll.double() - ref_nll.double()) / 4)
    return torch.where(gap.abs() < 0.2, 0.0, gap)


def above(nll: Tensor, ref_nll: Tensor) -> Tensor:
    return (nll.double() > ref_nll.double()).double()


RULES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"soft": soft, "signed": signed, "above": above}


def made_of(rule: str, denominator: Any, **fields: Any) -> Objective:
    def weigh(stats: TokenStats) -> Tensor:
        return RULES[rule](stats.need("nll"), stats.need("ref_nll"))

    given = {"selects": rule == "above", "signed": rule == "signed", **fields}
    return Objective(rule, weigh, NEEDS, scope="sequence", denominator=denominator, **given)


def sums(weight: Tensor) -> dict[str, float]:
    """Every denominator of weights [B, T], written down once more."""
    here = [float(w) for w, v in zip(weight.flatten(), VALID.flatten(), strict=True) if v]
    counted = {"weight": sum(here), "valid": len(here), "nonzero": sum(1 for w in here if w != 0)}
    return {**counted, "abs": sum(abs(w) for w in here)}


def truth(rule: str, denominator: str) -> dict[str, Tensor]:
    """Gradients of sum(weight * nll) / denominator by autograd on full logits in float64."""
    model = tiny.llama(dtype=torch.float64)
    nll = tiny.shifted_nll(model, BATCH)
    weight = RULES[rule](nll.detach(), REF_NLL) * VALID
    ((weight * nll).sum() / sums(weight)[denominator]).backward()
    return {n: p.grad for n, p in model.named_parameters()}


CASES = [(r, d) for r in RULES for d in DENOMINATORS if (r, d) != ("signed", "weight")]


@pytest.mark.parametrize(("batch", "accumulate"), [(8, 1), (2, 4)])
@pytest.mark.parametrize(("rule", "denominator"), CASES)
def test_gradients(tmp_path: Path, rule: str, denominator: str, batch: int, accumulate: int) -> None:
    """Divided by something else the gradient is off by a constant, which AdamW hides and a learning rate does not."""
    found = tiny.step_gradients(tmp_path, ROWS, made_of(rule, denominator), batch, accumulate)
    assert tiny.gap(found, truth(rule, denominator)) < 1e-6  # a Llama's norms are float32 inside


@pytest.mark.parametrize(("rule", "denominator"), CASES)
def test_signed_weights_are_logged_as_they_train(tmp_path: Path, rule: str, denominator: str) -> None:
    """``loss`` was the mean over the weights under every denominator, and a token of negative weight counted as dropped."""
    tiny.train(tiny.llama(dtype=torch.float64), tiny.arguments(tmp_path, 2, 4), ROWS, made_of(rule, denominator))
    nll = tiny.shifted_nll(tiny.llama(dtype=torch.float64), BATCH).detach()
    weight = RULES[rule](nll, REF_NLL) * VALID
    (line,) = tiny.log_lines(tmp_path)
    kept = (weight != 0) & VALID
    assert line["kept"] == int(kept.sum())
    assert line["kept_nll"] == pytest.approx(nll[kept].mean().item(), rel=1e-6)
    assert line["loss"] == pytest.approx(((weight * nll).sum() / sums(weight)[denominator]).item(), rel=1e-6)
    if rule == "above":  # weights of 0 and 1: the kept share says it all
        assert "effective_share" not in line
    else:
        share = sums(weight)["abs"] ** 2 / (len(VALID[VALID]) * float(weight.square().sum()))
        assert line["effective_share"] == pytest.approx(share, rel=1e-6)


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("made", [objective("rho1", ratio=0.4), objective("random", ratio=0.4), objective("clm")])
def test_is_an_option_of_every_objective(tmp_path: Path, made: Objective, denominator: str) -> None:
    options = {k: v for k, v in made.options.items() if k in ("ratio", "scope")}
    named = objective(made.name, denominator=denominator, **options)
    assert (named.denominator, named.options["denominator"]) == (denominator, denominator)
    found = tiny.step_gradients(tmp_path / "a", ROWS, named, 4, 2)
    kept = tiny.step_gradients(tmp_path / "b", ROWS, made, 4, 2)
    line = tiny.log_lines(tmp_path / "a")[0]
    share = line["kept"] / line["valid"] if denominator == "valid" else 1.0
    assert tiny.gap(found, {n: g * share for n, g in kept.items()}) < 1e-6  # a denominator is a float32 number


def test_a_denominator_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match="unknown denominator 'tokens': one of weight, valid, nonzero, abs"):
        objective("rho1", denominator="tokens")


@pytest.mark.parametrize("make", [lambda: made_of("signed", "weight"), lambda: made_of("soft", "weight", signed=True)])
def test_a_sum_of_signed_weights_is_refused(make: Callable[[], Objective]) -> None:
    with pytest.raises(ValueError, match=r"may be negative.*take abs, nonzero or valid"):
        make()


def test_negative_weights_that_nobody_declared_are_refused(tmp_path: Path) -> None:
    """A sum of weights near 0 divides by nearly nothing; a negative one trains away from every token."""
    made = made_of("signed", "weight", signed=False)
    with pytest.raises(UserError, match="objective 'signed' says that its weights are not negative"):
        tiny.train(tiny.llama(), tiny.arguments(tmp_path, 4, 2), ROWS, made)


def test_negative_weights_that_come_late_are_refused(tmp_path: Path) -> None:
    def weigh(stats: TokenStats) -> Tensor:
        return stats.valid.float() - 2.0 * (stats.step > 1) * (stats.need("position") == 3)

    late = Objective("late", weigh, frozenset({"position"}), scope="sequence")
    args = tiny.arguments(tmp_path, 8, max_steps=5, learning_rate=0.0)
    with pytest.raises(UserError, match="step 3: objective 'late' gave 8 tokens a negative weight"):
        tiny.train(tiny.llama(), args, tiny.rows(8, uneven=False), late)


@pytest.mark.parametrize("scale", [1e-3, 0.02, 3.0])
def test_a_sum_below_one_is_divided_by(tmp_path: Path, scale: float) -> None:
    """Clamped to 1, weights that add up to .1 trained at a tenth of the step."""
    made = Objective(
        "small",
        lambda stats: stats.valid * scale,
        scope="sequence",
        known_count=lambda known: known.valid.sum() * scale,
    )
    found = tiny.step_gradients(tmp_path, ROWS, made, 4, 2)
    assert tiny.gap(found, tiny.truth_gradients(tiny.llama(dtype=torch.float64), BATCH, torch.ones_like)) < 1e-6


# --- what an objective says of itself --------------------------------------------------------------------------------------


def kept_by(ratio: float, **claims: Any) -> Objective:
    given = {"known_count": lambda known: (known.valid.sum(-1) * ratio + 0.5).floor().clamp(min=1).sum(), **claims}
    return Objective("mine", lambda s: top_fraction(s.nll, s.valid, ratio, "sequence").float(), frozenset({"nll"}),
                     scope="sequence", **given)  # fmt: skip


def test_true_claims_pass(tmp_path: Path) -> None:
    made = kept_by(0.4, selects=True, most_rows=lambda rows, length: rows * int(0.4 * length + 0.5))
    tiny.train(tiny.llama(), tiny.arguments(tmp_path, 4, 2), tiny.rows(8, uneven=False), made)


@pytest.mark.parametrize(
    ("claims", "says"),
    [
        (
            {"known_count": lambda known: known.valid.sum()},
            "counts .* as its denominator .weight.*its known_count is wrong",
        ),
        ({"known_count": lambda known: 2 * known.valid.sum()}, "its known_count is wrong"),
        ({"known_count": lambda known: known.valid.sum() * 0.38}, "its known_count is wrong"),
        ({"known_count": lambda known: known.valid.sum() * 0}, "its known_count is wrong"),
        ({"most_rows": lambda rows, length: 3}, "most_rows can get a weight, but more did"),
    ],
)
def test_a_false_count_is_refused(tmp_path: Path, claims: dict[str, Any], says: str) -> None:
    """An objective that counts twice its weights halves every update. Nothing told: the loss in the log was divided alike.
    Refused before the first update."""
    model = tiny.llama()
    before = tiny.weights(model)
    with pytest.raises(UserError, match=f"objective 'mine' .*{says}"):
        tiny.train(model, tiny.arguments(tmp_path, 4, 2), ROWS, kept_by(0.4, selects=True, **claims))
    assert all(torch.equal(before[name], after) for name, after in tiny.weights(model).items())


def test_a_false_count_is_refused_after_a_step_that_shows_nothing(tmp_path: Path) -> None:
    """The first step was not finite and left out: the count was never looked at again, and every update was halved."""
    made = Objective(
        "twice",
        lambda s: torch.where(torch.tensor(s.step == 0), float("nan"), s.valid.float()),
        scope="sequence",
        known_count=lambda known: 2 * known.valid.sum(),
    )
    args = tiny.arguments(tmp_path, 4, max_steps=3, learning_rate=0.01)
    with pytest.raises(UserError, match="its known_count is wrong"):
        tiny.train(tiny.llama(), args, tiny.rows(16), made, guards=GuardConfig(on_nonfinite="skip"))


def test_a_nan_weight_of_a_selection_is_a_nan(tmp_path: Path) -> None:
    """It was told as a weight that is neither 0 nor 1, and ended runs that were to leave such steps out."""
    made = Objective("nan", lambda s: s.valid * float("nan"), scope="sequence", selects=True)
    with pytest.raises(NonFinite, match="weights that are not finite"):
        tiny.train(tiny.llama(), tiny.arguments(tmp_path, 4), ROWS, made)


def test_a_count_may_be_a_plain_number(tmp_path: Path) -> None:
    made = Objective("ten", lambda s: s.valid * (10 / s.valid.sum()), scope="batch", known_count=lambda known: 10)
    tiny.train(tiny.llama(), tiny.arguments(tmp_path, 4, 2), ROWS, made)
    assert tiny.log_lines(tmp_path)[0]["kept"] == int(VALID.sum())


def test_soft_weights_that_pass_for_a_selection_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"objective 'soft' says that its weights are 0 or 1 \(selects\)"):
        tiny.train(tiny.llama(), tiny.arguments(tmp_path, 4, 2), ROWS, made_of("soft", "weight", selects=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_a_weight_that_is_no_number_stops_the_step(tmp_path: Path, denominator: Any, bad: float) -> None:
    def weigh(stats: TokenStats) -> Tensor:
        return torch.where(stats.need("position") == 5, bad, stats.valid.float())

    made = Objective("broken", weigh, frozenset({"position"}), scope="sequence", denominator=denominator)
    with pytest.raises(NonFinite, match="step 1: objective 'broken' gives 8 rows weights that are not finite"):
        tiny.train(tiny.llama(), tiny.arguments(tmp_path, 4, 2), tiny.rows(8, uneven=False), made)


# --- what is known before the forward ---------------------------------------------------------------------------------------


def by_schedule(scope: Any) -> Objective:
    """A weight from the step, the tokens seen, the source and a column of the data set: all of it known beforehand."""

    def weigh(stats: TokenStats) -> Tensor:
        share = torch.tensor([0.25, 1.5])[stats.need("source_id")] * stats.need("quality")
        return stats.valid * share * (1 + stats.step) * (1 + torch.as_tensor(stats.tokens_seen) / 100)

    needs = frozenset({"source_id", "quality", "step", "tokens_seen"})
    return Objective("schedule", weigh, needs, scope, known_count=lambda known: weigh(known).sum())


@pytest.mark.parametrize("scope", ["sequence", "batch", "step"])
@pytest.mark.parametrize(("batch", "accumulate"), [(8, 1), (2, 4)])
def test_schedules_sources_and_columns_are_counted(tmp_path: Path, scope: str, batch: int, accumulate: int) -> None:
    """``count`` was given ``valid`` alone: none of these could be counted, and their gradients had to wait to be divided."""
    generator = torch.Generator().manual_seed(0)
    quality = torch.rand(16, tiny.LENGTH, generator=generator)
    columns = {"quality": quality, "doc_starts": [[0, 7]] * 16, "doc_sources": [[0, 1], [1, 0]] * 8}
    data = tiny.rows(16, **columns)
    made = by_schedule(scope)
    assert made.counts_ahead
    model = tiny.llama(dtype=torch.float64)
    args = tiny.arguments(tmp_path, batch, accumulate, max_steps=2, learning_rate=0.05)
    start = tiny.weights(model)
    trainer = tiny.train(model, args, data, made)
    assert trainer._claims_checked
    truth_model, seen = tiny.llama(dtype=torch.float64), 0
    for step in range(2):
        part = data.select(range(8 * step, 8 * step + 8)).to_dict()
        source = torch.tensor([[0] * 7 + [1] * 9, [1] * 7 + [0] * 9] * 4)
        share = torch.tensor([0.25, 1.5])[source].double() * torch.tensor(part["quality"]).double()
        scale = (1 + step) * (1 + seen / 100)  # of a whole step: it must cancel
        grads = tiny.truth_gradients(truth_model, part, lambda nll, w=share * scale: w)
        with torch.no_grad():
            for name, parameter in truth_model.named_parameters():
                parameter -= 0.05 * grads[name]
        seen += int(tiny.valid_targets(part).sum())
    moved = {n: start[n] - p for n, p in tiny.weights(model).items()}
    assert tiny.gap(moved, {n: start[n] - p for n, p in tiny.weights(truth_model).items()}) < 1e-6


def test_tokens_seen_go_on_after_a_stop(tmp_path: Path) -> None:
    """A schedule by tokens that began again at each resume."""
    seen: list[list[int]] = []

    def train(steps: int, folder: Path, resume: bool) -> None:
        def weigh(stats: TokenStats) -> Tensor:
            seen[-1].append(int(stats.tokens_seen))
            return stats.valid.float()

        seen.append([])
        made = Objective("watching", weigh, frozenset({"tokens_seen"}), scope="sequence")
        args = tiny.arguments(folder, 4, max_steps=steps, save_strategy="steps", save_steps=2, learning_rate=0.01)
        from tokensieve.training.trainer import SelectiveTrainer

        trainer = SelectiveTrainer(tiny.llama(), args, train_dataset=tiny.rows(16), objective=made)
        trainer.train(resume_from_checkpoint=resume)
        trainer.seam.close()

    train(4, tmp_path / "whole", False)
    train(2, tmp_path / "parts", False)
    train(4, tmp_path / "parts", True)
    assert seen[1] + seen[2] == seen[0]
    assert seen[0] == [0, *(line["tokens_seen"] for line in tiny.log_lines(tmp_path / "whole"))][:4]


def test_a_dry_step_has_seen_no_tokens(tmp_path: Path) -> None:
    """A schedule by tokens began a step late wherever a dry step had looked whether memory suffices."""
    watching = Objective("watching", lambda s: s.valid.float(), frozenset({"tokens_seen"}), scope="sequence")
    args = tiny.arguments(tmp_path, 4, 2, max_steps=2)
    trainer = tiny.train(tiny.llama(), args, tiny.rows(16), watching, guards=GuardConfig(dry_step=True))
    assert int(trainer._tokens_seen) == tiny.log_lines(tmp_path)[-1]["tokens_seen"]


def test_the_denominator_is_that_of_all_ranks() -> None:
    """Each rank dividing by its own count: a mean of the ranks' means."""
    known = [TokenStats(VALID), TokenStats(VALID[:2])]
    count = int(VALID.sum() + VALID[:2].sum())
    found = RankScope(objective("clm"), 2).denominator(known, lambda t: 2 * t)
    assert found is not None
    assert float(found) == 2 * count
    gathered = RankScope(objective("random", ratio=1.0), 2, gather=lambda t: t).denominator(known, lambda t: 2 * t)
    assert gathered is not None
    assert float(gathered) == count, "gathered already: counted once"
