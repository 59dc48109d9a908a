"""What only a save would meet, met before the first step: everything of a checkpoint but the weights is written once."""

from __future__ import annotations

import contextlib
import pickle
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..modeling.seam import base_model
from ..runs.errors import UserError
from ..runs.files import writing

# Settings of sampling, which a generation config without do_sample must not have: they do nothing there.
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")


def trial_save(model: Any, tokenizer: Any, args: Any) -> None:
    """Write the configs of model, generation, adapter and tokenizer into a folder below ``args.output_dir``, and remove it.

    ``model``: PEFT-wrapped or not. A generation config that cannot be saved has nothing to do with training: it is put right
    and told of. UserError for anything else that cannot be written, for a folder that is not writable, and for a disk with
    less room than the weights take.
    """
    base, out = base_model(model), Path(args.output_dir)
    put_right(base)
    saves: dict[str, Callable[[str], Any]] = {"the model's config": base.config.save_pretrained}
    if base.can_generate():
        saves["the model's generation config"] = base.generation_config.save_pretrained
    if tokenizer is not None:
        saves["the tokenizer"] = tokenizer.save_pretrained
    for adapter in getattr(model, "peft_config", {}).values():
        saves["the adapter's config"] = adapter.save_pretrained
    with _named(f"nothing can be written into {out}"):
        out.mkdir(parents=True, exist_ok=True)
        trial = tempfile.TemporaryDirectory(prefix=".trial-", dir=out, ignore_cleanup_errors=True)
    with trial as folder, writing(out):
        for what, save in saves.items():
            with _named(f"{what} cannot be saved, so that the run would end at its first checkpoint"):
                save(folder)
        with _named("training arguments cannot be saved, so that the run would end at its first checkpoint"):
            pickle.dumps(args)
    _check_room(base, out)


def put_right(model: Any) -> None:
    """Make a transformers model's generation config one that can be saved: sampling that is off has no settings; if that is not
    all, the config made of the model's own. Tells what it did."""
    config = getattr(model, "generation_config", None)
    if config is None or (wrong := _wrong(config)) is None:
        return
    left_out = []
    if not config.do_sample:
        left_out = [name for name in _SAMPLING if getattr(config, name, None) is not None]
        for name in left_out:
            setattr(config, name, None)
    told = f"{', '.join(left_out)} left out of it, which do nothing without do_sample"
    if _wrong(config) is not None:
        model.generation_config = type(config).from_model_config(model.config)
        told = "a new one takes its place"
    print(f"tokensieve: the model's generation config cannot be saved ({wrong}): {told}", file=sys.stderr, flush=True)


def _wrong(config: Any) -> str | None:
    """Why a generation config cannot be saved: the first sentence, without the way to say so to transformers."""
    try:
        config.validate(strict=True)
    except ValueError as e:
        lines = [line.strip("- ").strip() for line in str(e).splitlines()]
        return (next((line for line in lines if line.startswith("`")), lines[0])).split(". ")[0]
    return None


def _check_room(model: Any, out: Path) -> None:
    needed = sum(p.numel() * p.element_size() for p in model.parameters())
    free = shutil.disk_usage(out).free
    if needed > free:
        raise UserError(
            f"{out}: its disk has {free / 2**30:.1f} GiB free, the model alone takes {needed / 2**30:.1f} GiB"
        )


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as e:  # whatever a config, a tokenizer or the system raises
        raise UserError(f"{what}: {' '.join(str(e).split()) or type(e).__name__}") from e
