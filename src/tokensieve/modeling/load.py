"""Causal LMs from local folders or from a config, and the hash that names their weights."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..runs.errors import UserError
from ..runs.files import read_json
from .family import LIKE, small_config
from .folder import check_config, first_line, model_folder, read_config, told_by_library

MODEL_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def load_causal_lm(folder: Path | str, *, dtype: str = "float32", strict: bool = False) -> Any:
    """A causal LM from a local Hugging Face folder, in eval mode.

    Nothing that the folder brings or names is run: no code beside the weights, no pickle, no kernel or adapter from elsewhere.
    Weights that the model lacks are refused; ``strict``: those that it has no place for as well.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    check_dtype(dtype)
    folder = model_folder(folder)
    check_config(folder)
    _check_text_model(folder)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=_dtype(dtype),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
        )
    except SafetensorError as e:
        raise UserError(f"the weights in {folder} cannot be read: {first_line(e)}") from None
    except Exception as e:  # whatever a model class raises for values in a config that make no sense to it
        raise UserError(f"{folder} cannot be loaded as a causal language model: {told_by_library(e)}") from None
    if wrong := sorted(info["mismatched_keys"]):
        raise UserError(f"{folder} has weights of another shape than its config says, the first are {wrong[0][0]}")
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"{folder} lacks the weights of {missing[0]}: they would be drawn at random")
    if strict and (left := sorted(info["unexpected_keys"])):
        raise UserError(f"{folder} has weights that its config has no place for, the first are {left[0]}")
    return model.eval()


def _check_text_model(folder: Path) -> None:
    """Refuse a vision-language model by what it is: the library's own sentence speaks of its classes."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    config = read_json(folder / "config.json")
    if "vision_config" in config and config["model_type"] not in CAUSAL:
        raise UserError(
            f"{folder} is a vision-language model ({config['model_type']}): corpora and verbs are of text alone; train it on "
            "rows with images by tokensieve.SelectiveTrainer in Python (docs/trainers.md)"
        )


def new_causal_lm(config: Mapping[str, Any], *, seed: int, dtype: str = "float32", **defaults: Any) -> Any:
    """A causal LM with random weights of :func:`model_config`. The same seed gives the same weights."""
    from transformers import AutoModelForCausalLM, set_seed

    made = model_config(config, **defaults)
    set_seed(seed)
    try:
        model = AutoModelForCausalLM.from_config(made, dtype=_dtype(dtype), trust_remote_code=False)
        with torch.no_grad():  # heads that do not share out, a rope of a type nobody knows: seen in a forward only
            model.eval()(input_ids=torch.zeros(1, 2, dtype=torch.long))
    except Exception as e:  # whatever a model class raises for values in a config that make no sense to it
        raise UserError(f"model: a {made.model_type} of this config cannot be built: {told_by_library(e)}") from None
    return model.train()


def model_shapes(config: Any) -> Any:
    """The causal LM of a transformers config without its weights (on torch's meta device), to count with."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def model_config(config: Mapping[str, Any], **defaults: Any) -> Any:
    """A transformers config. ``config`` holds ``model_type`` and any of that config class's fields, or is :func:`spelled_out`.

    ``defaults`` (vocabulary size, token ids) fill in what ``config`` does not say.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    config = spelled_out(config)
    fields = {**defaults, **config}
    model_type = fields.pop("model_type", None)
    if model_type is None:
        raise UserError("model: a config needs the field model_type (llama, qwen2, gpt2 ...)")
    if model_type not in CAUSAL:
        close = difflib.get_close_matches(str(model_type), CAUSAL, 1)
        near = f", did you mean {close[0]!r}?" if close else ": transformers knows llama, qwen2, gpt2 ..."
        raise UserError(f"model: {model_type!r} is no type of causal language model{near}")
    try:
        made = AutoConfig.for_model(model_type, **fields)
    except StrictDataclassError as e:
        raise UserError(f"model: {str(e).split('Error: ')[-1].strip()}") from None
    except Exception as e:  # whatever a config class raises
        raise UserError(f"model: {told_by_library(e)}") from None
    for name in ("num_hidden_layers", "n_layer", "vocab_size", "max_position_embeddings"):
        if name in config and not fields[name] >= 1:
            raise UserError(f"model: {name} must be at least 1, not {fields[name]}")
    known = set(type(made)().to_dict())
    if wrong := sorted(set(config) - known - {"model_type"}):
        close = difflib.get_close_matches(wrong[0], known, 1)
        near = f", did you mean {close[0]!r}?" if close else ""
        raise UserError(f"model: {type(made).__name__} has no field {wrong[0]!r}{near}")
    return made


def spelled_out(config: Mapping[str, Any]) -> dict[str, Any]:
    """A model's fields as they are; of ``{like: FOLDER or config, hidden_size: ...}`` those of a small one of its family."""
    fields = dict(config)
    if LIKE not in fields:
        return fields
    like = fields.pop(LIKE)
    if not isinstance(like, str | Mapping):
        raise UserError(f"model: like: a model's folder or a config is needed, not {like}")
    return small_config(read_config(like) if isinstance(like, str) else model_config(like), fields)


def check_vocabulary(model: nn.Module, vocab_size: int, what: str) -> None:
    """The model must have a row for every token id of the corpus; it may have more (padding of the table)."""
    rows = int(model.get_output_embeddings().weight.shape[0])  # type: ignore[operator]
    if rows < vocab_size:
        raise UserError(
            f"{what} has a vocabulary of {rows}, the corpus one of {vocab_size}: they do not belong together"
        )


def check_tokenizer(folder: Path | str, tokenizer: Any, what: str) -> None:
    """The tokenizer saved with a model must give every text the ids that ``tokenizer`` gives it.

    Another tokenizer of the same size fits every shape and gives numbers without meaning, and so does the same vocabulary
    with other merges or another pre-tokenizer. What may differ, and why: :mod:`tokensieve.data.tokenizer_state`. EOS may as
    well: a corpus has it as an id like any other. A model folder without tokenizer.json cannot be checked.
    """
    from ..data.tokenizer import load_tokenizer
    from ..data.tokenizer_state import state_of, tokenizer_difference

    saved = model_folder(folder)
    check_config(saved)
    if not (saved / "tokenizer.json").is_file():
        return
    theirs = state_of(load_tokenizer(saved).backend_tokenizer)
    if wrong := tokenizer_difference(state_of(tokenizer.backend_tokenizer), theirs):
        raise UserError(f"{folder} was trained with another tokenizer than {what}: they differ in {wrong}")


def check_length(config: Any, length: int, what: str) -> None:
    """Rows must not be longer than the positions a model knows, stretched ones included. ``config``: the model's."""
    config = config.get_text_config()
    longest = max_positions(config)
    if longest is None or length <= longest:
        return
    known = config.max_position_embeddings
    said = f"rows of {length} tokens are longer than {what}'s max_position_embeddings of {known}"
    if longest > known:
        said += f", which its rope scaling stretches to {longest}: set a larger factor in its config's rope_parameters"
    elif _ropes(config):
        way = f"rope_type: yarn, factor: {-(-length // known)}.0, original_max_position_embeddings: {known}"
        said += f": rope_parameters in its config can stretch them ({way})"
    raise UserError(said + (", or prepare shorter rows" if _ropes(config) else ""))


def max_positions(config: Any) -> int | None:
    """The longest row a text config allows; None if it does not say. At least ``max_position_embeddings``; with rope scaling
    ``original_max_position_embeddings * factor``, if that is more, where the original may be ``max_position_embeddings``:
    some configs give the length before stretching there and some the one after, so the larger counts."""
    known: int | None = getattr(config, "max_position_embeddings", None)
    if known is None:
        return None
    stretched = [known]
    for rope in _ropes(config):
        original = rope.get("original_max_position_embeddings") or known
        if (
            isinstance(factor := rope.get("factor"), int | float)
            and rope.get("rope_type", rope.get("type")) != "default"
        ):
            stretched.append(int(original * factor))
    return max(stretched)


def _ropes(config: Any) -> list[Mapping[str, Any]]:
    """The settings of rotary positions, of every kind of layer that has its own; none for learned positions."""
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = [rope for rope in given.values() if isinstance(rope, Mapping)]
    return kinds or ([given] if given else [])


def quiet_loading() -> None:
    """Keep transformers' loading bars and notes off the terminal of a verb that has a progress bar of its own."""
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity(logging.ERROR)


def check_dtype(name: str) -> None:
    if name not in MODEL_DTYPES:
        raise UserError(f"unknown dtype {name!r}: one of {', '.join(MODEL_DTYPES)}")


def _dtype(name: str) -> torch.dtype:
    check_dtype(name)
    return MODEL_DTYPES[name]
