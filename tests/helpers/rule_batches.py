"""Batches of random statistics for tests of token rules."""

from __future__ import annotations

import torch
from torch import Tensor

from tokensieve.core import STATISTICS, TokenStats

COLUMNS = ("base_nll", "ablated_nll", "short_nll", "influence", "learning_time", "response")


def batch(seed: int = 0, rows: int = 4, length: int = 23) -> dict[str, Tensor]:
    """Random statistics and columns, float64 values that float32 holds exactly. [B, T]"""
    g = torch.Generator().manual_seed(seed)
    shape = (rows, length)

    def values(scale: float) -> Tensor:
        return (scale * torch.rand(shape, generator=g)).float().double()

    made = {"valid": torch.rand(shape, generator=g) < 0.75}
    made |= {name: values(3.0) for name in ("nll", "ref_nll", "entropy", "ref_entropy", "top_entropy", *COLUMNS)}
    made["influence"] = values(2.0) - 1
    made["response"] = (values(1.0) > 0.5).double()
    made["sum_p2"] = values(1.0)
    made["target_rank"] = torch.randint(0, 80, shape, generator=g)
    ids = torch.randint(0, 12, (rows, length + 1), generator=g)
    made |= {"context_ids": ids[:, :-1], "input_ids": ids[:, 1:]}
    made["position"] = torch.arange(1, length + 1).expand(shape)
    made["document_position"] = torch.arange(length).expand(shape) % 9
    made["row_id"] = torch.arange(rows)[:, None].expand(shape)
    return made


def stats_of(made: dict[str, Tensor]) -> TokenStats:
    values = {n: v.float() if v.is_floating_point() else v for n, v in made.items()}
    known = {n: v for n, v in values.items() if n in STATISTICS or n == "valid"}
    return TokenStats(**known, columns={n: values[n] for n in COLUMNS})
