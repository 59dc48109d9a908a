"""A dense model as a mixture of experts: each MLP's neurons shared out, so that all experts together are the MLP.

    MLP(x) = sum_e expert_e(x)        router weights 1 / k over the k visited        expert_e = E / k of its share of the sum

LLaMA-MoE (arXiv 2406.16554; its code read: split_random, score_scale_factor = experts / visited). The factor E stands in the
experts' last maps, 1 / k comes from the router, which the family normalises over those visited: so with all E visited the
mixture gives the dense logits. The router begins at random, as theirs, but so small that its weights are equal to 1e-4: who
is visited is chance from the start on, how much each counts is not.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from ..runs.errors import UserError
from .rebuilt import check_same_function, rebuilt

# Dense family -> its mixture, and what the mixture's config calls the number of experts and their width.
MIXTURE_OF = {
    "llama": ("mixtral", "num_local_experts", "intermediate_size"),
    "mistral": ("mixtral", "num_local_experts", "intermediate_size"),
    "qwen3": ("qwen3_moe", "num_experts", "moe_intermediate_size"),
}
_SPREAD = 1e-4  # standard deviation of the router's logits, for inputs of mean square 1
_NOT_OURS = ("model_type", "architectures", "transformers_version", "_name_or_path", "dtype", "torch_dtype")


@torch.no_grad()
def moe_from_dense(model: Any, experts: int, active: int, seed: int) -> Any:
    """The mixture of ``model``: ``experts`` of equal width, ``active`` visited by each token. Neurons are shared out by chance.

    Proved: with all of them visited and an even router it gives the dense logits, up to the rounding of sums.
    """
    config = model.config
    check_mixture(config, experts, active)
    width = config.intermediate_size // experts
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}
    for name, weight in model.state_dict().items():
        if ".mlp." not in name:
            weights[name] = weight
    for i in range(config.num_hidden_layers):
        at = f"model.layers.{i}.mlp."
        order = torch.randperm(config.intermediate_size, generator=generator)
        gate, up, down = (model.state_dict()[f"{at}{n}_proj.weight"] for n in ("gate", "up", "down"))
        read = torch.stack([gate[order].unflatten(0, (experts, width)), up[order].unflatten(0, (experts, width))], 1)
        weights[f"{at}experts.gate_up_proj"] = read.flatten(1, 2)  # [E, 2 W, D]
        weights[f"{at}experts.down_proj"] = (experts * down[:, order]).unflatten(1, (experts, width)).transpose(0, 1)
        weights[f"{at}gate.weight"] = torch.zeros(experts, config.hidden_size)
    everyone = rebuilt(mixture_config(config, experts, experts), weights, model, "made a mixture")
    check_same_function(model, everyone, "made a mixture")
    for name in weights:
        if name.endswith(".mlp.gate.weight"):
            drawn = torch.randn(experts, config.hidden_size, generator=generator)
            weights[name] = drawn * (_SPREAD / math.sqrt(config.hidden_size))
    return rebuilt(mixture_config(config, experts, active), weights, model, "made a mixture")


def check_mixture(config: Any, experts: int, active: int) -> None:
    """Refuse (UserError) a family without a mixture of its own kind, and numbers that do not share out."""
    kind = config.model_type
    if kind not in MIXTURE_OF:
        raise UserError(f"a {kind} cannot be made a mixture: that is known for {', '.join(MIXTURE_OF)}")
    if getattr(config, "mlp_bias", False) or getattr(config, "attention_bias", False):
        raise UserError(f"a {kind} with biases cannot be made a mixture: {MIXTURE_OF[kind][0]} has none")
    if experts < 2 or config.intermediate_size % experts:
        raise UserError(
            f"moe_from_dense.experts: {config.intermediate_size} neurons are shared out evenly over at least 2, not {experts}"
        )
    if not 1 <= active <= experts:
        raise UserError(f"moe_from_dense.active must be in [1, {experts}], not {active}")


def mixture_config(dense: Any, experts: int, active: int) -> Any:
    """The mixture's config: the dense one's fields, as far as it has them. UserError as in :func:`check_mixture`."""
    from transformers import AutoConfig

    check_mixture(dense, experts, active)
    kind, number, size = MIXTURE_OF[dense.model_type]
    width = dense.intermediate_size // experts
    known = AutoConfig.for_model(kind).to_dict()
    kept = {k: v for k, v in copy.deepcopy(dense.to_dict()).items() if k in known and k not in _NOT_OURS}
    head = getattr(dense, "head_dim", None) or dense.hidden_size // dense.num_attention_heads
    more: dict[str, Any] = {"norm_topk_prob": True, "mlp_only_layers": [], "decoder_sparse_step": 1}
    more = {k: v for k, v in more.items() if k in known}
    if kind == "mixtral" and dense.model_type == "llama":
        kept["sliding_window"] = None
    return AutoConfig.for_model(
        kind, **{**kept, **more, "head_dim": head, number: experts, size: width, "num_experts_per_tok": active}
    )
