"""The token-sparse backward in a training: which regime it runs in, when it is attached, and its proof before the first
step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from ..core import IGNORE_INDEX, LinearNLL, Objective
from ..core.stats import head_statistics
from ..data.images import map_tensors
from ..data.rows import collate
from ..modeling.probe_rows import choose_rows
from ..modeling.sparse import KeptSelection, SparseBackward
from ..modeling.sparse.proof import wrong_gradients
from ..modeling.sparse.tape import Store
from ..runs.errors import UserError
from .guarded import say

Backward = Literal["exact", "sparse"]

# store -> what is printed of it: the regime, and the least that a step can take of a plain one of the same kind.
REGIMES: dict[Store, str] = {
    "all": "selection after the forward, at least (1 + 2 * ratio) / 3 of a plain step",
    "nothing": "gradient checkpointing of kept tokens, at least (1 + 3 * ratio) / 4 of a plain step with checkpointing",
    "kept": "selection before the forward, at least (1 + 2 * ratio) / 3 of a plain step; activations of kept tokens only",
}
PROOF_ROWS = 2
MIXED_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def check_backward(backward: str, strict: bool, args: Any) -> None:
    """Raise UserError for settings that a sparse backward does not go with."""
    if backward not in ("exact", "sparse"):
        raise UserError(f"backward: exact or sparse, not {backward!r}")
    if backward == "exact":
        if strict:
            raise UserError("strict: true says how a sparse backward treats keys and values: set backward: sparse")
        return
    if args.torch_compile:
        raise UserError("backward: sparse is not supported with torch_compile")
    if (args.activation_checkpointing_kwargs or {}).get("offload"):
        raise UserError(
            "backward: sparse keeps no activations that could be offloaded: leave out activation_checkpointing_kwargs.offload"
        )


def known_beforehand(objective: Objective) -> bool:
    """Whether the weights are there before the forward that trains on them: static rules, or a first pass that chose them."""
    return objective.scope == "step" or not head_statistics(objective.needs)


class SparseTraining:
    """The sparse backward of a training, attached from :meth:`start` to :meth:`detach`; of an exact one it does nothing."""

    def __init__(self, objective: Objective, backward: Backward, *, strict: bool) -> None:
        self.on, self.strict = backward == "sparse", strict
        self.store: Store = "kept" if known_beforehand(objective) else "all"
        self._attached: SparseBackward | None = None

    def start(self, trainer: Any, model: Any) -> str | None:
        """Attach it, if it is wanted, to the model as it will be trained; say so, or return why its gradients are not right."""
        if not self.on:
            return None
        self._attached = SparseBackward(trainer.seam.model, strict=self.strict)
        told = self._prove(self._attached, trainer, model)
        if told is None and trainer.is_world_process_zero():
            regime = REGIMES["nothing" if self._attached.checkpoints else self.store]
            say(f"backward: sparse{', strict' if self.strict else ''}: {regime}")
        return told

    def detach(self) -> None:
        if self._attached is not None:
            self._attached.close()
            self._attached = None

    @contextlib.contextmanager
    def forward(self, known: Callable[[], Tensor]) -> Iterator[KeptSelection | None]:
        """Around a forward that trains. ``known()``: its weights, asked for where they are there beforehand."""
        if self._attached is None:
            yield None
            return
        keep = known() != 0 if self.store == "kept" else None
        with self._attached.forward(keep=keep, store=self.store) as selection:
            yield selection

    def tell_share(self, kept: float, positions: float, *, first: bool) -> None:
        """Say it where next to every position of the first step has a weight: those without a target are dropped, too."""
        if first and kept >= 0.95 * positions:
            say(
                f"backward: sparse saves nothing here: {kept:.0f} of {positions:.0f} tokens have a weight that is not 0"
            )

    def _prove(self, sparse: SparseBackward, trainer: Any, model: Any) -> str | None:
        """A sentence where gradients are not those of the reference gate, on at most PROOF_ROWS of the run's rows, through its
        own forward; half of their targets are kept."""
        items = choose_rows(trainer.train_dataset, min(trainer._train_batch_size, PROOF_ROWS))
        if not items:
            return None
        device = trainer.args.device
        batch = map_tensors(collate(items), lambda values: values.to(device))
        valid = batch["targets"] != IGNORE_INDEX
        drawn = torch.rand(valid.shape, generator=torch.Generator().manual_seed(0)).to(device)
        keep = valid & (drawn < 0.5)
        keep = torch.where(keep.any(), keep, valid)  # of a single target

        def mean(nll: LinearNLL) -> Tensor:
            return nll.weighted_sum(keep)[0] / keep.sum()

        def loss() -> Tensor:
            with trainer.compute_loss_context_manager():
                return trainer._forward(model, batch, mean)[0].loss  # type: ignore[no-any-return]

        model.train()
        # accelerate wraps the model's forward in its autocast (or FSDP2 casts): from outside it is not seen.
        dtype = MIXED_DTYPES.get(trainer.accelerator.mixed_precision, trainer.seam.layer.weight.dtype)
        return wrong_gradients(sparse, trainer.seam.model.named_parameters(), loss, keep, self.store, dtype)
