"""The part of the trainer that keeps a run safe: sealed checkpoints, exact resuming, signals, NaN, memory and full disks."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import Trainer
from transformers.trainer_utils import rotate_checkpoints

from ..runs.errors import Stopped, UserError
from ..runs.files import MANIFEST, read_json, writing
from ..runs.layout import checkpoint as checkpoint_folder
from ..runs.layout import step_of
from .checkpoints import Split, check_split, last_good, log_bytes, numbered, seal, unseal, verify
from .converted import load_converted
from .dry_step import dry_step, out_of_memory
from .guards import GuardConfig, NonFinite, all_finite, broken_names, describe_nonfinite, write_record
from .self_test import tested
from .step import StepState, all_numbers


class Guarded(Trainer):
    """The Trainer below :class:`SelectiveTrainer`: knows checkpoints and faults, and nothing of objectives.

    What it must be told stands in the methods under "for the class above", which that class overrides.
    """

    objective_name = "the objective"
    """What a sentence about its weights calls it."""
    stop_signal: Callable[[], int]
    """The signal that asks to stop, 0 while there is none; asked once a step. Set by whoever installs the handlers."""

    def init_guards(self, guards: GuardConfig) -> None:
        self.guards, self.step = guards, StepState()
        self.stop_signal = lambda: 0
        self.skipped_steps: set[int] = set()
        self._stop_with = 0
        self._sealer = ThreadPoolExecutor(1)
        self._sealing: Future[None] | None = None
        self._resumed: Mapping[str, Any] | None = None
        self._rng_from: str | None = None

    # --- for the class above ------------------------------------------------------------------------------------------

    def ranks_rows_together(self) -> bool:
        """Whether rows of one forward of all ranks decide together what is trained on: a resumed run must keep their number."""
        return False

    def before_training(self, model: Any) -> None:
        """Called with the model as it will be trained, its weights in place, before the first step; may raise."""

    def before_update(self) -> None:
        """Called between a step's last backward and its update; may raise."""

    def flush_token_log(self) -> Any:
        """Write down what is pending: a checkpoint without its log lines could not be resumed exactly."""

    def forget_pending(self, step: int) -> None:
        """Nothing is written down of this step."""

    # --- going on -----------------------------------------------------------------------------------------------------

    def checkpoint_to_resume(self, wanted: Any) -> str | None:
        """The checkpoint that every rank goes on from: the one named, or with True the last good one. The first rank looks."""
        from accelerate.utils import broadcast_object_list

        if not wanted:
            return None
        answer: list[Any] = [None, None, None]  # path, its manifest, the error
        if self.is_world_process_zero():
            try:
                answer[:2] = self._find(wanted)
            except UserError as e:
                answer[2] = str(e)
        broadcast_object_list(answer)
        path, manifest, error = answer
        if error is not None:
            raise UserError(error)
        self._resumed = manifest
        return path  # type: ignore[no-any-return]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled or not load_converted(model or self.model, Path(resume_from_checkpoint)):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or not load_converted(self.model, Path(self.state.best_model_checkpoint)):
            super()._load_best_model()

    def _find(self, wanted: Any) -> tuple[str | None, Any]:
        if wanted is not True:
            checkpoint: Path | None = Path(wanted)
            manifest: Any = verify(Path(wanted))
        else:
            run = Path(self.args.output_dir)
            there = bool(numbered(run))
            checkpoint = last_good(run, say)
            if there:
                say(
                    f"{run}: going on from {checkpoint.name}"
                    if checkpoint
                    else f"{run}: no good checkpoint, from the start"
                )
            manifest = read_json(checkpoint / MANIFEST) if checkpoint else None
        if checkpoint is None:
            return None, None
        if not self.guards.allow_changed:
            check_split(checkpoint, self.split, ranks_rows_together=self.ranks_rows_together())
        return str(checkpoint), manifest

    @property
    def split(self) -> Split:
        return Split(self.args.world_size, self._train_batch_size, self.args.gradient_accumulation_steps)

    def restore_loss_sums(self) -> None:
        """The loss since the last log line, which the Trainer begins anew at each resume: the next line would be another."""
        if self._resumed is None:
            return
        sums, rank = self._resumed["loss"]["sums"], self.args.process_index
        same = len(sums) == self.args.world_size
        self._tr_loss += sums[rank] if same else sum(sums) / len(sums)
        self._globalstep_last_logged = self._resumed["loss"]["since"]
        self._resumed = None

    # --- saving -------------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """The Trainer's checkpoint, then its seal; older ones are removed only after that."""
        self.finish_seal()
        self.flush_token_log()
        self._check_model()
        checkpoint = checkpoint_folder(Path(self.args.output_dir), self.state.global_step)
        sums = self.accelerator.gather(self._tr_loss.detach().reshape(1)).tolist()
        limit, only_model = self.args.save_total_limit, self.args.save_only_model
        self.args.save_total_limit = None
        self.args.save_only_model = only_model and not self._stop_with  # who is told to start again wants to go on
        if self.is_world_process_zero():
            unseal(checkpoint)
        self.accelerator.wait_for_everyone()
        try:
            with writing(checkpoint):
                super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit, self.args.save_only_model = limit, only_model
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            loss = {"since": self._globalstep_last_logged, "sums": sums}
            best = self.state.best_model_checkpoint
            self._sealing = self._sealer.submit(self._seal, checkpoint, log_bytes(checkpoint), loss, limit, best)

    def _seal(
        self, checkpoint: Path, written: int, loss: Mapping[str, Any], limit: int | None, best: str | None
    ) -> None:
        """Beside the training, which goes on meanwhile; until it is through, the checkpoint before is the last good one."""
        with writing(checkpoint):
            seal(checkpoint, self.split, written, loss=loss)
        rotate_checkpoints(self.args.output_dir, limit, best_model_checkpoint=best, use_mtime=True)

    def finish_seal(self) -> None:
        """Wait for the seal of the last checkpoint, and raise what went wrong with it."""
        sealing, self._sealing = self._sealing, None
        if sealing is not None:
            sealing.result()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        # A pickle with paths in it that nothing reads; train_config.json says it all.
        (Path(output_dir or self.args.output_dir) / "training_args.bin").unlink(missing_ok=True)

    def _check_model(self) -> None:
        """No NaN gets into a checkpoint: finite gradients can still make an update that is not."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        fine = all_finite(parameters).to(self.args.device)
        if not bool(self.accelerator.gather(fine.reshape(1)).all()):
            names = broken_names((n, p) for n, p in self.model.named_parameters() if p.requires_grad)
            raise self._nonfinite("model", self.state.global_step, names)

    # --- the end of a step --------------------------------------------------------------------------------------------

    def forget_step(self) -> None:
        """Begin with nothing: a step is under way no more, or not yet."""
        self.step = StepState(loss_before=self._tr_loss.clone() if hasattr(self, "_tr_loss") else None)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The Trainer's, between the step's last backward and its update: where NaN and signals are looked for."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.before_update()
        finite, self._stop_with = self._agree(norm)
        if finite:
            return norm
        self._skip_or_stop()
        return None

    def _agree(self, norm: Any) -> tuple[bool, int]:
        """(is the step finite, signal to stop with or 0), the same on all ranks. Waits for the device, once a step."""
        assert self.step.totals is not None
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else torch.as_tensor(norm, device=self.args.device)
        fine = all_numbers(self.step.totals)
        scaler = getattr(self.accelerator, "scaler", None)
        if (
            scaler is None or not scaler.is_enabled()
        ):  # a scaler meets infinite gradients by itself, with a smaller scale
            fine = fine & norm.isfinite()
        asked = torch.full_like(fine, self.stop_signal(), dtype=torch.float32)
        flags = torch.stack([(~fine).float(), asked])[None]
        broken, signal = self.accelerator.gather(flags).amax(0).tolist()
        return not broken, int(signal)

    def _skip_or_stop(self) -> None:
        """Leave this step's update out, or raise NonFinite."""
        step = self.state.global_step + 1
        skipped, watch = self.skipped_steps, self.step.watch
        cause = "nll" if self._any(watch.rows("nll")) else "weight" if self._any(watch.rows("weight")) else None
        names = [] if cause else broken_names((n, p.grad) for n, p in self.model.named_parameters())
        error = self._nonfinite(cause or "gradient", step, names)
        if self.guards.on_nonfinite == "stop" or len(skipped) >= self.guards.max_skipped_steps:
            self.forget_pending(step)
            self.flush_token_log()
            raise error
        if self.is_world_process_zero():
            say(f"{error}; update left out, {len(skipped) + 1} of at most {self.guards.max_skipped_steps}")
        skipped.add(step)
        for parameter in self.model.parameters():
            parameter.grad = None  # an optimizer passes over these, weight decay and moments included
        assert self.step.loss_before is not None
        self._tr_loss.copy_(self.step.loss_before)
        self._globalstep_last_logged += 1  # the mean until the next log line is over one step less

    def _any(self, found: list[Any]) -> bool:
        from accelerate.utils import gather_object

        return bool(gather_object(list(found)))

    def _nonfinite(self, cause: str, step: int, names: list[str]) -> NonFinite:
        """What is said of it; the rows of all ranks are in a file by then."""
        from accelerate.utils import gather_object

        watch = self.step.watch
        mine = watch.rows(cause) if cause in ("nll", "weight") else watch.all_rows()
        rows, names = gather_object(mine), gather_object(list(names))
        self.finish_seal()
        run = Path(self.args.output_dir)
        good = [p.name for p in numbered(run) if (p / MANIFEST).exists() and step_of(p) < step]
        if not self.is_world_process_zero():
            return NonFinite(
                describe_nonfinite(step, cause, rows, names, rows[0] if rows else None, self.objective_name)
            )
        path, told = write_record(run, step, cause, rows, names, self.guards.documents)
        kept = f"the last good checkpoint is {good[-1]}" if good else "there is no checkpoint yet"
        what = describe_nonfinite(step, cause, told, names, told[0] if told else None, self.objective_name)
        return NonFinite(f"{what}; {kept}, rows and documents are in {path}")

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """As the Trainer's; asked to stop, it saves and ends here, before anything that belongs to the end of a run."""
        if self._stop_with:
            self.control.should_save = True
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if self._stop_with:
            self.finish_seal()
            self.callback_handler.on_train_end(self.args, self.state, self.control)  # trackers and the bar are closed
            raise Stopped(f"checkpoint at step {self.state.global_step}; start it again to go on", self._stop_with)

    # --- memory -------------------------------------------------------------------------------------------------------

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **kwargs)
        self.before_training(prepared[0])
        if self.guards.self_test:
            raise tested(self, prepared[0])
        if self.guards.dry_step:
            dry_step(self, prepared[0])
        return prepared

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Around a training: at its end the last checkpoint is sealed; out of memory is a sentence that says what to lower."""
        try:
            yield
            self.finish_seal()
        except RuntimeError as e:
            if self.args.auto_find_batch_size or not (told := out_of_memory(e, self.args, self.args.device)):
                raise
            raise UserError(told) from e
        finally:
            if self._sealing is not None:
                wait([self._sealing])


def say(sentence: str) -> None:
    """On stderr, above the progress bar."""
    tqdm.write(f"tokensieve: {sentence}", file=sys.stderr)
