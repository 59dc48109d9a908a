"""Steps of SGD over the same global batches, split into rows x accumulation x ranks in every way. As a script:

RANK=0 WORLD_SIZE=2 ... python split_cases.py FOLDER CASE=STEPS...

FOLDER/ranks-<W>.pt: the weights that W ranks came to, for every case and split.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import rank_cases
import tiny
import torch
import words
from torch import Tensor

from tokensieve.core import Objective, objective
from tokensieve.data.rows import Rows

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


def sft(model: Any, args: Any, data: Any, made: Objective) -> Any:
    """TRL packs two rows to one, with weights beside them."""
    from trl import SFTConfig

    from tokensieve.training.trl import SelectiveSFTTrainer

    rows = tiny.rows(2 * len(data), seed=4)
    weight = torch.rand(len(rows), tiny.LENGTH, generator=torch.Generator().manual_seed(4))
    packs = {"packing": True, "packing_strategy": "bfd", "max_length": 2 * tiny.LENGTH, "hub_token": None}
    given = {"train_dataset": rows.add_column("weight", weight.tolist()), "processing_class": words.tokenizer()}
    trainer = SelectiveSFTTrainer(model, SFTConfig(**{**args.to_dict(), **packs}), objective=made, **given)
    trainer.train()
    return trainer


def accelerate_loop(model: Any, args: Any, data: Any, made: Objective) -> Any:
    from accelerate import Accelerator, FullyShardedDataParallelPlugin

    layers = args.fsdp_config["transformer_layer_cls_to_wrap"]
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=layers
    )
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "accelerate_loop.py"))
    split = {"batch": args.per_device_train_batch_size, "accumulate": args.gradient_accumulation_steps}
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    accelerator = Accelerator(fsdp_plugin=plugin)
    given = {**split, "ratio": made.options["ratio"], "max_norm": args.max_grad_norm}
    model = example["train"](accelerator, model, optimizer, Rows(data, scores=["ref_nll"]), **given)
    return SimpleNamespace(model=model)


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
    train: Callable[..., Any] = tiny.train
    on_ranks: Callable[..., Any] | None = None
    """In place of ``train`` on several ranks."""


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
    "sft": Case(objective("rho1", ratio=0.4, scope="sequence"), train=sft),
    "accelerate loop": Case(
        objective("rho1", ratio=0.4, scope="sequence"),
        fields={**LAYERS, "train_sampling_strategy": "random", "max_grad_norm": 10.0},
        sharded=True,
        on_ranks=accelerate_loop,
    ),
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
    train = case.on_ranks if case.on_ranks is not None and num_ranks > 1 else case.train
    trainer = train(model, args, data, case.made)
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
