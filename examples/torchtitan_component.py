"""Components for torchtitan's config registry (0.3): a loss by rule, a loader for the corpus that ``tokensieve prepare`` wrote
with its scores, and a trainer that brings the one to the other. In a config registry of yours:

    def llama3_8b_rho1() -> SelectiveTrainer.Config:
        plain = llama3_8b()  # torchtitan's own
        fields = {f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)}
        fields["loss"] = SelectiveLoss.Config(rule="rho1", options={"ratio": 0.6, "scope": "sequence"})
        read = {"corpus": "runs/x/corpus", "scores": ["runs/x/scores"], "columns": ["ref_nll"]}
        fields["dataloader"] = CorpusDataLoader.Config(**read)
        return SelectiveTrainer.Config(**fields)

torchtitan divides by the tokens with a target, of all micro-batches and ranks, so rules have the denominator "valid" here: of
rho1 the gradient is ``ratio`` times that of the paper's. The loss takes the place of ChunkedLossWrapper, whose chunks are no
scope to rank tokens in: [tokens, vocab] logits come into being.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.loss import BaseLoss
from torchtitan.trainer import Trainer

import tokensieve as ts
from tokensieve.data.rows import EpochSampler, Rows, collate, next_token

try:
    from .torchtitan_loss import selective_loss
except ImportError:  # beside this file, and not in a package
    from torchtitan_loss import selective_loss


class SelectiveLoss(BaseLoss):
    """``sum(weight * nll) / global_valid_tokens``; ``columns`` are those of the micro-batch that comes next."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseLoss.Config):
        rule: str = "entropy_top"
        """One of docs/objectives.md, or package.module:factory."""
        options: dict[str, Any] = field(default_factory=dict)
        """Of the rule."""

    def __init__(self, config: Config, *, compile_config: Any = None) -> None:
        self.rule = ts.objective(config.rule, **{"denominator": "valid", **config.options})
        if self.rule.denominator != "valid" or self.rule.scope not in ("sequence", "batch"):
            raise ts.UserError(
                "torchtitan divides by valid tokens: the denominator is valid, the scope sequence or batch"
            )
        self.columns: dict[str, torch.Tensor] = {}

    def __call__(
        self, pred: torch.Tensor, labels: torch.Tensor, global_valid_tokens: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if isinstance(pred, DTensor):
            raise ts.UserError("logits that are sharded over the vocabulary are not supported: no tensor parallelism")
        loss = selective_loss(self.rule, pred, labels, self.columns)
        return loss if global_valid_tokens is None else loss / global_valid_tokens, {}


class CorpusDataLoader(BaseDataLoader):
    """Rows of a corpus with score columns beside them, in an order that follows from seed and epoch; resumes by batch."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        corpus: str = ""
        scores: list[str] = field(default_factory=list)
        columns: list[str] = field(default_factory=list)
        seed: int = 0

    def __init__(
        self, config: Config, *, dp_world_size: int, dp_rank: int, local_batch_size: int, **kwargs: Any
    ) -> None:
        self.columns = config.columns
        self.rows = Rows(ts.load_scored(config.corpus, *config.scores), scores=config.columns)
        self.batch, self.first = local_batch_size, dp_rank * local_batch_size
        self.order = EpochSampler(len(self.rows), config.seed, multiple=dp_world_size * local_batch_size)
        self.done = 0

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        while True:
            epoch, there = divmod(self.done * self.order.multiple, len(self.order))
            self.order.set_epoch(epoch)
            indices = list(self.order)
            for start in range(there + self.first, len(indices), self.order.multiple):
                read = collate(self.rows.__getitems__(indices[start : start + self.batch]))
                inputs = {"input": read["input_ids"], **{n: next_token(read[n]) for n in self.columns}}
                inputs |= {"positions": read["position_ids"]} if "position_ids" in read else {}
                self.done += 1
                yield inputs, read["targets"]

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.done = state_dict["done"]


class SelectiveTrainer(Trainer):
    """Hands the loss the columns that the model does not take."""

    @dataclass(kw_only=True, slots=True)
    class Config(Trainer.Config):
        pass

    def forward_backward_step(self, *, input_dict: Any, labels: Any, global_valid_tokens: torch.Tensor) -> torch.Tensor:
        if isinstance(input_dict, list):
            raise ts.UserError("pipeline parallelism is not supported: the last stage does not see the columns")
        self.loss_fn.columns = {n: input_dict.pop(n) for n in self.loss_fn.rule.needs & input_dict.keys()}
        return super().forward_backward_step(
            input_dict=input_dict, labels=labels, global_valid_tokens=global_valid_tokens
        )
