"""The weighted head against others: time and peak memory of forward + backward, as ratios measured in one run.

    python benchmarks/head.py                                        about half an hour on two cores
    python benchmarks/head.py --shapes 2048x128000 --ratios 0.6 --tokens 2048
    python benchmarks/head.py --device cuda --dtype bfloat16 --tokens 8192

dense      logits = hidden @ weight.T; F.cross_entropy in float32, what is not kept has no target; backward
kept       ours, keep_logits=True: nll of all rows, then the backward of kept rows with the logits of the first pass
recompute  ours, keep_logits=False
torch      F.linear_cross_entropy (torch >= 2.13), chunked, what is not kept has no target
trl        TRL's fused log-prob head (trl >= 1.16), as its SFTTrainer calls it: nll of all rows times the mask
liger, cce Liger's and Apple's fused heads, what is not kept has no target; where they are installed and run (a GPU)

dense, torch, liger and cce are given the mask beforehand, which spares them the pass that finds it; ours and trl find it.
Memory is the peak above the inputs, once with and once without the gradients of hidden states and head. Errors are those
of the first 512 tokens' loss and gradients against dense in float64.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch
from measure import interleaved, peak_memory, ratios, report, spread
from torch import Tensor
from torch.nn import functional as F

import tokensieve as ts

SHAPES = ("2048x32000", "2048x128000", "896x152000", "1536x256000")  # D x V
CHECKED_TOKENS = 512
Way = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def dense(hidden: Tensor, weight: Tensor, targets: Tensor, keep: Tensor) -> Tensor:
    logits = hidden @ weight.T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, targets.masked_fill(~keep, -100), reduction="sum")


def ours(keep_logits: bool, hidden: Tensor, weight: Tensor, targets: Tensor, keep: Tensor) -> Tensor:
    return ts.LinearNLL(hidden, weight, targets, keep_logits=keep_logits).weighted_sum(keep)[0]


def torch_chunked(hidden: Tensor, weight: Tensor, targets: Tensor, keep: Tensor) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions()  # type: ignore[attr-defined]
    masked = targets.masked_fill(~keep, -100)
    return F.linear_cross_entropy(hidden, weight, masked, reduction="sum", options=options)  # type: ignore[attr-defined]


def trl_head(hidden: Tensor, weight: Tensor, targets: Tensor, keep: Tensor) -> Tensor:
    from trl.kernels import ChunkedLogProbFunction

    logprob = ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, 32768, None, 1.0, ())[0]
    return -(logprob * keep).sum()


def liger(hidden: Tensor, weight: Tensor, targets: Tensor, keep: Tensor) -> Tensor:
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    masked = targets.masked_fill(~keep, -100)
    return LigerFusedLinearCrossEntropyFunction.apply(
        hidden, weight, masked, None, None, -100, 0.0, 0.0, "sum", None, False, torch.float32
    )[0]


def cce(hidden: Tensor, weight: Tensor, targets: Tensor, keep: Tensor) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    return linear_cross_entropy(hidden, weight, targets.masked_fill(~keep, -100), reduction="sum")


WAYS: dict[str, Way] = {
    "dense": dense,
    "kept": partial(ours, True),
    "recompute": partial(ours, False),
    "torch": torch_chunked,
    "trl": trl_head,
    "liger": liger,
    "cce": cce,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), help="DxV ...")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.3, 0.6, 1.0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--memory_only", action="store_true", help="no times: a large --tokens in a few minutes")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/head-<date>-<device>.{md,json}")
    parser.add_argument("--name", default="head", help="of the results files")
    args = parser.parse_args()
    ways = {n: WAYS[n] for n in ("dense", *args.ways) if runs(n, WAYS[n], args.device)}
    records = []
    for shape, tokens, ratio in product(args.shapes, args.tokens, args.ratios):
        width, vocab = (int(n) for n in shape.split("x"))
        records.append(measure(args, ways, tokens, width, vocab, ratio))
        show(args, records)  # after each: what comes later may be stopped, or want more memory than there is


def show(args: argparse.Namespace, records: list[dict[str, Any]]) -> None:
    about = (
        f"Ratios to dense, {args.rounds} rounds, median (lowest-highest); {args.dtype} on {args.device}. "
        "Memory: peak above the inputs, and the same without the gradients of hidden states and head. Errors: of the loss, and "
        f"the larger of the two gradients', relative to dense in float64, first {CHECKED_TOKENS} tokens."
    )
    tables = [[f(r) for r in records] for f in ((memory, errors) if args.memory_only else (times, memory, errors))]
    report(args.name, "Weighted head against others", about, tables, records, save=args.save)


def runs(name: str, way: Way, device: str) -> bool:
    """Whether a way works here; says why where it does not."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 64, generator=generator).to(device).requires_grad_() for n in (32, 512))
    keep = torch.arange(32, device=device) < 20
    try:
        way(hidden, weight, torch.arange(32, device=device), keep).backward()
    except Exception as e:
        print(f"{name}: left out, {type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}")
        return False
    truth = torch.autograd.grad(dense(hidden, weight, torch.arange(32, device=device), keep), [hidden, weight])
    for found, right in zip((hidden.grad, weight.grad), truth, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-2, atol=1e-2)
    return True


def measure(
    args: argparse.Namespace, ways: dict[str, Way], tokens: int, width: int, vocab: int, ratio: float
) -> dict[str, Any]:
    torch.manual_seed(0)
    options = {"dtype": getattr(torch, args.dtype), "device": args.device}
    hidden = torch.randn(tokens, width, **options).requires_grad_()
    weight = (torch.randn(vocab, width, **options) * width**-0.5).requires_grad_()
    targets = torch.randint(0, vocab, (tokens,), device=args.device)
    keep = ts.top_fraction(
        torch.rand_like(targets, dtype=torch.float), torch.ones_like(targets, dtype=torch.bool), ratio
    )

    def call(way: Way) -> None:
        hidden.grad = weight.grad = None
        way(hidden, weight, targets, keep).backward()

    calls = {name: partial(call, way) for name, way in ways.items()}
    seconds = {} if args.memory_only else interleaved(calls, args.rounds, args.device)
    peak = {}
    for name, one in calls.items():
        hidden.grad = weight.grad = None  # freed inside, they would count as a gain
        peak[name] = peak_memory(one, args.device)
    gradients = (hidden.numel() + weight.numel()) * hidden.element_size()
    hidden.grad = weight.grad = None
    some = [x.detach()[:CHECKED_TOKENS] for x in (hidden, targets, keep)]
    size = {"d": width, "V": vocab, "tokens": tokens, "dtype": args.dtype, "device": args.device, "ratio": ratio}
    found = against_float64(ways, some[0], weight.detach(), some[1], some[2])
    return {**size, "seconds": seconds, "peak_bytes": peak, "gradient_bytes": gradients, "errors": found}


def against_float64(
    ways: dict[str, Way], hidden: Tensor, weight: Tensor, targets: Tensor, keep: Tensor
) -> dict[str, dict[str, float]]:
    """Relative error (2-norm) of each way's loss and gradients; a way in float32 or bfloat16 should not do worse than dense."""

    def results(way: Way, dtype: torch.dtype) -> dict[str, Tensor]:
        inputs = [x.detach().to(dtype, copy=True).requires_grad_() for x in (hidden, weight)]
        loss = way(*inputs, targets, keep)
        loss.backward()
        return {"loss": loss.detach(), "hidden": inputs[0].grad, "weight": inputs[1].grad}

    truth = results(dense, torch.float64)
    found = {}
    for name, way in ways.items():
        ours = results(way, hidden.dtype)
        found[name] = {k: ((ours[k].double() - truth[k]).norm() / truth[k].norm()).item() for k in truth}
    return found


def label(record: dict[str, Any]) -> dict[str, str]:
    return {
        "d x V": f"{record['d']}x{record['V']}",
        "tokens": f"{record['tokens']}",
        "dtype": record["dtype"],
        "ratio": f"{record['ratio']}",
    }


def times(record: dict[str, Any]) -> dict[str, str]:
    """Time over dense, and the bound from head matmuls alone: (1 + 2 ratio) / 3 kept, (1 + 3 ratio) / 3 recomputed."""
    seconds, ratio = record["seconds"], record["ratio"]
    shown = {f"{n}: time": spread(ratios(seconds, n, "dense")) for n in seconds if n != "dense"}
    return {**label(record), "bounds": f"{(1 + 2 * ratio) / 3:.2f}, {(1 + 3 * ratio) / 3:.2f}", **shown}


def memory(record: dict[str, Any]) -> dict[str, str]:
    peak, gradients = record["peak_bytes"], record["gradient_bytes"]
    shown = {"dense MiB": f"{peak['dense'] / 2**20:.0f}"}
    for name in peak:
        if name != "dense":
            without = max(0, peak[name] - gradients) / (peak["dense"] - gradients)
            shown[name] = f"{peak[name] / peak['dense']:.2f}, {without:.2f}"
    return {**label(record), **shown}


def errors(record: dict[str, Any]) -> dict[str, str]:
    found = record["errors"]
    return {**label(record), **{n: f"{e['loss']:.0e}, {max(e['hidden'], e['weight']):.1e}" for n, e in found.items()}}


if __name__ == "__main__":
    main()
