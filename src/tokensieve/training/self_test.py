"""A self-test of a run as it is configured and launched: what holds of any token-weighted loss is held against its gradients.

    A   the objective as it is, twice                 repeat   equal steps give equal gradients
    V   the same, divided by the valid tokens         scale    V at weights x 1/64 is V x 1/64, to the last bit: a power of two
    F   weights of the rows at hand, fixed, uneven    drop     F with labels of -100 where its weight is 0 is F
                                                      split    F's rows in two micro-batches are F
                                                      ranks    F's rows of all ranks, fed by the first rank alone, are F

Each is a step of the trainer's own: its collation, wrapped model, autocast, launcher, accumulation and denominator, at the
weights that are there; no update is made. Dropout is off. ``F`` is thinned to a quarter of the tokens in half of the rows, so
that a mean of means, which packed rows would hide, is another number. Costs 8 micro-batches of max(2, rows of one) a rank and,
on W ranks, W more; two copies of the gradients on the host.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core import IGNORE_INDEX, Objective
from ..core.backends import OWN
from ..core.objective import Denominator, sum_dtype
from ..core.stats import TokenStats
from ..data.rows import PAD_ROW, collate, shift_targets
from ..runs.errors import UserError
from .step import no_zero

Batch = Mapping[str, Tensor]
Gradients = dict[str, Tensor]

SHRINK = 64.0
THIN = 4  # of the thinned rows one token in so many is left
# How far gradients of the same sum may be apart, as the norm of the difference, where the order of sums is another: half
# precision rounds each product to 2^-8 (bfloat16), TF32 to 2^-11.
APART = {torch.float64: 1e-9, torch.float32: 5e-4}
APART_TF32, APART_HALF = 5e-3, 3e-2


class _SelfTested(Exception):  # no error: how a test that is through leaves the Trainer's loop
    """What came out."""

    def __init__(self, held: str, broken: Sequence[str]) -> None:
        super().__init__(held)
        self.held, self.broken = held, list(broken)


def run_self_test(trainer: Any) -> str:
    """Run the trainer up to its first step and test it there, on all ranks: a sentence with what held.

    Raises UserError with a sentence for each property that failed: what would have been silently wrong.
    """
    trainer.guards = replace(trainer.guards, self_test=True)
    try:
        trainer.train()
    except _SelfTested as told:
        if told.broken:
            raise UserError(f"self-test failed: {'; '.join(told.broken)}") from None
        return told.held
    raise AssertionError("the Trainer trained without preparing for it")


def tested(trainer: Any, model: nn.Module) -> _SelfTested:
    """The outcome for a prepared model. Ranks call it together; gradients and what the trainer remembers are left empty."""
    with _no_dropout(model), _no_router_loss(trainer.seam.model), _kept_objective(trainer):
        found = _Test(trainer, model).findings()
    objective, accelerator = trainer.objective.name, trainer.accelerator
    ranks = f"{accelerator.num_processes} ranks" if accelerator.num_processes > 1 else "one process"
    held = "; ".join(f.held for f in found)
    return _SelfTested(f"self-test of {objective} on {ranks}: {held}", [f.broken for f in found if f.broken])


@dataclass(frozen=True)
class Finding:
    """A property: what is said of it if it held, and what would have been silently wrong if it did not (empty: it did)."""

    held: str
    broken: str = ""


@dataclass(frozen=True)
class Gap:
    """Two gradients of all ranks: |a - b| / |b|, the factor of b that a is nearest to, numbers that are not equal."""

    apart: float
    factor: float
    unequal: int


class _Test:
    def __init__(self, trainer: Any, model: nn.Module) -> None:
        self.trainer, self.model, self.objective = trainer, model, trainer.objective
        self.device, self.ranks = trainer.args.device, trainer.accelerator.num_processes
        self.rank = trainer.accelerator.process_index
        each = max(2, trainer._train_batch_size)
        self.ids_R = chosen_rows(trainer.train_dataset, each * self.ranks)
        self.each, self.limit = each, _limit(trainer, model)

    def findings(self) -> list[Finding]:
        whole = self.batch(self.rank)
        first = self.step([whole])
        self.trainer.before_update()  # what the objective says of itself, held against the weights that came
        weights = self.weights()
        noise = self.gap(self.step([whole]), first)
        found = [self._repeat(noise)]
        found.append(self._scale(whole, noise))
        self.use(self.fixed(weights))
        fixed = self.step([whole])
        if not self.any(fixed):
            return [*found, Finding("no token of these rows has a weight, the rest could not be tested")]
        found += [self._drop(whole, weights), self._split(whole, fixed)]
        return [*found, self._ranks(fixed)] if self.ranks > 1 else found

    # --- properties -----------------------------------------------------------------------------------------------------

    def _repeat(self, noise: Gap) -> Finding:
        same = "to the last bit" if not noise.unequal else _within(noise)
        broken = (
            f"two equal steps give gradients that are {noise.apart:.1%} apart: something in the model is random, and a resumed "
            "run would not be the run"
        )
        return Finding(f"equal steps give equal gradients ({same})", broken if self.beyond(noise) else "")

    def _scale(self, whole: Batch, noise: Gap) -> Finding:
        if self.trainer.head.backend != OWN:
            return Finding(
                f"weights other than 0 and 1 are not for head.backend {self.trainer.head.backend}, not tested"
            )
        by_valid = replace(self.objective, denominator="valid", selects=False)
        self.use(by_valid)
        plain = self.step([whole])
        self.use(replace(by_valid, weigh=lambda stats: self.objective.weigh(stats) / SHRINK))
        shrunk = {name: grad * SHRINK for name, grad in self.step([whole]).items()}
        gap = self.gap(shrunk, plain)
        exact = not noise.unequal
        broken = (
            (
                f"weights x 1/64 give gradients x 1/{SHRINK / gap.factor:.4g} where valid tokens are divided by"
                if gap.factor > 0 and abs(gap.factor - 1) > self.limit
                else f"weights x 1/64 do not give gradients x 1/64 ({gap.apart:.1e} apart)"
            )
            + ": the loss counts or normalises weights by itself, and soft weights would train at another rate than they say"
        )
        failed = gap.unequal > 0 if exact else self.beyond(gap)
        return Finding(
            f"weights x 1/64 give gradients x 1/64 ({'to the last bit' if not gap.unequal else _within(gap)})",
            broken if failed else "",
        )

    def _drop(self, whole: Batch, weights: WeightTable) -> Finding:
        """Divided by the weights: by the valid tokens, ignoring some would make the denominator another one."""
        self.use(self.fixed(weights, "abs"))
        dropped = self.step([whole])
        weight_BT = weights.of(whole["row_id"][:, None], torch.arange(1, whole["targets"].shape[1] + 1))
        labels = whole["labels"].clone()
        labels[:, 1:][weight_BT[:, :-1] == 0] = IGNORE_INDEX
        gap = self.gap(dropped, self.step([{**whole, "labels": labels, "targets": shift_targets(labels)}]))
        broken = (
            f"tokens of weight 0 leave gradients {gap.apart:.1%} apart from those without these tokens: what is dropped would "
            "be trained on all the same"
        )
        return Finding(f"dropping is ignoring ({_within(gap)})", broken if self.beyond(gap) else "")

    def _split(self, whole: Batch, fixed: Gradients) -> Finding:
        self.use(self.fixed(self._table))
        half = self.each // 2
        gap = self.gap(self.step([_rows_of(whole, 0, half), _rows_of(whole, half, self.each)]), fixed)
        broken = (
            f"two micro-batches give {gap.factor:.4g} times the gradients of the one that they make up ({gap.apart:.1%} "
            "apart): with gradient accumulation a token would count by how few others its micro-batch has"
        )
        return Finding(f"two micro-batches are one ({_within(gap)})", broken if self.beyond(gap) else "")

    def _ranks(self, fixed: Gradients) -> Finding:
        batches = [self.batch(r if self.rank == 0 else None) for r in range(self.ranks)]
        gap = self.gap(self.step(batches), fixed)
        broken = (
            f"rows on {self.ranks} ranks give {1 / gap.factor if gap.factor else 0:.4g} times the gradients of the same rows "
            f"on one ({gap.apart:.1%} apart): another number of ranks would be another run"
        )
        return Finding(f"the rows of all ranks are those of one ({_within(gap)})", broken if self.beyond(gap) else "")

    def beyond(self, gap: Gap) -> bool:
        return not gap.apart <= self.limit

    # --- steps ----------------------------------------------------------------------------------------------------------

    def batch(self, rank: int | None) -> Batch:
        """The rows of a rank; of none: as many ignored ones."""
        ids = [PAD_ROW] * self.each if rank is None else self.ids_R[rank * self.each : (rank + 1) * self.each]
        return collate(self.trainer.train_dataset.__getitems__(ids))

    def use(self, objective: Objective) -> None:
        self.trainer.objective = self.trainer.scope.objective = objective

    def step(self, batches: Sequence[Batch]) -> Gradients:
        """The gradients of one optimizer step, on the host: of sharded ones this rank's part."""
        trainer, model = self.trainer, self.model
        trainer.current_gradient_accumulation_steps = len(batches)
        trainer.begin_step(batches)
        denominator = None if trainer.step.denominator is None else no_zero(trainer.step.denominator)
        for i, batch in enumerate(batches):
            last = i == len(batches) - 1
            trainer.accelerator.gradient_state._set_sync_gradients(last)
            with contextlib.nullcontext() if last else trainer.accelerator.no_sync(model=model):
                trainer.training_step(model, dict(batch), denominator)
        trainer.token_log.pending.clear()
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        host = {
            n: (g.to_local() if hasattr(g, "to_local") else g).detach().to("cpu", copy=True) for n, g in grads.items()
        }
        model.zero_grad(set_to_none=True)
        return host

    def weights(self) -> WeightTable:
        """What the last step gave the tokens of all ranks' rows, thinned unevenly."""
        from accelerate.utils import gather_object

        row_id, _, weight, valid = self.trainer.step.watch.seen[-1]
        weight_BT = torch.where(valid, weight.float(), 0).cpu()
        # All rows of odd ranks, half of the others': neither ranks nor micro-batches may have equal sums.
        sparse_B = (torch.arange(self.each) >= self.each // 2) | (self.rank % 2 == 1)
        weight_BT[sparse_B] *= torch.arange(weight_BT.shape[1]) % THIN == 0
        mine = [(int(i), w.numpy()) for i, w in zip(row_id.tolist(), weight_BT, strict=True) if i != PAD_ROW]
        self._table = WeightTable.made(gather_object(mine))
        self.trainer.forget_step()
        return self._table

    def fixed(self, table: WeightTable, denominator: Denominator | None = None) -> Objective:
        """An objective of weights that are there, divided as the run's own is."""

        def weigh(stats: TokenStats) -> Tensor:
            return table.of(stats.need("row_id"), stats.need("position"))

        return Objective(
            self.objective.name,
            weigh,
            frozenset({"row_id", "position"}),
            "sequence",
            denominator or self.objective.denominator,
            selects=self.objective.selects,
            signed=self.objective.signed,
            second=self.objective.second,
            share=self.objective.share,
        )

    # --- comparing ------------------------------------------------------------------------------------------------------

    def gap(self, a: Gradients, b: Gradients) -> Gap:
        sums = torch.zeros(4, dtype=torch.float64)
        for name in a.keys() | b.keys():
            x, y = (
                g[name].double() if name in g else torch.zeros_like(other[name]).double()
                for g, other in ((a, b), (b, a))
            )
            unequal = (x != y).sum()
            sums += torch.stack([(x - y).square().sum(), y.square().sum(), (x * y).sum(), unequal.double()])
        there = self.trainer._sum_over_ranks(sums.to(self.device, sum_dtype(torch.zeros(0, device=self.device))))
        apart, size, product, unequal = there.tolist()
        if size == 0:
            return Gap(0.0 if apart == 0 else float("inf"), 1.0, int(unequal))
        return Gap((apart / size) ** 0.5, product / size, int(unequal))

    def any(self, grads: Gradients) -> bool:
        return self.gap(grads, {}).apart > 0 if grads else False


@dataclass(frozen=True)
class WeightTable:
    """Weights by corpus row and position of the target; 0 for rows that it does not have."""

    rows_R: Tensor
    weight_RT: Tensor

    @classmethod
    def made(cls, rows: Sequence[tuple[int, np.ndarray]]) -> WeightTable:
        """Of (row, weights by predicting position). A row that stands there twice has its first weights."""
        by_row = dict(reversed(rows))
        width = max((len(w) for w in by_row.values()), default=1)
        ids = sorted(by_row)
        table = np.zeros((max(1, len(ids)), width), np.float32)
        for i, row in enumerate(ids):
            table[i, : len(by_row[row])] = by_row[row]
        return cls(torch.tensor(ids or [PAD_ROW]), torch.from_numpy(table))

    def of(self, row_id: Tensor, position: Tensor) -> Tensor:
        """The weights of targets at these places; both broadcast. float32, on their device"""
        rows_R, weight_RT = self.rows_R.to(row_id.device), self.weight_RT.to(row_id.device)
        row_id, position = torch.broadcast_tensors(row_id, position.to(row_id.device))
        index = torch.searchsorted(rows_R, row_id.contiguous()).clamp(max=len(rows_R) - 1)
        column = (position - 1).clamp(max=weight_RT.shape[1] - 1)
        there = (rows_R[index] == row_id) & (position <= weight_RT.shape[1])
        return torch.where(there, weight_RT[index, column], 0.0)


def chosen_rows(rows: Any, count: int) -> list[int]:
    """``count`` different rows spread over the data set, the same on every rank; filled up with ignored ones."""
    spread = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)).tolist()
    return [*spread, *[PAD_ROW] * (count - len(spread))]


def _rows_of(batch: Batch, start: int, stop: int) -> Batch:
    return {name: values[start:stop] for name, values in batch.items()}


def _within(gap: Gap) -> str:
    return "to the last bit" if not gap.unequal else f"within {gap.apart:.0e}"


def _limit(trainer: Any, model: nn.Module) -> float:
    dtypes = {p.dtype for p in model.parameters() if p.requires_grad}
    if trainer.args.bf16 or trainer.args.fp16 or dtypes & {torch.bfloat16, torch.float16}:
        return APART_HALF
    if dtypes == {torch.float64}:
        return APART[torch.float64]
    return APART_TF32 if trainer.args.device.type == "cuda" else APART[torch.float32]


# --- what is put aside meanwhile --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _kept_objective(trainer: Any) -> Iterator[None]:
    objective = trainer.objective
    try:
        yield
    finally:
        trainer.objective = trainer.scope.objective = objective
        trainer.forget_step()


@contextlib.contextmanager
def _no_dropout(model: nn.Module) -> Iterator[None]:
    """Masks differ from step to step and between splits. Only dropout: in eval mode there are no checkpoints of activations."""
    before: list[tuple[nn.Module, str, float]] = []
    for module in model.modules():
        names = ["p"] if isinstance(module, nn.modules.dropout._DropoutNd) else []
        names += [n for n, v in vars(module).items() if "dropout" in n and isinstance(v, float)]
        before += [(module, name, getattr(module, name)) for name in names]
    try:
        for module, name, _ in before:
            setattr(module, name, 0.0)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


@contextlib.contextmanager
def _no_router_loss(model: Any) -> Iterator[None]:
    """A mixture's router loss stands beside the weighted one, follows no weight, and is a mean of each micro-batch."""
    config = model.config
    before = getattr(config, "output_router_logits", None)
    try:
        if before:
            config.output_router_logits = False
        yield
    finally:
        if before:
            config.output_router_logits = before
