"""Token dynamics (Rho-1, section 2.1): what became of each token's nll over the checkpoints 0..n of a run.

    least-squares line a * i + b through nll_0 .. nll_n        delta = a * n
    delta < -0.2   H->L          |delta| <= 0.2 and nll_n <= mean nll at n    L->L
    delta > +0.2   L->H          |delta| <= 0.2 and nll_n >  mean nll at n    H->H

Tokens come in blocks [C, N] (C = n + 1 checkpoints, N tokens, no NaN) and leave as sums, so that a corpus of any size takes the
memory of a block. All is computed in float64: from float16 nll, the sum behind ``delta`` is exact and its one division rounds
correctly, so a token whose delta is 0.2 to the last bit is flat however the tokens lie in blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..analysis.token_classes import CLASSES

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.integer[Any]]
Bools = npt.NDArray[np.bool_]
Record = dict[str, Any]

NO_CLASS = -1
# Rho-1, section 2.1: TinyLlama-1B, continually pretrained on 15B OpenWebMath tokens, about 320,000 validation tokens.
PAPER_SHARES = {"H->H": 0.11, "L->H": 0.12, "H->L": 0.26, "L->L": 0.51}
THRESHOLD = 0.2


@dataclass(frozen=True)
class Lines:
    """What a least-squares line says of each token of a block."""

    class_N: Ints
    """int8, an index into CLASSES."""
    delta_N: Floats
    """Change along the line from the first checkpoint to the last, nats."""
    fluctuation_N: Floats
    """Mean over checkpoints of |nll - line|, nats; 0 with two checkpoints."""


def deltas(nll_CN: Floats) -> Floats:
    """Change along each token's least-squares line, nats, float64 [N]. Raises ValueError below two checkpoints.

    With x = 0..n the slope is 6 * sum((2i - n) * nll_i) / (n (n + 1) (n + 2)), and delta is n times that.
    """
    n = len(nll_CN) - 1
    if n < 1:
        raise ValueError("a line needs the nll of at least two checkpoints")
    weights_C = 2.0 * np.arange(n + 1) - n
    total_N = np.zeros(nll_CN.shape[1])
    for weight, nll_N in zip(weights_C, nll_CN, strict=True):  # not a matrix product: its order of sums is not ours
        total_N += weight * nll_N
    return 6.0 * total_N / ((n + 1) * (n + 2))


def classify(nll_CN: Floats, mean_last: float, threshold: float = THRESHOLD) -> Lines:
    """The class of each token; ``mean_last`` is the mean nll over all tokens at the last checkpoint.

    Raises ValueError for a NaN: it would fall through every comparison and come out as a class. So does inf - inf.
    """
    nll_CN = np.asarray(nll_CN, np.float64)
    if not np.isfinite(nll_CN).all():
        what = "NaN" if np.isnan(nll_CN).any() else "infinite"
        raise ValueError(f"a token's nll is {what} at some checkpoint: only targets with a number have a class")
    delta_N, last_N = deltas(nll_CN), nll_CN[-1]
    flat_N = np.where(last_N <= mean_last, CLASSES.index("L->L"), CLASSES.index("H->H"))
    falling_N = np.where(delta_N < -threshold, CLASSES.index("H->L"), flat_N)
    class_N = np.where(delta_N > threshold, CLASSES.index("L->H"), falling_N).astype(np.int8)
    centred_C1 = (np.arange(len(nll_CN)) - (len(nll_CN) - 1) / 2)[:, None]
    line_CN = nll_CN.mean(0) + centred_C1 * delta_N / (len(nll_CN) - 1)
    return Lines(class_N, delta_N, np.abs(nll_CN - line_CN).mean(0))


@dataclass
class ClassSums:
    """Sums over tokens by class, block by block: ``add`` them all, then read the tables. K classes, C checkpoints."""

    num_checkpoints: int
    tokens_K: Floats = field(init=False)
    nll_KC: Floats = field(init=False)
    square_KC: Floats = field(init=False)
    line_K3: Floats = field(init=False)
    """Sums of delta, of fluctuation, and of the steps at which nll rose."""

    def __post_init__(self) -> None:
        k, c = len(CLASSES), self.num_checkpoints
        self.tokens_K, self.nll_KC, self.square_KC = np.zeros(k), np.zeros((k, c)), np.zeros((k, c))
        self.line_K3 = np.zeros((k, 3))

    def add(self, nll_CN: Floats, lines: Lines) -> None:
        """Add a block."""
        nll_NC = np.asarray(nll_CN, np.float64).T
        member_KN = (lines.class_N == np.arange(len(CLASSES))[:, None]).astype(np.float64)
        self.tokens_K += member_KN.sum(1)
        self.nll_KC += member_KN @ nll_NC
        self.square_KC += member_KN @ nll_NC**2
        rises_N = (np.diff(nll_NC, axis=1) > 0).sum(1)
        self.line_K3 += member_KN @ np.stack([lines.delta_N, lines.fluctuation_N, rises_N], axis=1)

    def classes(self) -> list[Record]:
        """A record a class and one for all tokens: share, the paper's share, first and last nll, delta, fluctuation, rises."""
        total = self.tokens_K.sum()
        return [
            {
                "class": name,
                "tokens": int(tokens),
                "share": _mean(tokens, total),
                "paper": PAPER_SHARES.get(name),
                "nll_first": _mean(nll_C[0], tokens),
                "nll_last": _mean(nll_C[-1], tokens),
                "delta": _mean(line_3[0], tokens),
                "fluctuation": _mean(line_3[1], tokens),
                "up_share": _mean(line_3[2], tokens * (self.num_checkpoints - 1)),
            }
            for name, tokens, nll_C, _, line_3 in self._with_all()
        ]

    def curves(self) -> list[Record]:
        """A record a class and checkpoint: mean nll and its standard error over tokens."""
        return [
            {
                "class": name,
                "checkpoint": c,
                "tokens": int(tokens),
                "nll": _mean(nll_C[c], tokens),
                "standard_error": _standard_error(tokens, nll_C[c], square_C[c]),
            }
            for name, tokens, nll_C, square_C, _ in self._with_all()
            for c in range(self.num_checkpoints)
        ]

    def _with_all(self) -> Iterator[tuple[str, Any, Floats, Floats, Floats]]:
        yield from zip(CLASSES, self.tokens_K, self.nll_KC, self.square_KC, self.line_K3, strict=True)
        yield "all", self.tokens_K.sum(), self.nll_KC.sum(0), self.square_KC.sum(0), self.line_K3.sum(0)


def _mean(total: Any, count: Any) -> float | None:
    return float(total / count) if count else None


def _standard_error(count: float, total: float, squares: float) -> float | None:
    """Sample deviation / sqrt(count), from sums; None below two values."""
    if count < 2:
        return None
    return math.sqrt(max(0.0, squares - total * total / count) / (count - 1) / count)


# --- breakdowns --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """A group of tokens: its label and, for numbers, the range it holds, both ends included."""

    label: str
    low: int | None = None
    high: int | None = None


class Breakdown:
    """Tokens of each class in each group of one kind; ``group`` is an index into ``groups``, -1 for none."""

    def __init__(self, by: str, groups: Sequence[Group]) -> None:
        self.by, self.groups = by, groups
        self.tokens_GK = np.zeros((len(groups), len(CLASSES)), np.int64)

    def add(self, group_N: Ints, class_N: Ints) -> None:
        """Add a block."""
        k = len(CLASSES)
        there_N = group_N >= 0
        pair_N = group_N[there_N].astype(np.int64) * k + class_N[there_N]
        self.tokens_GK += np.bincount(pair_N, minlength=len(self.groups) * k).reshape(-1, k)

    def records(self) -> list[Record]:
        """A record a group that has tokens and class; ``share`` is of the group's tokens."""
        return [
            {
                "by": self.by,
                "group": group.label,
                "order": order,
                "low": group.low,
                "high": group.high,
                "class": name,
                "tokens": int(tokens_K[k]),
                "share": float(tokens_K[k] / tokens_K.sum()),
            }
            for order, (group, tokens_K) in enumerate(zip(self.groups, self.tokens_GK, strict=True))
            if tokens_K.sum()
            for k, name in enumerate(CLASSES)
        ]


def position_groups(length: int) -> list[Group]:
    """Groups of positions 1, 2-3, 4-7 ... below ``length``; see :func:`position_group`."""
    lows = [2**i for i in range(max(1, (length - 1).bit_length()))]
    return [Group(_range(low, min(2 * low, length) - 1), low, min(2 * low, length) - 1) for low in lows if low < length]


def position_group(position_N: Ints) -> Ints:
    """floor(log2(position)), an index into :func:`position_groups`; -1 for position 0, which is no target."""
    return np.frexp(position_N.astype(np.float64))[1] - 1


def frequency_groups(count_V: Ints, targets_V: Ints, num_groups: int = 10) -> tuple[list[Group], Ints]:
    """(groups, group of each id): ids by their count, in at most ``num_groups`` groups of about as many targets each.

    Ids of one count are never parted, so that the groups' ranges do not overlap. -1 for ids that are no target.
    """
    there_V = targets_V > 0
    counts_U, inverse = np.unique(count_V[there_V], return_inverse=True)
    tokens_U = np.bincount(inverse, weights=targets_V[there_V], minlength=len(counts_U))
    middle_U = (np.cumsum(tokens_U) - tokens_U / 2) / max(1.0, tokens_U.sum())
    _, group_U = np.unique((middle_U * num_groups).astype(np.int64), return_inverse=True)
    group_V = np.full(len(count_V), -1)
    group_V[there_V] = group_U[inverse]
    bounds = [(int(counts_U[group_U == g].min()), int(counts_U[group_U == g].max())) for g in np.unique(group_U)]
    return [Group(_range(low, high), low, high) for low, high in bounds], group_V


def kept_groups(num_checkpoints: int) -> list[Group]:
    """A group for each number of checkpoints at which a token can be kept, 0 included."""
    return [Group(str(i), i, i) for i in range(num_checkpoints + 1)]


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}-{high}"


# --- kept and dropped --------------------------------------------------------------------------------------------------


class Selection:
    """nll at checkpoint c of the tokens that are kept at checkpoint s, and of the others (Rho-1, figures 6 and 7)."""

    def __init__(self, threshold_S: Sequence[float], num_checkpoints: int) -> None:
        num_selections, self.threshold_S = len(threshold_S), threshold_S  # the lowest excess that was kept
        self.kept_S, self.tokens = np.zeros(num_selections), 0
        self.kept_SC, self.nll_C = np.zeros((num_selections, num_checkpoints)), np.zeros(num_checkpoints)
        self.kept_K, self.tokens_K = np.zeros(len(CLASSES)), np.zeros(len(CLASSES))

    def add(self, nll_CN: Floats, keep_SN: Bools, class_N: Ints) -> None:
        """Add a block."""
        nll_CN = np.asarray(nll_CN, np.float64)
        self.kept_S += keep_SN.sum(1)
        self.tokens += nll_CN.shape[1]
        self.kept_SC += keep_SN.astype(np.float64) @ nll_CN.T
        self.nll_C += nll_CN.sum(1)
        self.kept_K += np.bincount(class_N, weights=keep_SN.sum(0), minlength=len(CLASSES))
        self.tokens_K += np.bincount(class_N, minlength=len(CLASSES))

    def records(self) -> list[Record]:
        """A record for each s and c."""
        return [
            {
                "selected_at": s,
                "checkpoint": c,
                "kept": int(kept),
                "dropped": int(self.tokens - kept),
                "threshold": float(self.threshold_S[s]),
                "kept_nll": _mean(self.kept_SC[s, c], kept),
                "dropped_nll": _mean(nll - self.kept_SC[s, c], self.tokens - kept),
            }
            for s, kept in enumerate(self.kept_S)
            for c, nll in enumerate(self.nll_C)
        ]

    def kept_share(self) -> list[float | None]:
        """Share of each class's (token, selection) pairs that are kept, then that of all tokens."""
        kept, tokens = (np.append(a, a.sum()) for a in (self.kept_K, self.tokens_K * len(self.kept_S)))
        return [_mean(k, t) for k, t in zip(kept, tokens, strict=True)]


# --- samples -----------------------------------------------------------------------------------------------------------


class Samples:
    """``size`` tokens of each class: those of lowest ``order``, whatever the blocks. Give random numbers as order."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._best: list[list[tuple[float, int, Record]]] = [[] for _ in CLASSES]

    def add(self, order_N: Floats, place_N: Ints, nll_CN: Floats, lines: Lines) -> None:
        """Add a block; ``place`` is where a token stands among all, any number that rises."""
        for k, best in enumerate(self._best):
            member = np.flatnonzero(lines.class_N == k)
            for i in member[np.argsort(order_N[member], kind="stable")[: self.size]].tolist():
                sample = {
                    "class": CLASSES[k],
                    "place": int(place_N[i]),
                    "delta": float(lines.delta_N[i]),
                    "fluctuation": float(lines.fluctuation_N[i]),
                    "nll": [float(x) for x in nll_CN[:, i]],
                }
                best.append((float(order_N[i]), int(place_N[i]), sample))
            best.sort(key=lambda entry: entry[:2])
            del best[self.size :]

    def records(self) -> list[Record]:
        """The samples, class by class, each class's in order of ``place``."""
        return [sample for best in self._best for *_, sample in sorted(best, key=lambda entry: entry[1])]
