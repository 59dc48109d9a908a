"""Meta-experience replay: every so many steps the weights go back most of the way to where they were at the last such step.

    w <- w0 + epsilon (w - w0) every k optimizer steps, w0 the weights after the last time          [MER, arXiv 2508.01908]

(The authors' repository, chandar-lab/continual-pretraining, says it so: w <- (1 - epsilon) w0 + epsilon w_k every k steps.)
That is Reptile's update over a stretch of training on new and replayed rows together: its gradient has a term that aligns the
gradients of the stretch's batches, so that learning one hurts the others less. Replay itself is rows of the old text in the
corpus, as many as a source's weight says. epsilon 1 is plain replay.
"""

from __future__ import annotations

from typing import Any

import torch

from .options import Mer

ANCHOR, STEPS = "mer_anchor", "mer_steps"


def attach(optimizer: torch.optim.Optimizer, mer: Mer) -> None:
    """Have ``optimizer`` do so after its steps. Costs one copy of the weights.

    The copy and the count are part of the optimizer's state, so that they are saved, sharded and resumed as that is.
    """
    if mer.epsilon == 1:
        return
    before: dict[torch.Tensor, torch.Tensor] = {}

    @torch.no_grad()
    def remember(optimizer: Any, *_: Any) -> None:
        for p in _moved(optimizer):
            if ANCHOR not in optimizer.state[p]:
                before[p] = p.detach().clone()

    @torch.no_grad()
    def go_back(optimizer: Any, *_: Any) -> None:
        for p in _moved(optimizer):
            if p in before:  # not earlier: an optimizer whose state is not empty makes no more of its own
                optimizer.state[p][ANCHOR] = before.pop(p)
        for group in optimizer.param_groups:
            group[STEPS] = group.get(STEPS, 0) + 1
            if group[STEPS] % mer.every:
                continue
            for p in group["params"]:
                if (anchor := optimizer.state[p].get(ANCHOR)) is not None:
                    p.copy_(torch.lerp(anchor, p, mer.epsilon))
                    anchor.copy_(p)

    optimizer.register_step_pre_hook(remember)
    optimizer.register_step_post_hook(go_back)


def _moved(optimizer: Any) -> list[torch.Tensor]:
    """Parameters that this step changes: of one that was left out there is no gradient."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
