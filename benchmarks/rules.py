"""What each token rule costs on the head's pass: time and peak memory of forward, weights and backward, as ratios to rho1.

    OMP_NUM_THREADS=1 python benchmarks/rules.py --save                     three minutes of a core
    python benchmarks/rules.py --rules rho1 tsallis eaft --shape 2048x128000 --tokens 2048

Every rule with its defaults, on the same random hidden states; columns that it reads are random too. Each is timed right after
rho1, round by round; on a CPU in processor seconds, which other processes hardly change. A rule that trains more tokens has a
longer backward: `bound` is that alone, (1 + 2 share) over rho1's, from matmuls with kept logits. `pass` is the forward and the
weights without a backward, of the rules that ask the head for more than nll; the others' is rho1's. Second targets (smooth,
distill) have their entries made beforehand: a teacher's forward is not in it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from measure import Call, peak_memory, report, spread, timed
from torch import Tensor

import tokensieve as ts
from tokensieve.core.stats import STATISTICS, head_statistics
from tokensieve.core.targets import SparseTargets

BASE, ENTRIES = "rho1", {"smooth": 20, "distill": 64}
# Of a student that knows nothing, whose targets are hardly ever among its ten likeliest.
OPTIONS: dict[str, dict[str, Any]] = {"griffin": {"top_k": 16_000}, "profit": {"tau": 2e-5}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", nargs="+", default=list(ts.OBJECTIVES), choices=list(ts.OBJECTIVES))
    parser.add_argument("--shape", default="512x32000", help="D x V")
    parser.add_argument("--tokens", type=int, default=512, help="in rows of 128")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/rules-<date>-<device>.{md,json}")
    args = parser.parse_args()
    head = Head(args)
    rules = {name: ts.objective(name, **OPTIONS.get(name, {})) for name in dict.fromkeys((BASE, *args.rules))}
    calls = {name: partial(head.step, made) for name, made in rules.items()}
    seconds = beside(calls, args.rounds, args.device)
    costly = {n: made for n, made in rules.items() if n == BASE or made.second or head_statistics(made.needs - {"nll"})}
    forward = beside({n: partial(head.weights, made) for n, made in costly.items()}, args.rounds, args.device)
    peak = {name: head.peak(call) for name, call in calls.items()}
    share = {name: float((head.weights(made)[1] != 0).float().mean()) for name, made in rules.items()}
    rows = [
        {
            "rule": name,
            "of the head": ", ".join((*head_statistics(made.needs), *(["second target"] if made.second else []))),
            "share": f"{share[name]:.2f}",
            "bound": f"{(1 + 2 * share[name]) / (1 + 2 * share[BASE]):.2f}",
            "time": spread([own / base for own, base in seconds[name]]),
            "pass": spread([own / base for own, base in forward[name]]) if name in forward else "",
            "memory": f"{peak[name] / peak[BASE]:.2f}",
        }
        for name, made in rules.items()
    ]
    about = (
        f"{args.tokens} tokens, {args.shape}, {args.dtype} on {args.device}. Ratios to {BASE} timed just before, median (lowest"
        f"-highest) of {args.rounds}; {BASE}: {median(own for own, _ in seconds[BASE]):.3f} s, "
        f"{peak[BASE] / 2**20:.0f} MiB above the inputs. "
        "share: of tokens with a weight; bound: what that alone does to the time; pass: without the backward."
    )
    records = {"seconds": seconds, "pass_seconds": forward, "peak_bytes": peak, "share": share, "args": vars(args)}
    report("rules", "What each rule costs on the head's pass", about, [rows], records, save=args.save)


def beside(calls: dict[str, Call], rounds: int, device: str) -> dict[str, list[tuple[float, float]]]:
    """(seconds of a call, of rho1's just before it) in each round; one more round before them warms up."""
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name in calls if number else [BASE]:
            base, own = (taken(calls[n], device) for n in (BASE, name))
            if number:
                pairs[name].append((own, base))
    return pairs


def taken(call: Call, device: str) -> float:
    """Seconds; on a CPU those that its threads were at work."""
    if device != "cpu":
        return timed(call, device)
    start = time.process_time()
    call()
    return time.process_time() - start


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
