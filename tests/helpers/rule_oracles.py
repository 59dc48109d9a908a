"""Every token rule written out again, token by token in Python's floats. Imports nothing of what it is held against.

A batch is a dict of [B][T] lists; each function gives the weights of its valid tokens, 0 elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

Grid = list[list[float]]
Batch = dict[str, Grid]
Token = tuple[int, int]


def places(batch: Batch) -> list[Token]:
    return [(b, t) for b, row in enumerate(batch["valid"]) for t, ok in enumerate(row) if ok]


def groups(batch: Batch, scope: str) -> Iterator[list[Token]]:
    """The tokens that are ranked together."""
    if scope != "sequence":
        yield places(batch)
        return
    for b in range(len(batch["valid"])):
        yield [place for place in places(batch) if place[0] == b]


def weights(batch: Batch, rule: Callable[[int, int], float]) -> Grid:
    made = [[0.0] * len(row) for row in batch["valid"]]
    for b, t in places(batch):
        made[b][t] = float(rule(b, t))
    return made


def kept(batch: Batch, tokens: Callable[[list[Token]], list[Token]], scope: str) -> Grid:
    chosen = {place for group in groups(batch, scope) if group for place in tokens(group)}
    return weights(batch, lambda b, t: (b, t) in chosen)


def how_many(n: int, ratio: float) -> int:
    return max(1, math.floor(ratio * n + 0.5))


def highest(group: list[Token], score: Callable[[int, int], float], ratio: float) -> list[Token]:
    return sorted(group, key=lambda place: -score(*place))[: how_many(len(group), ratio)]


def top(score: Callable[[Batch], Callable[[int, int], float]]) -> Callable[..., Grid]:
    return lambda batch, ratio, scope, **_: kept(batch, lambda g: highest(g, score(batch), ratio), scope)


def difference(first: str, second: str) -> Callable[[Batch], Callable[[int, int], float]]:
    return lambda batch: lambda b, t: batch[first][b][t] - batch[second][b][t]


def column(name: str, sign: float = 1) -> Callable[[Batch], Callable[[int, int], float]]:
    return lambda batch: lambda b, t: sign * batch[name][b][t]


def both(batch: Batch, ratio: float, scope: str, union: bool) -> Grid:
    one, two = (top(column(name, -1))(batch, ratio, scope) for name in ("ref_nll", "ref_entropy"))
    return weights(batch, lambda b, t: (one[b][t] or two[b][t]) if union else (one[b][t] and two[b][t]))


def middle_loss(batch: Batch, ratio: float, scope: str) -> Grid:
    def tokens(group: list[Token]) -> list[Token]:
        falling = sorted(group, key=lambda place: -batch["nll"][place[0]][place[1]])
        k = how_many(len(group), ratio)
        from_top = math.ceil((len(group) - k) / 2)
        return falling[from_top : from_top + k]

    return kept(batch, tokens, scope)


def eslm(batch: Batch, alpha: float, by: str, scope: str) -> Grid:
    def tokens(group: list[Token]) -> list[Token]:
        rising = sorted(batch[by][b][t] for b, t in group)
        at_risk = rising[max(1, math.ceil(alpha * len(rising))) - 1]
        return [(b, t) for b, t in group if batch[by][b][t] >= at_risk]

    return kept(batch, tokens, scope)


def p(batch: Batch, name: str = "nll") -> Callable[[int, int], float]:
    return lambda b, t: math.exp(-batch[name][b][t])


def mean_one(batch: Batch, rule: Callable[[int, int], float], scope: str) -> Grid:
    made = weights(batch, lambda b, t: 0.0)
    for group in groups(batch, scope):
        mean = sum(rule(b, t) for b, t in group) / max(1, len(group))
        for b, t in group:
            made[b][t] = rule(b, t) / mean
    return made


def huber(batch: Batch, c: float, scope: str) -> Grid:
    made = weights(batch, lambda b, t: 0.0)
    for group in groups(batch, scope):
        nlls = sorted(batch["nll"][b][t] for b, t in group)
        for b, t in group:
            made[b][t] = min(1.0, c * nlls[(len(nlls) - 1) // 2] / batch["nll"][b][t])
    return made


def tsallis(batch: Batch, exponent: float | str) -> Grid:
    likely = p(batch)
    valid = places(batch)
    f = 0.5 * sum(likely(b, t) for b, t in valid) / len(valid)

    def rule(b: int, t: int) -> float:
        x = likely(b, t)
        if exponent == "deft":
            return float(x ** batch["sum_p2"][b][t])
        return float(x ** (f + (1 - f) * x / (2 - x) if exponent == "cayley" else exponent))

    return weights(batch, rule)


def griffin(batch: Batch, top_k: int) -> Grid:
    def rule(b: int, t: int) -> bool:
        hit = batch["target_rank"][b][t] < top_k
        if batch["position"][b][t] <= 1 or not batch["valid"][b][t - 1]:
            return hit
        return hit and batch["target_rank"][b][t - 1] < top_k

    return weights(batch, rule)


def cal(batch: Batch, low: float, high: float) -> Grid:
    def clamped(b: int, t: int) -> float:
        return min(max(batch["ablated_nll"][b][t] - batch["nll"][b][t], low), high)

    def rule(b: int, t: int) -> float:
        near = [clamped(b, u) for u in (t - 1, t, t + 1) if 0 <= u < len(batch["valid"][b]) and batch["valid"][b][u]]
        return sum(near) / len(near)

    return weights(batch, rule)


def long_context(batch: Batch, form: str, option: float) -> Grid:
    gain = difference("short_nll", "nll")(batch)
    made = weights(batch, lambda b, t: min(math.exp(gain(b, t)), option))
    if form == "longce":
        return made
    for group in groups(batch, "sequence"):
        total = sum(abs(gain(b, t)) for b, t in group)
        best = highest(group, lambda b, t: abs(gain(b, t)), option)
        for b, t in group:
            dense = option + (1 - option) * len(group) * abs(gain(b, t)) / total
            made[b][t] = dense if form == "dense" else len(group) / len(best) * ((b, t) in best)
    return made


def mixed(x: int) -> int:
    """splitmix64's finaliser, without the sign: a hash of 63 bits."""
    wrap = (1 << 64) - 1
    x = (x + 0x9E3779B97F4A7C15) & wrap
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & wrap
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & wrap
    return (x ^ (x >> 31)) & ((1 << 63) - 1)


def goldfish(batch: Batch, k: int, h: int, exempt: tuple[int, ...] = ()) -> Grid:
    """The ids of a row: the first stands in ``context_ids`` alone, the others are targets."""

    def rule(b: int, t: int) -> bool:
        ids = [int(batch["context_ids"][b][0]), *(int(i) for i in batch["input_ids"][b])]
        window = ids[t + 2 - h : t + 2]
        if t + 1 < h - 1 or ids[t + 1] in exempt:
            return True
        key = 0
        for one in window:
            key = mixed(key + one)
        return key % k != 0

    return weights(batch, rule)


# --- second targets -------------------------------------------------------------------------------------------------------


def second_loss(
    log_p: Any, target: int, ids: list[int], probs: list[float], share: float, rest: bool, divergence: bool
) -> Any:
    """One token's loss. ``log_p`` has its log probabilities over the whole vocabulary, numbers or a differentiable vector."""
    listed = {i: q for i, q in zip(ids, probs, strict=True) if i >= 0}
    lacking = max(0.0, 1 - sum(listed.values())) if rest else 0.0
    cross = sum((-q * log_p[i] for i, q in listed.items()), 0 * log_p[target])
    others = [log_p[v].exp() for v in range(len(log_p)) if v not in listed]
    if lacking and others:
        cross = cross - lacking * sum(others).log()
    if divergence:
        cross = cross + sum(q * math.log(q) for q in (*listed.values(), lacking) if q > 0)
    return (1 - share) * -log_p[target] + share * cross


def similar(table: list[list[float]], entry: int, k: int, temperature: float) -> dict[int, float]:
    """The k entries nearest to one by the cosine of their vectors -> their shares; a vector of zeros has itself alone."""

    def cosine(a: list[float], b: list[float]) -> float:
        size = math.hypot(*a) * math.hypot(*b)
        return sum(x * y for x, y in zip(a, b, strict=True)) / size if size else 0.0

    if not any(table[entry]):
        return {entry: 1.0}
    near = sorted(range(len(table)), key=lambda v: -cosine(table[entry], table[v]))[:k]
    raw = {v: math.exp(cosine(table[entry], table[v]) / temperature) for v in near}
    return {v: x / sum(raw.values()) for v, x in raw.items()}


# name -> its weights for a batch and options.
ORACLES: dict[str, Callable[..., Grid]] = {
    "clm": lambda batch: weights(batch, lambda b, t: 1.0),
    "rho1": lambda batch, ratio, scope, reverse=False: top(
        difference("ref_nll", "nll") if reverse else difference("nll", "ref_nll")
    )(batch, ratio, scope),
    "rho1_low_ref": top(column("ref_nll", -1)),
    "rho1_low_entropy": top(column("ref_entropy", -1)),
    "rho1_intersection": lambda batch, ratio, scope: both(batch, ratio, scope, union=False),
    "rho1_union": lambda batch, ratio, scope: both(batch, ratio, scope, union=True),
    "token_cleaning": top(difference("base_nll", "ref_nll")),
    "high_loss": top(column("nll")),
    "middle_loss": middle_loss,
    "eslm": eslm,
    "entropy_top": top(column("entropy")),
    "prior": lambda batch, alpha, scope: mean_one(batch, lambda b, t: (1 - p(batch, "ref_nll")(b, t)) ** alpha, scope),
    "cal": cal,
    "goldfish": goldfish,
    "dft": lambda batch, power: weights(batch, lambda b, t: p(batch)(b, t) ** power),
    "profit": lambda batch, tau, keep, high=1.0: weights(
        batch,
        lambda b, t: {
            "likely": p(batch)(b, t) >= tau,
            "unlikely": p(batch)(b, t) < tau,
            "middle": tau <= p(batch)(b, t) <= high,
        }[keep],
    ),
    "low_prob_scale": lambda batch, alpha: weights(batch, lambda b, t: alpha * p(batch)(b, t) + 1 - alpha),
    "griffin": griffin,
    "long_context": long_context,
    "tsallis": tsallis,
    "eaft": lambda batch, alpha: weights(batch, lambda b, t: (batch["top_entropy"][b][t] / 3) ** alpha),
    "mile": lambda batch, gamma, scope: mean_one(batch, lambda b, t: (1 + batch["entropy"][b][t]) ** gamma, scope),
    "position_ramp": lambda batch, scale: weights(
        batch, lambda b, t: math.tanh(batch["document_position"][b][t] / scale)
    ),
    "huber": huber,
    "likelihood_gap": lambda batch, alpha, least: weights(
        batch, lambda b, t: max(least, 1 + alpha * (p(batch, "ref_nll")(b, t) - p(batch)(b, t)))
    ),
    "wit": lambda batch, prompt, response: weights(batch, lambda b, t: response if batch["response"][b][t] else prompt),
    "influence": lambda batch: weights(batch, lambda b, t: batch["influence"][b][t]),
    "learning_time": lambda batch, low, high: weights(batch, lambda b, t: low <= batch["learning_time"][b][t] <= high),
    "smooth": lambda batch, of, **_: of_rule(batch, **of),
    "distill": lambda batch, of, **_: of_rule(batch, **of),
}


def of_rule(batch: Batch, name: str, **options: Any) -> Grid:
    """Second targets change what is trained towards, and no weight."""
    return ORACLES[name](batch, **options)
