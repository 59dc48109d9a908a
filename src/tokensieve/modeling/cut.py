"""The first blocks of a model as a model of its own: what a smaller reference begins with.

Inheritune (arXiv 2404.08634): the first n blocks, the embeddings, the last norm and the head of a larger model, as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..runs.errors import UserError
from .folder import model_folder, read_config, told_by_library
from .load import load_causal_lm, max_positions, model_shapes
from .seam import base_model

# A list of as many entries as there are blocks is one entry a block if its field is named so: layer_types, no_rope_layers,
# layers_block_type, indexer_types ...; eos_token_id of a model of two blocks is not.
_A_BLOCK_EACH = ("layer", "block", "types", "pattern")
# Fields that count blocks from the end, or from one another: the first n of them would be other blocks than they were.
_FROM_THE_END = ("num_kv_shared_layers",)
_STORED = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def first_blocks(model: Any, layers: int) -> Any:
    """``head(norm(block_n(... block_1(embed(ids)))))`` for n = ``layers``: ``model`` itself, cut in place, config and all.

    ``layers`` equal to the blocks that are there changes nothing. Nothing is rescaled. With or without weights (meta device).
    Raises UserError for a model without one list of ``num_hidden_layers`` blocks, for blocks that share weights, and for
    configs that cannot be cut with them.
    """
    blocks = _blocks(model, layers)
    if layers < len(blocks):
        cut_config(model.config.get_text_config(), layers, model.config.model_type)
        del blocks[layers:]
    return model


def _blocks(model: Any, layers: int) -> nn.ModuleList:
    """The one list of blocks, which has at least ``layers``."""
    _, blocks = blocks_of(model)
    if layers > len(blocks):
        raise UserError(f"layers: the model has {len(blocks)} blocks, so {layers} cannot be kept")
    return blocks


def blocks_of(model: Any, done: str = "cut") -> tuple[str, nn.ModuleList]:
    """(its path in the model's body, the one list of blocks); lists inside a block (experts, heads) may be as long as it is.

    Raises UserError for a model without one list of ``num_hidden_layers`` blocks, and for blocks that share weights: it cannot
    be ``done``.
    """
    name, text = model.config.model_type, model.config.get_text_config()
    body = base_model(model) if text is model.config else model.get_decoder()
    number = num_blocks(text, name)
    found: dict[str, nn.ModuleList] = {}
    for path, module in body.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and len(module) == number and not inside:
            found[path] = module
    if len(found) != 1:
        there = f"{len(found)} lists ({', '.join(found)})" if found else "no list"
        raise UserError(f"a {name} cannot be {done}: of {number} blocks it has {there}, so which they are is not known")
    [(path, blocks)] = found.items()
    _check_own_weights(blocks, name, done)
    return path, blocks


def num_blocks(config: Any, name: str) -> int:
    """``num_hidden_layers``, by whichever name the config class gives it."""
    number = getattr(config, "num_hidden_layers", None)
    if not isinstance(number, int) or number < 1:
        raise UserError(f"a {name} cannot be cut: its config does not say how many blocks it has (num_hidden_layers)")
    return number


def _check_own_weights(blocks: nn.ModuleList, name: str, done: str) -> None:
    owner: dict[int, int] = {}
    for number, block in enumerate(blocks):
        for parameter in block.parameters():
            if (first := owner.setdefault(id(parameter), number)) != number:
                raise UserError(f"a {name} cannot be {done}: its blocks {first} and {number} share weights")


def cut_config(config: Any, layers: int, name: str) -> None:
    """Make a text config say ``layers`` blocks, in place, with the first entries of what it lists for every block."""
    pick_config(config, range(layers), name)


def pick_config(config: Any, kept: Sequence[int], name: str, done: str = "cut") -> None:
    """Make a text config say the blocks ``kept``, in place: numbers of its own, in this order, some perhaps several times."""
    number, layers = num_blocks(config, name), len(kept)
    if wrong := [f for f in _FROM_THE_END if getattr(config, f, 0)]:
        raise UserError(
            f"a {name} cannot be {done}: {wrong[0]} is {getattr(config, wrong[0])}, and its last blocks would go"
        )
    try:
        for field, value in config.to_dict().items():
            listed = isinstance(value, list | tuple) and len(value) == number and field != "attention_types"
            if listed and any(word in field for word in _A_BLOCK_EACH):
                setattr(config, field, [value[i] for i in kept])
        if getattr(config, "attention_types", None):  # of GPT-Neo: patterns and how often each, read before the list
            kinds = list(config.attention_layers)
            if len(kinds) == number:  # not picked by its own name above
                kinds = [kinds[i] for i in kept]
            config.attention_types = [[kinds, 1]]
        config.num_hidden_layers = layers
        config.validate()
    except Exception as e:  # whatever a config class raises
        raise UserError(f"a {name} cannot be {done} to {layers} blocks: {told_by_library(e)}") from None
    if config.num_hidden_layers != layers:
        raise UserError(f"a {name} cannot be {done}: its number of blocks follows from fields that are not understood")


def _check_shapes(model: Any, layers: int, name: str) -> None:
    """The config makes the model that was cut, by names and shapes of weights. Costs a model without weights."""
    try:
        made = model_shapes(copy.deepcopy(model.config)).state_dict()
    except Exception as e:  # whatever a model or config class raises
        raise UserError(f"a {name} cannot be cut to {layers} blocks: {told_by_library(e)}") from None
    shapes = [{n: w.shape for n, w in weights.items()} for weights in (model.state_dict(), made)]
    if wrong := sorted(n for n in {*shapes[0], *shapes[1]} if shapes[0].get(n) != shapes[1].get(n)):
        raise UserError(
            f"a {name} cannot be cut to {layers} blocks: its config has fields for its blocks that are not understood "
            f"({wrong[0]} would be another)"
        )


def cut_folder(folder: Path | str, layers: int) -> Any:
    """The model of a local folder, loaded strictly in the precision it is stored in, and cut to its first blocks.

    Proved on a batch of random ids: what comes out of the last kept block is the same to the last bit before and after.
    """
    model = open_source(folder)
    last = _blocks(model, layers)[layers - 1]
    before = _out_of(last, model)
    if not torch.equal(before, _out_of(last, first_blocks(model, layers))):
        raise UserError(
            f"a {model.config.model_type} cannot be cut: without its later blocks, block {layers} computes otherwise"
        )
    _check_shapes(model, layers, model.config.model_type)
    return model


def open_source(folder: Path | str, verb: str = "cut", done: str = "cut") -> Any:
    """The model of a local folder, loaded strictly in the precision it is stored in. UserError for what cannot be ``done``."""
    folder = model_folder(folder)
    config = read_config(folder)
    if config.is_encoder_decoder:
        raise UserError(f"{folder} is an encoder-decoder ({config.model_type}): only decoders can be {done}")
    if getattr(config, "quantization_config", None):
        raise UserError(f"{folder} is quantised: {verb} the model that it was made from")
    return load_causal_lm(folder, dtype=stored_dtype(folder), strict=True)


def _out_of(block: nn.Module, model: Any) -> Tensor:
    """What a block of the model gives to the next one."""
    seen: list[Any] = []
    handle = block.register_forward_hook(lambda _, args, out: seen.append(out))
    random_logits(model)
    handle.remove()
    hidden: Tensor = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    return hidden


def stored_dtype(folder: Path) -> str:
    """The widest dtype of a folder's weights: loaded in it, no bit is lost. float32 for bfloat16 beside float16."""
    from safetensors import safe_open

    found = set()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as weights:
            found |= {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118  no mapping
    floats = {d for d in found if d.startswith(("F", "BF"))}
    if strange := sorted(floats - set(_STORED)):
        raise UserError(f"{folder} is quantised ({strange[0]}): cut the model that it was made from")
    if floats == {"BF16", "F16"}:
        return "float32"
    return next((name for stored, name in _STORED.items() if stored in floats), "float32")


def check_saved(folder: Path, live: Any, done: str = "cut") -> None:
    """Refuse (UserError) a saved model unless it is ``live``: read again, every weight is equal and so are the logits.

    The logits are of one batch of random ids, with the same weights in memory: what they compare is what config and classes
    make of them. A class that computes with the number of blocks (a scale of residuals by depth) is found by it.
    """
    kind = live.config.model_type
    again = load_causal_lm(folder, dtype=str(live.dtype).removeprefix("torch."), strict=True)
    wanted, found = live.state_dict(), again.state_dict()
    if wrong := sorted(n for n in {*wanted, *found} if not _equal(wanted.get(n), found.get(n))):
        raise UserError(f"a {kind} cannot be {done}: saved and read again, {wrong[0]} is another")
    again.load_state_dict(wanted, assign=True)
    if not torch.equal(random_logits(live), random_logits(again)):
        of_blocks = done in ("cut", "pruned", "grown")
        built, so = (
            ("with so many blocks", ", so it computes with their number") if of_blocks else ("from its config", "")
        )
        raise UserError(
            f"a {kind} cannot be {done}: with the same weights, one built {built} computes other logits{so}"
        )


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and one.dtype == other.dtype and torch.equal(one, other)


@torch.no_grad()
def random_logits(model: Any) -> Tensor:
    """Of a batch of random ids, always the same. [2, T, V]"""
    text = model.config.get_text_config()
    length, generator = min(32, max_positions(text) or 32), torch.Generator().manual_seed(0)
    ids = torch.randint(int(text.vocab_size), (2, length), generator=generator)
    try:
        return model.eval()(input_ids=ids, use_cache=False).logits  # type: ignore[no-any-return]
    except Exception as e:  # whatever a model class raises for a pattern of blocks that it was not written for
        number = num_blocks(text, model.config.model_type)
        raise UserError(
            f"a {model.config.model_type} of {number} such blocks does not run: {told_by_library(e)}"
        ) from None
