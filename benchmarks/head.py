"""The weighted head against a dense one: time and peak memory of forward + backward, as ratios measured in one run.

    python benchmarks/head.py                                        a few minutes on two cores
    python benchmarks/head.py --shapes 2048x128000 --tokens 2048 --device cuda --dtype bfloat16

dense      logits = hidden @ weight.T; F.cross_entropy(logits, targets masked to the kept); backward
kept       ours, keep_logits=True: nll of all rows, then forward + backward over kept rows with the logits of the first pass
recompute  ours, keep_logits=False

A B C A B C ... in one process; the ratio of a round is taken within the round, then median and range over rounds. Memory is
the peak above what was allocated before, gradients included, measured by the tensors that torch allocates. Writes
benchmarks/results/head-<date>.{md,json} with --save.
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from study import environment
from torch import Tensor
from torch.nn import functional as F

import tokensieve as ts
from tokensieve.report.terminal import table
from tokensieve.runs import write_json

SHAPES = ("2048x32000", "2048x128000", "896x152000", "1536x256000")  # D x V
Way = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def dense(hidden: Tensor, weight: Tensor, targets: Tensor, keep: Tensor) -> Tensor:
    """Full logits; what is not kept has no target. The mask is known beforehand here, which spares it the first pass."""
    logits = hidden @ weight.T
    return F.cross_entropy(logits.float(), targets.masked_fill(~keep, -100), reduction="sum")


def ours(keep_logits: bool) -> Way:
    def run(hidden: Tensor, weight: Tensor, targets: Tensor, keep: Tensor) -> Tensor:
        return ts.LinearNLL(hidden, weight, targets, keep_logits=keep_logits).weighted_sum(keep)[0]

    return run


WAYS: dict[str, Way] = {"dense": dense, "kept": ours(True), "recompute": ours(False)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), help="DxV ...")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.3, 0.6, 1.0])
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/head-<date>.{md,json}")
    args = parser.parse_args()
    records = []
    for shape in args.shapes:
        width, vocab = (int(n) for n in shape.split("x"))
        for ratio in args.ratios:
            records.append(measure(args, width, vocab, ratio))
            print(line(records[-1]), flush=True)
    text = render(records, args)
    print("\n" + text)
    if args.save:
        save(records, text)


def measure(args: argparse.Namespace, width: int, vocab: int, ratio: float) -> dict[str, Any]:
    """Time every way in turn, round after round; memory in a pass of its own, which tracing slows down."""
    torch.manual_seed(0)
    options = {"dtype": getattr(torch, args.dtype), "device": args.device}
    hidden = (torch.randn(args.tokens, width, **options)).requires_grad_()
    weight = (torch.randn(vocab, width, **options) * width**-0.5).requires_grad_()
    targets = torch.randint(0, vocab, (args.tokens,), device=args.device)
    keep = ts.top_fraction(
        torch.rand(args.tokens, device=args.device), torch.ones_like(targets, dtype=torch.bool), ratio
    )
    inputs = (hidden, weight, targets, keep)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for round_ in range(args.rounds + 1):
        for name, way in WAYS.items():
            taken = timed(way, inputs, args.device)
            if round_:  # the first round warms up
                seconds[name].append(taken)
    peak = {name: peak_memory(way, inputs, args.device) for name, way in WAYS.items()}
    size = {"d": width, "V": vocab, "tokens": args.tokens, "dtype": args.dtype, "device": args.device, "ratio": ratio}
    return {**size, "seconds": seconds, "peak_bytes": peak}


def timed(way: Way, inputs: tuple[Tensor, ...], device: str) -> float:
    for tensor in inputs[:2]:
        tensor.grad = None
    synchronize(device)
    start = time.perf_counter()
    way(*inputs).backward()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def peak_memory(way: Way, inputs: tuple[Tensor, ...], device: str) -> int:
    """Peak bytes above the inputs during forward + backward."""
    for tensor in inputs[:2]:
        tensor.grad = None
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        way(*inputs).backward()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        way(*inputs).backward()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def ratios(record: dict[str, Any], name: str) -> list[float]:
    """A way's time over dense, round by round."""
    return [a / b for a, b in zip(record["seconds"][name], record["seconds"]["dense"], strict=True)]


def line(record: dict[str, Any]) -> str:
    return "  ".join(f"{k} {v}" for k, v in cells(record).items())


def cells(record: dict[str, Any]) -> dict[str, str]:
    shown = {"d x V": f"{record['d']}x{record['V']}", "tokens": f"{record['tokens']}", "ratio": f"{record['ratio']}"}
    for name in ("kept", "recompute"):
        values = ratios(record, name)
        shown[f"{name}: time"] = f"{median(values):.2f} ({min(values):.2f}-{max(values):.2f})"
        shown[f"{name}: memory"] = f"{record['peak_bytes'][name] / record['peak_bytes']['dense']:.2f}"
    shown["dense MiB"] = f"{record['peak_bytes']['dense'] / 2**20:.0f}"
    return shown


def render(records: list[dict[str, Any]], args: argparse.Namespace) -> str:
    rows = [cells(r) for r in records]
    about = f"Ratios to dense, {args.rounds} rounds, median (range); {args.dtype} on {args.device}; memory above the inputs."
    return "\n\n".join(
        [about, table(rows, list(rows[0]), markdown=True), ", ".join(f"{k} {v}" for k, v in environment().items())]
    )


def save(records: list[dict[str, Any]], text: str) -> None:
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    stem = folder / f"head-{datetime.date.today().isoformat()}"
    stem.with_suffix(".md").write_text(f"# Weighted head against dense logits\n\n{text}\n", encoding="utf-8")
    write_json(stem.with_suffix(".json"), {"environment": environment(), "records": records})


if __name__ == "__main__":
    main()
