"""A progress bar in tokens: tokens/s and time left, with what the selection does."""

from __future__ import annotations

import sys
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback


class TokenProgress(TrainerCallback):
    """Takes the place of the Trainer's step bar, on rank 0. Advances by the positions that a step computed."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.bar: Any = None
        self.shown: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        self.per_step = self._tokens_per_step(args)
        self.bar = tqdm(
            total=state.max_steps * self.per_step,
            initial=state.global_step * self.per_step,
            desc=args.run_name or "train",
            unit="tok",
            unit_scale=True,
            mininterval=1.0,
            dynamic_ncols=True,
            file=sys.stderr,
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(self.per_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.bar is None or not logs:
            return
        # Evaluations come in lines of their own: what the last one said stays until the next.
        self.shown |= {k: f"{logs[k]:.3f}" for k in ("loss", "ratio", "kept_nll", "dropped_nll") if k in logs}
        evaluated = {k for k in logs if k.startswith("eval_") and k.endswith("_nll")}
        self.shown |= {k if k == "eval_nll" else k[5:]: f"{logs[k]:.3f}" for k in sorted(evaluated)}
        self.bar.set_postfix(self.shown, refresh=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _tokens_per_step(self, args: Any) -> int:
        rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        return int(rows * len(self.trainer.train_dataset[0]["input_ids"]))
