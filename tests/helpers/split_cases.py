"""Steps of SGD over the same global batches, split into rows x accumulation x ranks in every way. As a script:

RANK=0 WORLD_SIZE=2 ... python split_cases.py FOLDER CASE=STEPS...

FOLDER/ranks-<W>.pt: the weights that W ranks came to, for every case and split.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rank_cases
import tiny
import torch
from torch import Tensor

from tokensieve.core import Objective, objective

GLOBAL_BATCH = 8
RATE = 0.05
MAX_STEPS = 20


def lora() -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = tiny.llama(dtype=torch.float64)
    torch.manual_seed(1)
    return get_peft_model(model, config).double()


def tied() -> Any:
    return tiny.llama(dtype=torch.float64, tie_word_embeddings=True)


def untied() -> Any:
    return tiny.llama(dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """``same``: the number of rows over all ranks that a micro-batch must keep. ``narrow``: also one row at a time.

    ``short``: rows that the last step lacks.
    """

    made: Objective
    same: int | None = None
    narrow: bool = False
    model: Callable[[], Any] = untied
    fields: dict[str, Any] = field(default_factory=dict)
    sharded: bool = False
    empty: tuple[int, ...] = ()
    short: int = 0


# What accelerate does by default: the embedding, each layer, and norm with head are a unit each; tied: first and last are one.
LAYERS = {"fsdp": True, "fsdp_config": {"transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}}
# Every linear layer is a unit of its own: the head's weight is there while the head is called, and at no other time.
LINEAR = {"fsdp": True, "fsdp_config": {"transformer_layer_cls_to_wrap": ["LlamaDecoderLayer", "Linear"]}}
CHECKPOINTING = {"gradient_checkpointing": True}
# The rows of the last rank of two, and of the last two of four, in every second step.
EMPTY = tuple(
    row for step in range(0, MAX_STEPS, 2) for row in range(step * GLOBAL_BATCH + 4, (step + 1) * GLOBAL_BATCH)
)

CASES = {
    "clm": Case(objective("clm")),
    "sequence": Case(objective("rho1", ratio=0.4, scope="sequence"), narrow=True),
    "random": Case(objective("random", ratio=0.4, scope="sequence")),
    "batch": Case(objective("rho1", ratio=0.4), same=4),
    "step": Case(objective("rho1", ratio=0.4, scope="step"), narrow=True),
    "threshold": Case(rank_cases.threshold(), narrow=True),
    "empty rank": Case(objective("rho1", ratio=0.4, scope="step"), empty=EMPTY),
    "checkpointing": Case(objective("rho1", ratio=0.4, scope="sequence"), fields=CHECKPOINTING),
    "lora": Case(objective("rho1", ratio=0.4, scope="sequence"), model=lora),
    "fsdp": Case(objective("rho1", ratio=0.4, scope="sequence"), fields=LAYERS, sharded=True),
    "fsdp, tied": Case(objective("rho1", ratio=0.4, scope="step"), model=tied, fields=LAYERS, sharded=True),
    "fsdp, tied, batch": Case(objective("rho1", ratio=0.4), same=4, model=tied, fields=LAYERS, sharded=True),
    "fsdp, head alone": Case(objective("rho1", ratio=0.4), same=4, fields=LINEAR, sharded=True),
    "fsdp, uneven end": Case(objective("rho1", ratio=0.4, scope="step"), fields=LAYERS, sharded=True, short=5),
    "fsdp, checkpointing": Case(objective("rho1", ratio=0.4), same=4, fields={**LAYERS, **CHECKPOINTING}, sharded=True),
    "fsdp, lora": Case(objective("rho1", ratio=0.4, scope="sequence"), model=lora, fields=LAYERS, sharded=True),
    "fsdp, threshold, empty rank": Case(rank_cases.threshold(), fields=LINEAR, sharded=True, empty=EMPTY),
}


def splits(case: Case, num_ranks: int) -> list[tuple[int, int]]:
    """(rows of a rank, micro-batches) of a step."""
    each = GLOBAL_BATCH // num_ranks
    if case.same is not None:
        return [(case.same // num_ranks, GLOBAL_BATCH // case.same)]
    return [(each, 1), (1, each)] if case.narrow else [(each, 1)] if num_ranks == 1 else [(each // 2, 2)]


def run_case(
    case: Case, folder: Path, batch: int, accumulate: int, steps: int, num_ranks: int = 1
) -> dict[str, Tensor]:
    """The weights after the last step."""
    model = case.model()
    fields = {k: v for k, v in case.fields.items() if num_ranks > 1 or not k.startswith("fsdp")}
    data = tiny.rows(steps * GLOBAL_BATCH - case.short)
    if case.empty:
        labels = [[-100] * tiny.LENGTH if i in case.empty else row for i, row in enumerate(data["labels"])]
        data = data.remove_columns("labels").add_column("labels", labels)
    args = tiny.arguments(folder, batch, accumulate, max_steps=steps, learning_rate=RATE, logging_steps=10, **fields)
    if num_ranks > 1:
        set_engine(args, case)
    trainer = tiny.train(model, args, data, case.made)
    found = {n: p.detach() for n, p in trainer.model.named_parameters()}
    whole = [n for n, p in found.items() if hasattr(p, "full_tensor") != (case.sharded and num_ranks > 1)]
    assert not whole, (case, whole)
    return {n: (p.full_tensor() if hasattr(p, "full_tensor") else p).clone() for n, p in found.items()}


def main(folder: Path, steps: Mapping[str, int]) -> None:
    rank, num_ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    results = {}
    for name in steps:
        for batch, accumulate in splits(CASES[name], num_ranks):
            out = folder / f"{num_ranks}-{name}-{batch}".replace(" ", "-").replace(",", "")
            results[name, batch, accumulate] = run_case(CASES[name], out, batch, accumulate, steps[name], num_ranks)
    if rank == 0:
        torch.save(results, folder / f"ranks-{num_ranks}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def set_engine(args: Any, case: Case) -> None:
    """What accelerate finds at its next start in this process: one state a process holds the engine of the first trainer.

    It shards on accelerators only. Told that these ranks have some, it runs the same code over gloo.
    """
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    assert args.device.type == "cpu"  # looking for it sets the state up
    AcceleratorState._reset_state(reset_partial_state=False)
    kind = DistributedType.MULTI_GPU if case.sharded else DistributedType.MULTI_CPU
    PartialState._shared_state["distributed_type"] = kind


if __name__ == "__main__":
    main(Path(sys.argv[1]), {name: int(steps) for name, steps in (word.split("=") for word in sys.argv[2:])})
