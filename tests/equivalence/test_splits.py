"""A global batch is a global batch: steps of SGD come to the same weights however each is split, on whichever engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import split_cases
import tiny
import torch
from processes import fork_ranks

from tokensieve.core import objective

FEW = ("sequence", "batch", "step", "fsdp, head alone")


# Six steps where selection, splits and engines meet, four elsewhere; twenty of all in the slow test.
STEPS = {name: 6 if name in FEW else 4 for name in split_cases.CASES}


def weights_of(folder: Path, size: int, steps: Mapping[str, int]) -> Any:
    """(case, rows of a rank, micro-batches) -> weights that ``size`` ranks come to; one launch for all cases."""
    fork_ranks([split_cases.__file__, str(folder), *(f"{name}={n}" for name, n in steps.items())], size)
    return torch.load(folder / f"ranks-{size}.pt", weights_only=True)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return weights_of(tmp_path_factory.mktemp("two"), 2, STEPS)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return weights_of(tmp_path_factory.mktemp("four"), 4, dict.fromkeys(FEW, 3))


@pytest.fixture(scope="module")
def four_for_long(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return weights_of(tmp_path_factory.mktemp("long"), 4, dict.fromkeys(split_cases.CASES, 20))


def assert_same_way(name: str, many: Any, folder: Path, steps: int) -> None:
    """What some ranks came to, and one process with each of its splits: within 1e-9 of the way that the weights have gone."""
    case = split_cases.CASES[name]
    start = dict(case.model().named_parameters())

    def moved(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {n: w - start[n].detach() for n, w in weights.items()}

    one = {
        (name, *split): split_cases.run_case(case, folder / str(split[0]), *split, steps)
        for split in split_cases.splits(case, 1)
    }
    wanted = moved(next(iter(one.values())))
    assert max(float(m.abs().max()) for m in wanted.values()) > 0.02
    found = {key: weights for key, weights in many.items() if key[0] == name}
    assert found
    for key, weights in [*one.items(), *found.items()]:
        assert tiny.gap(moved(weights), wanted) < 1e-9, key


@pytest.mark.parametrize("name", split_cases.CASES)
def test_two_ranks(name: str, two: Any, tmp_path: Path) -> None:
    """Float64, where no rounding makes another token the last one kept.

    A mean of means, a ranking of each rank's own, a head that FSDP frees, or a loss divided twice goes another way.
    """
    assert_same_way(name, two, tmp_path, STEPS[name])


@pytest.mark.parametrize("name", FEW)
def test_four_ranks(name: str, four: Any, tmp_path: Path) -> None:
    assert_same_way(name, four, tmp_path, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", split_cases.CASES)
def test_four_ranks_for_long(name: str, four_for_long: Any, tmp_path: Path) -> None:
    assert_same_way(name, four_for_long, tmp_path, 20)


def test_a_wrong_split_would_be_seen(tmp_path: Path) -> None:
    """The trap has teeth: ranked over micro-batches of 2 rows instead of 4, the weights go elsewhere by far more than 1e-9."""
    case = split_cases.CASES["batch"]
    start = dict(case.model().named_parameters())
    wide, narrow = (
        {n: w - start[n].detach() for n, w in split_cases.run_case(case, tmp_path / str(b), b, 8 // b, 5).items()}
        for b in (4, 2)
    )
    assert tiny.gap(narrow, wide) > 1e-2


# --- with rounding -------------------------------------------------------------------------------------------------------


def kept(folder: Path) -> set[tuple[int, int]]:
    """(row, position) of the tokens that the first step kept."""
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "tokens" / "step-00000001.parquet").to_pydict()
    return {(r, p) for r, p, k in zip(table["row"], table["position"], table["keep"], strict=True) if k}


def one_step(folder: Path, batch: int, **fields: Any) -> tuple[set[tuple[int, int]], dict[str, torch.Tensor]]:
    """(tokens kept, gradients) of a step over 64 rows in float32."""
    from tokensieve.training.token_log import TokenLogConfig

    data, model = tiny.rows(64), tiny.llama()
    before = tiny.weights(model)
    args = tiny.arguments(folder, batch, 64 // batch, **fields)
    tiny.train(model, args, data, objective("rho1", ratio=0.4, scope="step"), token_log=TokenLogConfig(1, 64))
    return kept(folder), {n: before[n] - w for n, w in tiny.weights(model).items()}


def test_float32_moves_no_more_than_its_rounding(tmp_path: Path) -> None:
    """Float32, 64 rows at once or one by one: at most one token in a thousand is ranked to the other side of the threshold, and
    the gradients differ by less than 1e-5 of the largest where none is."""
    (one, together), (other, alone) = (one_step(tmp_path / str(b), b) for b in (64, 1))
    churn = len(one ^ other) / (2 * len(one))
    assert churn <= 1e-3
    assert tiny.gap(alone, together) < (1e-5 if not churn else 1e-2)


def test_bfloat16_stays_near_float32(tmp_path: Path) -> None:
    """Autocast to bfloat16 on weights whose nll reach 30 nats: fewer than a tenth of the tokens kept are others, and gradients
    point the same way (cosine above 0.98). Split in another way under bfloat16, the bounds are those of the rounding too."""
    (exact, wanted), (rounded, found) = one_step(tmp_path / "a", 64), one_step(tmp_path / "b", 64, bf16=True)
    again, split = one_step(tmp_path / "c", 16, bf16=True)
    for kept_here, grads, reference, bound in ((rounded, found, exact, 0.1), (again, split, rounded, 0.02)):
        assert len(kept_here ^ reference) / (2 * len(reference)) < bound
        flat = [torch.cat([g[n].flatten().double() for n in wanted]) for g in (grads, wanted)]
        assert torch.nn.functional.cosine_similarity(*flat, dim=0) > 0.98
