"""The blocks of a decoder, and which of them a token-sparse backward does not serve, by name."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from ...runs.errors import UserError
from ..seam import base_model

# Token mixers that are no softmax attention over all positions, and layers whose router sends rows to experts: what leaves a
# block beside its output (router losses) has no place in its backward.
_MIXERS = re.compile(r"Mamba|Mixer$|Recurrent|Delta|Lightning|LinearAttention|ShortConv|Rwkv|[a-z]LSTM|Retention|SSM")
_CROSS = re.compile(r"CrossAttention|CrossAttn")
_EXPERTS = re.compile(r"Experts$|Router$|MoE|Moe|SparseMoeBlock")


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """The decoder's blocks in order: the one list of modules that is as long as the config says. UserError where there is
    none."""
    base: Any = base_model(model)
    config = base.config.get_text_config()
    decoder = base.get_decoder()
    lists = [m for m in decoder.modules() if isinstance(m, nn.ModuleList) and len(m) == config.num_hidden_layers]
    if not lists:
        raise UserError(
            f"backward: sparse does not find the {config.num_hidden_layers} blocks of {type(base).__name__}"
        )
    return list(lists[0])


def refuse_unserved(blocks: list[nn.Module]) -> None:
    """Raise UserError for state spaces, linear attention, cross-attention and mixtures of experts, naming block and module.

    What has another name and does not fit either is found by the comparison of gradients before the first step.
    """
    kinds = (
        (_MIXERS, "is no softmax attention"),
        (_CROSS, "attends to another sequence"),
        (_EXPERTS, "routes tokens to experts"),
    )
    for number, block in enumerate(blocks):
        if type(block).__name__ == "CheckpointWrapper":
            raise UserError(
                "backward: sparse checkpoints by itself: set training.activation_checkpointing in place of "
                "fsdp_config.activation_checkpointing"
            )
        for module in block.modules():
            for pattern, why in kinds:
                if pattern.search(type(module).__name__):
                    raise UserError(
                        f"backward: sparse does not serve block {number}, whose {type(module).__name__} {why}: "
                        "use backward: exact"
                    )
