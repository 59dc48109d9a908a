"""Engines and models beside which a token-weighted loss would be silently wrong: each is refused by name."""

from __future__ import annotations

import os
from typing import Any

from transformers.training_args import ParallelMode

from ..core import Objective
from ..runs.errors import UserError


def check_one_device(args: Any) -> None:
    """Raise UserError where one process would spread a micro-batch over several GPUs, or where ranks would not be one run.

    On a machine without a GPU transformers makes ranks of torchrun's processes with ``use_cpu`` only. Else each takes itself
    for the only one: it trains all rows, and they overwrite each other's files.
    """
    if args.n_gpu > 1:
        raise UserError(
            "several GPUs in one process (DataParallel) are not supported: use torchrun or accelerate launch"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and args.parallel_mode != ParallelMode.DISTRIBUTED:
        raise UserError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, and each process takes itself for the only one: "
            "without a GPU set use_cpu to true, or start a single process"
        )


def check_engine(trainer: Any) -> None:
    """Raise UserError for what shares gradients or rows in a way that the denominator does not know.

    Tensor, context and sequence parallel ranks hold parts of one row: they are no ranks with rows of their own.
    """
    config = getattr(trainer.accelerator, "parallelism_config", None)
    if config is not None and any(getattr(config, f"{kind}_enabled", False) for kind in ("tp", "cp", "sp")):
        raise UserError("tensor, context and sequence parallelism are not supported: use DDP or FSDP2")
    if trainer.is_deepspeed_enabled:
        raise UserError("DeepSpeed owns the gradients and is not supported: use DDP or FSDP2")


def refuse_deferred_router_loss(objective: Objective, model: Any) -> None:
    """Raw sums are divided after the backward; a router loss in the same gradients would be divided with them.

    Classes with images beside their text read the setting from ``config.text_config``.
    """
    configs = (model.config, model.config.get_text_config())
    routed = any(getattr(config, "output_router_logits", False) for config in configs)
    if not objective.counts_ahead and routed:
        raise UserError(
            f"objective {objective.name!r} knows its weight sum only after the forward, which a router loss does not "
            "survive: set output_router_logits to false in the model's config"
        )
