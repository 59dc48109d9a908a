"""The token-sparse backward of a model: each block's forward as it is, its backward for the kept rows.

    forward of a block    all rows, without a graph, on a tape (tape.py)
    backward of a block   dropped rows again up to attention, as constants, for their keys and values
                          kept rows again with a graph, attending to all; that graph is differentiated and forgotten

Gradients are those of the reference gate (gate.py) to rounding, whatever is stored between the two:

    store     selection                      stored of a block                          FLOPs of a step, plain = 3
    all       after the forward              results of its linear maps, all rows       1 + 2 ratio
    nothing   any; with checkpointing        its input                                  1 + 3 ratio of 4
    kept      before the forward             its input; results of kept rows            1 + 2 ratio
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ...runs.errors import UserError
from ..seam import base_model
from .blocks import find_blocks, refuse_unserved
from .interface import AttentionSwitch, handled_by
from .kept import Kept, some_rows
from .tape import Recording, Replay, Store, Tape, queries_only, until_attention


class KeptSelection:
    """Which positions one forward keeps; given beforehand, or with :meth:`choose` between forward and backward."""

    def __init__(self, store: Store, *, strict: bool) -> None:
        self.store, self.strict = store, strict
        self.kept: Kept | None = None

    def choose(self, keep_BT: Tensor) -> None:
        """``keep`` [B, T] bool at the predicting position: every position whose loss has a gradient must be in it."""
        self.kept = Kept(keep_BT)


class SparseBackward:
    """Attached to a causal LM (PEFT-wrapped, DDP- or FSDP-wrapped or not), idle until :meth:`forward`; :meth:`close` takes it
    off.

        sparse = SparseBackward(model)
        with sparse.forward() as selection:
            loss = ...                       # a forward of the model
            selection.choose(weight != 0)
        loss.backward()

    ``strict``: keys and values of dropped positions are constants as well. UserError for models that are not served, here or at
    the first forward. Whether the gradients are right for a model is for :func:`.proof.wrong_gradients` to say.
    """

    def __init__(self, model: nn.Module, *, strict: bool = False) -> None:
        self.blocks = find_blocks(model)
        refuse_unserved(self.blocks)
        self.strict = strict
        self.switch = AttentionSwitch(base_model(model))
        self._selection: KeptSelection | None = None
        self._queries_only: dict[nn.Module, frozenset[int]] = {}
        self._checkpointed = [block for block in self.blocks if getattr(block, "gradient_checkpointing", False)]
        self._set_checkpointing(False)  # theirs would run a block again for all rows
        for block in self.blocks:
            block.forward = functools.partial(self._forward, block)

    def close(self) -> None:
        """Blocks and attention as they were."""
        for block in self.blocks:
            block.__dict__.pop("forward", None)
        self._set_checkpointing(True)
        self.switch.close()

    @property
    def checkpoints(self) -> bool:
        """Whether the model's checkpointing was on for some of its blocks, which store nothing then."""
        return bool(self._checkpointed)

    @contextmanager
    def own_checkpointing(self) -> Iterator[None]:
        """While open, blocks are checkpointed as the model does it: for the reference gate."""
        self._set_checkpointing(True)
        try:
            yield
        finally:
            self._set_checkpointing(False)

    def _set_checkpointing(self, on: bool) -> None:
        for block in self._checkpointed:
            block.gradient_checkpointing = on  # type: ignore[assignment]

    @contextmanager
    def forward(self, *, keep: Tensor | None = None, store: Store = "all") -> Iterator[KeptSelection]:
        """While open, forwards of the model with gradient have a sparse backward. ``keep`` where it is known already: needed to
        store kept rows only. Of blocks that the model checkpoints nothing is stored."""
        selection = KeptSelection(store, strict=self.strict)
        if keep is not None:
            selection.choose(keep)
        self._selection = selection
        try:
            yield selection
        finally:
            self._selection = None

    def _forward(self, block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        own = functools.partial(type(block).forward, block)
        selection = self._selection
        if selection is None or not torch.is_grad_enabled():
            return own(*args, **kwargs)
        store: Store = "nothing" if any(block is b for b in self._checkpointed) else selection.store
        hidden, call = _call_of(block, own, selection, store, args, kwargs)
        weights = trained_weights(block)
        if not weights and not hidden.requires_grad:
            return own(*args, **kwargs)
        call.queries_only = self._queries_only
        output = _Block.apply(hidden, call, *weights)  # type: ignore[no-untyped-call]
        return (output, *call.beside) if call.beside is not None else output


def trained_weights(block: nn.Module) -> list[nn.Parameter]:
    return [p for p in block.parameters() if p.requires_grad]


def _call_of(
    block: nn.Module,
    own: Callable[..., Any],
    selection: KeptSelection,
    store: Store,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[Tensor, _Call]:
    """(hidden states, how to call the block with others in their place)."""
    if args:
        hidden, rest, named = args[0], args[1:], kwargs
    else:
        hidden, rest = kwargs["hidden_states"], ()
        named = {k: v for k, v in kwargs.items() if k != "hidden_states"}
    if other := next((k for k, v in _tensors((rest, named)) if v.requires_grad), None):
        raise UserError(
            f"backward: sparse cannot serve {type(block).__name__}: beside its hidden states it takes {other} that need "
            "a gradient"
        )
    return hidden, _Call(block, own, selection, store, rest, named)


def _tensors(value: Any, name: str = "other inputs") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, (tuple, list)):
        for v in value:
            yield from _tensors(v, name)
    elif isinstance(value, dict):
        for k, v in value.items():
            yield from _tensors(v, str(k))


class _Call:
    """One call of a block: its forward on all rows, later its backward for the kept ones."""

    def __init__(
        self,
        block: nn.Module,
        own: Callable[..., Any],
        selection: KeptSelection,
        store: Store,
        rest: tuple[Any, ...],
        named: dict[str, Any],
    ) -> None:
        self.block, self.own, self.selection, self.store = block, own, selection, store
        self.rest, self.named = rest, named
        self.beside: tuple[Any, ...] | None = None
        """What the block returns after its hidden states, if it returns a tuple."""
        self.queries_only: dict[nn.Module, frozenset[int]] = {}
        """Of blocks that were gone back through already."""
        self.tape: Tape | None = None
        self._autocast: tuple[str, torch.dtype, bool] | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        name, kind = type(self.block).__name__, hidden.device.type
        known = self.selection.kept if self.store == "kept" else None
        tape = Tape(hidden.shape[0], hidden.shape[1], self.store, known, self.queries_only.get(self.block, frozenset()))
        record = Recording(tape, name)
        with record, handled_by(record.attend):
            output = self.own(hidden, *self.rest, **self.named)
        if tape.seen is None:
            raise UserError(
                f"backward: sparse cannot serve {name}: it makes no attention through transformers' AttentionInterface"
            )
        if isinstance(output, tuple):
            output, self.beside = output[0], output[1:]
        if torch.is_autocast_enabled(kind):
            self._autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_cache_enabled())
        self.tape = tape
        return output  # type: ignore[no-any-return]

    def backward(self, hidden: Tensor, grad: Tensor, needs_hidden: bool) -> tuple[Tensor | None, list[Tensor | None]]:
        """(gradient to the hidden states, 0 at dropped rows, or None; gradients to the trained weights)."""
        tape, kept = self.tape, self.selection.kept
        if tape is None:
            raise RuntimeError("a sparse backward is done once: what it needs is gone")
        if kept is None:
            raise RuntimeError("KeptSelection.choose was not called between forward and backward")
        self.tape = None
        weights = trained_weights(self.block)
        d_hidden = torch.zeros_like(hidden) if needs_hidden else None
        if not len(kept):
            return d_hidden, [torch.zeros_like(w) for w in weights]
        flat = hidden.detach().reshape(1, -1, hidden.shape[-1])
        with torch.enable_grad(), self._as_before():
            tape.queries_only = self._queries_only(hidden)
            others = self._keys_and_values(tape, flat, kept)
            inputs = flat.index_select(1, kept.kept_K).requires_grad_(needs_hidden)
            output = self._replay(tape, inputs, kept.kept_K, kept, others)
        wanted = [*weights, inputs] if needs_hidden else weights
        by_row = grad.reshape(flat.shape).index_select(1, kept.kept_K)
        grads: list[Tensor | None] = list(torch.autograd.grad(output, wanted, by_row, allow_unused=True))
        if d_hidden is not None and (to_inputs := grads.pop()) is not None:
            d_hidden.view(flat.shape)[0].index_copy_(0, kept.kept_K, to_inputs[0])
        return d_hidden, grads

    @contextmanager
    def _as_before(self) -> Iterator[None]:
        """Under the autocast that the forward ran in."""
        if self._autocast is None:
            yield
            return
        kind, dtype, cache = self._autocast
        with torch.autocast(kind, dtype, cache_enabled=cache):
            yield

    def _queries_only(self, hidden: Tensor) -> frozenset[int]:
        """See :func:`.tape.queries_only`; found out once a block, on its first row, at the price of a wait for the device."""
        if self.block not in self.queries_only:
            index = torch.zeros(1, dtype=torch.long, device=hidden.device)
            rest, named = (some_rows(v, index, *hidden.shape[:2]) for v in (self.rest, self.named))
            row = hidden.detach()[:1, :1]
            self.queries_only[self.block] = queries_only(lambda: self.own(row, *rest, **named))
        return self.queries_only[self.block]

    def _keys_and_values(self, tape: Tape, flat: Tensor, kept: Kept) -> tuple[Tensor, Tensor] | None:
        """Key and value of the dropped rows, whose hidden states are constants. [1, H, N - K, d] each; None if all are kept."""
        if not len(kept.dropped):
            return None
        rows = flat.index_select(1, kept.dropped)
        with torch.set_grad_enabled(not self.selection.strict):
            return until_attention(lambda: self._replay(tape, rows, kept.dropped, kept, None))

    def _replay(
        self, tape: Tape, rows: Tensor, index: Tensor, kept: Kept, others: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        rest, named = (some_rows(v, index, tape.rows, tape.length) for v in (self.rest, self.named))
        replay = Replay(tape, index, kept, others)
        with replay, handled_by(replay.attend):
            output = self.own(rows, *rest, **named)
        return output[0] if isinstance(output, tuple) else output  # type: ignore[no-any-return]


class _Block(torch.autograd.Function):
    """A block as one node of the graph: (hidden states, call, trained weights ...) -> hidden states."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, call: _Call, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(hidden)
        ctx.call = call
        return call.forward(hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (hidden,) = ctx.saved_tensors
        d_hidden, d_weights = ctx.call.backward(hidden, grads[0], ctx.needs_input_grad[0])
        return d_hidden, None, *d_weights
