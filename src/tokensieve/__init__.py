"""tokensieve: selective language modeling. Train a language model on the tokens worth learning (Rho-1, arXiv 2404.07965).

    nll  = tokensieve.token_nll(hidden, head_weight, targets)          # what each token costs the student
    keep = tokensieve.top_fraction(tokensieve.excess(nll, ref_nll), valid, ratio=0.6)
    loss_sum, weight_sum = tokensieve.weighted_nll(hidden, head_weight, targets, keep)

Names are loaded on first use: importing the package imports neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .core import (
        IGNORE_INDEX,
        OBJECTIVES,
        SCORES,
        STATISTICS,
        LinearHead,
        LinearNLL,
        Objective,
        TokenStats,
        excess,
        kept_count,
        objective,
        random_uniform,
        token_nll,
        token_nll_from_logits,
        top_fraction,
        weighted_nll,
    )
    from .data.scored import load_scored
    from .modeling.seam import HeadSeam
    from .notebook.results import read_run
    from .runs.errors import UserError
    from .scoring.images import ablated_nll
    from .training.trainer import SelectiveTrainer
    from .training.trl import SelectiveSFTTrainer

__version__ = "0.1.0"

# public name -> module it lives in
_HOMES = {
    **dict.fromkeys(
        (
            "IGNORE_INDEX",
            "LinearHead",
            "LinearNLL",
            "OBJECTIVES",
            "Objective",
            "SCORES",
            "STATISTICS",
            "TokenStats",
            "excess",
            "kept_count",
            "objective",
            "random_uniform",
            "token_nll",
            "token_nll_from_logits",
            "top_fraction",
            "weighted_nll",
        ),
        "tokensieve.core",
    ),
    "HeadSeam": "tokensieve.modeling.seam",
    "SelectiveSFTTrainer": "tokensieve.training.trl",
    "SelectiveTrainer": "tokensieve.training.trainer",
    "UserError": "tokensieve.runs.errors",
    "ablated_nll": "tokensieve.scoring.images",
    "load_scored": "tokensieve.data.scored",
    "read_run": "tokensieve.notebook.results",
}

__all__ = [
    "IGNORE_INDEX",
    "OBJECTIVES",
    "SCORES",
    "STATISTICS",
    "HeadSeam",
    "LinearHead",
    "LinearNLL",
    "Objective",
    "SelectiveSFTTrainer",
    "SelectiveTrainer",
    "TokenStats",
    "UserError",
    "__version__",
    "ablated_nll",
    "excess",
    "kept_count",
    "load_scored",
    "objective",
    "random_uniform",
    "read_run",
    "token_nll",
    "token_nll_from_logits",
    "top_fraction",
    "weighted_nll",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tokensieve' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
