"""A small config of a large model's family: the same type and choices, the sizes that are named, the others in proportion.

    {like: path/to/model, hidden_size: 128, num_hidden_layers: 4, num_attention_heads: 4}

What a pilot trains in place of a model that is too large to be trained twice. Only config.json is read, no weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..runs.errors import UserError

LIKE = "like"
_NAMED = ("hidden_size", "num_hidden_layers", "num_attention_heads")
# Widths inside a block grow with the hidden size; ranks of latent attention are widths too.
_WIDTHS = re.compile(r"(intermediate_size|ffn_dim|ffn_hidden_size|n_inner|d_ff|_rank|_width|_per_layer_input)$")
_HEAD_WIDTHS = re.compile(r"(^|_)head_dim$")
_KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads", "multi_query_group_num")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_VISITED = re.compile(r"(experts_per_tok(en)?|top_k_experts|moe_top_?k|^top_k)$")
_BY_BLOCK = ("layer", "block", "types", "pattern")
# What a small model has from its own corpus, or what says how the large one's weights are stored.
_NOT_OURS = (
    *("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "architectures", "dtype", "torch_dtype"),
    *("transformers_version", "quantization_config", "auto_map", "_name_or_path", "max_window_layers"),
)
_MULTIPLE = 8


def small_config(large: Any, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Fields for ``model_config``: those of ``large``, a transformers config, in which it differs from its class's defaults,
    with ``sizes`` (by the names of the class, or hidden_size, num_hidden_layers, num_attention_heads for any class).

    Widths inside a block (multiples of 8), key-value heads (a divisor of the heads) and ranks keep their proportion to the
    hidden size, or to the heads; a head is hidden size / heads wide, where the config has its width; lists of an entry a block
    keep their first entries; of a mixture 4 experts are left at most, of which 2 are visited at most. Raises UserError where
    the hidden size, the blocks or the heads are not named, or ``large`` does not say its own.
    """
    large = large.get_text_config()
    names: Mapping[str, str] = getattr(type(large), "attribute_map", {})
    given = {names.get(key, key): value for key, value in sizes.items()}
    own = {key: _number(large, key) for key in _NAMED}
    if missing := [key for key in _NAMED if names.get(key, key) not in given]:
        raise UserError(f"model: like needs the sizes of the small model, {missing[0]} is missing")
    if wrong := [key for key in _NAMED if type(n := given[names.get(key, key)]) is not int or n < 1]:
        raise UserError(
            f"model: {wrong[0]} must be a whole number of at least 1, not {given[names.get(wrong[0], wrong[0])]}"
        )
    width, blocks, heads = (int(given[names.get(key, key)]) for key in _NAMED)
    if width % heads:
        raise UserError(f"model: a hidden_size of {width} cannot be shared out over {heads} heads")
    known = set(type(large)().to_dict())
    kept = {k: v for k, v in large.to_diff_dict().items() if k in known and k not in _NOT_OURS}
    scaled: dict[str, Any] = (
        {"pad_token_id": None} if "pad_token_id" in known else {}
    )  # some classes have one of their own
    for key, value in large.to_dict().items():
        if (
            key in known
            and (smaller := _smaller(key, value, width / own["hidden_size"], width, heads, own)) is not None
        ):
            scaled[key] = smaller
        elif _by_block(key, value, own["num_hidden_layers"]):
            scaled[key] = value[:blocks]
    return {**kept, **scaled, **given, "model_type": large.model_type}


def _number(large: Any, key: str) -> int:
    value = getattr(large, key, None)
    if not isinstance(value, int) or value < 1:
        raise UserError(
            f"model: a {large.model_type} does not say its {key}: give the small model's whole config instead"
        )
    return value


def _smaller(key: str, value: Any, times: float, width: int, heads: int, own: Mapping[str, int]) -> int | None:
    """The small model's value of one whole number; None for one that is no size."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        return None
    if key in _KEY_VALUE_HEADS:
        share = max(1.0, heads * value / own["num_attention_heads"])
        return max(n for n in range(1, heads + 1) if heads % n == 0 and n <= share)
    if key == "head_dim":
        return width // heads
    if _WIDTHS.search(key) or _HEAD_WIDTHS.search(key):
        return max(_MULTIPLE, round(value * times / _MULTIPLE) * _MULTIPLE)
    if key in _EXPERTS:
        return min(value, 4)
    return min(value, 2) if _VISITED.search(key) else None


def _by_block(key: str, value: Any, blocks: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == blocks and any(word in key for word in _BY_BLOCK)
