"""The method alone: torch in, torch out. No files, no config, no process groups, no logging.

hidden, head --LinearNLL--> nll --excess--> score --top_fraction--> keep --weighted_sum--> (loss_sum, weight_sum)
"""

from .head import LinearHead
from .nll import LinearNLL, token_nll, token_nll_from_logits, weighted_nll
from .objective import Objective
from .objectives import OBJECTIVES, objective
from .scores import SCORES, excess, random_uniform
from .select import above_threshold, kept_count, top_fraction
from .slices import IGNORE_INDEX
from .stats import STATISTICS, TokenStats

__all__ = [
    "IGNORE_INDEX",
    "OBJECTIVES",
    "SCORES",
    "STATISTICS",
    "LinearHead",
    "LinearNLL",
    "Objective",
    "TokenStats",
    "above_threshold",
    "excess",
    "kept_count",
    "objective",
    "random_uniform",
    "token_nll",
    "token_nll_from_logits",
    "top_fraction",
    "weighted_nll",
]
