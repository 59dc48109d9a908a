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

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import TrainingArguments
from transformers.trainer_callback import ProgressCallback

from ..core import IGNORE_INDEX, LinearHead, LinearNLL, Objective
from ..core import objective as make_objective
from ..core.backends import OWN, check_backend
from ..core.kth import Threshold
from ..core.objective import sum_dtype
from ..core.stats import TokenStats, head_statistics
from ..core.targets import SparseTargets
from ..data.images import PER_IMAGE, PER_TOKEN
from ..data.rows import collate, next_token
from ..modeling.flops import TokenFlops
from ..modeling.images import image_inputs
from ..modeling.probe import broken_property
from ..modeling.probe_rows import has_target
from ..modeling.seam import HeadSeam
from ..runs.errors import UserError
from .arguments import check_fields, check_keywords
from .checkpoints import tensors_only
from .engines import check_engine, check_one_device, refuse_deferred_router_loss
from .feeding import weighted
from .guards import GuardConfig
from .noised import Noising
from .optimised import Optimised
from .options import Mer, Mup, Noise, SubsetNormOptions
from .price import StepFlops, has_first_pass, step_flops
from .progress import TokenProgress
from .schedules import PowerSchedule
from .second import SecondTargets, check_second
from .sparse import Backward, SparseTraining, check_backward
from .step import (
    RankScope,
    Totals,
    broken_claims,
    check_claims,
    known_stats,
    no_zero,
    selection_totals,
)
from .token_log import FlopsSpent, TokenLog, TokenLogConfig
from .trial_save import trial_save

MODEL_ONLY = ("attention_mask", "position_ids", "labels", *PER_TOKEN, *PER_IMAGE)


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


class SelectiveTrainer(Optimised):
    """``Trainer`` for any transformers causal LM whose loss is ``sum(weight * nll) / denominator`` of an Objective.

        scored  = tokensieve.load_scored("corpus", "scores")
        trainer = SelectiveTrainer(model, args, train_dataset=scored, objective=tokensieve.objective("rho1", ratio=0.6))

    ``train_dataset`` has ``input_ids`` (``labels`` default to them) and the score columns that the objective needs; how other
    columns are read: docs/formats.md, "Data sets of your own"; a column ``weight`` multiplies the rule. ``ignore_columns``:
    those that are not to be read. ``thresholds`` of scope corpus: found before training where they are not given. ``args`` are
    plain TrainingArguments. ``backward``: "exact", or "sparse" for a backward of kept tokens only (docs/backward.md), with
    ``strict``. ``teacher``, a model, and ``embeddings`` [V, D] are for objectives that distil or smooth. ``sources``, names of
    the corpus's sources, has selection counted by source. ``schedule``: a learning rate by tokens in place of the arguments'
    own by steps; ``mer``: meta-experience replay; ``optimizer``: one of ours in place of ``args.optim``;
    ``mup``: learning rates by maximal update parametrisation (new weights: ``mup.scale_new_weights``); ``noise``: hidden tokens
    as targets, under an attention that opens. Writes ``tokens.jsonl``, ``times.jsonl``, ``tokens/`` into ``args.output_dir``.
    Raises UserError before training for a missing column, one that speaks of tokens and is not read, an argument that is not
    kept to, a head it does not understand, an engine it does not support, or where no step can be done; for a row with values
    that cannot be meant when it is read.
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
        ignore_columns: Sequence[str] = (),
        backward: Backward = "exact",
        strict: bool = False,
        thresholds: Mapping[str, Threshold] | None = None,
        teacher: Any = None,
        embeddings: Tensor | None = None,
        schedule: PowerSchedule | None = None,
        mer: Mer | None = None,
        optimizer: SubsetNormOptions | None = None,
        mup: Mup | None = None,
        noise: Noise | None = None,
        **kwargs: Any,
    ) -> None:
        self.schedule, self._counted = schedule, {"seen": 0, "trained": 0}
        self.mer, self.mup, self.own_optimizer = mer, mup, optimizer
        rule = weighted(objective or make_objective("clm"), train_dataset, ignore_columns)
        beside = {"eval_dataset": eval_dataset, "a teacher": teacher, "backward: sparse": backward == "sparse" or None}
        self.noise = None if noise is None else Noising(noise, args, model, rule, beside)
        self.objective = rule if self.noise is None else self.noise.objective(rule)
        self.head = head or HeadOptions()
        check_keywords(kwargs, collate)
        self.check_given_optimizers(kwargs)
        check_fields(args)
        check_one_device(args)
        check_backward(backward, strict, args)
        self.sparse = SparseTraining(self.objective, backward, strict=strict)
        check_second(self.objective, self.head.backend, teacher)
        wanted = self.objective.second
        columns = wanted.columns if wanted is not None and wanted.origin == "columns" else None
        self.init_rows(model, rule.needs, ignore_columns, thresholds or {}, columns)
        super().__init__(model, args, **{**kwargs, **self.given_rows(train_dataset, eval_dataset)})
        check_engine(self)
        self.check_whole_matrices()
        self._check_images(backward, teacher)
        if self.pop_callback(ProgressCallback) is not None:  # not there with disable_tqdm
            self.add_callback(TokenProgress(self))
        self.seam = HeadSeam(self.model)
        given = (self.model, teacher, embeddings, args.device, self.compute_loss_context_manager)
        self.second = None if wanted is None else SecondTargets(wanted, *given)
        ranks = (self.accelerator.num_processes, self.accelerator.process_index)
        self.scope = RankScope(self.objective, *ranks, self._gather_rows)
        self.token_log = self._new_log(token_log, flops_spent, sources)
        self._eval_sums: Any = None
        self._evaluated: Any = None
        self._proved: list[Any] = []
        self._tokens_seen: Tensor | int = 0
        self._claims_checked = False
        self.init_guards(guards or GuardConfig())
        self.objective_name = f"objective {self.objective.name!r}"
        self.token_log.skipped = self.skipped_steps
        if train_dataset is not None and self.is_world_process_zero():
            trial_save(self.accelerator.unwrap_model(self.model), self.processing_class, args)

    def _check_images(self, backward: str, teacher: Any) -> None:
        """Refuse what has never been tried beside rows with images."""
        images = getattr(self.train_dataset, "images", None)
        if images is None or not images.read:
            return
        if backward == "sparse":
            raise UserError("backward: sparse is not supported with images, whose tokens are never kept: take exact")
        if teacher is not None and image_inputs(teacher) is None:
            raise UserError(f"the teacher, {type(teacher).__name__}, takes no images, and the rows have some")

    def _new_log(self, config: TokenLogConfig | None, flops: FlopsSpent | None, sources: Sequence[str]) -> TokenLog:
        """Its FLOPs a token are known as soon as the rows are."""
        return TokenLog(
            Path(self.args.output_dir),
            config or TokenLogConfig(),
            StepFlops(TokenFlops(0, 0)),
            flops or FlopsSpent(),
            tuple(sources),
        )

    # --- the step -----------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """As ``Trainer.train``, after what the method relies on was proved of the model as it is fed: ``modeling/probe.py``."""
        self.check_steps()
        self.find_thresholds(self.objective)
        rows: Any = self.train_dataset
        first = next((row for i in range(len(rows)) if has_target(row := rows[i])), rows[0])
        refuse_deferred_router_loss(self.objective, self.seam.model)
        self.token_log.flops = step_flops(
            self.objective,
            self.model,
            len(first["input_ids"]),
            sparse=self.sparse.on,
            strict=self.sparse.strict,
            teacher=None if self.second is None else self.second.teacher,
        )
        checkpoint = self.checkpoint_to_resume(resume_from_checkpoint)
        with self.guarded(), tensors_only(Path(checkpoint) if checkpoint else None):
            try:
                return super().train(resume_from_checkpoint=checkpoint, **kwargs)
            finally:
                self.sparse.detach()

    def before_training(self, model: Any) -> None:
        self._proved = []
        self._prove(model, self.train_dataset, self._train_batch_size)
        if self.second is not None:
            told = self.second.broken(self.train_dataset, self._train_batch_size, self.args.device)
            if told := self._first_of_ranks(told):
                raise UserError(told)
        if self.args.eval_strategy != "no" and self.eval_dataset is not None:
            sets = self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]
            for rows in sets:
                self._prove(model, rows, self.args.eval_batch_size)
        if told := self._first_of_ranks(self.sparse.start(self, model)):
            raise UserError(told)

    def _prove(self, model: Any, rows: Any, count: int) -> None:
        """Raise UserError, on all ranks, where the method cannot rely on ``model`` fed ``count`` of these rows. Once a set."""
        if any(rows is proved for proved in self._proved):
            return
        model = getattr(
            model, "_orig_mod", model
        )  # compiled it is the same model, and each of the proof's forwards a graph

        def call(**inputs: Any) -> Any:
            with self.compute_loss_context_manager():
                return model(**inputs)

        told = broken_property(self.seam, rows, count, call, self.args.device)
        if told is None and self.noise is not None:
            told = self.noise.broken(self.seam, rows, count, call, self.args.device)
        if told := self._first_of_ranks(told):
            raise UserError(told)
        self._proved.append(rows)

    def _first_of_ranks(self, told: str | None) -> str | None:
        """A rank of several may hold the only broken weight: none may go on without the others."""
        from accelerate.utils import gather_object

        return next((t for t in gather_object([told]) if t), None)

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | None]:
        """The step's micro-batches and its denominator (a float32 scalar on the device; None: known after the forward)."""
        if self.state.global_step >= self.state.max_steps:
            return [], None  # resumed from the checkpoint of the last step: the Trainer would do one more
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        batches = self.fed(batches)
        self.begin_step(batches)
        self._count_seen(batches)
        return batches, None if self.step.denominator is None else no_zero(self.step.denominator)

    def fed(self, batches: list[Any]) -> list[Any]:
        """A step's micro-batches as they are trained on: with noise where that is asked for."""
        return batches if self.noise is None else self.noise.batches(batches, self.state.global_step)

    def begin_step(self, batches: Sequence[Mapping[str, Tensor]]) -> None:
        """A new step of these micro-batches: what is known of them before the forward, and the weights where a first pass
        chooses them."""
        self.forget_step()
        if not batches:
            return
        self.step.known = [self.scope.known(self._known(batch)) for batch in batches]
        self.step.denominator = self.scope.denominator(self.step.known, self._sum_over_ranks)
        if self._rng_from is not None:  # the Trainer puts it back after this call only, too late for a first pass
            self._load_rng_state(self._rng_from)
            self._rng_from = None
        if self.objective.scope == "step":
            self._choose_weights(batches)

    def _count_seen(self, batches: Sequence[Mapping[str, Tensor]]) -> None:
        """This step's tokens will have been seen by the next one. An exchange between ranks: only where it is asked for."""
        if batches and "tokens_seen" in self.objective.needs:
            valid = torch.stack([(b["targets"] != IGNORE_INDEX).sum() for b in batches]).sum().to(self.args.device)
            self._tokens_seen = self._tokens_seen + self._sum_over_ranks(valid)

    def _known(self, batch: Mapping[str, Tensor]) -> TokenStats:
        left_out = (*MODEL_ONLY, *(self._second_columns or ()))
        there = {k: v.to(self.args.device, non_blocking=True) for k, v in batch.items() if k not in left_out}
        run: dict[str, Any] = {"step": self.state.global_step, "tokens_seen": self._tokens_seen}
        run["thresholds"] = {name: found.value for name, found in self.thresholds.items()}
        return known_stats(self.objective.needs, there, sources=self.token_log.sources, **run)

    def _sum_over_ranks(self, values: Tensor) -> Tensor:
        return self.accelerator.reduce(values, "sum")  # type: ignore[no-any-return]

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> None:
        return None  # the Trainer's own count is of labels, not of weights

    @torch.no_grad()
    def _choose_weights(self, batches: Sequence[Mapping[str, Tensor]]) -> None:
        """Weights of all micro-batches ranked together, by a forward of each without gradient if the objective needs it.

        The random state is put back, so that the training forward draws the same dropout masks as this pass did.
        """
        parts: list[tuple[TokenStats, dict[str, Tensor], int]] = []
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        self.model_wrapped.train()
        with torch.random.fork_rng(devices=devices):
            for batch, known in zip(batches, self.step.known, strict=True):
                head: dict[str, Tensor] = {}
                if has_first_pass(self.objective):
                    inputs = self._prepare_inputs(dict(batch))
                    second = self._second_targets(inputs) if "divergence" in self.objective.needs else None
                    with self.compute_loss_context_manager():
                        _, made = self._forward(self.model_wrapped, inputs, loss_of=None, second=second)
                    head = self._head_statistics(made)
                parts.append((known, head, batch["targets"].shape[1]))
        self.step.weights, self.step.lowest = self.scope.weigh_step(parts)
        # One wait a step, before the forwards: a micro-batch's share of the step's selection can be anything.
        self.step.rows_with_weight = torch.stack([(w != 0).sum() for w in self.step.weights]).tolist()

    def _head_statistics(self, nll: LinearNLL) -> dict[str, Tensor]:
        return {name: nll.statistic(name) for name in head_statistics(self.objective.needs)}

    def _forward(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        loss_of: Callable[[LinearNLL], Tensor] | None,
        second: SparseTargets | None = None,
    ) -> tuple[Any, LinearNLL]:
        """One forward with ``loss_of`` as its loss, or none: (outputs, the head's nll and what else the objective needs)."""
        made: list[LinearNLL] = []
        statistics = head_statistics(self.objective.needs - {"nll", "divergence"}) if model.training else ()

        def compute(hidden: Tensor, head: LinearHead) -> Tensor | None:
            options: dict[str, Any] = vars(self.head)
            made.append(LinearNLL(hidden, head, inputs["targets"], statistics=statistics, second=second, **options))
            return None if loss_of is None else loss_of(made[0])

        with self.seam.run(compute):
            outputs = model(**self.seam.inputs(inputs), labels=inputs["labels"])
        return outputs, made[0]

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
            if selection is not None and selection.kept is None:
                selection.choose(weight != 0)
            loss_sum, _ = nll.weighted_sum(weight, max_rows=self._most_rows(weight))
            denominator = 1 if num_items_in_batch is None else num_items_in_batch
            return torch.div(loss_sum * (self.accelerator.num_processes * parts), denominator)

        with self.sparse.forward(lambda: self._known_weight(inputs)) as selection:
            outputs, _ = self._forward(model, inputs, weighted_loss, self._second_targets(inputs))
        loss: Tensor = outputs.loss / parts  # router losses are means of a micro-batch: averaged over them
        return (loss, outputs) if return_outputs else loss

    def _second_targets(self, inputs: Mapping[str, Tensor]) -> SparseTargets | None:
        """Of the micro-batch that is worked on, at the share that the objective gives them in this step."""
        if self.second is None or self.objective.share is None:
            return None
        return self.second.of(inputs, self.objective.share(self.step.known[self.step.index]))

    def _most_rows(self, weight: Tensor) -> int | None:
        """A bound on the rows with a weight where asking the device for their number would stall it; None on a CPU."""
        if weight.device.type == "cpu":
            return None
        if self.head.backend != OWN and not self.objective.selects:
            return None  # soft weights are refused by a sentence, which takes a look at them
        if self.step.rows_with_weight is not None:
            return self.step.rows_with_weight[self.step.index - 1]  # its weights are noted already
        return self._bound(weight, self.step.index - 1)

    def _bound(self, weight: Tensor, index: int) -> int | None:
        """The most rows of a micro-batch that can get a weight; of all ranks' the longest row says how many are ranked."""
        return self.scope.most_rows(self.step.known[index].valid.shape, weight.shape)

    def _known_weight(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The weights of the next micro-batch, where they do not depend on its forward."""
        if self.step.weights is not None:
            return self.step.weights[self.step.index]
        return self.scope.weigh(self.step.known[self.step.index], {}, inputs["targets"].shape[1])[0]

    def _weigh(self, inputs: Mapping[str, Tensor], nll: LinearNLL) -> Tensor:
        """The weights of one micro-batch."""
        step = self.step
        if step.weights is not None and step.lowest is not None:
            weight, lowest = step.weights[step.index], step.lowest
        else:
            length = inputs["targets"].shape[1]
            weight, lowest = self.scope.weigh(step.known[step.index], self._head_statistics(nll), length)
        self._note(inputs, nll.nll, nll.loss, weight, lowest)
        return weight

    def _note(
        self, inputs: Mapping[str, Tensor], nll: Tensor, minimised: Tensor, weight: Tensor, lowest: Tensor
    ) -> None:
        """Remember what was chosen of one micro-batch."""
        valid = inputs["targets"] != IGNORE_INDEX
        source = next_token(inputs["source_id"]) if "source_id" in inputs else None
        sources = (source, len(self.token_log.sources))
        totals = selection_totals(self.objective, weight, valid, nll, *sources, minimised=minimised)
        if not self._claims_checked:
            bound = self._bound(weight, self.step.index)
            self.step.broken_claims.append(broken_claims(self.objective, weight, bound))
        self.step.watch.note(inputs["row_id"], nll, weight, valid)
        self.step.positions += valid.numel()
        if self.token_log.samples(self.state.global_step + 1):
            self._note_sample(inputs, nll, weight, valid)
        self.step.parts.append((totals, lowest))

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch; after the step's last one, deferred gradients are scaled and the step is noted."""
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if not self.accelerator.sync_gradients:
            return loss if num_items_in_batch is not None else torch.zeros_like(loss)
        totals, lowest = self.step.finish()
        if num_items_in_batch is None:
            loss = self._scale_gradients(totals)
        self.token_log.add(self.state.global_step + 1, totals, lowest, self.step.positions)
        if self.token_log.samples(self.state.global_step + 1):
            self._write_sample()
        return loss

    def _scale_gradients(self, totals: Totals) -> Tensor:
        """Divide the accumulated raw sums by the denominator of all ranks, once; the loss that this comes to."""
        sums = self._sum_over_ranks(torch.stack([totals["denominator"], totals["weighted_nll"]]))
        # Only nothing kept is put right; a NaN weight must come out as NaN gradients, not pass for a sum of 1.
        denominator = no_zero(sums[0])
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(denominator.to(parameter.grad.dtype))
        loss: Tensor = (sums[1] / denominator).float()
        return loss

    def before_update(self) -> None:
        """Once a run: hold what the objective says of itself against its weights. Waits for the device."""
        if self._claims_checked or self.step.totals is None:
            return
        broken = torch.stack(self.step.broken_claims).any(0).double()
        sums = self._sum_over_ranks(torch.cat([broken, self.step.totals["denominator"].reshape(1).double()])).tolist()
        counted = None if self.step.denominator is None else float(self.step.denominator)
        check_claims(self.objective, [b > 0 for b in sums[:-1]], counted, sums[-1])
        self._claims_checked = math.isfinite(sums[-1]) and sums[-1] != 0  # else it has shown nothing yet
        if self.sparse.on:
            kept = self.step.totals["kept"]
            counts = torch.stack([kept, torch.full_like(kept, self.step.positions)])
            self.sparse.tell_share(*self._sum_over_ranks(counts).tolist(), first=self.is_world_process_zero())

    def ranks_rows_together(self) -> bool:
        return self.objective.scope == "batch"

    def forget_pending(self, step: int) -> None:
        self.token_log.pending = [p for p in self.token_log.pending if p.step != step]

    # --- evaluation during training -------------------------------------------------------------------------------------

    def _eval_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool) -> Any:
        if self._evaluated is not None:
            self._prove(model, self._evaluated, self.args.eval_batch_size)
        with torch.no_grad():
            outputs, made = self._forward(model, inputs, loss_of=None)
        valid, wide = inputs["targets"] != IGNORE_INDEX, sum_dtype(made.nll)
        sums = torch.stack([made.nll.sum(dtype=wide), valid.sum(dtype=wide)])
        self._eval_sums = sums if self._eval_sums is None else self._eval_sums + sums
        loss = (sums[0] / sums[1].clamp(min=1)).float()
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """As the Trainer's, with ``eval_nll`` = ``eval_loss`` = nll sum / tokens of the whole set, no mean of batch means.

        The second name is what ``metric_for_best_model`` and others look for.
        """
        self._eval_sums = None
        self._evaluated = args[0].dataset  # proved at its first batch, if it was not before training
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self._eval_sums is not None and output.metrics is not None:
            nll_sum, count = self.accelerator.reduce(self._eval_sums, "sum").tolist()
            mean = nll_sum / count if count else float("nan")
            output.metrics.update({f"{metric_key_prefix}_nll": mean, f"{metric_key_prefix}_loss": mean})
        return output
