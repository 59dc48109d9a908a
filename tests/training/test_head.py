"""How the head's gradient is computed changes its cost alone; the bound on kept rows is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from transformers import Trainer

from tokensieve.core import Objective, objective, top_fraction
from tokensieve.runs.errors import UserError
from tokensieve.training.step import RankScope
from tokensieve.training.trainer import HeadOptions, SelectiveTrainer

ROWS = tiny.rows(8)


def gradients(
    folder: Path, made: Any, dtype: torch.dtype = torch.float64, trainer_class: type = SelectiveTrainer, **kwargs: Any
) -> dict[str, Tensor]:
    """One step over 4 micro-batches of 2 rows."""
    model = tiny.llama(dtype=dtype)
    before = tiny.weights(model)
    trainer = trainer_class(model, tiny.arguments(folder, 2, 4), train_dataset=ROWS, objective=made, **kwargs)
    trainer.train()
    trainer.seam.close()
    return {name: before[name] - after for name, after in tiny.weights(model).items()}


class Bounded(SelectiveTrainer):
    """Bounds the rows on a CPU too, where training asks for their number instead."""

    def _most_rows(self, weight: Tensor) -> int | None:
        if self.step.rows_with_weight is not None:
            bound = self.step.rows_with_weight[self.step.index - 1]
            assert bound == int((weight != 0).sum())
            return bound
        bound = self._bound(weight, self.step.index - 1)
        assert bound is not None
        return bound


@pytest.mark.parametrize("scope", ["sequence", "batch", "step"])
@pytest.mark.parametrize("name", ["rho1", "clm"])
def test_bounded_rows_train_the_same(tmp_path: Path, name: str, scope: str) -> None:
    """On a GPU the kept rows are bounded by a count from the shapes; one row too few and a kept token trains nothing."""
    made = objective("clm") if name == "clm" else objective("rho1", ratio=0.4, scope=scope)
    found = gradients(tmp_path / "a", made, trainer_class=Bounded)
    assert tiny.gap(found, gradients(tmp_path / "b", made)) < 1e-12


@pytest.mark.parametrize("options", [{"keep_logits": True}, {"keep_logits": False}, {"backend": "torch"}])
def test_every_way_trains_the_same(tmp_path: Path, options: dict[str, Any]) -> None:
    if options.get("backend") == "torch" and not hasattr(torch.nn.functional, "linear_cross_entropy"):
        pytest.skip("needs torch >= 2.13")
    made = objective("rho1", ratio=0.4)
    found = gradients(tmp_path / "a", made, torch.float32, head=HeadOptions(**options))
    assert tiny.gap(found, gradients(tmp_path / "b", made, torch.float32)) < 1e-5


def test_an_unknown_backend_is_refused_before_anything() -> None:
    with pytest.raises(UserError, match="unknown head backend 'cce'"):
        HeadOptions(backend="cce")


@pytest.mark.parametrize("scope", ["sequence", "batch"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("ratio", [0.05, 0.5, 0.61, 1.0])
def test_most_rows_is_a_bound(scope: Any, ranks: int, ratio: float) -> None:
    """Whatever is valid and whatever the scores are, no rank keeps more than it was said it could."""
    made = objective("rho1", ratio=ratio, scope=scope)
    bound = RankScope(made, ranks).most_rows((3 * ranks, 7), (3, 7))
    assert bound is not None
    g = torch.Generator().manual_seed(0)
    most = 0
    for trial in range(50):
        valid = torch.rand(3 * ranks, 7, generator=g) < (trial + 1) / 50
        score = torch.rand(3 * ranks, 7, generator=g) + torch.arange(3 * ranks)[:, None] * (trial % 2)
        keep = top_fraction(score, valid, ratio, scope)
        most = max([most, *(int(part.sum()) for part in keep.split(3))])
    assert most <= bound <= 21
    if ranks == 1 and scope == "batch":
        assert most == bound  # and no loose one: the rows beyond cost their time


def test_nothing_is_known_of_soft_weights() -> None:
    """A weight sum of 3 says nothing of how many tokens have a weight: bounded by it, some would silently not be trained."""
    soft = Objective(
        "soft", weigh=lambda s: s.valid * 0.5, scope="sequence", known_count=lambda known: known.valid.sum() * 0.5
    )
    assert RankScope(soft).most_rows((2, 8), (2, 8)) is None


def test_the_bound_follows_the_longest_row_of_any_rank() -> None:
    """Counted from a rank's own short rows, two ranks with rows of 9 and of 64 tokens were said to keep 4 at most; 14 were."""
    made = objective("rho1", ratio=0.1)
    assert RankScope(made, 2).most_rows((4, 64), (2, 9)) == 18
    assert RankScope(made, 2).most_rows((4, 64), (2, 64)) == 26


class HostReads(TorchDispatchMode):
    """Operators whose result a host needs before it can go on: on a GPU each is a stall."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "repeat_interleave.Tensor")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).removeprefix("aten.")
        by_mask = name.startswith("index") and any(
            isinstance(x, Tensor) and x.dtype == torch.bool for x in tree_leaves(args[1:2])
        )
        if by_mask or name.startswith(self.NAMES):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("scope", ["sequence", "batch"])
def test_a_micro_batch_asks_the_device_nothing(tmp_path: Path, scope: str) -> None:
    """``.item()`` or a mask as an index in the step: the GPU runs dry while the host waits to learn how many were kept."""
    reads: list[list[str]] = []

    class Watching(Trainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
            with HostReads() as mode:
                loss: Tensor = super().training_step(*args, **kwargs)
            reads.append(mode.found)
            return loss

    class Selecting(Watching, Bounded):
        def _most_rows(self, weight: Tensor) -> int | None:
            with _disable_current_modes():  # counted on the host, from the shape
                return super()._most_rows(weight)

    plain = ROWS.select_columns(["input_ids", "labels"])
    Watching(tiny.llama(), tiny.arguments(tmp_path / "plain", 2, 4), train_dataset=plain).train()
    own, reads = reads, []
    assert len(own) == 4
    gradients(tmp_path, objective("rho1", ratio=0.4, scope=scope), trainer_class=Selecting)
    assert reads == own, "as many as the plain Trainer: those of the model itself"


def test_host_reads_are_seen() -> None:
    values = torch.arange(3.0)
    with HostReads() as mode:
        _ = values[values > 1], values.sum().item(), values.nonzero()
    assert [name.split(".")[0] for name in mode.found] == ["index", "_local_scalar_dense", "nonzero"]
