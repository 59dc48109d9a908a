"""The one seam into a model: run a token loss where its vocabulary head would have made [tokens, vocab] logits.

    model.forward: body -> hidden --pre-hook--> hidden[:, :0] -> head -> empty logits -> scale, cap -> loss_function -> loss
                                 \\--hook-----> compute(hidden, head) -> our loss ---carried along----/    (+ router losses)

Two module hooks on the output embedding and the documented ``loss_function`` setter: nothing of a model class is copied
or replaced, so it works for every causal LM whose head is one linear layer. The computation runs inside the head's own
forward call, where DDP has the module and FSDP has its weights unsharded; the loss leaves it through the head's output and
comes out as the model's own loss, with what else the model adds to it (router losses).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..core import LinearHead, LinearNLL
from ..data.images import PER_IMAGE, PER_TOKEN, joined_images
from ..runs.errors import UserError

Compute = Callable[[Tensor, LinearHead], Tensor | None]
# Of the head's input: (what it is taken for, the columns of it that the model makes its own logits and loss of).
Show = Callable[[Tensor, LinearHead], tuple[Tensor, slice]]

# The power of the config's `logits_scaling` in the logits. Granite divides them; MiniCPM3 divides what its head is given, which
# the seam sees after that; HyperCLOVA X multiplies.
LOGITS_SCALING = {"minicpm3": 0.0, "hyperclovax": 1.0}
MODEL_INPUTS = ("input_ids", "attention_mask", "position_ids", *PER_TOKEN, *PER_IMAGE)


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
        self._takes = inspect.signature(type(self.model).forward).parameters
        self.calls = 0
        """Calls of the head in the last run."""
        self.own_loss: Tensor | None = None
        """The model's own loss of what the last run showed it, see :meth:`run`."""
        self._compute: Compute | None = None
        self._show: Show | None = None
        self._shown = slice(0)
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

    def takes(self, name: str) -> bool:
        """Whether the model's forward has this argument, or any (``**kwargs``)."""
        return name in self._takes or any(p.kind is p.VAR_KEYWORD for p in self._takes.values())

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What the model is called with for a collated batch, wherever it is: in training, in scoring and in the proof.

        Never with a cache: beside one, positions that restart no longer stop attention. Images of its rows one after the other.
        """
        there = {name: batch[name] for name in MODEL_INPUTS if name in batch}
        joined = {n: joined_images(n, v) if isinstance(v, tuple) else v for n, v in there.items()}
        fed = {name: values for name, values in joined.items() if values is not None}
        return {**fed, "use_cache": False} if self.takes("use_cache") else fed

    @contextmanager
    def run(self, compute: Compute, show: Show | None = None) -> Iterator[None]:
        """While open, the model's head calls ``compute(hidden, head)`` instead of making logits.

        ``show``, for the proof: may change the hidden states, and leaves columns on which the model makes its logits and its
        own loss all the same; that is ``own_loss`` afterwards.
        """
        self._compute, self._show, self._shown, self.calls, self.own_loss = compute, show, slice(0), 0, None
        try:
            yield
        finally:
            self._compute = self._show = self._hidden = self._loss = None

    def head(self) -> LinearHead:
        """The head as it is understood. Its weight is whole only while the head is being called."""
        return LinearHead(self.layer.weight, self.layer.bias, self.scale, self.softcap)

    def _capture(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._compute is None:
            return None
        self.calls += 1
        self._hidden = args[0]
        if self._show is not None:
            self._hidden, self._shown = self._show(args[0], self.head())
        return (self._hidden[:, self._shown], *args[1:])

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _run(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if self._compute is None or self._hidden is None:
            return None
        self._loss, self._box = self._compute(self._hidden, self.head()), []
        if self._loss is None or not self._loss.requires_grad:
            return None
        return _Carry.apply(output, self._loss, self._box)  # type: ignore[no-any-return, no-untyped-call]

    def _loss_function(self, *args: Any, **kwargs: Any) -> Tensor:
        """The model's own loss when idle; ours, for the model to add its router losses to, when running."""
        if self._compute is None:
            return self._own_loss(*args, **kwargs)
        if self._show is not None and (self._shown.stop or not self.calls):
            if "labels" in kwargs:
                kwargs["labels"] = kwargs["labels"][:, self._shown]
            else:
                args = (args[0], args[1][:, self._shown], *args[2:])
            if not self.calls:
                raise UserError(
                    f"{type(self.model).__name__} does not call its output embedding: its loss cannot be made selective"
                )
            own = self._own_loss(*args, **kwargs)
            self.own_loss = own.clone()  # router losses are added in place
            return own
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


def likeliest_entries(model: Any, seam: HeadSeam, inputs: Mapping[str, Tensor], top_k: int) -> tuple[Tensor, Tensor]:
    """(ids, log p) of the ``top_k`` likeliest entries of each prediction for a collated batch; [B, T, K], or all entries there
    are. ``model`` is the seam's, wrapped or not."""
    found: list[tuple[Tensor, Tensor]] = []

    def compute(hidden: Tensor, head: LinearHead) -> None:
        most = min(top_k, len(head.weight))
        found.append(LinearNLL(hidden, head, inputs["targets"], keep_logits=False, top_k=most).topk)

    with seam.run(compute):
        model(**seam.inputs(inputs))
    return found[0]


def base_model(model: nn.Module) -> Any:
    """The transformers model inside the wrappers of torch.compile and PEFT, or the model itself."""
    model = getattr(model, "_orig_mod", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


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
    if getattr(model.config, "is_encoder_decoder", False):
        raise UserError(
            f"{name} is an encoder with a decoder: its encoder sees every token, it is not a causal language model"
        )
    if not hasattr(type(model), "loss_function"):
        raise UserError(f"{name} is not a transformers model with a settable loss_function")
    return layer


def _logit_transform(model: nn.Module) -> tuple[float, float | None]:
    """(scale, soft-cap) that the model applies to its logits, from its config; :mod:`.probe` proves them."""
    config: Any = model.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    scale = float(getattr(config, "logit_scale", None) or 1.0)  # Cohere
    power = LOGITS_SCALING.get(getattr(config, "model_type", ""), -1.0)
    scale *= float(getattr(config, "logits_scaling", None) or 1.0) ** power
    scale *= float(getattr(config, "lm_head_multiplier", None) or 1.0)  # Falcon-H1
    caps = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # Gemma, Griffin, xLSTM
    softcap = next(filter(None, (getattr(config, name, None) for name in caps)), None)
    return scale, None if softcap is None else float(softcap)
