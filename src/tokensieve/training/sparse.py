"""The token-sparse backward in a training: which regime it runs in, when it is attached, and its proof before the first
step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..core import IGNORE_INDEX, Objective
from ..core.stats import head_statistics
from ..data.rows import Rows, collate
from ..modeling.probe_rows import choose_rows
from ..modeling.sparse import Selection, SparseBackward
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
    """The sparse backward of a training, attached from :meth:`attach` to :meth:`detach`; of an exact one it does nothing."""

    def __init__(self, objective: Objective, backward: Backward, *, strict: bool) -> None:
        self.on, self.strict = backward == "sparse", strict
        self.store: Store = "kept" if known_beforehand(objective) else "all"
        self._attached: SparseBackward | None = None

    def attach(self, model: Any) -> None:
        if self.on and self._attached is None:
            self._attached = SparseBackward(model, strict=self.strict)

    def detach(self) -> None:
        if self._attached is not None:
            self._attached.close()
            self._attached = None

    @contextlib.contextmanager
    def forward(self, known: Callable[[], Tensor]) -> Iterator[Selection | None]:
        """Around a forward that trains. ``known()``: its weights, asked for where they are there beforehand."""
        if self._attached is None:
            yield None
            return
        keep = known() != 0 if self.store == "kept" else None
        with self._attached.forward(keep=keep, store=self.store) as selection:
            yield selection

    def tell(self, is_first: bool) -> None:
        if self._attached is not None and is_first:
            regime = REGIMES["nothing" if self._attached.checkpoints else self.store]
            say(f"backward: sparse{', strict' if self.strict else ''}: {regime}")

    def prove(
        self,
        named: Sequence[tuple[str, Any]],
        rows: Rows,
        count: int,
        loss: Callable[[dict[str, Tensor], Tensor], Tensor],
        device: torch.device,
        dtype: torch.dtype,
    ) -> str | None:
        """A sentence where gradients are not those of the reference gate, on at most PROOF_ROWS rows; half of their targets
        kept.

        ``loss(batch, keep)``: the run's forward of a collated batch with these weights.
        """
        items = choose_rows(rows, min(count, PROOF_ROWS)) if self._attached is not None else []
        if self._attached is None or not items:
            return None
        batch = {k: v.to(device) for k, v in collate(items).items()}
        drawn = torch.rand(batch["targets"].shape, generator=torch.Generator().manual_seed(0)).to(device)
        valid = batch["targets"] != IGNORE_INDEX
        keep = valid & (drawn < 0.5)
        keep = torch.where(keep.any(), keep, valid)  # of a single target
        return wrong_gradients(self._attached, named, lambda: loss(batch, keep), keep, self.store, dtype)


def saves_nothing(kept: float, positions: float) -> str | None:
    """What is said where next to every position of the first step has a weight: those without a target are dropped, too."""
    if kept < 0.95 * positions:
        return None
    return f"backward: sparse saves nothing here: {kept:.0f} of {positions:.0f} tokens have a weight that is not 0"
