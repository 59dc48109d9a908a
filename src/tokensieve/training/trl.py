"""SelectiveSFTTrainer: TRL's SFTTrainer whose loss and denominator are :class:`SelectiveTrainer`'s (TRL 1.16).

    SelectiveSFTTrainer -> SelectiveTrainer -> Optimised -> Logged -> Fed -> Guarded -> SFTTrainer -> Trainer

TRL has the text: chat templates, masks of completion and assistant, truncation, packing; and the model: LoRA, router losses.
What it prepared is read by ``Rows`` and collated as everywhere here, and the step is ours. Each ``super()`` of ours meets TRL's
method before the Trainer's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Features, List, Value

from ..core import IGNORE_INDEX
from ..core.objectives.given import WEIGHT
from ..core.stats import score_columns
from ..data.columns import OF_CORPUS
from ..data.images import PIXELS
from ..data.pieces import PACKING
from ..data.rows import collate
from ..modeling.seam import base_model
from ..runs.errors import UserError
from .arguments import check_fields
from .feeding import each_set, vocab_size_of
from .trainer import SelectiveTrainer

try:
    from trl import SFTConfig, SFTTrainer, pack_dataset
except ModuleNotFoundError as e:
    raise UserError(
        f"SelectiveSFTTrainer needs TRL, and {e.name} is not installed: pip install 'tokensieve[trl]'"
    ) from None

# As KEPT_TO, of the fields that SFTConfig adds.
SFT_KEPT_TO: dict[str, tuple[Callable[[Any], bool], str]] = {
    "loss_type": (
        lambda v: v == "nll",
        "it is another loss beside the objective; DFT is objective 'dft', denominator 'valid'",
    ),
    "truncation_mode": (lambda v: v in ("keep_start", "keep_end"), "keep_start or keep_end"),
    "pad_to_multiple_of": (lambda v: False, "rows are padded to the longest of their batch"),
    "activation_offloading": (lambda v: not v, "nobody has tried it beside a loss inside the head"),
}


class SelectiveSFTTrainer(SelectiveTrainer, SFTTrainer):
    """``SFTTrainer`` whose loss is ``sum(weight * nll) / denominator`` of an Objective; one line changes.

        trainer = SelectiveSFTTrainer(model, args, train_dataset=rows, objective=tokensieve.objective("rho1", ratio=0.6))

    The arguments are TRL's (``processing_class``, ``peft_config``, ``formatting_func`` ...) and those of
    :class:`SelectiveTrainer`. Without an objective the loss is TRL's own, or, where ``train_dataset`` has a column ``weight``,
    a float for each of ``input_ids`` or one for the row, ``sum(weight * nll) / sum(|weight|)``. Columns of the objective stand
    beside ``input_ids``, an entry a token, and are cut and packed with them; a single number is that of all tokens of its row.

    Raises UserError before the first step for settings of TRL that would change the loss or its rows and are not served: liger
    kernels, ``loss_type``, label smoothing, ``padding_free`` without packing, images, streams; and for what
    :class:`SelectiveTrainer` refuses. TRL's figures ``entropy``, ``mean_token_accuracy`` and ``num_tokens`` are not logged.
    """

    train_dataset: Any
    eval_dataset: Any

    def __init__(self, model: Any, args: Any = None, *, train_dataset: Any = None, **kwargs: Any) -> None:
        if args is None:  # as TRL names it
            name = model if isinstance(model, str) else model.config.name_or_path
            args = SFTConfig(f"{name.split('/')[-1]}-SFT")
        check_fields(args, table=SFT_KEPT_TO)
        packs = getattr(args, "packing", False) and args.packing_strategy != "wrapped"
        if getattr(args, "padding_free", False) and not packs:
            raise UserError(
                "padding_free: rows are padded here; packing with packing_strategy bfd leaves next to no padding"
            )
        if images := {"image", "images", PIXELS} & {*(getattr(train_dataset, "column_names", None) or ())}:
            raise UserError(f"column {min(images)!r}: rows with images are not supported")
        if hasattr(train_dataset, "__len__") and not len(train_dataset):  # TRL looks at a first row that is not there
            raise UserError("there is nothing to train on: the data set is empty")
        self._to_train = train_dataset
        super().__init__(model, args, train_dataset=train_dataset, **kwargs)
        self._to_train = None
        self._vocab_size = vocab_size_of(self.model)  # TRL loads models by name, and adds tokens of a chat template
        self.train_dataset = self.rows_of(self.train_dataset, to_train=True)
        self.eval_dataset = each_set(self.eval_dataset, self.rows_of)
        self.data_collator = collate
        base = base_model(self.model)
        if hasattr(base, "router_aux_loss_coef"):  # models read it from their config once, before TRL changes it there
            base.router_aux_loss_coef = self.router_aux_loss_coef

    def given_rows(self, train_dataset: Any, eval_dataset: Any) -> dict[str, Any]:
        """As they are: TRL prepares them, and makes a collator of its own, which is not used."""
        return {"train_dataset": train_dataset, "eval_dataset": eval_dataset, "data_collator": None}

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Any:
        """TRL's tokens and labels. Its truncation and packing leave nothing else of a row: here all columns that are read."""
        if not hasattr(dataset, "__len__"):
            self.rows_of(dataset)  # refused by name: a step's rows follow from seed and epoch
        whole = copy.copy(args)
        whole.max_length, whole.shuffle_dataset = None, False
        made = super()._prepare_dataset(dataset, processing_class, whole, False, formatting_func, dataset_name)
        if not self.completion_only_loss and "labels" not in dataset.column_names:
            made = made.select_columns([n for n in made.column_names if n != "completion_mask"])  # every token counts
        read = self.rows_of(made, to_train=dataset is self._to_train).read
        made = made.select_columns(sorted(read))
        # Rows know this of weights; of others it must not depend on whether rows are cut or packed.
        narrow = [n for n in score_columns(self._needs) if n != WEIGHT and isinstance(made.features.get(n), Value)]
        with args.main_process_first():
            if narrow:
                made = _by_token(made, slice(None), args.dataset_num_proc, narrow)
            if packing:
                made = _packed(made, args)
            elif args.max_length is not None:
                made = _truncated(made, args)
        return made.shuffle(seed=args.seed) if args.shuffle_dataset else made


def _truncated(dataset: Any, args: Any) -> Any:
    """Rows of at most ``max_length`` tokens, and, as TRL has it, none without a label."""
    lengths = pc.list_value_length(dataset.data.column("input_ids"))
    if (pc.max(lengths).as_py() or 0) > args.max_length:
        _refuse_divided(dataset, f"rows are longer than max_length {args.max_length}: set max_length to None")
        part = slice(args.max_length) if args.truncation_mode == "keep_start" else slice(-args.max_length, None)
        dataset = _by_token(dataset, part, args.dataset_num_proc)
    return dataset.filter(_has_label, num_proc=args.dataset_num_proc)


def _packed(dataset: Any, args: Any) -> Any:
    if args.max_length is None:
        raise UserError("packing needs max_length, the length of a packed row")
    _refuse_divided(dataset, "it is packed already: set packing to False", "position_ids")
    dataset = _by_token(dataset, slice(None), args.dataset_num_proc)
    dataset = dataset.select_columns([n for n in dataset.column_names if n != "row_id"])  # rows are others now
    if args.shuffle_dataset:
        dataset = dataset.shuffle(seed=args.seed)
    return pack_dataset(dataset, args.max_length, args.packing_strategy, {"num_proc": args.dataset_num_proc})


def _refuse_divided(dataset: Any, why: str, *more: str) -> None:
    if divided := {*PACKING, *OF_CORPUS, *more} & {*dataset.column_names}:
        raise UserError(f"column {min(divided)!r} says how a row is divided, and {why}")


def _by_token(dataset: Any, part: slice, num_proc: int | None, only: Sequence[str] = ()) -> Any:
    """Of each row the tokens ``part``: of every column but ``row_id``, or of these only, an entry for each of them."""
    columns = [n for n in only or dataset.column_names if n != "row_id"]
    features = {n: List(getattr(f, "feature", f)) if n in columns else f for n, f in dataset.features.items()}
    options: dict[str, Any] = {"with_indices": True, "features": Features(features), "num_proc": num_proc}
    return dataset.map(_cut, fn_kwargs={"columns": columns, "part": part}, **options)


def _cut(row: Mapping[str, Any], index: int, columns: Sequence[str], part: slice) -> dict[str, Any]:
    length, made = len(row["input_ids"]), {}
    for name in columns:
        values = [row[name]] * length if np.ndim(row[name]) == 0 else row[name]
        if len(values) != length:
            raise UserError(f"row {index}: column {name!r} has {len(values)} entries for {length} tokens")
        made[name] = values[part]
    return made


def _has_label(row: Mapping[str, Any]) -> bool:
    return any(label != IGNORE_INDEX for label in row["labels"])
