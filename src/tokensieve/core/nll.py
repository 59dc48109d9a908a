"""Per-token negative log-likelihood from hidden states and a vocabulary head, without the [tokens, vocab] logits.

Shape letters: T tokens (any leading shape, flattened), D hidden width, V vocabulary, C columns (vocabulary entries) of one
slice, R rows of non-zero weight.

    pass 1, no gradient, all rows:      logits_TC, slice after slice -> nll_T, entropy_T      1 unit of head matmul
    choose the weights from nll_T
    pass 2, rows of non-zero weight:    softmax_RC -> d hidden, d head_weight                 2 units (kept) or 3 (recomputed)

A unit is one [T, D] x [D, V] product. A dense cross-entropy costs 3 units, whatever the weights are. The vocabulary is
sliced, not the rows: each slice of the head's weight is read once a pass, and each slice of its gradient is one product over
all rows, summed inside the matmul (float32) and written once. Chunks of rows read and add [V, D] again for each chunk: with
131 rows a chunk that cost more than a dense cross-entropy at V = 128k.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from .backends import OWN
from .first_pass import FirstPass, KeepLogits, check_shapes
from .head import LinearHead
from .slices import IGNORE_INDEX, accumulation_dtype
from .weighted import weighted_sum


def token_nll_from_logits(logits: Tensor, targets: Tensor) -> Tensor:
    """``-log_softmax(logits)[..., target]`` in float32; 0 where the target is -100.

    logits [..., V] of any float dtype, targets [...] already shifted (the logits at t predict ``targets[t]``).
    Differentiable. Adding a constant to all logits of a token changes nothing. float64 logits give float64. A target whose
    logit is -inf has an nll of inf; where all logits of a token are -inf, it is NaN.
    """
    check_shapes(logits, targets, "logits")
    flat_TV = logits.reshape(-1, logits.shape[-1])
    nll_T = F.cross_entropy(
        flat_TV.to(accumulation_dtype(logits.dtype)), targets.reshape(-1), ignore_index=IGNORE_INDEX, reduction="none"
    )
    return nll_T.view(targets.shape)


def token_nll(
    hidden: Tensor, head_weight: Tensor | LinearHead, targets: Tensor, *, slice_columns: int | None = None
) -> Tensor:
    """``-log_softmax(hidden @ head_weight.T)[..., target]``, detached float32 nats; 0 where the target is -100.

    hidden [..., D], head_weight [V, D] (or a :class:`LinearHead`), targets [...] already shifted: hidden at t predicts
    ``targets[t]``. No more than ``slice_columns`` columns of logits exist at a time. inf and NaN as in
    :func:`token_nll_from_logits`.
    """
    return LinearNLL(hidden, head_weight, targets, keep_logits=False, slice_columns=slice_columns).nll


class LinearNLL(FirstPass):
    """nll of every token, then the gradient of only those that get a weight: two steps that share one pass.

        head = LinearNLL(hidden, head_weight, targets)
        head.nll                        # [...] float32, detached; 0 where the target is -100
        head.statistic("entropy")       # the same for what is asked for with statistics=("entropy", ...)
        head.weighted_sum(weight)       # (sum(weight * nll), sum(weight)): differentiable, once

    hidden [..., D]; head_weight [V, D] or :class:`LinearHead`; targets [...] already shifted, -100 for none; others must lie in
    the vocabulary. ``statistics``: of entropy, sum_p2, target_rank, top_entropy (see STATISTICS), from the same pass;
    ``entropy=True`` is short for the first. ``top_k``: how many of the likeliest entries ``topk`` tells. ``second``: a second
    target of each token, which takes its share of the loss (``targets.py``; of the backend tokensieve). ``keep_logits``: True
    keeps the first pass's logits for the backward (less time, T * V numbers), False computes them again, "auto" keeps them
    while they take at most 2 GiB. ``backend``: "tokensieve", or "torch" or "liger" for another library's backward over the
    selected rows (weights must then be 0 or 1, and nothing is kept). Under autocast the matmuls run in autocast's dtype; nll
    and statistics are float32 (float64 for float64 input), the head's gradient is summed over tokens in float32.
    """

    _spent = False

    def weighted_sum(self, weight: Tensor, *, max_rows: int | None = None) -> tuple[Tensor, Tensor]:
        """``(sum(weight * nll), sum(weight))`` over the tokens that have a target. See :func:`weighted_nll`.

        With a ``second`` target ``loss`` stands in the place of nll: ``(1 - share) nll + share CE``.
        Called once: kept logits are freed by its backward. ``max_rows``, a known bound on the number of non-zero weights,
        spares the GPU a synchronisation; exceeding it would drop tokens, so give a true bound. With another backend soft
        weights are then an error of the device's.
        """
        if self._spent:
            raise RuntimeError("weighted_sum was called before: make a new LinearNLL")
        self._spent = True
        return weighted_sum(self, weight, max_rows)


def weighted_nll(
    hidden: Tensor,
    head_weight: Tensor | LinearHead,
    targets: Tensor,
    weight: Tensor,
    *,
    keep_logits: KeepLogits = "auto",
    backend: str = OWN,
    slice_columns: int | None = None,
) -> tuple[Tensor, Tensor]:
    """``(sum_t weight_t * nll_t, sum_t weight_t)`` over tokens with a target: Rho-1's Eq. 4 before its one division.

    hidden [..., D], head_weight [V, D] or :class:`LinearHead`, targets [...] already shifted (-100: no target, its weight
    counts nowhere), weight [...] bool or of any sign. Both sums are float32 scalars; only the first has a gradient, to hidden,
    head weight and bias, never to ``weight``. Add the sums of all micro-batches and ranks, then divide once. Nothing
    kept gives 0 with zero gradients, not NaN. A row of weight 0 costs no backward and adds exactly 0, whatever its nll is, inf
    and NaN too; a row with a weight and an nll of inf makes the sum inf. Options as of :class:`LinearNLL`.
    """
    options: dict[str, Any] = {"keep_logits": keep_logits, "backend": backend, "slice_columns": slice_columns}
    head = LinearNLL(hidden, head_weight, targets, **options)
    return head.weighted_sum(weight)
