"""Rules by where a token stands and what stands before it: known from the corpus alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..objective import Objective
from ..scores import hashed
from ..stats import TokenStats
from .shared import check_range, soft


def goldfish(k: int = 4, h: int = 13, exempt: Sequence[int] = ()) -> Objective:
    """Drop a token where a hash of the ``h`` ids that end with it falls into 1 of ``k``; the same text drops the same tokens.

    Goldfish loss (arXiv 2406.10209, h = 13 and k = 4; Apertus: both 50): a passage cannot be learned by heart, because the same
    token of it is never trained on. The first ``h - 1`` positions of a row are kept, and the ids in ``exempt`` (end of text).
    For training only. The hash is ours: the authors' product of ids degenerates on ids 0 and 1, and their random table
    changes with torch's version.
    """
    if k < 2 or h < 1:
        raise ValueError(f"k is {k} and h is {h}: k must be at least 2, h at least 1")

    def weigh(stats: TokenStats) -> Tensor:
        ids, position = stats.need("input_ids"), stats.need("position")
        # The oldest id of a window may be a row's first, which is nobody's target: it stands there as a context.
        window = [ids.roll(i, -1) for i in range(h - 1)] + [stats.need("context_ids").roll(max(h - 2, 0), -1)]
        window = window if h > 1 else [ids]
        key = torch.zeros_like(ids, dtype=torch.int64)
        for one in reversed(window):
            key = hashed(key + one)
        dropped = (key % k == 0) & (position >= h - 1)
        for token in exempt:
            dropped = dropped & (ids != token)
        return ~dropped

    needs = frozenset({"input_ids", "context_ids", "position"})
    options = {"k": k, "h": h, "exempt": list(exempt)}
    return soft("goldfish", weigh, needs, options, denominator="weight", selects=True, static=True)


def position_ramp(scale: float = 10.0) -> Objective:
    """``w = tanh(position in document / scale)``: a document's first tokens, which nothing foretells, count less.

    From a public report (marin, issue 5306: macro loss .9 % lower, one seed). A document's very first token has weight 0.
    """
    if not scale > 0:
        raise ValueError(f"scale is {scale}, it must be above 0")
    return soft(
        "position_ramp",
        lambda stats: torch.tanh(stats.need("document_position").float() / scale),
        frozenset({"document_position"}),
        {"scale": scale},
        denominator="weight",
        static=True,
    )


def wit(prompt: float = 0.1, response: float = 1.0, column: str = "response") -> Objective:
    """``w = prompt`` where the column is 0, ``response`` where it is not: weighted instruction tuning (arXiv 2507.07817).

    Divided by the number of tokens whose weight is not 0 (read in TRL, pull request 6746). The paper finds a small weight on
    the prompt and one below 1 on the response; the defaults are ours.
    """
    check_range("prompt", prompt, 0.0)
    check_range("response", response, 0.0)

    def weigh(stats: TokenStats) -> Tensor:
        of_response = stats.need(column) != 0
        return torch.where(of_response, response, prompt)

    options = {"prompt": prompt, "response": response, "column": column}
    return soft("wit", weigh, frozenset({column}), options, denominator="nonzero", static=True)


def influence(column: str = "influence") -> Objective:
    """``w`` is a column of your own, which may be negative: weights from data attribution, for one; sum of ``|w|``.

    A negative weight teaches the model away from a token.
    """
    return soft(
        "influence",
        lambda stats: stats.need(column),
        frozenset({column}),
        {"column": column},
        denominator="abs",
        static=True,
        signed=True,
    )


def learning_time(low: float = 0.0, high: float = 0.5, column: str = "learning_time") -> Objective:
    """Keep tokens that were learned at ``low <= t <= high`` of an earlier run: 0 is its beginning, 1 its end, beyond: never.

    The column says from when on each token's nll was below a level, as a share of that run: ``tokensieve dynamics
    --learning_time mean`` over the corpus to be trained on writes it. Done for whole samples in arXiv
    2606.29858; per token it is untested, and the default ours: what was learned in the first half.
    """
    check_range("low", low, 0.0)
    check_range("high", high, low)

    def weigh(stats: TokenStats) -> Tensor:
        time = stats.need(column).float()
        return (time >= low) & (time <= high)

    options = {"low": low, "high": high, "column": column}
    return soft("learning_time", weigh, frozenset({column}), options, denominator="weight", selects=True, static=True)
