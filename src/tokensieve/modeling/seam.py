"""The one seam into a model: run a token loss where its vocabulary head would have made [tokens, vocab] logits.

    model.forward: body -> hidden --pre-hook--> hidden[:, :0] -> head -> empty logits -> scale, cap -> loss_function -> loss
                                 \\--hook-----> compute(hidden, head) -> our loss ---carried along----/    (+ router losses)

Two module hooks on the output embedding and the documented ``loss_function`` setter: nothing of a model class is copied
or replaced, so it works for every causal LM whose head is one linear layer. The computation runs inside the head's own
forward call, where DDP has the module and FSDP has its weights unsharded; the loss leaves it through the head's output and
comes out as the model's own loss, with what else the model adds to it (router losses).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..core import IGNORE_INDEX, LinearHead, token_nll
from ..data.rows import shift_targets
from ..runs import UserError

Compute = Callable[[Tensor, LinearHead], Tensor | None]


class HeadSeam:
    """Attached to a causal LM (PEFT-wrapped or not), idle until :meth:`run`.

        seam = HeadSeam(model)
        with seam.run(compute):                      # compute(hidden [B, T, D], head)
            out = wrapped_model(input_ids=..., labels=...)
        out.loss                                     # what compute returned (None: 0) + the model's router losses

    Raises UserError for a head that is not a plain linear layer, naming it: a quantised or adapter-wrapped head would be
    read wrongly.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = base_model(model)
        self.layer = _plain_head(self.model)
        self.scale, self.softcap = _logit_transform(self.model)
        self._compute: Compute | None = None
        self._hidden: Tensor | None = None
        self._loss: Tensor | None = None
        self._box: list[Tensor] = []
        self._own_loss: Callable[..., Tensor] = self.model.loss_function
        self.model.loss_function = self._loss_function
        # FSDP gathers the weight in a pre-hook placed before ours and frees it in a hook placed after ours.
        self._handles = [
            self.layer.register_forward_pre_hook(self._capture),
            self.layer.register_forward_hook(self._run, prepend=True),
        ]

    def close(self) -> None:
        """Take the hooks off again and give the model its loss function back."""
        for handle in self._handles:
            handle.remove()
        self.model.loss_function = self._own_loss

    @contextmanager
    def run(self, compute: Compute) -> Iterator[None]:
        """While open, the model's head calls ``compute(hidden, head)`` instead of making logits."""
        self._compute = compute
        try:
            yield
        finally:
            self._compute = self._hidden = self._loss = None

    def _capture(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._compute is None:
            return None
        self._hidden = args[0]
        return (args[0][:, :0], *args[1:])

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _run(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if self._compute is None or self._hidden is None:
            return None
        head = LinearHead(self.layer.weight, self.layer.bias, self.scale, self.softcap)
        self._loss, self._box = self._compute(self._hidden, head), []
        if self._loss is None or not self._loss.requires_grad:
            return None
        return _Carry.apply(output, self._loss, self._box)  # type: ignore[no-any-return, no-untyped-call]

    def _loss_function(self, *args: Any, **kwargs: Any) -> Tensor:
        """The model's own loss when idle; ours, for the model to add its router losses to, when running."""
        if self._compute is None:
            return self._own_loss(*args, **kwargs)
        logits: Tensor = kwargs["logits"] if "logits" in kwargs else args[0]
        if self._loss is None:
            return logits.new_zeros((), dtype=torch.float32)
        if not self._loss.requires_grad:
            return self._loss.clone()
        return _Release.apply(logits, self._loss.detach(), self._box)  # type: ignore[no-any-return, no-untyped-call]


class _Carry(torch.autograd.Function):
    """The head's (empty) output with our loss attached: its backward is the loss's, with the gradient left in ``box``.

    FSDP2 gathers a module's weights for the backward when a gradient reaches the module's *output*. A loss that left the head
    by another door would find the weights freed ("data is not allocated yet"); and an empty tensor carries no number, so
    the number travels in the box. Nothing goes back into the empty product itself: its gradient would be a [V, D] of zeros,
    written and added at every micro-batch.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, loss: Tensor, box: list[Tensor]) -> Tensor:
        ctx.box = box
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, ctx.box.pop() if ctx.box else None, None


class _Release(torch.autograd.Function):
    """The carried loss, taken off the logits again where the model asks for its loss."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, loss: Tensor, box: list[Tensor]) -> Tensor:
        ctx.box, ctx.like = box, logits
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        ctx.box.append(grads[0])
        return torch.zeros_like(ctx.like), None, None


def base_model(model: nn.Module) -> Any:
    """The transformers model inside PEFT's wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


# The probes stretch the hidden states until logits reach this: with fresh weights all logits are near 0, every head then gives
# log V, and a scale or cap that nobody knew of would not be seen.
PROBE_LOGITS = 30.0


@contextmanager
def _stretched(seam: HeadSeam, factor: float) -> Iterator[None]:
    """While open, the head sees its hidden states times ``factor``."""
    handle = seam.layer.register_forward_pre_hook(lambda _, args: (args[0] * factor, *args[1:]), prepend=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _stretch(model: nn.Module, seam: HeadSeam, input_ids: Tensor) -> float:
    """The factor on hidden states that brings the largest raw logit of some tokens to PROBE_LOGITS."""
    largest: list[float] = []

    def look(hidden: Tensor, head: LinearHead) -> None:
        logits = hidden[:, :8].float() @ head.weight.float().T
        largest.append(float(logits.abs().max()) * abs(head.logit_scale))

    with seam.run(look):
        model(input_ids=input_ids, use_cache=False)
    if not largest:
        raise UserError(
            f"{type(seam.model).__name__} does not call its output embedding: its loss cannot be made selective"
        )
    return PROBE_LOGITS / largest[0] if largest[0] > 0 else 1.0


@torch.no_grad()
def probe_head(model: nn.Module, seam: HeadSeam, input_ids: Tensor, labels: Tensor) -> None:
    """Refuse a model whose head we do not understand: our full-keep loss must equal the model's own on one batch.

    Done with hidden states stretched so that logits spread to +-30, where a scale, cap or bias left out shows. Raises
    UserError with both numbers. Tolerance 1e-3 relative in float32, 2e-2 in half precision.
    """
    nll: list[Tensor] = []
    targets = shift_targets(labels)
    with _evaluating(model), _stretched(seam, _stretch(model, seam, input_ids)):
        own = model(input_ids=input_ids, labels=labels, use_cache=False).loss.float()
        with seam.run(lambda hidden, head: nll.append(token_nll(hidden, head, targets))):
            added = model(input_ids=input_ids, labels=labels, use_cache=False).loss.float()
    ours = nll[0].sum() / (targets != IGNORE_INDEX).sum() + added
    tolerance = 1e-3 if seam.layer.weight.dtype in (torch.float32, torch.float64) else 2e-2
    if not abs(float(ours - own)) <= tolerance * max(1.0, float(own)):
        raise UserError(
            f"{type(seam.model).__name__} computes a loss of {float(own):.5f} where its head's weights give "
            f"{float(ours):.5f}: its head does more than tokensieve knows of"
        )


@torch.no_grad()
def probe_isolation(model: nn.Module, seam: HeadSeam, input_ids: Tensor) -> None:
    """Refuse a model that looks across a document boundary: positions that restart must also stop its attention.

    The second half of a row, given with positions that restart there, must have the nll it has alone; in a batch of two,
    since some attention kernels see packed rows only one at a time. input_ids [1, T].
    """
    input_ids = input_ids.expand(2, -1)
    half = input_ids.shape[1] // 2
    alone, positions = input_ids[:, half:], torch.arange(input_ids.shape[1], device=input_ids.device).expand(2, -1)
    positions = torch.where(positions >= half, positions - half, positions)
    nll: list[Tensor] = []
    with _evaluating(model), _stretched(seam, _stretch(model, seam, input_ids)):
        for ids, places in ((input_ids, positions), (alone, positions[:, half:])):
            targets = shift_targets(ids)
            with seam.run(lambda hidden, head, targets=targets: nll.append(token_nll(hidden, head, targets))):  # type: ignore[misc]
                model(input_ids=ids, position_ids=places, use_cache=False)
    gap = float((nll[0][:, half:] - nll[1]).abs().max())
    if not gap <= (1e-2 if seam.layer.weight.dtype in (torch.float32, torch.float64) else 0.5):
        raise UserError(
            f"{type(seam.model).__name__} looks across document boundaries (nll differs by {gap:.3f} nats): "
            "prepare the corpus with isolate_documents: false for it"
        )


def _plain_head(model: nn.Module) -> nn.Linear:
    layer = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    name = type(model).__name__
    if layer is None:
        raise UserError(f"{name} has no output embedding: it is not a causal language model")
    if type(layer) is not nn.Linear:
        raise UserError(
            f"the head of {name} is {type(layer).__module__}.{type(layer).__name__}, not torch.nn.Linear: "
            "quantised or adapter-wrapped heads are not supported; leave the head out of the adapter or quantisation"
        )
    if not hasattr(type(model), "loss_function"):
        raise UserError(f"{name} is not a transformers model with a settable loss_function")
    return layer


def _logit_transform(model: nn.Module) -> tuple[float, float | None]:
    """(scale, soft-cap) that the model applies to its logits, from its config; :func:`probe_head` proves them."""
    config: Any = model.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    scale = float(getattr(config, "logit_scale", None) or 1.0)  # Cohere
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)  # Granite
    scale *= float(getattr(config, "lm_head_multiplier", None) or 1.0)  # Falcon-H1
    softcap = getattr(config, "final_logit_softcapping", None) or getattr(
        config, "logits_soft_cap", None
    )  # Gemma, Griffin
    return scale, None if softcap is None else float(softcap)
