"""Nothing in a micro-batch makes the host wait for the device: no number is read from it, none is copied to it.

On a CPU nobody waits, so it is looked at by name: what of torch's Python functions stalls a GPU, called by a line of ours.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import tokensieve
from tokensieve.core import LinearNLL, Objective, TokenStats, objective, random_uniform
from tokensieve.training.token_log import TokenLogConfig
from tokensieve.training.trainer import SelectiveTrainer

OURS = str(Path(tokensieve.__file__).parent)
READS = ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "numpy", "cpu", "equal", "allclose")
SIZES = ("nonzero", "argwhere", "masked_select", "unique", "bincount", "repeat_interleave")
COPIES = ("tensor", "as_tensor", "scalar_tensor", "from_numpy", "new_tensor")
# Where a step may wait, and how often at most: an exchange at its end, the sums of a log line, the first step's claims. Of the
# micro-batches nothing is here.
ONCE_A_STEP = {
    "_agree": 1,  # is the step finite, is there a signal: one wait, for both
    "before_update": 2,  # a run's first step
    "flush_token_log": 5,  # with every log line
    "_choose_weights": 1,  # scope step: rows with a weight of all micro-batches
}


class Waits(TorchFunctionMode):
    """Counts what would stall a GPU by the function of ours that calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.where: set[str] = set()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        moved = name in COPIES and not (args and isinstance(args[0], Tensor) and name == "as_tensor")
        masked = name == "__getitem__" and any(
            isinstance(i, Tensor) and i.dtype == torch.bool for i in _indices(args[1])
        )
        if Path(sys._getframe(1).f_code.co_filename).parent.name == "data":
            return function(*args, **(kwargs or {}))  # rows, and batches of them: on the host before there is a device
        if name in READS or name in SIZES or moved or masked or (name == "where" and len(args) == 1):
            frame: Any = sys._getframe(1)
            while frame.f_code.co_filename.endswith(("torch/_tensor.py", "torch/functional.py", "torch/overrides.py")):
                frame = frame.f_back
            if frame.f_code.co_filename.startswith(OURS):
                self.found[frame.f_code.co_name] += 1
                self.where.add(f"{name} at {Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
        return function(*args, **(kwargs or {}))


def _indices(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def soft(**fields: Any) -> Objective:
    """Weights that are no choice, of head statistics and columns."""

    def weigh(stats: TokenStats) -> Tensor:
        return torch.sigmoid(stats.need("nll") - stats.need("ref_nll")) * (1 + stats.need("sum_p2"))

    return Objective("soft", weigh, needs=frozenset({"nll", "ref_nll", "sum_p2"}), **fields)


def counted() -> Objective:
    """As many tokens as a Python number says: it was copied to the device at every micro-batch."""
    return Objective(
        "counted",
        weigh=lambda s: (s.need("position") <= 3).float(),
        needs=frozenset({"position", "tokens_seen"}),
        known_count=lambda known: 2 * 3,  # type: ignore[arg-type,return-value]
        most_rows=lambda rows, length: 3 * rows,
        selects=True,
    )


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "clm": lambda: objective("clm"),
    **{f"random {s}": lambda s=s: objective("random", scope=s) for s in ("batch",)},  # type: ignore[misc]
    **{f"rho1 {s}": lambda s=s: objective("rho1", scope=s) for s in ("sequence", "batch", "step")},  # type: ignore[misc]
    "a Python count": counted,
    "soft over the valid": lambda: soft(denominator="valid", most_rows=lambda rows, length: rows * length),
    "soft, divided afterwards": lambda: soft(most_rows=lambda rows, length: rows * length),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_micro_batch_waits(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of three micro-batches: as many waits as steps have, wherever they are."""

    def on_a_gpu(trainer: Any, weight: Tensor) -> int | None:
        """What `_most_rows` says there; on a CPU nothing stalls, and the rows are counted."""
        if trainer.step.rows_with_weight is not None:
            return int(trainer.step.rows_with_weight[trainer.step.index - 1])
        bound: int | None = trainer._bound(weight, trainer.step.index - 1)
        return bound

    monkeypatch.setattr(SelectiveTrainer, "_most_rows", on_a_gpu)
    args = tiny.arguments(tmp_path, batch=2, accumulate=3, max_steps=2, logging_steps=2)
    data = tiny.rows(12, uneven=name != "a Python count")
    trainer = SelectiveTrainer(tiny.llama(), args, train_dataset=data, objective=OBJECTIVES[name]())
    waits = Waits()
    steps, micro_batch = SelectiveTrainer.get_batch_samples, SelectiveTrainer.training_step

    def watched(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            with waits:
                return function(*args, **kwargs)

        return call

    for method in (steps, micro_batch, SelectiveTrainer._get_grad_norm, SelectiveTrainer.flush_token_log):
        monkeypatch.setattr(SelectiveTrainer, method.__name__, watched(method))
    trainer.train()
    allowed = {where: most * 2 for where, most in ONCE_A_STEP.items()}
    assert {w: n for w, n in waits.found.items() if n > allowed.get(w, 0)} == {}, waits.where
    assert waits.found["_agree"] == 2  # it does look


@pytest.mark.parametrize("kept", [0, 1, 5])
@pytest.mark.parametrize("backend", ["tokensieve", "torch"])
def test_a_bound_spares_the_wait(backend: str, kept: int) -> None:
    """torch's head was handed the rows by their number, and the weights looked at: two waits a micro-batch. Same gradients."""
    if backend == "torch" and not hasattr(torch.nn.functional, "linear_cross_entropy"):
        pytest.skip("needs torch >= 2.13")
    g = torch.Generator().manual_seed(0)
    hidden_TD, weight_VD = torch.randn(9, 4, generator=g), torch.randn(11, 4, generator=g)
    targets_T, weight_T = torch.arange(9), (torch.arange(9) < kept).float()
    hidden_TD[8] = float("nan")  # of weight 0

    def gradients(max_rows: int | None) -> list[Tensor]:
        leaves = [hidden_TD.clone().requires_grad_(), weight_VD.clone().requires_grad_()]
        loss, _ = LinearNLL(*leaves, targets_T, backend=backend).weighted_sum(weight_T, max_rows=max_rows)
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    with Waits() as waits:
        bounded = gradients(6)
    assert not waits.where
    for got, want in zip(bounded, gradients(None), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_soft_weights_for_another_backend_are_an_error_under_a_bound_too() -> None:
    nll = LinearNLL(torch.randn(3, 4), torch.randn(11, 4), torch.arange(3), backend="torch")
    with pytest.raises(RuntimeError, match="0 and 1 only"):
        nll.weighted_sum(torch.tensor([1.0, 0.5, 0.0]), max_rows=2)


def test_the_log_of_tokens_waits_only_when_it_is_due(tmp_path: Path) -> None:
    args = tiny.arguments(tmp_path, batch=2, accumulate=2, max_steps=2, logging_steps=2)
    log = TokenLogConfig(every=5)
    trainer = SelectiveTrainer(tiny.llama(), args, train_dataset=tiny.rows(8), token_log=log)
    with Waits() as waits:
        trainer.train()
    assert 0 < waits.found["_note_sample"] <= 34  # of the first step's two micro-batches, not of the second's


@pytest.mark.parametrize("seed", [0, 1, 2**62 + 12345])
def test_a_random_mask_is_hashed_where_its_tokens_are(seed: int) -> None:
    """Its key was made on the host and copied, at every micro-batch."""
    row_id, position = torch.arange(4)[:, None], torch.arange(1, 9)[None]
    with Waits() as waits:
        expected = random_uniform(seed, 7, row_id, position)
    assert not waits.found
    assert expected.shape == (4, 8)
    with torch.device("meta"):
        far = random_uniform(seed, 7, torch.arange(4)[:, None], torch.arange(1, 9)[None])
    assert far.device.type == "meta"
