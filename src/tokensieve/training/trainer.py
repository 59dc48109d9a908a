"""SelectiveTrainer: the Hugging Face Trainer with a token-weighted loss and the right denominator.

What differs from the Trainer, and why (transformers 5.23):

* the loss is computed inside the model's forward by ``HeadSeam``; no [tokens, vocab] logits, no second forward;
* ``get_batch_samples`` finds the denominator over all micro-batches and ranks before the forward. The loss is then
  ``sum * ranks / denominator``: DDP and FSDP average gradients over ranks, and ``loss_is_scaled_for_ga`` tells the Trainer
  not to divide by the number of micro-batches again. Where it is not known before the forward, raw sums are backpropagated
  and the gradients scaled once, before clipping;
* the sampler fills the last global batch with ignored rows instead of repeating samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import TrainingArguments
from transformers.trainer_callback import ProgressCallback

from ..core import LinearHead, LinearNLL, Objective
from ..core import objective as make_objective
from ..core.backends import check_backend
from ..data.rows import EpochSampler, Rows, collate
from ..modeling.flops import TokenFlops, token_flops
from ..modeling.seam import HeadSeam, probe_head, probe_isolation, shift_targets
from ..runs import UserError
from .checkpoints import tensors_only
from .guarded import Guarded
from .guards import GuardConfig
from .progress import TokenProgress
from .step import Scope, next_token, score_columns, selection_totals, sum_dtype, token_stats, valid_of
from .token_log import FlopsSpent, TokenLog, TokenLogConfig, sample_rows, write_sample

MODEL_INPUTS = ("input_ids", "attention_mask", "position_ids")


@dataclass(frozen=True)
class HeadOptions:
    """How the vocabulary head's gradient is computed: see :class:`tokensieve.LinearNLL`. The loss is the same."""

    keep_logits: Literal["auto"] | bool = "auto"
    """true: faster, keeps [tokens, vocab] logits until the backward; false: computes them twice; auto: keeps up to 2 GiB."""
    backend: str = "tokensieve"
    """tokensieve, or the backward of another library: torch (2.13) or liger."""

    def __post_init__(self) -> None:
        try:
            check_backend(self.backend)
        except (ValueError, ImportError) as e:
            raise UserError(f"backend: {e}") from None


class SelectiveTrainer(Guarded):
    """``Trainer`` for any transformers causal LM whose loss is ``sum(weight * nll) / denominator`` of an Objective.

        scored  = tokensieve.load_scored("corpus", "scores")
        trainer = SelectiveTrainer(model, args, train_dataset=scored, objective=tokensieve.objective("rho1", ratio=0.6))

    ``train_dataset`` has ``input_ids`` (``labels`` default to them) and the score columns that the objective needs. ``args``
    are plain TrainingArguments. ``sources``, names of the corpus's sources, has selection counted by source. Writes
    ``tokens.jsonl``, ``times.jsonl`` and ``tokens/`` into ``args.output_dir``. Raises UserError before training for a
    missing column, a head it does not understand, or an engine it does not support.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        objective: Objective | None = None,
        token_log: TokenLogConfig | None = None,
        flops_spent: FlopsSpent | None = None,
        sources: Sequence[str] = (),
        head: HeadOptions | None = None,
        guards: GuardConfig | None = None,
        **kwargs: Any,
    ) -> None:
        self.objective = objective or make_objective("clm")
        self.head = head or HeadOptions()
        _check_arguments(args, kwargs)
        wrap = {"scores": score_columns(self.objective)}
        kwargs.setdefault("data_collator", collate)
        super().__init__(
            model,
            args,
            train_dataset=None if train_dataset is None else _rows(train_dataset, **wrap),
            eval_dataset=_each(eval_dataset, lambda d: _rows(d)),
            **kwargs,
        )
        _check_parallelism(self.accelerator)
        if self.is_deepspeed_enabled:
            raise UserError("DeepSpeed owns the gradients and is not supported: use DDP or FSDP2")
        if self.pop_callback(ProgressCallback) is not None:  # not there with disable_tqdm
            self.add_callback(TokenProgress(self))
        self.seam = HeadSeam(self.model)
        self.scope = Scope(
            self.objective, self.accelerator.num_processes, self.accelerator.process_index, self._gather_rows
        )
        self.token_log = TokenLog(
            Path(args.output_dir),
            token_log or TokenLogConfig(),
            TokenFlops(0, 0),
            flops_spent or FlopsSpent(),
            tuple(sources),
            first_pass=self._needs_first_pass,
        )
        self._weights: list[Tensor] | None = None  # of the step's micro-batches, where a first pass chose them
        self._rows_of_step: list[int] | None = None  # how many rows of each have a weight
        self._micro: list[tuple[Tensor, Tensor]] = []  # (totals, lowest score kept) of the step so far
        self._positions = 0
        self._sample: list[dict[str, Any]] = []
        self._eval_sums: Any = None
        self.init_guards(guards or GuardConfig())

    # --- data ---------------------------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        rows = train_dataset if train_dataset is not None else self.train_dataset
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        per_step = self.args.gradient_accumulation_steps * self.args.world_size * self._train_batch_size
        self._sampler = EpochSampler(
            len(rows),
            seed,
            multiple=per_step,
            drop_last=self.args.dataloader_drop_last,
            shuffle=self.args.train_sampling_strategy != "sequential",
        )
        return self._sampler

    def _run_epoch(self, *args: Any, epoch: int, **kwargs: Any) -> Any:
        # On several ranks a resumed epoch's sampler sits below two wrappers that do not pass its number on.
        self._sampler.set_epoch(epoch)
        self.restore_loss_sums()
        in_epoch = kwargs["steps_trained_in_current_epoch"] if epoch == kwargs["epochs_trained"] else 0
        self._rng_from = kwargs["resume_from_checkpoint"] if in_epoch else None
        return super()._run_epoch(*args, epoch=epoch, **kwargs)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """As the Trainer's, for a data set given here too: its rows are read as the training rows are."""
        named = eval_dataset is None or isinstance(eval_dataset, str)
        return super().get_eval_dataloader(eval_dataset if named else _rows(eval_dataset))

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: no logits exist here. Use the model itself, or ``tokensieve evaluate``."""
        raise UserError(
            "predict needs logits, which this trainer does not make: call the model, or tokensieve evaluate"
        )

    def _get_eval_sampler(self, eval_dataset: Any) -> EpochSampler:
        return EpochSampler(
            len(eval_dataset), 0, multiple=self.args.world_size * self.args.eval_batch_size, shuffle=False
        )

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns += ["row_id", "source_id", "position_ids", *score_columns(self.objective)]

    def _gather_rows(self, values: Tensor) -> Tensor:
        """[B, T] of each rank, one below the other. Rows of a prepared corpus have one length; others are widened first."""
        if "num_tokens" not in self.train_dataset.dataset.column_names:
            # Padding turns bool into int64, on the ranks that are padded only: they could not be gathered.
            values = self.accelerator.pad_across_processes(values, dim=1).to(values.dtype)
        return self.accelerator.gather(values)  # type: ignore[no-any-return]

    # --- the step -----------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """As ``Trainer.train``, after the head was probed on one row of the data."""
        rows: Any = self.train_dataset
        if rows is None or not len(rows):
            raise UserError("there is nothing to train on: the data set is empty")
        _refuse_deferred_router_loss(self.objective, self.seam.model)
        probe = collate([rows[0]])
        ids = probe["input_ids"][:, :64].to(next(self.seam.model.parameters()).device)
        probe_head(self.model, self.seam, ids, ids)  # not its labels: a row may begin with a long ignored prompt
        if "position_ids" in probe:
            probe_isolation(self.model, self.seam, ids)
        self.token_log.flops = token_flops(self.model, int(probe["input_ids"].shape[1]))
        checkpoint = self.checkpoint_to_resume(resume_from_checkpoint)
        with self.guarded(), tensors_only(Path(checkpoint) if checkpoint else None):
            return super().train(resume_from_checkpoint=checkpoint, **kwargs)

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | None]:
        """The step's micro-batches and its denominator (a float32 scalar on the device; None: known after the forward)."""
        if self.state.global_step >= self.state.max_steps:
            return [], None  # resumed from the checkpoint of the last step: the Trainer would do one more
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._micro, self._positions, self._sample = [], 0, []
        self.begin_watch()
        if not batches:
            return batches, None
        valids = [valid_of(b).to(device) for b in batches]
        denominator = self.scope.denominator(valids, lambda t: self.accelerator.reduce(t, "sum"))
        if self._rng_from is not None:  # the Trainer puts it back after this call only, too late for a first pass
            self._load_rng_state(self._rng_from)
            self._rng_from = None
        if self.objective.scope == "step":
            self.choose_weights(batches)
        return batches, denominator

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> None:
        return None  # the Trainer's own count is of labels, not of weights

    @property
    def _needs_first_pass(self) -> bool:
        return self.objective.scope == "step" and bool({"nll", "entropy"} & self.objective.needs)

    def choose_weights(self, batches: Sequence[Mapping[str, Tensor]]) -> None:
        """The step's weights, of all micro-batches ranked together."""
        self._weights = self._choose_for_step(batches)
        # One wait a step, before the forwards: a micro-batch's share of the step's selection can be anything.
        self._rows_of_step = torch.stack([(w != 0).sum() for w in self._weights]).tolist()

    @torch.no_grad()
    def _choose_for_step(self, batches: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
        """Weights of all micro-batches ranked together, by a forward of each without gradient if the objective needs nll.

        The random state is put back, so that the training forward draws the same dropout masks as this pass did.
        """
        parts = []
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        self.model_wrapped.train()
        with torch.random.fork_rng(devices=devices):
            for batch in batches:
                inputs = self._prepare_inputs(dict(batch))
                nll: Tensor = torch.zeros_like(inputs["labels"], dtype=torch.float32)
                entropy: Tensor | None = nll
                if self._needs_first_pass:
                    with self.compute_loss_context_manager():
                        _, nll, entropy = self._forward(self.model_wrapped, inputs, loss_of=None)
                parts.append(self._stats(inputs, nll, entropy))
        weights, self._lowest = self.scope.weigh_step(parts)
        return weights

    def _stats(self, inputs: Mapping[str, Tensor], nll: Tensor, entropy: Tensor | None) -> Any:
        return token_stats(self.objective, inputs, step=self.state.global_step, nll=nll, entropy=entropy)

    def _forward(
        self, model: nn.Module, inputs: Mapping[str, Tensor], loss_of: Callable[[LinearNLL], Tensor] | None
    ) -> tuple[Any, Tensor, Tensor | None]:
        """One forward with ``loss_of`` as its loss, or none: (outputs, nll, entropy if the objective needs it)."""
        targets = shift_targets(inputs["labels"])
        wants_entropy = "entropy" in self.objective.needs
        made: list[LinearNLL] = []

        def compute(hidden: Tensor, head: LinearHead) -> Tensor | None:
            options: dict[str, Any] = vars(self.head)
            made.append(LinearNLL(hidden, head, targets, entropy=wants_entropy, **options))
            return None if loss_of is None else loss_of(made[0])

        with self.seam.run(compute):
            outputs = model(**{k: inputs[k] for k in MODEL_INPUTS if k in inputs}, labels=inputs["labels"])
        return outputs, made[0].nll, made[0].entropy if wants_entropy else None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """``ranks * sum(weight * nll) / denominator + router losses / micro-batches``; without the division if deferred."""
        if not model.training:
            return self._eval_loss(model, inputs, return_outputs)
        parts = self.current_gradient_accumulation_steps

        def weighted_loss(nll: LinearNLL) -> Tensor:
            weight = self._weigh(inputs, nll)
            loss_sum, _ = nll.weighted_sum(weight, max_rows=self._most_rows(weight))
            denominator = 1 if num_items_in_batch is None else num_items_in_batch
            return torch.div(loss_sum * (self.accelerator.num_processes * parts), denominator)

        outputs, _, _ = self._forward(model, inputs, weighted_loss)
        loss: Tensor = outputs.loss / parts  # router losses are means of a micro-batch: averaged over them
        return (loss, outputs) if return_outputs else loss

    def _most_rows(self, weight: Tensor) -> int | None:
        """A bound on the rows with a weight where asking the device for their number would stall it; None on a CPU."""
        if weight.device.type == "cpu":
            return None
        if self._rows_of_step is not None:
            return self._rows_of_step[len(self._micro) - 1]
        return self.scope.most_rows(*weight.shape)

    def _weigh(self, inputs: Mapping[str, Tensor], nll: LinearNLL) -> Tensor:
        """The weights of one micro-batch, and a note of what they were."""
        entropy = nll.entropy if "entropy" in self.objective.needs else None
        if self._weights is not None:
            weight, lowest = self._weights[len(self._micro)], self._lowest
        else:
            weight, lowest = self.scope.weigh(self._stats(inputs, nll.nll, entropy))
        valid = valid_of(inputs)
        source = next_token(inputs["source_id"]) if "source_id" in inputs else None
        totals = selection_totals(weight, valid, nll.nll, source, len(self.token_log.sources))
        self._micro.append((totals, lowest))
        self.watch.note(inputs["row_id"], nll.nll, weight, valid)
        self._positions += valid.numel()
        if self.token_log.samples(self.state.global_step + 1):
            self._note_sample(inputs, nll.nll, weight, valid)
        return weight

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch; after the step's last one, deferred gradients are scaled and the step is noted."""
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if not self.accelerator.sync_gradients:
            return loss if num_items_in_batch is not None else torch.zeros_like(loss)
        totals = torch.stack([t for t, _ in self._micro]).sum(0)
        lowest = torch.stack([low for _, low in self._micro]).min()
        if num_items_in_batch is None:
            loss = self._scale_gradients(totals)
        self.step_totals = totals
        self.token_log.add(self.state.global_step + 1, totals, lowest, self._positions)
        if self.token_log.samples(self.state.global_step + 1):
            self._write_sample()
        return loss

    def _scale_gradients(self, totals: Tensor) -> Tensor:
        """Divide the accumulated raw sums by the weight sum of all ranks, once; the loss that this comes to."""
        weight_sum, weighted = self.accelerator.reduce(totals[[2, 5]], "sum").unbind()
        # Only nothing kept is put right; a NaN weight must come out as NaN gradients, not pass for a sum of 1.
        denominator = torch.where(weight_sum == 0, torch.ones_like(weight_sum), weight_sum)
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(denominator.to(parameter.grad.dtype))
        loss: Tensor = (weighted / denominator).float()
        return loss

    # --- evaluation during training -------------------------------------------------------------------------------------

    def _eval_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool) -> Any:
        with torch.no_grad():
            outputs, nll, _ = self._forward(model, inputs, loss_of=None)
        valid = valid_of(inputs)
        sums = torch.stack([nll.sum(dtype=sum_dtype(nll)), valid.sum(dtype=sum_dtype(nll))])
        self._eval_sums = sums if self._eval_sums is None else self._eval_sums + sums
        loss = (sums[0] / sums[1].clamp(min=1)).float()
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """As the Trainer's, with ``eval_nll`` = ``eval_loss`` = nll sum / tokens of the whole set, no mean of batch means.

        The second name is what ``metric_for_best_model`` and others look for.
        """
        self._eval_sums = None
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self._eval_sums is not None and output.metrics is not None:
            nll_sum, count = self.accelerator.reduce(self._eval_sums, "sum").tolist()
            mean = nll_sum / count if count else float("nan")
            output.metrics.update({f"{metric_key_prefix}_nll": mean, f"{metric_key_prefix}_loss": mean})
        return output

    # --- logs ---------------------------------------------------------------------------------------------------------

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
        totals = self.accelerator.reduce(torch.stack([t for _, t, _, _ in pending]), "sum")
        lowest = self.accelerator.gather(torch.stack([low for _, _, low, _ in pending])[None]).amin(0)
        positions = self.accelerator.reduce(totals.new_tensor([p for *_, p in pending]), "sum")
        lines = self.token_log.lines(totals.cpu().numpy(), lowest.cpu().numpy(), positions.cpu().numpy())
        if self.is_world_process_zero():
            self.token_log.write(lines)
        return lines

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        state = super()._init_training_state(*args, **kwargs)
        self.token_log.rewind(self.state.global_step, write=self.is_world_process_zero())
        return state

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        self.flush_token_log()
        return super()._finalize_training(*args, **kwargs)

    def _note_sample(self, inputs: Mapping[str, Tensor], nll: Tensor, weight: Tensor, valid: Tensor) -> None:
        config, step = self.token_log.config, self.state.global_step + 1
        for place in sample_rows(config, step, inputs["row_id"]).tolist():
            here = valid[place].nonzero().squeeze(-1)
            self._sample.append(
                {
                    "row": int(inputs["row_id"][place]),
                    "position": (here + 1).cpu().numpy(),  # of the target, where its nll is stored
                    "nll": nll[place][here].cpu().numpy(),
                    "keep": (weight[place][here] > 0).cpu().numpy(),
                }
            )

    def _write_sample(self) -> None:
        from accelerate.utils import gather_object

        step = self.state.global_step + 1
        rows: list[dict[str, Any]] = gather_object(self._sample)
        if self.is_world_process_zero() and rows:
            chosen = sample_rows(self.token_log.config, step, torch.tensor([r["row"] for r in rows]))
            write_sample(self.token_log.folder, step, [rows[i] for i in chosen.tolist()])


def _rows(dataset: Any, scores: Sequence[str] = ()) -> Rows:
    if isinstance(dataset, Rows):
        return dataset
    if not hasattr(dataset, "column_names") or not hasattr(dataset, "__len__"):
        raise UserError(f"a datasets.Dataset with input_ids is needed, not {type(dataset).__name__}")
    return Rows(dataset, scores)


def _each(value: Any, change: Any) -> Any:
    if value is None:
        return None
    return {k: change(v) for k, v in value.items()} if isinstance(value, dict) else change(value)


def _check_arguments(args: TrainingArguments, kwargs: Mapping[str, Any]) -> None:
    if kwargs.get("compute_loss_func") is not None:
        raise UserError("compute_loss_func and an objective are two losses: give the objective only")
    if kwargs.get("compute_metrics") is not None:
        raise UserError("compute_metrics needs logits, which this trainer does not make: use tokensieve evaluate")
    if kwargs.get("data_collator") not in (None, collate):
        raise UserError(
            "a data_collator of its own would make its own labels: give them as the column 'labels' instead"
        )
    if kwargs.get("model_init") is not None:
        raise UserError("model_init is not supported: give the model itself")
    if args.label_smoothing_factor:
        raise UserError("label_smoothing_factor changes what nll means: set it to 0")
    if args.n_gpu > 1:
        raise UserError(
            "several GPUs in one process (DataParallel) are not supported: use torchrun or accelerate launch"
        )


def _check_parallelism(accelerator: Any) -> None:
    """Tensor, context and sequence parallel ranks hold parts of one row: they are no ranks with rows of their own."""
    config = getattr(accelerator, "parallelism_config", None)
    if config is not None and any(getattr(config, f"{kind}_enabled", False) for kind in ("tp", "cp", "sp")):
        raise UserError("tensor, context and sequence parallelism are not supported: use DDP or FSDP2")


def _refuse_deferred_router_loss(objective: Objective, model: Any) -> None:
    """Raw sums are divided after the backward; a router loss in the same gradients would be divided with them."""
    deferred = objective.known_count is None and objective.denominator == "weight"
    if deferred and getattr(model.config, "output_router_logits", False):
        raise UserError(
            f"objective {objective.name!r} knows its weight sum only after the forward, which a router loss does not "
            "survive: set output_router_logits to false in the model's config"
        )
