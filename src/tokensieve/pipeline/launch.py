"""The processes of one command: ranks under torchrun or accelerate launch, their device, and waiting for each other."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

from ..runs.errors import UserError


@dataclass(frozen=True)
class Ranks:
    """This process's place among those started together."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0


def ranks() -> Ranks:
    """From the environment that torchrun and accelerate launch set; one process without it."""
    return Ranks(_number("RANK", 0), _number("WORLD_SIZE", 1), _number("LOCAL_RANK", 0))


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise UserError(f"the environment variable {name} is {text!r}, a whole number is needed")
    return int(text)


def device(ranks: Ranks) -> str:
    """This rank's GPU, or the CPU."""
    import torch

    return f"cuda:{ranks.local_rank}" if torch.cuda.is_available() else "cpu"


def check_device(name: str | None) -> None:
    """Raise UserError if ``name`` is no device of this machine. None: whichever there is."""
    import torch

    if name is not None and name.split(":")[0] == "meta":
        raise UserError("device: 'meta' computes nothing")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as e:
        raise UserError(f"device: {name!r} cannot be used: {str(e).splitlines()[0]}") from None


# How long a rank waits for the others: one may have hours of shards more. If one dies, its launcher ends the rest.
PATIENCE = timedelta(days=30)


def wait_for_all(ranks: Ranks) -> None:
    """Return when every rank has come here. gloo: the ranks exchange nothing else."""
    if ranks.size == 1:
        return
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo", rank=ranks.rank, world_size=ranks.size, timeout=PATIENCE)
        dist.barrier()
    else:  # by the Trainer, with half an hour of patience
        dist.barrier(dist.new_group(backend="gloo", timeout=PATIENCE))
