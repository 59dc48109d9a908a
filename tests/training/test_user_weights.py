"""A column ``weight`` beside the rows: it is the rule, or multiplies any other; a token of weight 0 is as good as not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import tiny
import torch
from torch import Tensor

from tokensieve.core import Objective, objective
from tokensieve.core.objectives.given import times
from tokensieve.core.stats import TokenStats
from tokensieve.data.rows import Rows
from tokensieve.runs.errors import UserError
from tokensieve.training.thresholds import find_thresholds

ROWS = tiny.rows(8)
REF_NLL = torch.tensor(ROWS["ref_nll"]).nan_to_num().double()


def drawn(seed: int = 0, *, signed: bool = True) -> Tensor:
    """Weights of which a third are 0, exact in float32. [B, T]"""
    g = torch.Generator().manual_seed(seed)
    values = torch.randint(-4 if signed else 0, 5, (8, tiny.LENGTH), generator=g) / 4
    return torch.where(torch.rand(values.shape, generator=g) < 0.3, 0.0, values)


def with_weight(rows: datasets.Dataset, weight: Any) -> datasets.Dataset:
    return rows.add_column("weight", weight.tolist() if isinstance(weight, Tensor) else weight)


def gradients(rule: Tensor, denominator: float) -> dict[str, Tensor]:
    """Of ``sum(rule * nll) / denominator``, by autograd on full logits in float64; ``rule`` [B, T] stands at its token."""
    model = tiny.llama(dtype=torch.float64)
    nll = tiny.shifted_nll(model, ROWS.to_dict())
    ((rule * nll).sum() / denominator).backward()
    return {n: p.grad for n, p in model.named_parameters()}


@pytest.mark.parametrize(("rows", "accumulate"), [(8, 1), (2, 4)])
@pytest.mark.parametrize("denominator", ["abs", "valid", "nonzero"])
def test_column_trains_on_the_weights_that_are_given(
    tmp_path: Path, denominator: str, rows: int, accumulate: int
) -> None:
    """Signed ones too: the denominator is of all micro-batches, and a weight stands at its own token, not one beside it."""
    weight, valid = drawn().double(), tiny.valid_targets(ROWS.to_dict())
    here = weight * valid
    divided = {"abs": here.abs().sum(), "valid": valid.sum(), "nonzero": (here != 0).sum()}[denominator]
    made = objective("column", denominator=denominator)
    found = tiny.step_gradients(tmp_path, with_weight(ROWS, weight), made, rows, accumulate)
    assert tiny.gap(found, gradients(here, float(divided))) < 1e-6  # a Llama's norms are float32 inside


@pytest.mark.parametrize(("rows", "accumulate"), [(8, 1), (2, 4)])
@pytest.mark.parametrize("denominator", ["abs", "valid", "nonzero"])
def test_rho1_ranks_what_has_a_weight_and_multiplies(
    tmp_path: Path, denominator: str, rows: int, accumulate: int
) -> None:
    """k is the share of tokens with a weight; those of weight 0 take no place of another, however high they score."""
    weight, valid = drawn(1).double(), tiny.valid_targets(ROWS.to_dict())
    shown = {**ROWS.to_dict(), "labels": torch.where(weight == 0, -100, torch.tensor(ROWS["labels"])).tolist()}
    nll = tiny.shifted_nll(tiny.llama(dtype=torch.float64), ROWS.to_dict()).detach()
    keep = tiny.rho1_keep(nll, shown, 0.5, [range(i, i + rows) for i in range(0, 8, rows)])
    here = weight * keep
    divided = {"abs": here.abs().sum(), "valid": valid.sum(), "nonzero": keep.sum()}[denominator]
    made = objective("rho1", ratio=0.5, denominator=denominator)
    found = tiny.step_gradients(tmp_path, with_weight(ROWS, weight), made, rows, accumulate)
    assert tiny.gap(found, gradients(here, float(divided))) < 1e-6
    line = tiny.log_lines(tmp_path)[0]
    assert (line["valid"], line["kept"]) == (int(valid.sum()), int(keep.sum()))


@pytest.mark.parametrize("name", ["clm", "rho1", "random", "dft"])
def test_weights_of_0_and_1_are_labels(tmp_path: Path, name: str) -> None:
    """Dropping by a weight is ignoring by a label, to the last digit where both are divided by what is kept."""
    keep = drawn(2) > 0
    labels = torch.where(keep, torch.tensor(ROWS["labels"]), -100)
    ignored = ROWS.remove_columns("labels").add_column("labels", labels.tolist())
    made = objective(name, denominator="nonzero")
    found = [
        tiny.step_gradients(tmp_path / which, rows, made, 4, 2)
        for which, rows in (("w", with_weight(ROWS, keep.float())), ("l", ignored))
    ]
    assert tiny.gap(*found) < 1e-12


def test_a_power_of_two_scales_the_update_and_nothing_else(tmp_path: Path) -> None:
    """Weights of 1/64 over all valid tokens give gradients of 1/64, exactly: they are multiplied once, and not normalised."""
    full = tiny.step_gradients(tmp_path / "1", ROWS, objective("clm", denominator="valid"), 4, 2)
    less = tiny.step_gradients(
        tmp_path / "64", with_weight(ROWS, torch.full((8, tiny.LENGTH), 1 / 64)), objective("clm", denominator="valid"), 4, 2
    )  # fmt: skip
    assert tiny.gap({n: 64 * g for n, g in less.items()}, full) < 1e-12


def test_one_number_a_row_and_columns_that_are_left_out(tmp_path: Path) -> None:
    number = [1.0, 0.0, -0.5, 2.0, 0.25, 1.0, 0.0, 1.0]
    each = torch.tensor(number)[:, None].expand(8, tiny.LENGTH)
    made = objective("clm", denominator="valid")
    by_row = tiny.step_gradients(tmp_path / "r", with_weight(ROWS, number), made, 4, 2)
    by_token = tiny.step_gradients(tmp_path / "t", with_weight(ROWS, each), made, 4, 2)
    assert tiny.gap(by_row, by_token) == 0
    model = tiny.llama(dtype=torch.float64)
    before = tiny.weights(model)
    args = tiny.arguments(tmp_path / "i", 4, 2)
    tiny.train(model, args, with_weight(ROWS, each), made, ignore_columns=["weight"])
    plain = tiny.step_gradients(tmp_path / "p", ROWS, made, 4, 2)
    assert tiny.gap({n: before[n] - w for n, w in tiny.weights(model).items()}, plain) == 0


def test_the_threshold_of_a_data_set_is_of_what_has_a_weight() -> None:
    """Scope corpus: found over the tokens that are ranked, as if the others were ignored."""
    keep = drawn(2) > 0
    labels = torch.where(keep, torch.tensor(ROWS["labels"]), -100)
    ignored = ROWS.remove_columns("labels").add_column("labels", labels.tolist())
    made = objective("rho1_low_ref", ratio=0.5, scope="corpus")
    weighed = find_thresholds(times(made), Rows(with_weight(ROWS, keep.float()), ("ref_nll", "weight")))
    assert (
        weighed == find_thresholds(made, Rows(ignored, ("ref_nll",))) != find_thresholds(made, Rows(ROWS, ("ref_nll",)))
    )


def test_what_is_nan_where_there_is_no_weight_reaches_no_sum() -> None:
    def weigh(stats: TokenStats) -> Tensor:
        return torch.where(stats.valid, 1.0, torch.nan)

    made = times(Objective("user", weigh, scope="sequence"))
    valid = torch.tensor([[True, True, False]])
    stats = TokenStats(valid, columns={"weight": torch.tensor([[0.0, -2.0, 3.0]])})
    assert made.weigh(stats).tolist() == [[0.0, -2.0, 0.0]]
    assert made.denominator == "abs"
    assert made.signed
    assert made.counts_ahead
    assert times(made) is made
    assert times(objective("influence", column="weight")).name == "influence"


@pytest.mark.parametrize(
    ("weight", "says"),
    [
        ([[float("nan")] * tiny.LENGTH] * 8, "weight is NaN at position"),
        ([[1.0] * (tiny.LENGTH - 1)] * 8, "column 'weight' has 15 entries for 16 tokens"),
        (["heavy"] * 8, "column 'weight' does not hold numbers"),
    ],
)
def test_weights_that_cannot_be_meant(tmp_path: Path, weight: Any, says: str) -> None:
    with pytest.raises(UserError, match=f"row 0: {says}"):
        tiny.step_gradients(tmp_path, with_weight(ROWS, weight), objective("rho1"), 4)
