"""What a training run's arguments must be, seen before any work is done: TrainingArguments, LoRA and objectives take much that
fails an hour later, that does nothing here, or that would run code."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import Trainer, get_scheduler

from ..runs.errors import UserError
from ..training.arguments import AUTO_BATCH, LIGER, check_fields, check_some_steps
from .config.fields import from_fields
from .config.help import one_line

DEEPSPEED = "DeepSpeed owns the gradients and is not supported: use DDP or FSDP2"
# Fields of TrainingArguments that may only keep their default, and why.
REFUSED = {
    "deepspeed": DEEPSPEED,
    "push_to_hub": "nothing is uploaded by a run: upload its folder model/ when it is done",
    "resume_from_checkpoint": "set the field resume of train instead",
    "ignore_data_skip": "a resumed run would see its first rows again",
    "auto_find_batch_size": AUTO_BATCH,
    "use_liger_kernel": LIGER,
    "enable_jit_checkpoint": "a run saves a checkpoint at SIGTERM by itself",
}
AT_LEAST_ZERO = ("learning_rate", "weight_decay", "max_grad_norm", "dataloader_num_workers")
AT_LEAST_ONE = ("per_device_train_batch_size", "gradient_accumulation_steps")
# Fields of LoraConfig that import a module, name another model, or do not belong to LoRA.
REFUSED_LORA = ("megatron_config", "megatron_core", "auto_mapping", "base_model_name_or_path", "peft_type")


def refuse_fields(given: Mapping[str, Any]) -> None:
    """Raise UserError for fields of TrainingArguments that are not supported here. Looks at names only: nothing is built."""
    refused = {name: why for name, why in REFUSED.items() if given.get(name)}
    for prefix, why in (("hub_", REFUSED["push_to_hub"]), ("trackio_", "trackio's logs stay on this machine")):
        refused |= {name: why for name in sorted(map(str, given)) if name.startswith(prefix)}
    if refused:
        raise UserError("; ".join(f"training.{name} is not supported: {why}" for name, why in refused.items()))
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() in ("true", "1"):
        raise UserError(f"accelerate launch was told to use DeepSpeed: {DEEPSPEED}")


def check_arguments(args: Any) -> None:
    """Raise UserError for numbers that make no sense, and for an optimizer or schedule that cannot be made."""
    check_some_steps(args, "training: ")
    check_fields(args, "training.")
    for names, least in ((AT_LEAST_ZERO, 0), (AT_LEAST_ONE, 1)):
        for name in names:
            if not getattr(args, name) >= least:
                raise UserError(f"training.{name} must be at least {least}, not {getattr(args, name)}")
    if args.save_strategy == "steps" and not args.save_steps > 0:
        raise UserError(f"training.save_steps must be above 0, not {args.save_steps}; save_strategy: no saves none")
    _check_checkpointing(args.gradient_checkpointing_kwargs or {})
    try:
        _make_optimizer(args)
    except (ValueError, TypeError, ImportError, RuntimeError) as e:
        raise UserError(f"training: {one_line(e)}") from None


def _check_checkpointing(kwargs: Mapping[str, Any]) -> None:
    known = {*inspect.signature(checkpoint).parameters} - {"function", "args", "kwargs"}
    if wrong := sorted(set(kwargs) - known):
        raise UserError(f"training.gradient_checkpointing_kwargs: {wrong[0]!r} is none of {', '.join(sorted(known))}")


_NEED_THE_MODEL = {
    "galore": "galore_torch",
    "apollo": "apollo_torch",
}  # asked for without one, transformers refuses them


def _make_optimizer(args: Any) -> None:
    """The optimizer and schedule for a parameter of one number: they check their settings when they are made."""
    name = str(getattr(args.optim, "value", args.optim))
    if package := next((p for prefix, p in _NEED_THE_MODEL.items() if name.startswith(prefix)), None):
        try:
            importlib.import_module(package)
        except ImportError:
            told = f"{package.replace('_', '-')} bitsandbytes"
            raise ValueError(f"optim {name} needs {package} and what it imports: pip install {told}") from None
        if not args.optim_target_modules:
            raise ValueError(f"optim {name} needs optim_target_modules, as [attn, mlp]")
        return
    cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(args)
    if not cls.__module__.startswith("torch.optim"):
        return  # some of the others need the model
    optimizer = cls([torch.nn.Parameter(torch.zeros(1))], weight_decay=args.weight_decay, **kwargs)
    get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=1,
        num_training_steps=2,
        scheduler_specific_kwargs=dict(args.lr_scheduler_kwargs or {}),
    )


def lora_config(lora: Mapping[str, Any]) -> Any:
    """``peft.LoraConfig`` of these fields, every one checked by type. Raises UserError naming the field."""
    try:
        from peft import LoraConfig
    except ImportError:
        raise UserError("lora: needs peft: pip install 'tokensieve[peft]'") from None
    if wrong := [f"lora.{name} is not supported" for name in REFUSED_LORA if name in lora]:
        raise UserError("; ".join(wrong))
    return from_fields(LoraConfig, {"task_type": "CAUSAL_LM", **lora}, "lora")
