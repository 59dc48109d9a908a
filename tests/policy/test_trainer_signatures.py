"""The private methods of the Hugging Face Trainer that are overridden here, as they were when they were: a new version that
moves a parameter must fail in this test, not in the tenth hour of somebody's run."""

from __future__ import annotations

import inspect
import re

import pytest
from transformers import Trainer

from tokensieve.training.feeding import Fed
from tokensieve.training.guarded import Guarded
from tokensieve.training.logged import Logged
from tokensieve.training.optimised import Optimised
from tokensieve.training.trainer import SelectiveTrainer

# method -> its parameters after self (transformers 5.23)
PARAMETERS = {
    "_finalize_training": "trial, num_train_samples, start_time",
    "_get_eval_sampler": "eval_dataset",
    "_get_grad_norm": "model, grad_norm",
    "_get_num_items_in_batch": "batch_samples, device",
    "_get_train_sampler": "train_dataset",
    "_init_training_state": "max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial",
    "_load_best_model": "",
    "_load_from_checkpoint": "resume_from_checkpoint, model",
    "_maybe_log_save_evaluate": "tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, start_time, learning_rate",
    "_prepare_for_training": "max_steps, train_dataloader, resume_from_checkpoint",
    "_run_epoch": "model, epoch, train_dataloader, steps_in_epoch, num_update_steps_per_epoch, trial, ignore_keys_for_eval, "
    "start_time, resume_from_checkpoint, epochs_trained, steps_trained_in_current_epoch",
    "_save": "output_dir, state_dict",
    "_save_checkpoint": "model, trial",
    "_set_signature_columns_if_needed": "",
    "compute_loss": "model, inputs, return_outputs, num_items_in_batch",
    "create_optimizer": "model",
    "create_scheduler": "num_training_steps, optimizer",
    "evaluation_loop": "dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix",
    "get_batch_samples": "epoch_iterator, num_batches, device",
    "get_eval_dataloader": "eval_dataset",
    "log": "logs, start_time",
    "predict": "test_dataset, ignore_keys, metric_key_prefix",
    "train": "resume_from_checkpoint, trial, ignore_keys_for_eval",
    "training_step": "model, inputs, num_items_in_batch",
}


def overridden() -> set[str]:
    """Methods of ours that the Trainer has, too."""
    ours = {**vars(Guarded), **vars(Fed), **vars(Logged), **vars(Optimised), **vars(SelectiveTrainer)}
    return {n for n, f in ours.items() if inspect.isfunction(f) and hasattr(Trainer, n) and n != "__init__"}


def test_every_overridden_method_is_pinned() -> None:
    assert overridden() == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_it_was_written_for(name: str) -> None:
    found = list(inspect.signature(getattr(Trainer, name)).parameters)[1:]
    assert ", ".join(found) == PARAMETERS[name]


# The same of TRL's SFTTrainer (1.16), which stands below ours in SelectiveSFTTrainer.
OF_TRL = {
    "_prepare_dataset": "dataset, processing_class, args, packing, formatting_func, dataset_name",
    "_set_signature_columns_if_needed": "",
    "compute_loss": "model, inputs, return_outputs, num_items_in_batch",
    "prediction_step": "model, inputs, prediction_loss_only, ignore_keys",
    "training_step": "args, kwargs",
    "log": "logs, start_time",
    "_save_checkpoint": "model, trial",
    "evaluate": "eval_dataset, ignore_keys, metric_key_prefix",
    "_reject_skip_prepare_without_labels": "datasets, data_collator",
}


def test_trls_trainer_overrides_what_it_did() -> None:
    """A method that a new version of TRL takes over from the Trainer runs inside every ``super()`` of ours."""
    trl = pytest.importorskip("trl")
    theirs = {n: f for n, f in vars(trl.SFTTrainer).items() if inspect.isfunction(f) and n != "__init__"}
    assert {n: ", ".join([*inspect.signature(f).parameters][1:]) for n, f in theirs.items()} == OF_TRL


def test_the_base_class_reads_nothing_of_its_subclass() -> None:
    """``Guarded`` read the objective, the token log and the step's totals of the class that is built on it."""
    source = inspect.getsource(Guarded)
    own = {n for n in {**vars(Fed), **vars(SelectiveTrainer)} if not hasattr(Guarded, n)} | {
        "objective",
        "token_log",
        "scope",
        "seam",
        "head",
    }
    assert not {name for name in own if re.search(rf"self\.{name}\b", source)}
