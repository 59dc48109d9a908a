"""Where the model's attention is reached: transformers' documented AttentionInterface, so nothing of a model class is replaced.

The model's config names an implementation of ours in place of its own ("sdpa", "eager"), with the same masks. Idle, it calls
the model's own; while a handler is set it is asked instead.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ...runs.errors import UserError

Attention = Callable[..., tuple[Tensor, Tensor | None]]
"""As in transformers: (module, query, key, value, mask, **kwargs) -> (output [B, T, H, d], weights or None)."""
Handler = Callable[..., tuple[Tensor, Tensor | None]]
"""The same, with the model's own Attention as the argument before."""

SERVED = ("sdpa", "eager")

# A backward on a GPU runs in a thread of its own: what one thread sets, no other sees.
_handler: ContextVar[Handler | None] = ContextVar("attention handler", default=None)


@contextmanager
def handled_by(handler: Handler) -> Iterator[None]:
    """While open, attention called from this thread by a model with an AttentionSwitch goes to ``handler``."""
    token = _handler.set(handler)
    try:
        yield
    finally:
        _handler.reset(token)


class AttentionSwitch:
    """Puts our implementation into a model's config, and takes it out again with :meth:`close`."""

    def __init__(self, model: Any, what: str = "backward: sparse") -> None:
        self.config = model.config.get_text_config()
        self.own: str = self.config._attn_implementation or "eager"
        if self.own not in SERVED:
            raise UserError(
                f"{what} works with attn_implementation {' or '.join(SERVED)}, "
                f"and {type(model).__name__} has {self.own}"
            )
        self.keys_and_values: Callable[[Tensor], Tensor] | None = None
        """Applied to keys and values before attention, for the strict reference gate."""
        name = f"tokensieve_{self.own}_{id(self):x}"
        AttentionInterface.register(name, self._attend)
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[self.own])
        self.name, self.config._attn_implementation = name, name

    def close(self) -> None:
        """Give the model its implementation back."""
        self.config._attn_implementation = self.own
        AttentionInterface._global_mapping.pop(self.name, None)
        AttentionMaskInterface._global_mapping.pop(self.name, None)

    def _attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        if self.keys_and_values is not None:
            key, value = self.keys_and_values(key), self.keys_and_values(value)
        own, handler = self._own(module), _handler.get()
        if handler is None:
            return own(module, query, key, value, mask, **kwargs)
        return handler(own, module, query, key, value, mask, **kwargs)

    def _own(self, module: nn.Module) -> Attention:
        """The model's own attention: eager ones stand in the file of the model's class."""
        if self.own != "eager":
            return ALL_ATTENTION_FUNCTIONS[self.own]  # type: ignore[no-any-return]
        eager: Attention = sys.modules[type(module).__module__].eager_attention_forward
        return eager
