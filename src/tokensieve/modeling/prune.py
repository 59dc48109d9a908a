"""Fewer blocks by block importance, narrower blocks by activation: what a smaller model is pruned of.

Minitron (arXiv 2407.14679; no code of the pruning was published with it, formulas from the paper's section 2 by memory):

    block importance    BI_i = 1 - mean_t cos(x_i,t, x_{i+1},t)         x_i: what goes into block i (also ShortGPT, 2403.03853)
    neuron f            L2 over rows of (mean over positions of |a_f|)    a: what goes into the MLP's last map
    head h              the same of ||o_h||_2                             o_h: its part of what goes into attention's last map
    channel d           the same of |norm(x)_d|, summed over all norms of blocks

Least important go. All scores come from one pass of the whole model; blocks stay in their order, and so does what is inside.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..runs.errors import UserError
from .cut import blocks_of, pick_config
from .rebuilt import check_same_function, check_width_family, rebuilt

_NORMS = ("input_layernorm", "post_attention_layernorm")


@dataclass
class Importance:
    """Sums over rows of a calibration set; the roots are taken where something is ranked."""

    blocks: Tensor
    """[L] sum over tokens of 1 - cos, float64."""
    tokens: int = 0
    neurons: dict[int, Tensor] = field(default_factory=dict)
    """block -> [F] sum over rows of (mean over positions)^2; so are the others."""
    heads: dict[int, Tensor] = field(default_factory=dict)
    """block -> [H]"""
    channels: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    """(block, norm) -> [D]"""

    @property
    def of_blocks(self) -> list[float]:
        """BI of each block, in [0, 2]."""
        return [float(v) for v in self.blocks / max(1, self.tokens)]


@torch.no_grad()
def importance(model: Any, batches: Iterable[Mapping[str, Tensor]], *, width: bool = False) -> Importance:
    """What each part does in a forward of ``batches``, of which each has the inputs of the model's forward, padding nowhere.

    ``width``: neurons, heads and channels as well, of a family in WIDTH_FAMILIES. Holds one number a row and part.
    """
    _, blocks = blocks_of(model, "pruned")
    found = Importance(torch.zeros(len(blocks), dtype=torch.float64))
    handles = []
    for i, block in enumerate(blocks):
        handles.append(block.register_forward_hook(_note_block(found, i), with_kwargs=True))
        if width:
            handles += _width_hooks(found, i, block, int(model.config.num_attention_heads))
    try:
        for batch in batches:
            model(**batch, use_cache=False)
            found.tokens += batch["input_ids"].numel()
    finally:
        for handle in handles:
            handle.remove()
    return found


def _note_block(found: Importance, i: int) -> Any:
    def note(_: nn.Module, args: tuple[Any, ...], given: Mapping[str, Any], out: Any) -> None:
        before = args[0] if args else given["hidden_states"]
        after = out[0] if isinstance(out, tuple) else out
        cosine_BT = nn.functional.cosine_similarity(before.double(), after.double(), dim=-1)
        found.blocks[i] += (1 - cosine_BT).sum().cpu()

    return note


def _width_hooks(found: Importance, i: int, block: Any, heads: int) -> list[Any]:
    def neurons(_: nn.Module, args: tuple[Any, ...]) -> None:
        _add(found.neurons, i, args[0].abs())

    def of_heads(_: nn.Module, args: tuple[Any, ...]) -> None:
        _add(found.heads, i, args[0].unflatten(-1, (heads, -1)).float().norm(dim=-1))

    def channels(name: str) -> Any:
        return lambda _, args, out: _add(found.channels, (i, name), out.abs())

    return [
        block.mlp.down_proj.register_forward_pre_hook(neurons),
        block.self_attn.o_proj.register_forward_pre_hook(of_heads),
        *(getattr(block, name).register_forward_hook(channels(name)) for name in _NORMS),
    ]


def _add(sums: dict[Any, Tensor], key: Any, values_BTN: Tensor) -> None:
    """Add sum over rows of (mean over positions)^2."""
    squares_N = values_BTN.double().mean(1).square().sum(0).cpu()
    sums[key] = sums[key] + squares_N if key in sums else squares_N


def most_important(scores: Sequence[float], keep: int) -> list[int]:
    """The places of the ``keep`` largest, in their own order; ties to the earlier."""
    return sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:keep])


@dataclass(frozen=True)
class Sizes:
    """What is left; None: as it is."""

    layers: int | None = None
    intermediate_size: int | None = None
    heads: int | None = None
    hidden_size: int | None = None

    @property
    def width(self) -> bool:
        """Whether blocks get narrower."""
        return any(n is not None for n in (self.intermediate_size, self.heads, self.hidden_size))


def check_sizes(model: Any, sizes: Sizes) -> None:
    """Refuse (UserError) sizes that the model has not, and widths of a family that is not known. With or without weights."""
    _, blocks = blocks_of(model, "pruned")
    config = model.config.get_text_config()
    if sizes.width:
        check_width_family(model.config.model_type, "pruned")
    there = {
        "layers": len(blocks),
        "intermediate_size": getattr(config, "intermediate_size", 0),
        "heads": config.num_attention_heads,
        "hidden_size": config.hidden_size,
    }
    for name, most in there.items():
        wanted = getattr(sizes, name)
        if wanted is not None and not 1 <= wanted <= most:
            raise UserError(f"prune.{name}: the model has {most}, so {wanted} cannot be kept")
    group = config.num_attention_heads // _kv_heads(config)
    if sizes.heads is not None and _kv_heads(config) > 1 and sizes.heads % group:
        raise UserError(
            f"prune.heads: {group} heads share keys and values, so a multiple of {group} is kept, not {sizes.heads}"
        )


def _kv_heads(config: Any) -> int:
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def prune(model: Any, found: Importance, sizes: Sizes) -> tuple[Any, dict[str, Any]]:
    """(a smaller model of the most important parts, what was kept of which importance): ``model`` may be changed by it.

    Proved but for channels: with what goes silenced in the whole model, the pruned one gives the same logits. Channels cannot
    be, since norms are means over all of them.
    """
    check_sizes(model, sizes)
    told: dict[str, Any] = {"block_importance": found.of_blocks}
    kept = list(range(len(found.blocks)))
    if sizes.layers is not None:
        kept = most_important(found.of_blocks, sizes.layers)
        model = _without_blocks(model, kept)
    told["kept_blocks"] = kept
    if sizes.intermediate_size is not None or sizes.heads is not None:
        model = _narrowed(model, found, kept, sizes)
    if sizes.hidden_size is not None:
        total_D = sum(found.channels[i, n].sqrt() for i in kept for n in _NORMS)
        assert isinstance(total_D, Tensor)
        told["kept_channels"] = most_important(total_D.tolist(), sizes.hidden_size)
        model = _with_channels(model, told["kept_channels"])
    return model, told


def pruned_config(config: Any, sizes: Sizes) -> Any:
    """The config of what :func:`prune` leaves, for shapes: which blocks stay is not known without weights, how many is."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    if sizes.layers is not None:
        pick_config(text, range(sizes.layers), config.model_type, "pruned")
    if sizes.width:
        text.head_dim = _head_width(text)
        text.intermediate_size = sizes.intermediate_size or text.intermediate_size
        text.hidden_size = sizes.hidden_size or text.hidden_size
        kv_heads, heads = _kv_heads(text), text.num_attention_heads
        text.num_attention_heads = sizes.heads or heads
        text.num_key_value_heads = kv_heads if kv_heads == 1 else text.num_attention_heads * kv_heads // heads
    return config


def _head_width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _without_blocks(model: Any, kept: Sequence[int]) -> Any:
    """In place: so classes that compute with their depth are told apart from the one that is read again."""
    _, blocks = blocks_of(model, "pruned")
    pick_config(model.config.get_text_config(), kept, model.config.model_type, "pruned")
    for i in reversed(range(len(blocks))):
        if i not in kept:
            del blocks[i]
    return model


def _narrowed(model: Any, found: Importance, kept: Sequence[int], sizes: Sizes) -> Any:
    """Neurons and heads. ``kept``: which blocks of the calibrated model the model's are."""
    config = copy.deepcopy(model.config)
    width = _head_width(config)
    weights, silent = dict(model.state_dict()), copy.deepcopy(model)
    silenced: Any = blocks_of(silent, "pruned")[1]
    for new, old in enumerate(kept):
        at = next(n for n in weights if n.endswith(f"layers.{new}.mlp.down_proj.weight")).removesuffix(
            "mlp.down_proj.weight"
        )
        if sizes.intermediate_size is not None:
            stay = most_important(found.neurons[old].tolist(), sizes.intermediate_size)
            _take(weights, f"{at}mlp", {"gate_proj": (0, stay), "up_proj": (0, stay), "down_proj": (1, stay)})
            _silence(silenced[new].mlp.down_proj, stay)
        if sizes.heads is not None:
            queries, keys = _heads(found.heads[old].sqrt().tolist(), _kv_heads(config), sizes.heads)
            of_q, of_k = _columns(queries, width), _columns(keys, width)
            rows = {"q_proj": (0, of_q), "k_proj": (0, of_k), "v_proj": (0, of_k), "o_proj": (1, of_q)}
            _take(weights, f"{at}self_attn", rows)
            _silence(silenced[new].self_attn.o_proj, of_q)
    if sizes.intermediate_size is not None:
        config.intermediate_size = sizes.intermediate_size
    if sizes.heads is not None:
        config.head_dim = width
        config.num_key_value_heads = len(keys)
        config.num_attention_heads = sizes.heads
    made = rebuilt(config, weights, model, "pruned")
    check_same_function(silent, made, "pruned")
    return made


def _heads(scores: Sequence[float], kv_heads: int, keep: int) -> tuple[list[int], list[int]]:
    """(heads, heads of keys and values) that stay: whole groups, or of a single group its own."""
    if kv_heads == 1:
        return most_important(scores, keep), [0]
    group = len(scores) // kv_heads
    of_group = [sum(scores[g * group : (g + 1) * group]) for g in range(kv_heads)]
    groups = most_important(of_group, keep // group)
    return [g * group + h for g in groups for h in range(group)], groups


def _columns(heads: Sequence[int], width: int) -> list[int]:
    return [h * width + i for h in heads for i in range(width)]


def _take(weights: dict[str, Tensor], at: str, parts: Mapping[str, tuple[int, Sequence[int]]]) -> None:
    """Of the maps below ``at`` the rows (0) or columns (1) that stay; of biases the rows."""
    for name, (dim, stay) in parts.items():
        index = torch.tensor(stay)
        weights[f"{at}.{name}.weight"] = weights[f"{at}.{name}.weight"].index_select(dim, index)
        if dim == 0 and f"{at}.{name}.bias" in weights:
            weights[f"{at}.{name}.bias"] = weights[f"{at}.{name}.bias"].index_select(0, index)


@torch.no_grad()
def _silence(layer: nn.Linear, stay: Sequence[int]) -> None:
    """Inputs of a map that do not stay count for nothing."""
    gone = torch.ones(layer.weight.shape[1], dtype=torch.bool)
    gone[list(stay)] = False
    layer.weight[:, gone] = 0


def _with_channels(model: Any, stay: Sequence[int]) -> Any:
    """The hidden width is one dimension of a weight: rows of what writes to the stream, columns of what reads it."""
    config, index = copy.deepcopy(model.config), torch.tensor(stay)
    width = _head_width(config)
    weights: dict[str, Tensor] = {}
    for name, weight in model.state_dict().items():
        if name.endswith(("q_norm.weight", "k_norm.weight")) or (name.endswith(".bias") and "o_proj" not in name):
            weights[name] = weight if "down_proj" not in name else weight.index_select(0, index)
        elif weight.dim() == 1 or name.endswith(("o_proj.weight", "down_proj.weight")):
            weights[name] = weight.index_select(0, index)
        else:
            weights[name] = weight.index_select(1, index)
    config.head_dim, config.hidden_size = width, len(stay)
    return rebuilt(config, weights, model, "pruned")
