"""Rho-1 in a bare Accelerate loop, no Trainer: FSDP2, DDP or one process, as it is launched.

    accelerate launch --num_processes 8 --use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP \\
        examples/accelerate_loop.py --model runs/x/base --corpus runs/x/corpus --scores runs/x/scores --out runs/x/rho1

The loss is made inside the model's forward, by hooks on its head: there FSDP has the head's weight, and no [tokens, vocab]
logits come into being. A step is divided once, by what is kept in all its micro-batches on all ranks.
"""

import argparse
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

import tokensieve as ts
from tokensieve.data.rows import EpochSampler, Rows, collate, next_token


def train(
    accelerator: Accelerator,
    model: Any,
    optimizer: Any,
    rows: Rows,
    *,
    batch: int,
    accumulate: int,
    ratio: float,
    max_norm: float = 1.0,
) -> Any:
    """One epoch over ``rows``, ``batch`` of them a rank and micro-batch; the prepared model."""
    seam = ts.HeadSeam(model)  # before FSDP, whose hooks then stand around these
    order = EpochSampler(len(rows), seed=0, multiple=batch * accumulate * accelerator.num_processes)  # whole steps only
    loader = DataLoader(rows, batch, sampler=order, collate_fn=collate)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    model.train()
    micro_batches: list[dict[str, torch.Tensor]] = []
    for loaded in loader:
        micro_batches.append(loaded)
        if len(micro_batches) == accumulate:
            backward(accelerator, model, seam, micro_batches, ratio)
            accelerator.clip_grad_norm_(model.parameters(), max_norm)
            optimizer.step()
            optimizer.zero_grad()
            micro_batches.clear()
    return model


def backward(
    accelerator: Accelerator, model: Any, seam: ts.HeadSeam, micro_batches: list[dict[str, torch.Tensor]], ratio: float
) -> None:
    """The gradients of one step; each row is ranked by itself, so that ranks need not exchange their scores."""
    valid = [b["targets"] != ts.IGNORE_INDEX for b in micro_batches]
    kept = torch.stack([ts.kept_count(v.sum(-1), ratio).sum() for v in valid]).sum()
    denominator = accelerator.reduce(kept, "sum") / accelerator.num_processes  # gradients are averaged over ranks
    for data, valid_BT in zip(micro_batches, valid, strict=True):

        def loss(hidden: torch.Tensor, head: ts.LinearHead, data: Any = data, valid: Any = valid_BT) -> torch.Tensor:
            nll = ts.LinearNLL(hidden, head, data["targets"])
            score = ts.excess(nll.nll, next_token(data["ref_nll"]))
            loss_sum, _ = nll.weighted_sum(ts.top_fraction(score, valid, ratio, scope="sequence"))
            return loss_sum / denominator

        with seam.run(loss):
            accelerator.backward(model(**seam.inputs(data), labels=data["labels"]).loss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "corpus", "scores", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--accumulate", type=int, default=8)
    parser.add_argument("--ratio", type=float, default=0.6)
    parser.add_argument("--lr", type=float, default=1e-4)
    options = parser.parse_args()

    accelerator = Accelerator()
    model = AutoModelForCausalLM.from_pretrained(options.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
    rows = Rows(ts.load_scored(options.corpus, options.scores), scores=["ref_nll"])
    split = {"batch": options.batch, "accumulate": options.accumulate, "ratio": options.ratio}
    model = train(accelerator, model, optimizer, rows, **split)
    weights = accelerator.get_state_dict(model)
    accelerator.unwrap_model(model).save_pretrained(
        options.out, state_dict=weights, is_main_process=accelerator.is_main_process
    )
    accelerator.end_training()


if __name__ == "__main__":
    main()
