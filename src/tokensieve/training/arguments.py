"""Which TrainingArguments this trainer cannot keep to: each is refused by name, since a field that is passed over says nothing.

What is in no table here is served, by the Trainer or by ours, or does nothing without logits (``eval_accumulation_steps``,
``prediction_loss_only``, ``batch_eval_metrics``, ``include_for_metrics``) or beside rows of ours (``length_column_name``,
``remove_unused_columns``, ``accelerator_config``'s ``even_batches`` and ``use_seedable_sampler``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..runs.errors import UserError

AUTO_BATCH = "it changes how many rows a step has: set per_device_train_batch_size"
LIGER = "it replaces the head that the token loss is computed with"
_ORDER = "a step's rows follow from seed and epoch alone"

# field -> (whether a value of it is kept to, why another one is not)
KEPT_TO: dict[str, tuple[Callable[[Any], bool], str]] = {
    "train_sampling_strategy": (lambda v: v in ("random", "sequential"), f"random or sequential: {_ORDER}"),
    "dataloader_in_order": (bool, _ORDER),
    "accelerator_config.split_batches": (lambda v: not v, f"{_ORDER}, and per_device_train_batch_size is a rank's"),
    "accelerator_config.dispatch_batches": (lambda v: not v, "each rank reads its own rows"),
    "auto_find_batch_size": (lambda v: not v, AUTO_BATCH),
    "average_tokens_across_devices": (bool, "a step is divided by what counts on all ranks together"),
    "label_smoothing_factor": (lambda v: not v, "it changes what nll means: set it to 0"),
    "label_names": (lambda v: not v or list(v) == ["labels"], "labels are the column 'labels'"),
    "use_liger_kernel": (lambda v: not v, LIGER),
}
# Arguments of the Trainer itself that stand for another loss, other labels, or logits, which are never made.
REFUSED_KEYWORDS = {
    "compute_loss_func": "compute_loss_func and an objective are two losses: give the objective only",
    "compute_metrics": "compute_metrics needs logits, which this trainer does not make: use tokensieve evaluate",
    "preprocess_logits_for_metrics": "preprocess_logits_for_metrics needs logits, which this trainer does not make",
    "model_init": "model_init is not supported: give the model itself",
}


def check_fields(args: Any, prefix: str = "", table: Mapping[str, tuple[Callable[[Any], bool], str]] = KEPT_TO) -> None:
    """Raise UserError naming every field of ``args``, after ``prefix``, whose value this trainer does not keep to."""
    wrong = []
    for name, (kept_to, why) in table.items():
        value = args
        for part in name.split("."):
            value = getattr(value, part, None)
        if value is not None and not kept_to(value):
            shown = getattr(value, "value", value)
            wrong.append(f"{prefix}{name}: {shown} is not supported: {why}")
    if wrong:
        raise UserError("; ".join(wrong))


def check_keywords(given: Mapping[str, Any], collate: Any) -> None:
    """Raise UserError for keywords of the Trainer that have no place here. ``collate``: the one data_collator there is."""
    for name, why in REFUSED_KEYWORDS.items():
        if given.get(name) is not None:
            raise UserError(why)
    if given.get("data_collator") not in (None, collate):
        raise UserError(
            "a data_collator of its own would make its own labels: give them as the column 'labels' instead"
        )


def check_some_steps(args: Any, prefix: str = "") -> None:
    """Raise UserError where the arguments alone leave no step to do."""
    if args.max_steps == 0 or (args.max_steps < 0 and not args.num_train_epochs > 0):
        raise UserError(f"{prefix or 'training arguments: '}max_steps and num_train_epochs leave no step to do")
