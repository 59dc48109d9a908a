"""Engines and models beside which a token-weighted loss would be silently wrong: each is refused by name."""

from __future__ import annotations

from typing import Any

from ..core import Objective
from ..runs.errors import UserError


def check_one_device(args: Any) -> None:
    """Raise UserError where one process would spread a micro-batch over several GPUs."""
    if args.n_gpu > 1:
        raise UserError(
            "several GPUs in one process (DataParallel) are not supported: use torchrun or accelerate launch"
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
