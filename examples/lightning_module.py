"""A LightningModule whose loss is ``sum(weight * nll) / denominator`` of any rule of docs/objectives.md.

    pip install lightning
    rows = Rows(ts.load_scored("runs/x/corpus", "runs/x/scores"), scores=["ref_nll"])
    loader = DataLoader(rows, batch_size=8, shuffle=True, collate_fn=collate)
    lightning.Trainer(accumulate_grad_batches=4, gradient_clip_val=1.0).fit(SelectiveModule(model, rule, lr=1e-4), loader)

Lightning sees one micro-batch at a time, so sums are backpropagated, and gradients divided once before they are clipped, by the
denominator of the step's micro-batches on all ranks. A rule of scope "batch" ranks the tokens of a rank's micro-batch. Router
losses of mixtures would be divided too: set output_router_logits to False in the model's config.
"""

from typing import Any

import lightning
import torch

import tokensieve as ts
from tokensieve.core.stats import head_statistics
from tokensieve.training.step import known_stats, no_zero, weights


class SelectiveModule(lightning.LightningModule):
    def __init__(self, model: Any, rule: ts.Objective, lr: float) -> None:
        super().__init__()
        if rule.scope not in ("sequence", "batch") or getattr(model.config, "output_router_logits", False):
            raise ts.UserError("a rule of scope sequence or batch is needed, and a model without a router loss")
        self.model, self.rule, self.lr = model, rule, lr
        self.seam = ts.HeadSeam(model)
        self.denominator: Any = 0

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        def loss(hidden: torch.Tensor, head: ts.LinearHead) -> torch.Tensor:
            asked = head_statistics(self.rule.needs)
            nll = ts.LinearNLL(hidden, head, batch["targets"], statistics=[n for n in asked if n != "nll"])
            known = known_stats(self.rule.needs, batch, step=self.global_step)
            weight = weights(self.rule, known.with_values({n: nll.statistic(n) for n in asked}))
            self.denominator = self.denominator + self.rule.denominator_of(weight, known.valid)
            return nll.weighted_sum(weight)[0]

        with self.seam.run(loss):
            loss_sum = self.model(**self.seam.inputs(batch), labels=batch["labels"]).loss
        # Lightning divides by the number of micro-batches, and averages gradients over ranks.
        return loss_sum * (self.trainer.accumulate_grad_batches * self.trainer.world_size)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        denominator = no_zero(self.trainer.strategy.reduce(self.denominator, reduce_op="sum"))
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(denominator.to(parameter.grad.dtype))
        self.denominator = 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)
