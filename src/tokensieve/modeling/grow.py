"""A larger model that begins as the function the smaller one is: more blocks, wider MLPs, more experts.

    blocks     copies stand behind the block that they are of, spread evenly (interposition); what they write is 0 (``silent``),
               or they are copies to the last bit (``exact``), as in the paper, which changes the function
    MLP        new neurons read what others read, in turn, and their rows to the stream are 0
    experts    each of a mixture's E experts n times, with its row of the router, and n times as many visited: n copies of the
               same weight / n. ``noise`` times the standard deviation of a weight is added to the copies

Orthogonal growth of mixtures (arXiv 2510.08008: depth by interposed copies, width by copies of experts with noise; by memory).
A silent copy is the zero-initialised block of LLaMA Pro (arXiv 2401.02415).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..runs.errors import UserError
from .cut import blocks_of, num_blocks, pick_config
from .rebuilt import check_same_function, check_width_family, rebuilt

Copies = Literal["silent", "exact"]
# The maps that write to the residual stream, by the names that families give them. What they leave out is found by the proof.
_WRITES = ("o_proj", "down_proj", "c_proj", "out_proj", "dense", "dense_4h_to_h", "fc2", "wo", "w2")
# Of mixtures: router, experts, and what the config calls their number.
_MIXTURES = {"mixtral": "num_local_experts", "qwen3_moe": "num_experts", "olmoe": "num_experts"}


def interposed(blocks: int, wanted: int) -> list[int]:
    """Of each new block the old one that it is (a copy of): each of ``blocks`` in order, copies spread evenly."""
    return [i * blocks // wanted for i in range(wanted)]


def grown_config(config: Any, layers: int | None, intermediate_size: int | None, experts: int | None) -> Any:
    """The config of what grows to these sizes; None: as it is. UserError for a family that is not known, and for fewer."""
    config = copy.deepcopy(config)
    if layers is not None:
        number = num_blocks(config.get_text_config(), config.model_type)
        if layers < number:
            raise UserError(f"grow.layers: the model has {number} blocks, so it does not grow to {layers}")
        pick_config(config.get_text_config(), interposed(number, layers), config.model_type, "grown")
    if intermediate_size is not None:
        check_width_family(config.model_type, "grown")
        if intermediate_size < config.intermediate_size:
            raise UserError(
                f"grow.intermediate_size: the model's is {config.intermediate_size}, so it does not grow to "
                f"{intermediate_size}"
            )
        config.intermediate_size = intermediate_size
    if experts is not None:
        times = _times(config, experts)
        setattr(config, _MIXTURES[config.model_type], experts)
        config.num_experts_per_tok *= times
    return config


@torch.no_grad()
def grow_layers(model: Any, layers: int, copies: Copies = "silent") -> Any:
    """``model`` with ``layers`` blocks. Proved with silent copies, to the rounding of sums; then exact ones are filled in."""
    path, blocks = blocks_of(model, "grown")
    number = len(blocks)
    config, origin = grown_config(model.config, layers, None, None), interposed(number, layers)
    of_block = re.compile(rf"^(.*{re.escape(path)}\.)(\d+)(\..*)$")
    weights: dict[str, Tensor] = {}
    silent: dict[str, Tensor] = {}
    for name, weight in model.state_dict().items():
        if (found := of_block.match(name)) is None:
            weights[name] = weight
            continue
        before, block, after = found[1], int(found[2]), found[3]
        for place in (i for i, o in enumerate(origin) if o == block):
            weights[f"{before}{place}{after}"] = weight
            if place and origin[place - 1] == block and _writes(after):
                silent[f"{before}{place}{after}"] = torch.zeros_like(weight)
    made = rebuilt(config, {**weights, **silent}, model, "grown")
    check_same_function(model, made, "grown")
    if copies == "exact":
        made.load_state_dict(weights)
    return made


def _writes(name: str) -> bool:
    """Whether a weight of a block, ``.mlp.down_proj.weight`` for one, writes to the stream."""
    return any(part in _WRITES for part in name.split("."))


@torch.no_grad()
def grow_intermediate(model: Any, size: int) -> Any:
    """``model`` with MLPs ``size`` wide, of a family in WIDTH_FAMILIES."""
    before, config = getattr(model.config, "intermediate_size", 0), grown_config(model.config, None, size, None)
    turn = torch.arange(size) % before
    weights = dict(model.state_dict())
    for name, weight in weights.items():
        if ".mlp.gate_proj." in name or ".mlp.up_proj." in name:
            weights[name] = weight[turn]
        elif name.endswith(".mlp.down_proj.weight"):
            weights[name] = torch.cat([weight, weight.new_zeros(len(weight), size - before)], 1)
    made = rebuilt(config, weights, model, "grown")
    check_same_function(model, made, "grown")
    return made


@torch.no_grad()
def grow_experts(model: Any, experts: int, noise: float, seed: int) -> Any:
    """``model``, a mixture, with ``experts`` experts, a multiple of what it has; proved before the noise."""
    times = _times(model.config, experts)
    before = experts // times
    config = grown_config(model.config, None, None, experts)
    weights = {n: torch.cat([w] * times) if _of_expert(n) else w for n, w in model.state_dict().items()}
    made = rebuilt(config, weights, model, "grown")
    check_same_function(model, made, "grown")
    if noise and times > 1:
        _add_noise(made, before, noise, seed)
    return made


def _times(config: Any, experts: int) -> int:
    """How often each expert is there then. UserError for no mixture that is known, and for no multiple."""
    if (kind := config.model_type) not in _MIXTURES:
        raise UserError(f"a {kind} cannot be grown in experts: that is known for {', '.join(_MIXTURES)}")
    before = int(getattr(config, _MIXTURES[kind]))
    times, left = divmod(experts, before)
    if left or times < 1:
        raise UserError(f"grow.experts: the model has {before}, so a multiple of that is needed, not {experts}")
    return times


def _of_expert(name: str) -> bool:
    return bool(re.search(r"\.mlp\.(gate\.weight|experts\.(gate_up_proj|down_proj))$", name))


def _add_noise(model: Any, before: int, noise: float, seed: int) -> None:
    """Of experts and router's rows behind the first ``before``."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if _of_expert(name):
            drawn = torch.randn(weight[before:].shape, generator=generator)
            weight[before:] += (noise * weight.float().std() * drawn).to(weight.dtype)


def parts_that_grow(layers: int | None, intermediate_size: int | None, experts: int | None) -> Sequence[str]:
    """The names of those that are given."""
    given = {"layers": layers, "intermediate_size": intermediate_size, "experts": experts}
    return [name for name, value in given.items() if value is not None]
