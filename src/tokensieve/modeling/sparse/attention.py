"""Attention forward over all rows, and its backward for kept queries only.

On a CPU the forward keeps its output and log-sum-exp (what the flash kernel's backward needs), and the backward is that
kernel's for the kept queries: nothing is computed again. Elsewhere, and for the model's own eager attention (soft caps),
attention of the kept queries is computed again by the model's own function, which torch then differentiates.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .interface import Attention
from .kept import Kept

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
# Queries of a call of the kernel: shorter chunks see fewer keys that the mask hides, longer ones start it less often.
CHUNK = 256


@dataclass
class Seen:
    """What attention of all rows was given and came to."""

    mask: Tensor | None
    """As the model made it: [B or 1, 1, T, T] bool (true: seen) or float (added); None: causal."""
    causal: bool
    flash: bool
    output: Tensor | None = None
    """[N, H, d], or [K, H, d] of the kept rows where only those are stored."""
    logsumexp: Tensor | None = None
    """[N, H] or [K, H]"""

    @property
    def kind(self) -> tuple[int, bool]:
        """The same for blocks that see the same. Masks live from the forward to the last backward that needs them."""
        return id(self.mask), self.causal


def attend_all(
    own: Attention,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    store: str,
    kept: Kept | None,
    kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor | None, Seen]:
    """(output [B, T, H, d], weights or None, what the backward needs) of the model's own attention over all rows."""
    causal = kwargs.get("is_causal")
    causal = bool(getattr(module, "is_causal", True) if causal is None else causal)
    seen = Seen(mask, causal, _is_flash(own, query, key, value, mask))
    if store == "nothing" or not seen.flash:
        output, weights = own(module, query, key, value, mask, **kwargs)
        return output, weights, seen
    groups = query.shape[1] // key.shape[1]
    added = None if mask is None else _added(mask, query.dtype)
    repeated = [x if groups == 1 else x.repeat_interleave(groups, 1) for x in (key, value)]
    scale = kwargs.get("scaling")
    output, logsumexp = _flash(query, *repeated, 0.0, causal and mask is None, attn_mask=added, scale=scale)
    seen.output, seen.logsumexp = output.transpose(1, 2).flatten(0, 1), logsumexp.transpose(1, 2).flatten(0, 1)
    if store == "kept" and kept is not None:
        seen.output, seen.logsumexp = (x.index_select(0, kept.kept_K) for x in (seen.output, seen.logsumexp))
    return output.transpose(1, 2), None, seen


def attend_kept(
    own: Attention,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seen: Seen,
    kept: Kept,
    kwargs: dict[str, Any],
) -> Tensor:
    """Attention of the kept queries [1, H, K, d] to all keys and values [B, H, T, d]. [1, K, H, d]"""
    query_BHnd = kept.by_row(query[0])
    if not seen.flash:
        allowed = kept.cache.get(seen.kind)
        if allowed is None:
            allowed = kept.cache[seen.kind] = _mask_of_kept(seen, kept)
        output, _ = own(module, query_BHnd, key, value, allowed, **kwargs)
        return kept.flat(output)
    inputs = (query_BHnd, key, value, seen, kept, kwargs.get("scaling"))
    output_BHnd: Tensor = _KeptFlash.apply(*inputs)  # type: ignore[no-untyped-call]
    return kept.flat(output_BHnd.transpose(1, 2))


def _is_flash(own: Attention, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    """Whether torch's SDPA would take the CPU's flash kernel."""
    sdpa = getattr(own, "__name__", "") == "sdpa_attention_forward"
    alike = query.dtype == key.dtype == value.dtype and query.shape[-1] == key.shape[-1] == value.shape[-1]
    return sdpa and query.device.type == "cpu" and alike and (mask is None or mask.dim() == 4)


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as what is added to scores: as SDPA does it."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


def _mask_of_kept(seen: Seen, kept: Kept) -> Tensor:
    """The model's mask for the kept queries: bool or float as it was, slots that do not count see all. [B, 1, n, T]"""
    if seen.mask is None:
        position = torch.arange(kept.length, device=kept.positions_Bn.device)
        allowed = kept.positions_Bn.unsqueeze(-1) >= position if seen.causal else torch.ones_like(position).bool()
        return allowed.expand(kept.rows, kept.most, kept.length).unsqueeze(1)
    mask_BTT = seen.mask[:, 0].expand(kept.rows, -1, -1)[..., : kept.length]
    index = kept.positions_Bn.unsqueeze(-1).expand(-1, -1, kept.length)
    rows = mask_BTT.gather(1, index)
    free = torch.ones((), dtype=torch.bool, device=rows.device) if rows.dtype == torch.bool else rows.new_zeros(())
    return torch.where(kept.there_Bn.unsqueeze(-1), rows, free).unsqueeze(1)


@dataclass(frozen=True)
class _Chunk:
    """Queries ``start``..``stop`` of each row and the keys from ``low`` to ``high`` that any of them sees."""

    start: int
    stop: int
    low: int
    high: int
    added: Tensor
    """[B, 1, queries * groups, keys]"""


def _chunks(seen: Seen, kept: Kept, groups: int, dtype: torch.dtype) -> list[_Chunk]:
    """The kept queries in pieces, each with its part of the mask; made once a micro-batch for all blocks of one mask."""
    found: list[_Chunk] | None = kept.cache.get((seen.kind, groups, dtype))
    if found is None:
        mask = _mask_of_kept(seen, kept)
        number = max(1, round(kept.most / CHUNK))
        edges = [round(kept.most * i / number) for i in range(number + 1)]
        found = [_chunk(mask, kept, a, b, groups, dtype) for a, b in itertools.pairwise(edges)]
        kept.cache[(seen.kind, groups, dtype)] = found
    return found


def _chunk(mask: Tensor, kept: Kept, start: int, stop: int, groups: int, dtype: torch.dtype) -> _Chunk:
    part = mask[:, :, start:stop]
    sees = part if part.dtype == torch.bool else part > torch.finfo(part.dtype).min / 2
    columns = (sees & kept.there_Bn[:, None, start:stop, None]).any(0).any(0).any(0).nonzero().squeeze(1)
    low, high = (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (0, 1)
    return _Chunk(start, stop, low, high, _added(part[..., low:high], dtype).repeat_interleave(groups, 2))


class _KeptFlash(torch.autograd.Function):
    """Attention of the kept queries by the CPU's flash kernel: query [B, H, n, d], key and value [B, G, T, d] -> [B, H, n, d].

    The H / G heads that share a key are taken as so many more queries: nothing is repeated, and their gradients add up inside
    the kernel. Its backward adds over chunks of queries, given each query's log-sum-exp over all its keys.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, seen: Seen, kept: Kept, scale: float | None
    ) -> Tensor:
        groups = query.shape[1] // key.shape[1]
        query = _fold(query, groups)
        chunks = _chunks(seen, kept, groups, query.dtype)
        if seen.output is None or seen.logsumexp is None:
            output, logsumexp = _forward_of_kept(query, key, value, chunks, groups, scale)
        else:
            output, logsumexp = _known_of_kept(seen, kept, groups)
        # A slot that does not count gives no probability to any key.
        there = kept.there_Bn.repeat_interleave(groups, 1).unsqueeze(1)
        logsumexp = torch.where(there, logsumexp, float("inf"))
        ctx.save_for_backward(query, key, value, output, logsumexp)
        ctx.chunks, ctx.groups, ctx.scale = chunks, groups, scale
        return _unfold(output, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, logsumexp = ctx.saved_tensors
        grad, groups = _fold(grads[0], ctx.groups), ctx.groups
        d_query, d_key, d_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for chunk in ctx.chunks:
            here, seen = slice(chunk.start * groups, chunk.stop * groups), slice(chunk.low, chunk.high)
            parts = [x[:, :, here] for x in (grad, query)]
            d_query[:, :, here], to_key, to_value = _flash_backward(
                *parts, key[:, :, seen], value[:, :, seen], output[:, :, here], logsumexp[:, :, here],
                0.0, False, attn_mask=chunk.added, scale=ctx.scale,
            )  # fmt: skip
            d_key[:, :, seen] += to_key
            d_value[:, :, seen] += to_value
        return _unfold(d_query, groups), d_key, d_value, None, None, None


def _forward_of_kept(
    query: Tensor, key: Tensor, value: Tensor, chunks: list[_Chunk], groups: int, scale: float | None
) -> tuple[Tensor, Tensor]:
    """(output, log-sum-exp) of folded queries, where the forward kept neither."""
    outputs, sums = [], []
    for chunk in chunks:
        part, seen = query[:, :, chunk.start * groups : chunk.stop * groups], slice(chunk.low, chunk.high)
        output, logsumexp = _flash(
            part, key[:, :, seen], value[:, :, seen], 0.0, False, attn_mask=chunk.added, scale=scale
        )
        outputs.append(output)
        sums.append(logsumexp)
    return torch.cat(outputs, 2), torch.cat(sums, 2)


def _known_of_kept(seen: Seen, kept: Kept, groups: int) -> tuple[Tensor, Tensor]:
    """The same, of what the forward kept."""
    assert seen.output is not None
    assert seen.logsumexp is not None
    output, logsumexp = seen.output, seen.logsumexp
    if len(output) != len(kept):
        output, logsumexp = output.index_select(0, kept.kept_K), logsumexp.index_select(0, kept.kept_K)
    return (
        _fold(kept.by_row(output.transpose(0, 1)), groups),
        _fold(kept.by_row(logsumexp.T.unsqueeze(-1)), groups).squeeze(-1),
    )


def _fold(heads: Tensor, groups: int) -> Tensor:
    """[B, G * groups, n, e] -> [B, G, n * groups, e]: the heads of a group as queries beside each other."""
    rows, number, length, width = heads.shape
    grouped = heads.reshape(rows, number // groups, groups, length, width).transpose(2, 3)
    return grouped.reshape(rows, number // groups, length * groups, width)


def _unfold(folded: Tensor, groups: int) -> Tensor:
    """The other way round."""
    rows, number, length, width = folded.shape
    grouped = folded.reshape(rows, number, length // groups, groups, width).transpose(2, 3)
    return grouped.reshape(rows, number * groups, length // groups, width)
