"""Proof, before work begins, of all that the method takes for granted of a model, on a micro-batch as it will be fed.

    forward 1   the rows as they are          finite weights and numbers; our full-keep loss is the model's own (head)
    forward 2   every other row changed       tokens before the change keep their nll (causality), later pieces do (isolation),
                                              and the rows left as they are (independence)
    forward 3   every other row, or one of    the same nll without the neighbours: nothing follows the longest row or piece of
                its pieces, by itself         the batch (rope scaling, padding)

The forward is the caller's own: same module, autocast, collation, arguments and number of rows as in the run. Hidden states are
stretched until logits reach +-30: with new weights all logits are near 0, every head then gives log V, and what attention lets
through would not show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..core import IGNORE_INDEX, LinearHead, token_nll
from ..data.images import map_tensors
from ..data.rows import Rows, collate, shift_targets
from ..runs.errors import UserError
from .images import image_inputs
from .probe_rows import Changes, RowItem, alone, choose_rows, pieces, real_tokens
from .properties import PROPERTIES, Findings, is_mask
from .seam import HeadSeam, Show

PROBE_LOGITS = 30.0
# Logits that the model makes of its own here, all that exist at a time: 0.25 GiB in float32.
OWN_LOGITS = 1 << 26


def broken_property(
    seam: HeadSeam, rows: Rows, count: int, call: Callable[..., Any], device: torch.device, *, labels: bool = True
) -> str | None:
    """A sentence on the first of PROPERTIES that does not hold for a micro-batch of ``count`` of the rows, or None.

    ``call(**inputs)``: the model's forward as in the run, with ``labels`` or without. Ranks call it together and look at the
    same rows. Rows without a target show nothing: None if there are only such. At most three forwards, no gradient; training
    mode and random state are put back.
    """
    items = choose_rows(rows, count)
    if not items:
        return None
    try:
        with _untouched(seam.model, device):
            found = _look(seam, items, call, device, labels)
    except UserError as e:
        return str(e)
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as e:
        if isinstance(e, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(e):
            raise
        told = (str(e).strip() or type(e).__name__).split("\n")[0]
        return (
            f"{type(seam.model).__name__} cannot be called with {', '.join(seam.inputs(collate(items)))} alone: {told}"
        )
    return next(filter(None, (holds(found) for holds in PROPERTIES)), None)


@contextmanager
def _untouched(model: nn.Module, device: torch.device) -> Iterator[None]:
    """In eval mode and without gradient; each module's mode and the random state are put back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        for module, training in modes:
            module.training = training


def _look(
    seam: HeadSeam, items: Sequence[RowItem], call: Callable[..., Any], device: torch.device, labels: bool
) -> Findings:
    """The forwards of all properties, whatever they come to: ranks must make the same number."""
    if "position_ids" in items[0] and not seam.takes("position_ids"):
        raise UserError(
            f"{type(seam.model).__name__} takes no position_ids and cannot keep documents apart: "
            "prepare the corpus with isolate_documents: false for it"
        )
    batch = map_tensors(collate(items), lambda values: values.to(device))
    fed_BT = batch["targets"]
    # More is compared than is trained on: a row may have a single target.
    targets_BT = torch.where(fed_BT == IGNORE_INDEX, shift_targets(batch["input_ids"]), fed_BT)
    head, losses = _Head(seam, fed_BT), list[Tensor]()

    def nll_of(fed: Mapping[str, Tensor], targets: Tensor, with_labels: bool = labels) -> Tensor:
        inputs, made = seam.inputs(fed), list[Tensor]()
        if with_labels:
            inputs["labels"] = fed["labels"]
        with seam.run(lambda hidden, by: made.append(token_nll(hidden, by, targets)), head.show(targets.shape)):
            outputs = call(**inputs)
        if with_labels:
            losses.append(outputs.loss)
        return head.only(made, seam.calls)

    nll_BT = nll_of(batch, targets_BT, with_labels=True)
    own, shown = head.own(seam.own_loss), (slice(None), slice(head.columns.start, head.columns.stop - 1))
    ours = nll_BT[shown][fed_BT[shown] != IGNORE_INDEX].double()
    changes = Changes.of(items, fed_BT.shape[1])
    images = image_inputs(seam.model)
    kept = images.token_ids if images else ()
    changed = {**batch, "input_ids": changes.applied(batch["input_ids"], seam.layer.out_features, kept)}
    moved_BT = _nats(nll_of(changed, targets_BT), nll_BT)

    apart_BT = torch.full_like(moved_BT, float("nan"))
    if cut := alone(items):
        single = map_tensors(collate([item for item, _, _ in cut]), lambda values: values.to(device))
        wide, length = (
            torch.nn.functional.pad(targets_BT, (0, fed_BT.shape[1]), value=IGNORE_INDEX),
            single["labels"].shape[1],
        )
        nll = nll_of(single, torch.stack([wide[row, start : start + length] for _, row, start in cut]))
        for i, (item, row, start) in enumerate(cut):
            here = slice(start, start + min(real_tokens(item), fed_BT.shape[1] - 1 - start))
            apart_BT[row, here] = _nats(nll[i, : here.stop - start], nll_BT[row, here])
    sizes = [n for item in items for n in pieces(item)[1] if n > 1]
    masked = seam.layer.bias is not None and is_mask(seam.layer.bias)
    fine_BT = nll_BT.isfinite() | ((nll_BT == float("inf")) & masked)
    finite = bool(fine_BT[fed_BT != IGNORE_INDEX].all()) and (masked or bool(own.isfinite()))
    return Findings(
        *(seam.model, head.dtype, finite, float(own), float(ours.mean()), ours.numel()),
        *(changes, moved_BT, apart_BT, (min(sizes), max(sizes))),
        float(losses[1]) if len(losses) > 1 else 0.0,  # the first one's loss is of the logits that it was shown
    )


def _nats(a: Tensor, b: Tensor) -> Tensor:
    """|a - b| on the CPU; infinite where one is no number."""
    gap = torch.where(a == b, 0.0, (a - b).abs().float())  # both infinite: a masked vocabulary
    return gap.nan_to_num(nan=float("inf"), posinf=float("inf")).cpu()


class _Head:
    """What the head is shown: hidden states times one factor in all forwards; in the first, columns for logits of its own."""

    def __init__(self, seam: HeadSeam, targets_BT: Tensor) -> None:
        self.name, self.factor, self.dtype = type(seam.model).__name__, 0.0, torch.float32
        rows, length = targets_BT.shape
        width = min(length, max(2, OWN_LOGITS // (rows * seam.layer.out_features)))
        first = int((targets_BT != IGNORE_INDEX).any(0).int().argmax())
        start = min(first, length - width)
        self.columns = slice(start, start + width)

    def show(self, shape: torch.Size) -> Show:
        def shown(hidden: Tensor, head: LinearHead) -> tuple[Tensor, slice]:
            if hidden.shape[:-1] != shape:
                raise UserError(
                    f"{self.name} has hidden states of {list(hidden.shape[:-1])} for {list(shape)} tokens: what makes a "
                    "sequence longer (prompt tuning, P-tuning) is not supported"
                )
            columns = slice(0) if self.factor else self.columns
            if not self.factor:
                self._measure(hidden, head)
            return hidden * self.factor, columns

        return shown

    def _measure(self, hidden: Tensor, head: LinearHead) -> None:
        """The factor that brings the largest logit of some tokens to PROBE_LOGITS, and the dtype."""
        device = hidden.device.type
        self.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.weight.dtype
        some = hidden.reshape(-1, hidden.shape[-1])
        some = some[:: max(1, len(some) // 64)].to(head.weight.dtype)
        largest = float((some @ head.weight.T).float().abs().max()) * abs(head.logit_scale)
        self.factor = PROBE_LOGITS / largest if 0 < largest < float("inf") else 1.0

    def own(self, loss: Tensor | None) -> Tensor:
        if loss is None:
            raise UserError(f"{self.name} makes its loss without loss_function: it cannot be made selective")
        return loss

    def only(self, made: Sequence[Tensor], calls: int) -> Tensor:
        if calls == 1 and made:
            return made[0]
        how = "does not call its output embedding" if not calls else f"calls its output embedding {calls} times"
        raise UserError(f"{self.name} {how}: its loss cannot be made selective")
