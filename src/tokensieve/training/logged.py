"""What a run says of its steps: the token log, its samples of rows, and the figures that go to trackers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..core import Objective
from ..runs.errors import UserError
from .feeding import Fed
from .step import packed, unpacked
from .token_log import TokenLog, logged_rows, write_sample


class Logged(Fed):
    """A Trainer that writes ``tokens.jsonl`` and ``tokens/``; of the trainer that extends it, it knows the objective."""

    objective: Objective
    objective_name: str
    token_log: TokenLog
    _tokens_seen: Tensor | int

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the selection's figures of the last step to what goes to ``report_to`` and the progress bar."""
        lines = self.flush_token_log()
        if lines and "loss" in logs:
            names = ("tokens_seen", "tokens_trained", "ratio", "threshold", "nll", "kept_nll", "dropped_nll")
            logs = {**logs, **{name: lines[-1][name] for name in names if lines[-1][name] is not None}}
        super().log(logs, start_time)

    def flush_token_log(self) -> list[dict[str, Any]]:
        """Sum the pending steps over ranks, write them on rank 0. The one place where the device is waited for."""
        pending = self.token_log.pending
        if not pending:
            return []
        totals = self._sum_over_ranks(torch.stack([packed(p.totals) for p in pending]))
        lowest = self.accelerator.gather(torch.stack([p.lowest for p in pending])[None]).amin(0)
        positions = self._sum_over_ranks(totals.new_tensor([p.positions for p in pending]))
        self._refuse_negative(totals.cpu().numpy())
        lines = self.token_log.lines(totals.cpu().numpy(), lowest.cpu().numpy(), positions.cpu().numpy())
        if self.is_world_process_zero():
            self.token_log.write(lines)
        return lines

    def _refuse_negative(self, sums: Any) -> None:
        """A sum of weights is a denominator only where none is negative. Looked at where numbers are on the host anyway."""
        if self.objective.selects or self.objective.denominator != "weight":
            return
        for pending, numbers in zip(self.token_log.pending, sums.tolist(), strict=True):
            if count := unpacked(numbers, pending.totals)["negative"]:
                raise UserError(
                    f"step {pending.step}: {self.objective_name} gave {count:.0f} tokens a negative weight, and divides by the "
                    "sum of weights: declare it signed, with the denominator abs, nonzero or valid"
                )

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        state = super()._init_training_state(*args, **kwargs)
        self.token_log.rewind(self.state.global_step, write=self.is_world_process_zero())
        self._tokens_seen = torch.tensor(self.token_log.tokens_seen, device=self.args.device)
        return state

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        self.flush_token_log()
        return super()._finalize_training(*args, **kwargs)

    def _note_sample(self, inputs: Mapping[str, Tensor], nll: Tensor, weight: Tensor, valid: Tensor) -> None:
        config, step = self.token_log.config, self.state.global_step + 1
        for place in logged_rows(config, step, inputs["row_id"]).tolist():
            here = valid[place].nonzero().squeeze(-1)
            self.step.sample.append(
                {
                    "row": int(inputs["row_id"][place]),
                    "position": (here + 1).cpu().numpy(),  # of the target, where its nll is stored
                    "nll": nll[place][here].cpu().numpy(),
                    "keep": (weight[place][here] != 0).cpu().numpy(),
                }
            )

    def _write_sample(self) -> None:
        from accelerate.utils import gather_object

        step = self.state.global_step + 1
        rows: list[dict[str, Any]] = gather_object(self.step.sample)
        if self.is_world_process_zero() and rows:
            chosen = logged_rows(self.token_log.config, step, torch.tensor([r["row"] for r in rows]))
            write_sample(self.token_log.folder, step, [rows[i] for i in chosen.tolist()])
