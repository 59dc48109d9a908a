"""What each token rule costs on the head's pass: time and peak memory of forward, weights and backward, as ratios to rho1.

    python benchmarks/rules.py --save                          some ten minutes on a core
    python benchmarks/rules.py --rules rho1 tsallis eaft --shape 2048x128000 --tokens 2048

Every rule with its defaults, on the same random hidden states; columns that it reads are random too. A rule that trains more
tokens has a longer backward: `bound` is that alone, (1 + 2 share) over rho1's, from matmuls with kept logits. What is above it
is the rule's statistics and elementwise passes. `pass` is the forward and the weights without a backward, over rho1's.
Second targets (smooth, distill) have their entries made beforehand: a teacher's forward is not in it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from measure import interleaved, peak_memory, ratios, report, spread
from torch import Tensor

import tokensieve as ts
from tokensieve.core.stats import STATISTICS, head_statistics
from tokensieve.core.targets import SparseTargets

BASE, ENTRIES = "rho1", {"smooth": 20, "distill": 64}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", nargs="+", default=list(ts.OBJECTIVES), choices=list(ts.OBJECTIVES))
    parser.add_argument("--shape", default="1024x32000", help="D x V")
    parser.add_argument("--tokens", type=int, default=512, help="in rows of 128")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/rules-<date>-<device>.{md,json}")
    args = parser.parse_args()
    head = Head(args)
    rules = {name: ts.objective(name) for name in dict.fromkeys((BASE, *args.rules))}
    calls = {name: partial(head.step, made) for name, made in rules.items()}
    passes = {name: partial(head.weights, made) for name, made in rules.items()}
    seconds = interleaved(calls, args.rounds, args.device)
    forward = interleaved(passes, args.rounds, args.device)
    peak = {name: head.peak(call) for name, call in calls.items()}
    share = {name: float((head.weights(made)[1] != 0).float().mean()) for name, made in rules.items()}
    rows = [
        {
            "rule": name,
            "of the head": ", ".join((*head_statistics(made.needs), *(["second target"] if made.second else []))),
            "share": f"{share[name]:.2f}",
            "bound": f"{(1 + 2 * share[name]) / (1 + 2 * share[BASE]):.2f}",
            "time": spread(ratios(seconds, name, BASE)),
            "pass": spread(ratios(forward, name, BASE)),
            "memory": f"{peak[name] / peak[BASE]:.2f}",
        }
        for name, made in rules.items()
    ]
    about = (
        f"{args.tokens} tokens, {args.shape}, {args.dtype} on {args.device}. Ratios to {BASE} of the same round, median (lowest"
        f"-highest) of {args.rounds}; {BASE}: {median(seconds[BASE]):.3f} s, {peak[BASE] / 2**20:.0f} MiB above the inputs. "
        "share: of tokens with a weight; bound: what that alone does to the time; pass: without the backward."
    )
    records = {"seconds": seconds, "pass_seconds": forward, "peak_bytes": peak, "share": share, "args": vars(args)}
    report("rules", "What each rule costs on the head's pass", about, [rows], records, save=args.save)


class Head:
    """Random hidden states, a head, targets, and statistics of everything that a rule may read of the rows."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(0)
        width, self.vocab = (int(n) for n in args.shape.split("x"))
        options: dict[str, Any] = {"dtype": getattr(torch, args.dtype), "device": args.device}
        self.device, rows = args.device, args.tokens // 128
        self.hidden = torch.randn(rows, 128, width, **options).requires_grad_()
        self.weight = (torch.randn(self.vocab, width, **options) * width**-0.5).requires_grad_()
        self.targets = torch.randint(0, self.vocab, (rows, 128), device=args.device)
        place = torch.arange(1, 129, device=args.device).expand(rows, 128)
        row_id = torch.arange(rows, device=args.device)[:, None].expand(rows, 128)
        self.known = ts.TokenStats(torch.ones_like(self.targets, dtype=torch.bool)).with_values(
            {
                "row_id": row_id,
                "position": place,
                "document_position": place,
                "segment": torch.zeros_like(place),
                "source_id": torch.zeros_like(place),
                "input_ids": self.targets,
                "context_ids": self.targets.roll(1, -1),
            }
        )
        self.second = {name: self._entries(k) for name, k in ENTRIES.items()}

    def _entries(self, k: int) -> SparseTargets:
        ids = (self.targets.unsqueeze(-1) + 97 * torch.arange(k, device=self.device)) % self.vocab
        return SparseTargets(ids, torch.full(ids.shape, 0.9 / k, device=self.device), 0.5)

    def weights(self, made: ts.Objective) -> tuple[ts.LinearNLL, Tensor]:
        asked = head_statistics(made.needs)
        second = self.second[made.name] if made.second is not None else None
        head = ts.LinearNLL(
            self.hidden, self.weight, self.targets, statistics=[n for n in asked if n != "nll"], second=second
        )
        read = [n for n in made.needs if n not in STATISTICS or n.startswith("ref_")]
        columns = {n: torch.rand_like(head.nll) * 12 for n in read}
        stats = self.known.with_values({**columns, **{n: head.statistic(n) for n in asked}})
        return head, made.weigh(stats)

    def step(self, made: ts.Objective) -> None:
        self.hidden.grad = self.weight.grad = None
        head, weight = self.weights(made)
        head.weighted_sum(weight)[0].backward()

    def peak(self, call: Callable[[], None]) -> int:
        self.hidden.grad = self.weight.grad = None  # freed inside, they would count as a gain
        return peak_memory(call, self.device)


if __name__ == "__main__":
    main()
