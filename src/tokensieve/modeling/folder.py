"""A model's folder, looked at without loading it: which it is, its config, and the hash of its weights. Without torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..data.verify import remembered_hash
from ..runs.errors import UserError
from ..runs.files import hash_json, read_json


def model_folder(folder: Path | str) -> Path:
    """The folder that holds config.json: ``folder`` itself or, in a training run, its ``model``."""
    folder = Path(folder)
    for candidate in (folder, folder / "model"):
        if (candidate / "config.json").is_file():
            return candidate
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder" if folder.exists() else f"{folder} does not exist")
    raise UserError(f"{folder} is not a model folder: it has no config.json")


def read_config(folder: Path | str) -> Any:
    """The transformers config of a model folder, without its weights."""
    from transformers import AutoConfig

    folder = model_folder(folder)
    check_config(folder)
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as e:  # whatever a config class raises
        raise UserError(f"{folder / 'config.json'}: {told_by_library(e)}") from None


def check_config(folder: Path) -> None:
    """Refuse a model folder that would have code, or weights from elsewhere, loaded for it."""
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or not config.get("model_type"):
        raise UserError(f"{folder / 'config.json'} names no model_type")
    if config.get("auto_map") and not is_known(config["model_type"]):
        raise UserError(
            f"{folder} brings code of its own (auto_map), which is never run: only types of model that transformers has "
            f"can be used, not {config['model_type']!r}"
        )
    if (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder} holds an adapter for another model: merge the two and give the merged model")
    for key, value in _entries(config):
        if key.endswith("attn_implementation") and "/" in str(value):
            raise UserError(f"{folder / 'config.json'}: {key} names a kernel to download: {value}")
        if key == "transformers_weights":
            check_weights(folder / "config.json", [value])
    for path in sorted(folder.glob("*.index.json")):
        index = read_json(path)
        names = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(names, dict):
            raise UserError(f"{path} has no weight_map: it is damaged")
        check_weights(path, names.values())


def check_weights(path: Path, names: Iterable[Any]) -> None:
    """Weights elsewhere, in a pickle or below a folder would be loaded, and :func:`model_hash` would not know of them."""
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{path} names {name!r}, which is outside its folder")
        if not name.endswith((".safetensors", ".safetensors.index.json")):
            raise UserError(f"{path} names {name!r}: only .safetensors weights are read")


def is_known(model_type: object) -> bool:
    from transformers import CONFIG_MAPPING

    return str(model_type) in CONFIG_MAPPING


def _entries(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        yield key, value
        if isinstance(value, Mapping):
            yield from _entries(value)


def model_hash(folder: Path | str) -> str:
    """Identity of a model: its config and the bytes of its weights. UserError if these cannot be read."""
    from safetensors import SafetensorError, safe_open

    folder = model_folder(folder)
    check_config(folder)
    names = sorted(p.name for p in folder.iterdir() if p.suffix == ".safetensors" or p.name == "config.json")
    if not any(n.endswith(".safetensors") for n in names):
        raise UserError(f"{folder} has no .safetensors weights")
    for name in (n for n in names if n.endswith(".safetensors")):
        try:
            with safe_open(folder / name, "np"):
                pass
        except (OSError, SafetensorError) as e:
            raise UserError(f"{folder / name} cannot be read: {first_line(e)}") from None
    return hash_json([(name, remembered_hash(folder / name)) for name in names])


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def told_by_library(error: Exception) -> str:
    """``KeyError: 'nope'`` alone would be ``'nope'``."""
    named = isinstance(error, (OSError, ValueError, RuntimeError))
    return first_line(error) if named else f"{type(error).__name__}: {first_line(error)}"
