"""What moves the weights, and how far: optimizers and schedules that are not the arguments' own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..runs.errors import UserError
from ..runs.layout import TOKEN_LOG
from .logged import Logged
from .mer import attach
from .mup import scale_rates
from .optimizers import SubsetNorm
from .options import Mer, Mup, SubsetNormOptions
from .schedules import PowerSchedule, token_scheduler


class Optimised(Logged):
    """A Trainer whose optimizer and learning rates may be ours; each is None unless it is asked for."""

    mer: Mer | None = None
    mup: Mup | None = None
    own_optimizer: SubsetNormOptions | None = None
    schedule: PowerSchedule | None = None
    lr_scheduler: Any
    _counted: dict[str, int]
    """Tokens ``seen`` and ``trained`` up to the last step, on the host; kept only for a schedule."""

    def check_given_optimizers(self, given: Mapping[str, Any]) -> None:
        """Raise UserError where the Trainer's keywords have an optimizer or a schedule that ours would not reach."""
        optimizer, scheduler = given.get("optimizers") or (None, None)
        ours = [name for name in ("mer", "mup") if getattr(self, name) is not None]
        ours += ["optimizer"] if self.own_optimizer is not None else []
        if ours and optimizer is not None:
            raise UserError(f"{ours[0]}: it would not reach the optimizer given in optimizers: leave one of them out")
        if self.own_optimizer is not None and given.get("optimizer_cls_and_kwargs") is not None:
            raise UserError("optimizer and optimizer_cls_and_kwargs are two optimizers: leave one of them out")
        if self.schedule is not None and scheduler is not None:
            raise UserError("schedule and the scheduler in optimizers are two schedules: leave one of them out")

    def check_whole_matrices(self) -> None:
        """Raise UserError for what looks at whole matrices of the model where there are parts of them, or an adapter's."""
        if self.own_optimizer is not None and self.own_optimizer.rank and not self.args.adam_beta1:
            raise UserError(
                "optimizer.rank: with adam_beta1 0 there is no momentum to keep in a subspace: set rank to 0"
            )
        if self.is_fsdp_enabled and (self.own_optimizer is not None or self.mup is not None):
            name = "mup" if self.mup is not None else "optimizer"
            raise UserError(f"{name}: it looks at whole matrices, and FSDP has parts of them: use DDP")
        if self.mup is not None and hasattr(self.accelerator.unwrap_model(self.model), "peft_config"):
            raise UserError("mup: it scales whole matrices of the model, and an adapter has none: leave it out")

    def create_optimizer(self, model: Any = None) -> Any:
        """As the Trainer's, or the one of ours that is asked for; with meta-experience replay after its steps."""
        if self.optimizer is None and self.own_optimizer is not None:
            args, own = self.args, self.own_optimizer
            betas = (args.adam_beta1, args.adam_beta2)
            settings = {
                "lr": args.learning_rate,
                "betas": betas,
                "eps": args.adam_epsilon,
                "rank": own.rank,
                "gap": own.gap,
            }
            self.optimizer_cls_and_kwargs = (SubsetNorm, settings)
        new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if new and self.mup is not None:
            scale_rates(optimizer, self.accelerator.unwrap_model(self.model), self.mup.base)
        if new and self.mer is not None:
            attach(optimizer, self.mer)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """As the Trainer's; with a schedule by tokens that one, which has no use for the number of steps."""
        if self.schedule is None:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            schedule, rows, lr_max = self.schedule, self.split.global_batch, self.args.learning_rate
            self.lr_scheduler = token_scheduler(
                optimizer or self.optimizer,
                lr_max,
                lambda tokens: schedule.rate(tokens, lr_max, rows),
                lambda: self._counted[schedule.count],
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        """The guards' own, which waits for the device; so the step's tokens can be had here for nothing."""
        norm = super()._get_grad_norm(*args, **kwargs)
        if self.schedule is not None and (totals := self.step.totals) is not None:
            seen, trained = self._sum_over_ranks(torch.stack([totals["valid"], totals["kept"]])).tolist()
            skipped = self.state.global_step + 1 in self.skipped_steps
            self._counted["seen"] += round(seen)
            self._counted["trained"] += 0 if skipped else round(trained)
        return norm

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        state = super()._init_training_state(*args, **kwargs)
        if self.schedule is not None and self.state.global_step and not self.token_log.tokens_seen:
            raise UserError(
                f"schedule: it counts tokens by the token log, which {self.token_log.folder} has not up to step "
                f"{self.state.global_step}: go on in the folder of the checkpoint, or copy its {TOKEN_LOG}"
            )
        self._counted = {"seen": self.token_log.tokens_seen, "trained": self.token_log.tokens_trained}
        return state
