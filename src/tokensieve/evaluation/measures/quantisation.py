"""Round-to-nearest error: what is lost where weights are stored in few bits, beside the learning rate of the moment.

    scale = max |w| / (2^(bits - 1) - 1) over a row, or a group of it;  w' = scale * round(w / scale)

``weight_error_B``: sqrt(sum (w - w')^2 / sum w^2) over all rounded weights. ``nll_increase_B``: nll with w' - nll, nats a
token; ``relative_increase_B``: that over nll, the error of "Training dynamics impact post-training quantization robustness",
arXiv 2510.06213. The paper's method is GPTQ, which looks at text; this one is the plainest there is, needs none, and
is the same for every checkpoint. Embeddings and the head stay as they are, as is usual.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...data.rows import Rows
from ...data.scored import join_scores
from ...runs.errors import UserError
from .options import QuantisationOptions
from .subject import ModelFigures, Subject, record


def rounding(subject: Subject, options: QuantisationOptions) -> ModelFigures:
    """Of the weights, and of each set's nll. The model is as it was afterwards. UserError for numbers out of range."""
    if not options.bits or not all(2 <= bits <= 16 for bits in options.bits) or options.group < 0:
        raise UserError("quantisation: bits must be from 2 to 16, and group at least 0")
    rate = learning_rate(subject)
    plain = {name: _row_sums(subject, name) for name in subject.sets}
    records = []
    for bits in options.bits:
        with rounded_weights(subject.scorer.model, bits, options.group) as error:
            records.append(record(f"weight_error_{bits}", error, on="weights", bits=bits, learning_rate=rate))
            for name, (nll_R, count_R) in plain.items():
                more_R, mean = _row_sums(subject, name)[0] - nll_R, nll_R.sum() / count_R.sum()
                increase, stderr = ratio(more_R, count_R)
                told = {"on": name, "bits": bits, "learning_rate": rate, "n": int(count_R.sum())}
                records.append(record(f"nll_increase_{bits}", increase, stderr, **told))
                records.append(record(f"relative_increase_{bits}", increase / mean, stderr / mean, **told))
    return ModelFigures(records)


def learning_rate(subject: Subject) -> float | None:
    """Of the model's step, or the last one logged before it; None where no log says."""
    step = subject.target.step
    logged = [s for s in subject.rates if step is None or s <= step]
    return subject.rates[max(logged)] if logged else None


def ratio(sums_R: np.ndarray, counts_R: np.ndarray) -> tuple[float, float]:
    """(sum over counts, its standard error over independent rows: of a ratio of sums; NaN of one row)."""
    total, rows = counts_R.sum(), len(sums_R)
    value = sums_R.sum() / total
    if rows < 2:
        return float(value), float("nan")
    spread = ((sums_R - value * counts_R) ** 2).sum() * rows / (rows - 1)
    return float(value), float(spread**0.5 / total)


def to_nearest(weight: Tensor, bits: int, group: int = 0) -> Tensor:
    """``weight`` [..., in] to the nearest of ``2^bits - 1`` levels that lie evenly about 0; float32 arithmetic, its own dtype.

    A row of zeros stays one; a row that ``group`` does not divide ends with a smaller one.
    """
    size = group or weight.shape[-1]
    parts = []
    for part in weight.float().split(size, -1):
        scale = part.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
        parts.append(torch.where(scale > 0, (part / scale).round() * scale, part))
    return torch.cat(parts, -1).to(weight.dtype)


@contextmanager
def rounded_weights(model: Any, bits: int, group: int = 0) -> Iterator[float]:
    """While open, all matrices but embeddings and head are rounded; gives their relative error."""
    kept = list[tuple[Tensor, Tensor]]()
    lost = size = 0.0
    try:
        with torch.no_grad():
            for weight, turned in matrices(model):
                before = weight.detach().clone()
                kept.append((weight, before))
                found = to_nearest(before.transpose(-1, -2), bits, group).transpose(-1, -2) if turned else None
                weight.copy_(to_nearest(before, bits, group) if found is None else found)
                lost += float((weight.double() - before.double()).square().sum())
                size += float(before.double().square().sum())
        yield (lost / size) ** 0.5 if size else float("nan")
    finally:
        with torch.no_grad():
            for weight, before in kept:
                weight.copy_(before)


def matrices(model: Any) -> Iterator[tuple[Tensor, bool]]:
    """(weight, whether its inputs come first, as in GPT-2's Conv1D) of each matrix that is rounded, experts among them."""
    ends = {id(m) for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None}
    tied = {id(p) for m in model.modules() if id(m) in ends or isinstance(m, nn.Embedding) for p in m.parameters()}
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            if weight.dim() >= 2 and id(weight) not in tied:
                yield weight, type(module).__name__ == "Conv1D"


def _row_sums(subject: Subject, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(sum of nll, targets) of each row of a set, [rows] with a target."""
    rows = Rows(join_scores(subject.sets[name], verify=None))
    found = [(np.nansum(b.nll, 1, dtype=np.float64), (~np.isnan(b.nll)).sum(1)) for b in subject.scorer.run(rows)]
    sums, counts = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return sums[counts > 0], counts[counts > 0]
