"""One optimizer step through real trainers: the plain HF Trainer against ``backward: sparse``, in its three regimes.

    python benchmarks/sparse_backward.py                                       two shapes, about an hour on two quiet cores
    python benchmarks/sparse_backward.py --models llama-3.2-1b --device cuda --rows 8 --length 2048

regime           plain                                  sparse
after            Trainer                                rho1: chosen after the forward, from the excess
checkpointing    Trainer, activation_checkpointing      the same, and rho1
before           Trainer                                random: known before the forward

Both train the same rows with AdamW, gradients clipped. A step is timed from the end of the one before it to its own end. With
--clock cpu that is the processor's time of this process, which other processes on the machine hardly change: for one thread.
Peak memory is that of a second step above what was there before it: weights, gradients and optimizer state are in neither.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import tempfile
import time
from functools import partial
from typing import Any

import torch
from measure import peak_memory, ratios, report, spread, synchronize
from step import MODELS, arguments, make_model, make_rows, plain
from transformers import TrainerCallback

import tokensieve as ts
from tokensieve.modeling.flops import token_flops

LAYERS = {"tinyllama-1.1b": 8, "qwen2.5-0.5b": 12, "llama-3.2-1b": 16}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
OBJECTIVES = {"after": "rho1", "checkpointing": "rho1", "before": "random"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tinyllama-1.1b", "qwen2.5-0.5b"], choices=MODELS)
    parser.add_argument("--layers", type=int, default=0, help="0: as in this file")
    parser.add_argument("--regimes", nargs="+", default=list(OBJECTIVES), choices=OBJECTIVES)
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.6, 0.3])
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"])
    parser.add_argument("--memory", action="store_true", help="measure peak memory, too")
    parser.add_argument("--memory_only", action="store_true", help="and no time: on a machine that others use")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/<name>-<date>-<device>.{md,json}")
    parser.add_argument("--name", default="sparse-backward", help="of the results files")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    records: list[dict[str, Any]] = []
    for name in args.models:
        for regime in args.regimes:
            records.append(measure(args, name, regime))
            show(args, records)  # after each: what comes later may be stopped
            gc.collect()


def show(args: argparse.Namespace, records: list[dict[str, Any]]) -> None:
    about = (
        f"Time of a step over that of the plain HF Trainer of the same regime, median (lowest-highest) of {args.rounds} "
        f"rounds, in brackets the bound from FLOPs without the optimizer; {args.rows} rows of {args.length} tokens, AdamW, "
        f"{'bfloat16 autocast' if args.device != 'cpu' else 'float32'} on {args.device}, {args.threads} threads, "
        f"{args.clock} clock. Memory: peak of a second step over plain's. Load: processes that wanted to run while it was "
        "measured, ours among them."
    )
    report(args.name, "Token-sparse backward", about, [[shown(r) for r in records]], records, save=args.save)


def measure(args: argparse.Namespace, name: str, regime: str) -> dict[str, Any]:
    config = {**MODELS[name], "num_hidden_layers": args.layers or LAYERS[name]}
    model = make_model(config, 0, args.device)
    rows = make_rows(args, config["vocab_size"], 2)
    fields = {"activation_checkpointing": regime == "checkpointing"}
    ways: dict[str, Any] = {"plain": partial(plain, model, rows)}
    for ratio in args.ratios:
        ways[f"sparse {ratio}"] = partial(sparse, model, rows, OBJECTIVES[regime], ratio)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    loads = [os.getloadavg()[0]]
    for number in range(0 if args.memory_only else args.rounds):  # each trainer's first step warms up
        for way in [*ways][number % len(ways) :] + [*ways][: number % len(ways)]:
            gc.collect()
            seconds[way].append(Steps(ways[way], args, fields).seconds)
            loads.append(os.getloadavg()[0])
    peak = (
        {way: Steps(ways[way], args, fields, memory=True).peak for way in ways}
        if args.memory or args.memory_only
        else {}
    )
    return {
        "model": name,
        "layers": config["num_hidden_layers"],
        "regime": regime,
        "tokens": args.rows * args.length,
        "device": args.device,
        "seconds": seconds,
        "peak_bytes": peak,
        "bound": {f"sparse {ratio}": bound(model, args, regime, ratio) for ratio in args.ratios},
        "load": max(loads),
    }


class Steps:
    """Two steps of a new trainer: the second one's ``seconds``, and its ``peak`` bytes where ``memory`` is asked for."""

    def __init__(self, make: Any, args: argparse.Namespace, fields: dict[str, Any], *, memory: bool = False) -> None:
        self.peak = 0
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
            given = arguments(folder, args, 2)
            given.activation_checkpointing = given.gradient_checkpointing = fields["activation_checkpointing"]
            trainer = make(given)
            if memory:
                self._watch(trainer, args.device)
            clock = Clock(args)
            trainer.add_callback(clock)
            trainer.train()
            trainer.model.zero_grad(set_to_none=True)
            trainer.model.gradient_checkpointing_disable()
            if hasattr(trainer, "seam"):
                trainer.seam.close()
        self.seconds = clock.ends[-1] - clock.ends[0]

    def _watch(self, trainer: Any, device: str) -> None:
        step, calls = trainer.training_step, []

        def watched(*args: Any, **kwargs: Any) -> Any:
            calls.append(None)
            if len(calls) < 2:
                return step(*args, **kwargs)
            for parameter in trainer.model.parameters():  # in neither of the peaks
                parameter.grad = torch.zeros_like(parameter)
            made: list[Any] = []
            self.peak = peak_memory(lambda: made.append(step(*args, **kwargs)), device)
            return made[0]

        trainer.training_step = watched


class Clock(TrainerCallback):  # type: ignore[misc]
    """When each step ended, by the clock that was asked for."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.device, self.now, self.ends = args.device, CLOCKS[args.clock], list[float]()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        synchronize(self.device)
        self.ends.append(self.now())


def sparse(model: Any, rows: Any, objective: str, ratio: float, args: Any) -> Any:
    from tokensieve.training.trainer import SelectiveTrainer

    made = ts.objective(objective, ratio=ratio)
    return SelectiveTrainer(model, args, train_dataset=rows, objective=made, backward="sparse")


def bound(model: Any, args: argparse.Namespace, regime: str, ratio: float) -> float:
    """FLOPs of a sparse step over a plain one's; with checkpointing the blocks' forward is done twice, or for kept tokens."""
    whole, sparse = token_flops(model, args.length), token_flops(model, args.length, sparse=True)
    again = whole.body if regime == "checkpointing" else 0.0
    return (sparse.train(1, ratio) + ratio * again) / (whole.train(1, 1) + again)


def shown(record: dict[str, Any]) -> dict[str, str]:
    row = {"model": f"{record['model']}, {record['layers']} layers", "regime": record["regime"]}
    for way, limit in record["bound"].items():
        if record["seconds"]["plain"]:
            row[f"{way} / plain"] = f"{spread(ratios(record['seconds'], way, 'plain'))} [{limit:.3f}]"
        if record["peak_bytes"]:
            row[f"memory {way}"] = f"{record['peak_bytes'][way] / record['peak_bytes']['plain']:.2f}"
    if seconds := sorted(record["seconds"]["plain"]):
        row["plain, s"] = f"{seconds[len(seconds) // 2]:.1f}"
    row["load"] = f"{record['load']:.1f}"
    return row


if __name__ == "__main__":
    main()
