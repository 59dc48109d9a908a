"""A first step for its memory only: a full micro-batch, forward and backward, with room for the optimizer's state."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ..data.rows import collate


def dry_step(trainer: Any, model: Any) -> None:
    """Run the step's forward and backward on as many of the longest rows as a micro-batch holds. Leaves nothing behind.

    With accumulation twice: from the second micro-batch on there are gradients beside the activations. Under DDP the ranks
    exchange no gradients in it. Whatever is out of memory is raised as torch raises it.
    """
    count = trainer._train_batch_size
    rows = trainer.train_dataset
    [batch] = trainer.fed([collate(rows.__getitems__(longest_rows(rows, count)))])
    passes = 2 if trainer.args.gradient_accumulation_steps > 1 else 1
    local = model.no_sync if isinstance(model, torch.nn.parallel.DistributedDataParallel) else contextlib.nullcontext
    trainer.current_gradient_accumulation_steps = passes
    with _random_state_kept(trainer.args.device), local():
        held = _optimizer_room(trainer)
        trainer.begin_step([batch] * passes)
        for _ in range(passes):
            inputs = trainer._prepare_inputs(dict(batch))
            with trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(model.train(), inputs, num_items_in_batch=1)
            trainer.accelerator.backward(loss)
        del held
    model.zero_grad(set_to_none=True)
    trainer.forget_step()


def longest_rows(rows: Any, count: int, looked_at: int = 4096) -> list[int]:
    """Indices of ``count`` longest rows; those of a prepared corpus have one length. Beyond ``looked_at`` nobody looks."""
    first = list(range(min(len(rows), looked_at)))
    if not rows.whole_rows:
        first.sort(key=lambda i: -len(rows.dataset[i]["input_ids"]))
    return [first[i % len(first)] for i in range(count)]


def _optimizer_room(trainer: Any) -> list[torch.Tensor]:
    """What Adam's two moments will take from the first update on: without them the second step is the one that fails."""
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    if optimizer.state or "adam" not in type(optimizer).__name__.lower():
        return []
    trained = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    return [torch.empty_like(p) for p in trained for _ in range(2)]


@contextlib.contextmanager
def _random_state_kept(device: torch.device) -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002


def out_of_memory(error: BaseException, args: Any, device: torch.device) -> str | None:
    """A sentence that says what to lower, if ``error`` is about memory; else None."""
    asked = isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
    if not asked:
        return None
    size = (
        f" ({torch.cuda.get_device_properties(device).total_memory / 2**30:.0f} GiB)" if device.type == "cuda" else ""
    )
    rows, accumulated = args.per_device_train_batch_size, args.gradient_accumulation_steps
    ways = []
    if rows > 1:
        ways.append(
            f"lower training.per_device_train_batch_size (now {rows}) and raise training.gradient_accumulation_steps "
            f"(now {accumulated}) as much"
        )
    if not args.activation_checkpointing:
        ways.append("set training.activation_checkpointing: true")
    if not (args.bf16 or args.fp16):
        ways.append("set training.bf16: true")
    ways.append("take shorter rows (prepare --length)")
    return f"out of memory on {device}{size} in a step of {rows} rows: {', or '.join(ways)}"
