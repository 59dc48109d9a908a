"""A block's forward, written down so that it can be run again for some of its rows without its matrix products.

    Recording   all rows, no graph: notes the result of every linear map and dropout mask of a row, and what attention saw
    Replay      some rows, with a graph: the same code of the block; a linear map returns the rows of its known result, and its
                backward is one product over those rows; norms, activations and rotations, which cost little, are computed again

Both are torch function modes, which see ``F.linear``, ``torch.addmm`` and ``F.dropout`` whatever module calls them: adapters
and fused projections need no code of their own, and what is none of these is computed again, which is right for all that
treats rows alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ...runs.errors import UserError
from .attention import Seen, attend_all, attend_kept
from .interface import Attention, handled_by
from .kept import Kept

Store = Literal["all", "kept", "nothing"]


@dataclass
class Tape:
    """What is known of one call of a block."""

    rows: int
    length: int
    store: Store
    kept: Kept | None = None
    """Known beforehand if ``store`` is "kept"."""
    queries_only: frozenset[int] = frozenset()
    """Which linear maps, by the order of their calls, reach no key and no value: dropped rows need none of them."""
    results: list[Tensor | None] = field(default_factory=list)
    """Of linear maps in the order of their calls: [N, out], or [K, out] of those in ``of_kept``; None of those that do not map
    row by row."""
    of_kept: set[int] = field(default_factory=set)
    noises: list[Tensor] = field(default_factory=list)
    """Dropout's factors in the order of their calls, [N, ...]: they cannot be drawn again."""
    seen: Seen | None = None

    def by_rows(self, values: Tensor, width: int) -> Tensor | None:
        """``values`` as [N, width] if its leading dimensions are the block's rows, else None."""
        leading = values.shape[:-1]
        fits = leading == (self.rows, self.length) or leading == (self.rows * self.length,)
        return values.reshape(-1, width) if fits else None


class _ReachedAttention(Exception):
    """Rows that are only looked at are done once their keys and values are there."""

    def __init__(self, key: Tensor, value: Tensor) -> None:
        super().__init__()
        self.key, self.value = key, value


class Recording(TorchFunctionMode):
    """Runs a block's forward and fills its tape."""

    def __init__(self, tape: Tape, name: str) -> None:
        super().__init__()
        self.tape, self.name = tape, name

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.dropout:
            return self._dropout(*args, **kwargs)
        made = function(*args, **kwargs)
        if (function is F.linear or (function is torch.addmm and not kwargs)) and self.tape.store != "nothing":
            self._note(made)
        return made

    def _note(self, made: Tensor) -> None:
        tape = self.tape
        result = tape.by_rows(made, made.shape[-1])
        call = len(tape.results)
        if result is not None and tape.kept is not None and (tape.seen is not None or call in tape.queries_only):
            result = result.index_select(0, tape.kept.kept_K)
            tape.of_kept.add(call)
        tape.results.append(result)

    def _dropout(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0.0:
            return input
        noise = F.dropout(torch.ones_like(input), p, training)
        known = self.tape.by_rows(noise, noise.shape[-1])
        if known is None:
            raise UserError(
                f"backward: sparse cannot serve {self.name}: dropout of {p} on what has no rows (attention weights?)"
            )
        self.tape.noises.append(known)
        return input * noise

    def attend(
        self,
        own: Attention,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """The model's own attention over all rows; what its backward needs is noted."""
        tape = self.tape
        if tape.seen is not None:
            raise UserError(f"backward: sparse cannot serve {self.name}: it attends more than once")
        if query.shape[0] != tape.rows or query.shape[2] != tape.length or key.shape[2] != tape.length:
            raise UserError(
                f"backward: sparse cannot serve {self.name}: {query.shape[2]} queries look at {key.shape[2]} keys of "
                f"{tape.length} tokens"
            )
        _check_keywords(kwargs, self.name)
        output, weights, tape.seen = attend_all(own, module, query, key, value, mask, tape.store, tape.kept, kwargs)
        return output, weights


class Replay(TorchFunctionMode):
    """Runs a block's forward again for the rows ``index`` of all N: for the kept ones beside ``others``, key and value of the
    dropped ones [1, H, N - K, d], to the end; for the dropped ones as far as it (until_attention)."""

    def __init__(self, tape: Tape, index: Tensor, kept: Kept, others: tuple[Tensor, Tensor] | None = None) -> None:
        super().__init__()
        self.tape, self.index, self.kept, self.others = tape, index, kept, others
        self._calls = self._noises = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.dropout:
            return self._dropout(*args, **kwargs)
        if function is F.linear:
            return self._linear(function, args, kwargs, *args, **kwargs)
        if function is torch.addmm and not kwargs:  # of GPT-2's Conv1D
            bias, rows, weight_t = args
            return self._linear(function, args, kwargs, rows, weight_t.T, bias)
        return function(*args, **kwargs)

    def _linear(
        self, function: Any, args: Any, kwargs: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """A linear map of the rows: nothing where nobody needs it, looked up where it is known, else made."""
        call, tape = self._calls, self.tape
        self._calls += 1
        if call in tape.queries_only and self.index is self.kept.dropped:
            return input.new_zeros(*input.shape[:-1], weight.shape[0])
        known = None if tape.store == "nothing" else tape.results[call]
        # What has as many rows as the block but is none of them is not gathered: DoRA sends a unit matrix through its adapters.
        if known is None or input.shape[:-1].numel() != len(self.index):
            made: Tensor = function(*args, **kwargs)
            return made
        return _linear(known if call in tape.of_kept else known.index_select(0, self.index), input, weight, bias)

    def _dropout(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0.0:
            return input
        noise = self.tape.noises[self._noises].index_select(0, self.index)
        self._noises += 1
        return input * noise.view(input.shape)

    def attend(
        self,
        own: Attention,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Of kept rows as queries, to all rows as keys."""
        if self.index is self.kept.dropped:
            raise _ReachedAttention(key, value)
        assert self.tape.seen is not None
        others = self.others or (None, None)  # every row is kept
        keys, values = (_joined(mine, other, self.kept) for mine, other in zip((key, value), others, strict=True))
        return attend_kept(own, module, query, keys, values, self.tape.seen, self.kept, kwargs), None


class Poison(TorchFunctionMode):
    """Runs a block as far as its attention, one of its linear maps giving NaN: does that reach a key or a value?"""

    def __init__(self, call: int) -> None:
        super().__init__()
        self.call, self.calls = call, 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.dropout:
            return args[0]  # nothing may be drawn
        made = function(*args, **kwargs)
        if function is F.linear or (function is torch.addmm and not kwargs):
            made = torch.full_like(made, float("nan")) if self.calls == self.call else made
            self.calls += 1
        return made

    def attend(
        self, own: Attention, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **_: Any
    ) -> Any:
        raise _ReachedAttention(key, value)


def queries_only(run: Callable[[], Any]) -> frozenset[int]:
    """Which linear maps of a block, by the order of their calls, reach neither keys nor values. ``run()`` runs it on a row."""
    found: set[int] = set()
    for call in itertools.count():
        poison = Poison(call)
        with poison, handled_by(poison.attend), torch.no_grad():
            key, value = until_attention(run)
        if poison.calls <= call:
            break
        if not (key.isnan().any() or value.isnan().any()):
            found.add(call)
    return frozenset(found)


def until_attention(run: Callable[[], Any]) -> tuple[Tensor, Tensor]:
    """Key and value of what ``run()`` hands to an attention that goes no further."""
    try:
        run()
    except _ReachedAttention as reached:
        return reached.key, reached.value
    raise AssertionError("attention was reached in the forward")


def _check_keywords(kwargs: dict[str, Any], name: str) -> None:
    """What changes attention beyond its mask and scale must be known to the backward."""
    if kwargs.get("dropout"):
        raise UserError(f"backward: sparse cannot serve {name}: attention dropout of {kwargs['dropout']}; set it to 0")
    for word in ("s_aux", "position_bias", "head_mask", "cache"):
        if kwargs.get(word) is not None:
            raise UserError(f"backward: sparse cannot serve {name}: its attention takes {word}")


def _joined(mine: Tensor, other: Tensor | None, kept: Kept) -> Tensor:
    """Keys or values of kept [1, H, K, d] and of dropped rows, in the order of positions. [B, H, T, d]"""
    joined: Tensor = mine[0] if other is None else _Join.apply(mine, other, kept)  # type: ignore[no-untyped-call]
    heads, width = joined.shape[0], joined.shape[2]
    return joined.reshape(heads, kept.rows, kept.length, width).transpose(0, 1)


class _Join(torch.autograd.Function):
    """[1, H, K, d], [1, H, N - K, d] -> [H, N, d]. Each row is written once, so the backward gathers, and adds up nothing."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, other: Tensor, kept: Kept) -> Tensor:
        ctx.kept = kept
        joined = mine.new_empty(mine.shape[1], kept.rows * kept.length, mine.shape[3])
        joined[:, kept.kept_K] = mine[0]
        joined[:, kept.dropped] = other[0]
        return joined

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), kept, needs = grads, ctx.kept, ctx.needs_input_grad
        mine = grad.index_select(1, kept.kept_K).unsqueeze(0) if needs[0] else None
        other = grad.index_select(1, kept.dropped).unsqueeze(0) if needs[1] else None
        return mine, other, None


def _linear(known: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    known = known.view(*input.shape[:-1], known.shape[-1])
    made: Tensor = _KnownLinear.apply(known, input, weight, bias)  # type: ignore[no-untyped-call]
    return made


class _KnownLinear(torch.autograd.Function):
    """``input @ weight.T + bias`` whose result is known; the backward is a linear map's, in the dtype the result was made
    in."""

    @staticmethod
    def forward(ctx: Any, known: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.bias_dtype = None if bias is None else bias.dtype
        return known

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (input, weight), needs = grads, ctx.saved_tensors, ctx.needs_input_grad
        flat = grad.reshape(-1, grad.shape[-1])
        d_input = d_weight = d_bias = None
        if needs[1]:
            d_input = (flat @ weight.to(flat.dtype)).to(input.dtype).view(input.shape)
        if needs[2]:
            d_weight = (flat.T @ input.reshape(-1, input.shape[-1]).to(flat.dtype)).to(weight.dtype)
        if needs[3]:
            d_bias = flat.sum(0).to(ctx.bias_dtype)
        return None, d_input, d_weight, d_bias
