"""Heads that look back, and what a text's nll loses without them [AttentionInfluence, arXiv 2505.07293].

An induction head, at a token that stood before, attends to what followed it then. So on a row of random tokens written twice,
r r, its weight from place t of the second half on place t - n + 1 (n: tokens of r) is large. The heads of the largest mean
weights are masked: each spreads its weight evenly over all that it may see. (The authors find theirs by a task of retrieval;
the probe here needs no task, no tokenizer and no labels.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..modeling.sparse.interface import Attention, AttentionSwitch, handled_by
from ..runs.errors import UserError

PROBE_ROWS, PROBE_TOKENS = 8, 48


class RetrievalHeads:
    """Finds ``share`` of all heads of a model, at least one, and masks them while :meth:`masked` is open.

    ``score``: float32 [attention layers, heads], the mean weight of the probe, 0 to 1. ``heads``: those that are masked, as
    (layer, head), best first; ties go to the earlier. UserError for a model without attention that can be reached.
    """

    def __init__(self, model: Any, share: float, seed: int = 0) -> None:
        self.model = model
        self.switch = AttentionSwitch(model, "filter's score retrieval")
        self._layers: dict[int, int] = {}  # id of a module -> its number, in the order of the first forward
        self.score = self._probe(seed)
        flat = torch.argsort(-self.score.flatten(), stable=True)[: max(1, int(share * self.score.numel() + 0.5))]
        self.heads = [divmod(int(i), self.score.shape[1]) for i in flat]
        self._of_layer = {layer: [h for at, h in self.heads if at == layer] for layer, _ in self.heads}

    def close(self) -> None:
        self.switch.close()

    @torch.inference_mode()
    def _probe(self, seed: int) -> Tensor:
        length = min(PROBE_TOKENS, _longest(self.model) // 2)
        once = torch.randint(
            self.model.config.get_text_config().vocab_size,
            (PROBE_ROWS, length),
            generator=torch.Generator().manual_seed(seed),
        )
        found: list[Tensor] = []

        def look(
            own: Attention, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
        ) -> Any:
            self._layers[id(module)] = len(found)
            weights = attention_weights(query, key, mask, kwargs.get("scaling"))
            at = torch.arange(length, 2 * length, device=weights.device)
            found.append(weights[:, :, at, at - length + 1].mean((0, 2)).cpu())
            return own(module, query, key, value, mask, **kwargs)

        with handled_by(look):
            self.model(input_ids=torch.cat([once, once], 1).to(self.model.device), use_cache=False)
        if not found or len({len(score) for score in found}) > 1:
            raise UserError(f"{type(self.model).__name__} has no attention heads that could be masked")
        return torch.stack(found)

    @contextmanager
    def masked(self) -> Iterator[None]:
        """While open, the chosen heads attend evenly."""

        def spread(
            own: Attention, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
        ) -> Any:
            output, weights = own(module, query, key, value, mask, **kwargs)
            heads = self._of_layer.get(self._layers[id(module)])
            if heads:
                group = query.shape[1] // value.shape[1]
                seen = may_see(query, key, mask).to(value.dtype)
                even = seen / seen.sum(-1, keepdim=True).clamp(min=1)
                output = output.clone()
                output[:, :, heads] = (even @ value[:, [h // group for h in heads]]).transpose(1, 2)
            return output, weights

        with handled_by(spread):
            yield


def may_see(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """What each query may see, bool [B or 1, 1, T, S]: what the mask lets through, or all up to its own place."""
    size, past = query.shape[-2], key.shape[-2]
    if mask is None:
        return torch.ones(size, past, dtype=torch.bool, device=query.device).tril(past - size)[None, None]
    return mask[..., :past] if mask.dtype == torch.bool else mask[..., :past] > torch.finfo(mask.dtype).min / 2


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """softmax(scaling * q k^T) over what may be seen, float32 [B, H, T, S]; soft caps are left out."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = (query.float() @ key.float().transpose(-1, -2)) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    return scores.masked_fill(~may_see(query, key, mask), -torch.inf).softmax(-1)


def _longest(model: Any) -> int:
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2 * PROBE_TOKENS)
