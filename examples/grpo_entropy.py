"""GRPO whose policy loss is that of the tokens a rule keeps, here the fifth of highest entropy (arXiv 2506.01939).

    pip install 'tokensieve[trl]'
    trainer = SelectiveGRPOTrainer(model, reward_funcs=reward, args=trl.GRPOConfig("out"), train_dataset=prompts, rule=rule)

TRL has that very rule built in, ``top_entropy_quantile=0.2``, and needs no example for it; the two masks are the same but for
one token a batch: of n tokens TRL's quantile leaves 1 + floor(0.2 (n - 1)) and what ties with the last of them,
``entropy_top`` floor(0.2 n + 0.5), of ties the earlier. Here any rule can stand that ranks by entropy alone: one of yours,
one by a schedule, or ``random`` as the control that a claim about entropy needs.
"""

from typing import Any

import torch
import trl

import tokensieve as ts


class SelectiveGRPOTrainer(trl.GRPOTrainer):  # type: ignore[misc]
    """``GRPOTrainer(..., rule=ts.objective("entropy_top", ratio=0.2))``."""

    def __init__(self, *args: Any, rule: ts.Objective, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if more := rule.needs - {"entropy", "row_id", "position", "step"}:
            raise ts.UserError(f"rule {rule.name!r} needs {min(more)!r}, which GRPO does not know of its tokens")
        self.rule = rule
        self.top_entropy_quantile = 0.5  # below 1 TRL asks for the mask below; its own threshold is not used

    def get_high_entropy_mask(self, entropies: torch.Tensor, mask: torch.Tensor, threshold: float) -> torch.Tensor:
        """Whether each token is kept: ranked over the tokens of all ranks, as TRL's. [B, T]"""

        def of_all_ranks(values: torch.Tensor) -> torch.Tensor:
            return self.accelerator.gather(self.accelerator.pad_across_processes(values, dim=1))

        valid = of_all_ranks(mask.long()).bool()
        rows = torch.arange(len(valid), device=valid.device)[:, None].expand_as(valid)
        places = torch.arange(valid.shape[1], device=valid.device).expand_as(valid)
        known = {"entropy": of_all_ranks(entropies.detach().float()), "row_id": rows, "position": places}
        keep = self.rule.weigh(ts.TokenStats(valid, step=self.state.global_step, **known)) != 0
        first = self.accelerator.process_index * len(mask)
        return keep[first : first + len(mask), : mask.shape[1]]
