"""The part of the trainer that knows data sets: which rows, in which order, read how."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..core.kth import Threshold
from ..core.objective import Objective
from ..core.objectives.given import WEIGHT, times
from ..core.stats import score_columns
from ..data.columns import visible_columns
from ..data.rows import ON_REQUEST, EpochSampler, Rows, check_rows, collate
from ..data.scan import look_through
from ..modeling.images import image_inputs
from ..runs.errors import UserError
from .arguments import check_some_steps
from .guarded import Guarded
from .thresholds import find_thresholds


class Fed(Guarded):
    """The Trainer between :class:`Guarded` and :class:`SelectiveTrainer`: of an objective it knows what it needs of the rows.

    The sampler fills the last global batch with ignored rows instead of repeating samples.
    """

    def init_rows(
        self,
        model: Any,
        needs: Collection[str],
        ignore_columns: Sequence[str],
        thresholds: Mapping[str, Threshold],
        second: tuple[str, str] | None = None,
    ) -> None:
        """What :meth:`rows_of` goes by. Before ``Trainer.__init__``, which is given the rows."""
        self.thresholds = dict(thresholds)
        self._needs, self._ignored, self._vocab_size = needs, tuple(ignore_columns), vocab_size_of(model)
        self._second_columns, self._images = second, image_inputs(model)

    def rows_of(self, dataset: Any, *, to_train: bool = False) -> Rows:
        """The data set as model inputs; ``to_train``: with what the objective needs. UserError for what is no data set."""
        if isinstance(dataset, Rows):
            return dataset
        if isinstance(dataset, Mapping) and "input_ids" in dataset:
            raise UserError(f"a datasets.Dataset is needed, not {type(dataset).__name__}: Dataset.from_dict makes one")
        if isinstance(dataset, Mapping):
            raise UserError(
                f"a data set is needed, not {type(dataset).__name__} of {', '.join(dataset)}: give one of them"
            )
        if not hasattr(dataset, "column_names") or not hasattr(dataset, "__len__"):
            raise UserError(
                f"a datasets.Dataset with input_ids is needed, not {type(dataset).__name__}: Dataset.from_list, from_generator "
                "and load_from_disk make one"
            )
        needs = self._needs if to_train else ()
        statistics = [n for n in ON_REQUEST if n in needs]
        ignored, vocab_size = self._ignored, self._vocab_size
        told: dict[str, Any] = {"second": self._second_columns if to_train else None, "vocab_size": vocab_size}
        told["images"] = self._images
        return Rows(dataset, score_columns(needs), statistics, ignore_columns=ignored, **told)

    def given_rows(self, train_dataset: Any, eval_dataset: Any) -> dict[str, Any]:
        """What ``Trainer.__init__`` is given of the data."""
        train = None if train_dataset is None else self.rows_of(train_dataset, to_train=True)
        return {"train_dataset": train, "eval_dataset": each_set(eval_dataset, self.rows_of), "data_collator": collate}

    def check_steps(self) -> None:
        """Raise UserError where no step can be done, no row has a token to predict, or a row cannot be read. Writes nothing."""
        rows: Any = self.train_dataset
        if rows is None or not len(rows):
            raise UserError("there is nothing to train on: the data set is empty")
        check_some_steps(self.args)
        sampler = self._get_train_sampler()
        if not len(sampler):
            raise UserError(
                f"no step can be done: {len(rows)} rows, {sampler.multiple} a step, and dataloader_drop_last leaves out a step "
                "that is not full"
            )
        check_rows(rows, "the data set")
        look_through(rows)

    def find_thresholds(self, objective: Objective) -> None:
        """Those of scope corpus that are not there yet: reads the data set twice, each rank its share. Ranks do it together."""
        from accelerate.utils import broadcast_object_list

        if not objective.corpus_scores:
            return
        known = [self.thresholds]  # the first rank's: what lies in a folder may be written meanwhile
        broadcast_object_list(known)
        self.thresholds = known[0]
        if not objective.corpus_scores.keys() <= self.thresholds.keys():
            args, rows = self.args, self.train_dataset
            self.thresholds = find_thresholds(
                objective,
                rows,
                rank=args.process_index,
                num_ranks=args.world_size,
                reduce=lambda counts: self.accelerator.reduce(counts.to(args.device), "sum").cpu(),
            )

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
        return super().get_eval_dataloader(eval_dataset if named else self.rows_of(eval_dataset))

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
        needed = (*ON_REQUEST, *score_columns(self._needs), *(self._second_columns or ()))
        self._signature_columns += ["row_id", "position_ids", "attention_mask", *needed]

    def _gather_rows(self, values: Tensor) -> Tensor:
        """[B, T] of each rank, one below the other. Rows of a prepared corpus have one length; others are widened first."""
        if not self.train_dataset.whole_rows:
            # Padding turns bool into int64, on the ranks that are padded only: they could not be gathered.
            values = self.accelerator.pad_across_processes(values, dim=1).to(values.dtype)
        return self.accelerator.gather(values)  # type: ignore[no-any-return]


def weighted(objective: Objective, dataset: Any, ignored: Sequence[str]) -> Objective:
    """The objective, times the data set's column of weights where it has one."""
    if isinstance(dataset, Mapping) or not hasattr(dataset, "column_names") or not hasattr(dataset, "__len__"):
        return objective  # no data set: refused in a moment
    return times(objective) if WEIGHT not in ignored and WEIGHT in visible_columns(dataset) else objective


def each_set(sets: Any, change: Callable[[Any], Any]) -> Any:
    """``change`` of a data set, or of each in a dict of them; None stays None."""
    if sets is None:
        return None
    return {name: change(one) for name, one in sets.items()} if isinstance(sets, dict) else change(sets)


def vocab_size_of(model: Any) -> int | None:
    """How many ids the model has a vector and a logit for; None where it does not say."""
    try:
        layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    except (AttributeError, NotImplementedError):
        return None
    sizes = [layer.weight.shape[0] for layer in layers if getattr(getattr(layer, "weight", None), "ndim", 0) == 2]
    return min(sizes, default=None)
