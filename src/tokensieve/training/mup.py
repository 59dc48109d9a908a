"""Maximal update parametrisation: one learning rate for every width [mu-Transfer, arXiv 2203.03466, table 3, Adam].

    m = hidden size / base    new weights, against the family's own    learning rate
    embeddings, vectors       1                                        lr          (tables of positions too)
    matrices within           m^(-1/2)                                 lr / m
    vocabulary head           1 / m                                    lr / m

At the base width nothing changes. Everything must grow by m together: heads in number, not in size (so that 1 / sqrt(d) of
attention stays what it is), and the layers between. Known are linear layers: convolutions, state spaces and routers have
sides that do not grow, and are refused. That activations keep their size while they learn, whatever the width, is
the coordinate check, in tests/training/test_mup.py.
"""

from __future__ import annotations

from typing import Any

import torch

from ..runs.errors import UserError

WITHIN, HEAD = "within", "head"
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def factor(model: Any, base: int) -> float:
    """m. UserError for a head that is tied: it cannot be scaled without the embeddings."""
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    if outputs is None or outputs.weight is inputs.weight:
        raise UserError(
            "mup: the head is tied to the embeddings, which are scaled otherwise: set tie_word_embeddings: false"
        )
    return float(inputs.weight.shape[1]) / base


def roles(model: Any) -> dict[torch.nn.Parameter, str]:
    """The parameters that are scaled, and as what. Tables of positions or types are embeddings as those of tokens are.

    UserError for a mixture, and for a matrix that is no linear layer's: both of its sides must grow with the width.
    """
    from transformers.pytorch_utils import Conv1D

    text = model.config.get_text_config()
    if experts := next((f for f in _EXPERTS if getattr(text, f, None)), None):
        raise UserError(
            f"mup: a {text.model_type} has {experts}, and the outputs of a router do not grow with the width"
        )
    head = model.get_output_embeddings().weight
    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    linear = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Linear | Conv1D)}
    found = {}
    for name, p in model.named_parameters():
        if p.dim() < 2 or id(p) in tables:
            continue
        if id(p) not in linear:
            raise UserError(
                f"mup: {name} {list(p.shape)} is no linear layer's, so how it grows with the width is not known"
            )
        found[p] = WITHIN
    return {**found, head: HEAD}


@torch.no_grad()
def scale_new_weights(model: Any, base: int) -> None:
    """Scale the weights of a new model, in place."""
    m = factor(model, base)
    for p, role in roles(model).items():
        p.mul_(m**-0.5 if role == WITHIN else 1 / m)


def scale_rates(optimizer: torch.optim.Optimizer, model: Any, base: int) -> None:
    """Split each group of parameters in two, of which that of matrices and head has its learning rate over m."""
    m, scaled = factor(model, base), {id(p) for p in roles(model)}
    for group in list(optimizer.param_groups):
        slow = [p for p in group["params"] if id(p) in scaled]
        group["params"] = [p for p in group["params"] if id(p) not in scaled]
        if slow:
            optimizer.add_param_group({**group, "params": slow, "lr": group["lr"] / m})
