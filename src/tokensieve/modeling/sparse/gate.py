"""What a token-sparse backward is, in a few lines that work for any transformers decoder: the reference of the fast path.

At the input of every block the hidden state of a dropped position is a constant, ``h = where(keep, h, h.detach())``. The
forward is untouched. A dropped position still lends its key and value to kept queries, so it teaches the key and value
projections and the norm before them, through those queries; nothing flows on below the block. ``strict`` makes its key and
value constants as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .interface import AttentionSwitch


def gate(hidden_BTD: Tensor, keep_BT: Tensor) -> Tensor:
    """``hidden`` with the rows of dropped positions as constants: same values, no gradient through them. [B, T, D]"""
    return torch.where(keep_BT.unsqueeze(-1), hidden_BTD, hidden_BTD.detach())


@contextmanager
def gated(
    blocks: Sequence[nn.Module], keep_BT: Tensor, switch: AttentionSwitch | None = None, *, strict: bool = False
) -> Iterator[None]:
    """While open, forwards of the model have a gate at the input of every block. Forward and backward both belong inside.

    ``keep_BT`` [B, T] bool at the predicting position. ``strict`` needs the ``switch`` that sits in the model's attention.
    """

    def at_input(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (gate(args[0], keep_BT), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": gate(kwargs["hidden_states"], keep_BT)}

    def constant(key_or_value: Tensor) -> Tensor:
        """[B, H, T, d]"""
        return torch.where(keep_BT[:, None, :, None], key_or_value, key_or_value.detach())

    handles = [block.register_forward_pre_hook(at_input, with_kwargs=True) for block in blocks]
    if strict:
        if switch is None:
            raise ValueError("strict: keys and values are reached through the switch in the model's attention")
        switch.keys_and_values = constant
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        if switch is not None:
            switch.keys_and_values = None
