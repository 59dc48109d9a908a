"""``tokensieve train``: one verb for every model. A reference model is ``objective: clm`` on curated text."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments, set_seed

from ..core import Objective
from ..core.stats import score_columns
from ..data.bos import bos_words, disagreement
from ..data.corpus import Corpus, open_corpus
from ..data.rows import check_targets
from ..data.scored import join_scores
from ..data.tokenizer import auto_override
from ..modeling.folder import model_hash, read_config
from ..modeling.freeze import freeze
from ..modeling.load import (
    check_dtype,
    check_length,
    check_tokenizer,
    check_vocabulary,
    load_causal_lm,
    model_config,
    model_shapes,
    new_causal_lm,
    quiet_loading,
    spelled_out,
)
from ..runs.errors import UserError
from ..runs.files import WORK
from ..runs.manifest import read_manifest
from ..runs.stage import Stage, stage
from ..runs.work import Work
from ..training.checkpoints import numbered
from ..training.guards import GuardConfig, StopSignals
from ..training.mup import scale_new_weights
from ..training.price import StepFlops, share_trained, step_flops
from ..training.self_test import run_self_test
from ..training.sparse import check_backward
from ..training.token_log import FlopsSpent, TokenLogConfig
from ..training.trainer import HeadOptions, SelectiveTrainer
from . import corpus_scope, launch, second
from .arguments import check_arguments, lora_config, refuse_fields
from .config.fields import all_of, from_fields
from .config.help import check_seed, one_line
from .configs.train import KIND, NOT_WORK, SPLIT, TrainConfig
from .equal_compute import check_epochs, check_length_given, steps_for
from .objectives import check_sources, objective_of
from .recipe.cost import Cost, Known
from .run_record import finish_run, flops_spent, references_used, write_config, write_metrics
from .save_model import check_merges, is_untied, save_model, with_lora
from .training_parts import check_noise, noise_of, state_bytes

# What we recommend over TrainingArguments' own defaults. A NaN loss must be seen, not filtered out of the log.
TRAINING_DEFAULTS: dict[str, Any] = {
    "report_to": "none",
    "logging_steps": 10,
    "logging_nan_inf_filter": False,
    "save_strategy": "steps",
    "save_steps": 0.2,
    "lr_scheduler_type": "cosine",
    "disable_tqdm": False,
}


class ChangedWork(UserError):
    """Checkpoints of other work: too dear to be thrown away, or gone on from, unasked."""


def command(config: TrainConfig) -> Path | str:
    """What the command line runs: :func:`run` or, with ``self_test``, that."""
    return self_test(config) if config.self_test else run(config)


def run(config: TrainConfig) -> Path:
    """Train and write the model folder; an interrupted run of the same config goes on from its last checkpoint."""
    if config.self_test:
        raise UserError("self_test: it writes no folder, so it is no stage of a recipe: give it to tokensieve train")
    validate(config)
    args = training_arguments(config)  # what this machine cannot do is refused before a folder is touched
    objective = _objective(config)
    out, corpus = Path(config.out), open_corpus(config.corpus, verify=config.verify)
    sets = {name: open_corpus(folder, verify=config.verify) for name, folder in config.eval_sets.items()}
    ranks = launch.ranks()
    with stage(out, _work(config, corpus, sets), rank=ranks.rank, refuse=False) as s:  # checkpoints are looked at below
        if s.done:
            return out
        going_on = _check_unfinished(config, s)
        made = _with_steps(config, corpus)
        args = args if made is config else training_arguments(made)
        check_epochs(made, args, corpus)
        trainer = _trainer(made, args, corpus, sets, objective)
        corpus_scope.find(config, corpus, trainer)
        s.bind()
        write_config(made, trainer.args, out)
        _train(trainer, going_on)
        if not trainer.token_log.tokens_trained:  # the same on all ranks
            raise UserError(
                f"{out}: of {trainer.token_log.tokens_seen:,} tokens seen not one was trained on: the corpus's weights, or the "
                "objective, leave none, and the model is what it began as"
            )
        save_model(trainer, out, lora=config.lora is not None, dtype=config.dtype)
        if ranks.rank == 0:
            _tell_override(out / "model")
            write_metrics(out, trainer.state.log_history)
            finish_run(s, config, corpus, objective, trainer)
        launch.wait_for_all(ranks)
    return out


def self_test(config: TrainConfig) -> str:
    """What held of the loss of this very run, on all ranks; UserError with what would have been silently wrong."""
    validate(config)
    training_arguments(config)
    objective, corpus = _objective(config), open_corpus(config.corpus, verify=config.verify)
    sets = {name: open_corpus(folder, verify=config.verify) for name, folder in config.eval_sets.items()}
    with tempfile.TemporaryDirectory(prefix="tokensieve-") as folder:  # the Trainer wants a folder to be there
        training = {**config.training, "report_to": "none", "disable_tqdm": True}
        made = dataclasses.replace(config, out=folder, training=training)
        trainer = _trainer(made, training_arguments(made), corpus, sets, objective)
        return run_self_test(trainer)


def work(config: TrainConfig) -> Work:
    """What says which run it is: corpora by their rows, scores by their fingerprints, a model by its weights, the settings."""
    sets = {name: open_corpus(folder) for name, folder in config.eval_sets.items()}
    return _work(config, open_corpus(config.corpus), sets)


def _work(config: TrainConfig, corpus: Corpus, sets: Mapping[str, Corpus]) -> Work:
    inputs: dict[str, Any] = dict(corpus.identity)
    inputs["scores"] = [read_manifest(s, "scores")["fingerprint"] for s in config.scores]
    if sets:
        inputs["eval_sets"] = {name: found.content_hash for name, found in sets.items()}
        inputs["isolated_sets"] = {name: found.isolate_documents for name, found in sets.items()}
    if config.training.get("use_cache") and any(c.isolate_documents for c in [corpus, *sets.values()]):
        inputs["use_cache"] = False  # runs that were made with one saw across documents
    if config.compute_of is not None:
        inputs["compute_of"] = read_manifest(config.compute_of, KIND)["fingerprint"]
    objective: Any = config.objective
    if models := second.folders(objective):  # by what is in them, not by their names
        inputs["second"] = [model_hash(folder) for folder in models]
        objective = second.without_folders(objective)
    if config.lora is not None and is_untied(_model_config(config, corpus), config.lora):
        inputs["merged"] = "untied"  # early versions merged such an adapter into the head as well
    if not isinstance(config.model, str):  # which one a small one is like counts by what follows, not by its path
        return Work.of(KIND, config, NOT_WORK, inputs, objective=objective, model=spelled_out(config.model))
    inputs["model"] = model_hash(config.model)
    return Work.of(KIND, config, NOT_WORK, inputs, model=None, objective=objective)


def estimate(config: TrainConfig, known: Known) -> Cost:
    """Steps times their tokens, forward and backward; the last model and the checkpoints on the disk."""
    args, length = training_arguments(config, here=False), known.length(config.corpus)
    (corpus_tokens, exact), done = known.tokens(config.corpus), known.manifest(config.out, KIND) is not None
    ranks = known.ranks or max(1, args.world_size)
    step = args.per_device_train_batch_size * args.gradient_accumulation_steps * ranks * length
    steps = args.max_steps if args.max_steps > 0 else corpus_tokens * args.num_train_epochs / step
    if (model := known.model(config.model, config.corpus)) is None:
        steps = steps if config.compute_of is None else math.nan
        tokens, copies = steps * step, _num_checkpoints(args, steps)
        return Cost(tokens, math.nan, math.nan, False, max(1, copies))
    parameters = sum(p.numel() for p in model.parameters())
    model = model if config.lora is None else with_lora(copy.deepcopy(model), config.lora)  # others begin with it too
    model = model if not config.freeze else freeze(copy.deepcopy(model), config.freeze)
    objective, teachers = _objective(config), second.teachers(config.objective)
    teacher = known.model(teachers[0]) if teachers else None
    each_token = _step_flops(config, objective, model, length, teacher).of(1, share_trained(objective.options))
    if config.compute_of is not None:
        left = known.total_flops(config.compute_of) - known.spent_on(config.scores, teachers)
        steps, exact = max(left, 0.0) / (step * each_token), False
    tokens, copies = steps * step, _num_checkpoints(args, steps)
    flops = tokens * each_token
    optimizer = str(getattr(args.optim, "value", args.optim))
    held = 4 + state_bytes(config, optimizer)  # float32 weights, and what the optimizer keeps of each
    each = 4 if args.save_only_model else held
    memory = parameters * (4 + held if config.lora is None else 4)
    return Cost(tokens, flops, parameters * (4 + each * copies), exact and done, max(1, copies), memory)


def _num_checkpoints(args: Any, steps: float) -> float:
    """Checkpoints that a run of so many steps leaves, the one after its last step among them."""
    if args.save_strategy in ("no", "best"):
        return 0
    each = args.save_steps if args.save_steps >= 1 else steps * args.save_steps
    made = args.num_train_epochs if args.save_strategy == "epoch" else steps / max(1, each)
    whole = made if math.isnan(made) else float(math.ceil(made - 1e-9))
    return min(whole, float(args.save_total_limit or math.inf))


def _train(trainer: Any, going_on: bool) -> None:
    with StopSignals() as stop:
        trainer.stop_signal = lambda: stop.received
        trainer.train(resume_from_checkpoint=going_on)


def validate(config: TrainConfig) -> None:
    """Raise UserError for an objective, training arguments, model config, dtype or LoRA fields that do not exist."""
    check_seed(config.seed)
    if config.token_log_every < 0 or config.token_log_rows < 0:
        raise UserError("token_log_every and token_log_rows must be at least 0")
    objective, args, *_ = all_of(
        lambda: _objective(config),
        lambda: training_arguments(config, here=False),
        lambda: _head(config.head),
        lambda: None if config.lora is None else lora_config(config.lora),
    )
    needs = [name for name in score_columns(objective.needs) if name != "weight"]  # which the corpus itself may have
    if needs and not config.scores:
        raise UserError(f"scores: the objective needs the column {needs[0]!r}: name a folder that `score` wrote")
    second.check(objective, config)
    check_arguments(args)
    check_backward(config.backward, config.strict, args)
    check_length_given(config)
    check_schedule(config)
    check_optimizer(config)
    check_noise(config)
    if args.eval_strategy != "no" and not config.eval_sets:
        raise UserError("training: eval_strategy has nothing to evaluate: name eval_sets")
    if wrong := [name for name in config.eval_sets if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name)]:
        raise UserError(
            f"eval_sets: {wrong[0]!r} becomes part of a metric's name: letters, digits, '_', '-' and '.' only"
        )
    check_dtype(config.dtype)
    if config.freeze and config.lora is not None:
        raise UserError("freeze: with lora all weights of the model stay as they are: leave one of the two out")
    if not isinstance(config.model, str):
        model_config(config.model)


# Fields of TrainingArguments that say a schedule by steps.
BY_STEPS = ("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio")


def check_schedule(config: TrainConfig) -> None:
    """Raise UserError for two schedules of one learning rate."""
    if config.schedule is not None and (given := [name for name in BY_STEPS if name in config.training]):
        raise UserError(
            f"training.{given[0]} is a schedule by steps, and schedule gives one by tokens: leave one of them out"
        )


def check_optimizer(config: TrainConfig) -> None:
    """Raise UserError for two optimizers, for one of whole matrices where weights are in parts, and for muP of an adapter."""
    if config.mup is not None and (config.lora is not None or config.training.get("fsdp")):
        raise UserError("mup: it scales whole matrices of the model: not with lora, and not with FSDP")
    optim = str(config.training.get("optim", "adamw"))
    parts = {"schedule": config.schedule, "mup": config.mup, "mer": config.mer}
    if ("layerwise" in optim or "lomo" in optim) and (ours := [k for k, v in parts.items() if v is not None]):
        raise UserError(
            f"{ours[0]}: training.optim {optim} updates weights within the backward, where it does not reach: take another"
        )
    if config.mup is not None and (config.optimizer is not None or "adam" not in optim):
        other = optim if config.optimizer is None else config.optimizer.name
        raise UserError(
            f"mup: its learning rates are Adam's, and {other} makes steps of another size: take adamw_torch"
        )
    if config.optimizer is None:
        return
    if "optim" in config.training:
        raise UserError("training.optim is an optimizer, and optimizer gives another one: leave one of them out")
    if config.training.get("fsdp"):
        raise UserError(
            "optimizer: subset_norm looks at whole matrices, and FSDP has parts of them: use DDP, or training.optim"
        )


def _objective(config: TrainConfig) -> Objective:
    return objective_of(config.objective, config.allow_code)


def _head(options: Mapping[str, Any]) -> Any:
    return from_fields(HeadOptions, options, "head")


def _check_unfinished(config: TrainConfig, s: Stage) -> bool:
    """Whether there are checkpoints to go on from. Those of other work are refused, and so is a folder without a note of it.

    Which of them is good is for the trainer to find, and whether the step is split in the same way.
    """
    out = s.folder
    found = numbered(out)
    if found and not (out / WORK).exists():
        raise ChangedWork(f"{found[-1]} does not say what work it belongs to: remove {out} or choose another --out")
    if found and config.resume != "auto":
        raise UserError(f"{out} has checkpoints of an unfinished run: set resume: auto to go on, or remove it")
    if not found:
        s.refuse_other(free=SPLIT)
    elif changed := s.changed(free=SPLIT):
        if not config.allow_changed:
            raise ChangedWork(
                f"{out} has checkpoints of {changed}: change it back, or set allow_changed to go on from them all the same, "
                "or remove the folder to begin again"
            )
        if launch.ranks().rank == 0:
            print(f"tokensieve: {out}: going on from checkpoints of {changed}", file=sys.stderr, flush=True)
    return bool(found)


def _step_flops(config: TrainConfig, objective: Objective, model: Any, length: float, teacher: Any) -> StepFlops:
    how: dict[str, Any] = {"sparse": config.backward == "sparse", "strict": config.strict}
    return step_flops(objective, model, length, **how, teacher=teacher)


def _with_steps(config: TrainConfig, corpus: Corpus) -> TrainConfig:
    """The config with ``max_steps`` where ``compute_of`` says how long to train."""
    if config.compute_of is None:
        return config
    args, objective = training_arguments(config), _objective(config)
    shapes = _frozen(config, model_shapes(_model_config(config, corpus)))
    teachers = [model_shapes(read_config(folder)) for folder in second.teachers(config.objective)]
    flops = _step_flops(config, objective, shapes, corpus.length, teachers[0] if teachers else None)
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * max(1, args.world_size)
    valid = min(
        1.0, corpus.stats["tokens"] / max(1, corpus.num_rows * corpus.length)
    )  # padding is computed, not trained
    share = share_trained(objective.options) * valid * (1 - 1 / corpus.length)
    spent, used = flops_spent(config, objective.second), references_used(config)
    steps = steps_for(config, flops, rows * corpus.length, share, spent, used)
    return dataclasses.replace(config, training={**config.training, "max_steps": steps})


def _trainer(config: TrainConfig, args: Any, corpus: Corpus, sets: Mapping[str, Corpus], objective: Objective) -> Any:
    """The Trainer, everything in it checked; nothing is written yet."""
    quiet_loading()
    check_sources(config.objective, corpus.sources)
    head = _head(config.head)
    scored = join_scores(corpus, *config.scores, verify=config.verify)
    check_targets(scored, config.corpus)
    model = _model(config, corpus)
    what = config.model if isinstance(config.model, str) else "the model"
    check_vocabulary(model, corpus.vocab_size, what)
    if isinstance(config.model, str):
        check_tokenizer(config.model, corpus.tokenizer(), config.corpus)
        note = disagreement(config.model, corpus.bos_id, config.corpus)
        if note and launch.ranks().rank == 0:
            print(f"tokensieve: {note}", file=sys.stderr, flush=True)
    check_length(model.config, corpus.length, what)
    for name, found in sets.items():
        if found.bos_id != corpus.bos_id:
            raise UserError(
                f"eval_sets: the documents of {name} begin with {bos_words(found.bos_id)}, those of {config.corpus} with "
                f"{bos_words(corpus.bos_id)}: prepare both in the same way"
            )
        if found.tokenizer_hash != corpus.tokenizer_hash:
            raise UserError(f"eval_sets: {name} has another tokenizer than {config.corpus}")
        check_length(model.config, found.length, what)
    try:
        trainer = SelectiveTrainer(
            model,
            args,
            train_dataset=scored,
            eval_dataset={name: join_scores(found, verify=None) for name, found in sets.items()} or None,
            objective=objective,
            head=head,
            backward=config.backward,
            strict=config.strict,
            schedule=config.schedule,
            mer=config.mer,
            optimizer=config.optimizer,
            mup=config.mup,
            noise=noise_of(config, corpus),
            **second.models(objective, config, corpus),
            token_log=TokenLogConfig(config.token_log_every, config.token_log_rows, config.seed),
            flops_spent=FlopsSpent(*flops_spent(config, objective.second)),
            sources=corpus.sources,
            guards=_guards(config, corpus, args.device.type),
            processing_class=corpus.tokenizer(),
            thresholds=corpus_scope.found_before(config, corpus, objective),
        )
        trainer.check_steps()
        return trainer
    except UserError:
        raise
    except (ValueError, ImportError, RuntimeError) as e:  # arguments that do not go together, a tracker not installed
        raise UserError(f"training: {one_line(e)}") from e


def _guards(config: TrainConfig, corpus: Corpus, device: str) -> Any:
    return GuardConfig(
        config.on_nonfinite,
        config.max_skipped_steps,
        config.allow_changed,
        dry_step=device == "cuda" if config.dry_step == "auto" else config.dry_step == "always",
        documents=corpus.documents_at,
    )


def _tell_override(folder: Path) -> None:
    """Say once where transformers' AutoTokenizer reads a saved tokenizer otherwise than it is written; ours does not."""
    if part := auto_override(folder):
        print(
            f"tokensieve: {folder}: AutoTokenizer puts another {part} over its tokenizer.json, which gives other ids than "
            "training saw: load it with transformers.PreTrainedTokenizerFast.from_pretrained",
            file=sys.stderr,
            flush=True,
        )


def training_arguments(config: TrainConfig, *, here: bool = True) -> Any:
    """``config.training`` as TrainingArguments, every field typed.

    YAML 1.1 reads ``3e-4`` as a string and ``no`` as false; both come out as they were meant. Not ``here``: for a plan, which
    may be made on a machine without the GPU that ``bf16`` asks for.
    """
    fixed = {"output_dir": config.out, "seed": config.seed, "data_seed": config.seed, "run_name": Path(config.out).name}
    if clash := sorted(set(fixed) & set(config.training)):
        ours = "seed" if clash[0].endswith("seed") else "out"
        raise UserError(f"training.{clash[0]} follows from the field {ours}: leave it out")
    refuse_fields(config.training)
    evaluate = {"eval_strategy": "steps", "eval_steps": 0.2} if config.eval_sets else {}
    memory = {"dataloader_pin_memory": torch.cuda.is_available()}
    schedule = {} if config.schedule is None else {"lr_scheduler_type": "constant"}  # what is said beside one by tokens
    elsewhere = {} if here or torch.cuda.is_available() else {"use_cpu": True}
    given = {**TRAINING_DEFAULTS, **evaluate, **memory, **schedule, **config.training, **elsewhere, **fixed}
    given = {k: "no" if k.endswith("_strategy") and v is False else v for k, v in given.items()}
    # Declared as text, told to be true or false: taken out of what is checked by its type.
    sharded = given.pop("fsdp") if isinstance(given.get("fsdp"), bool) else None
    make = TrainingArguments if sharded is None else functools.partial(TrainingArguments, fsdp=sharded)
    return from_fields(make, given, "training")


def _model(config: TrainConfig, corpus: Corpus) -> Any:
    if config.lora is not None:
        check_merges(_model_config(config, corpus), config.lora)
    if isinstance(config.model, str):
        model = load_causal_lm(config.model, dtype=config.dtype)
        set_seed(config.seed)  # for the adapter's weights; beside a new model's its own seed counts
    else:
        model = new_causal_lm(config.model, seed=config.seed, dtype=config.dtype, **_of_corpus(corpus))
        if config.mup is not None:
            scale_new_weights(model, config.mup.base)
    return with_lora(model, config.lora) if config.lora is not None else _frozen(config, model)


def _frozen(config: TrainConfig, model: Any) -> Any:
    return freeze(model, config.freeze) if config.freeze else model


def _of_corpus(corpus: Corpus) -> dict[str, Any]:
    """What a new model's config takes from its corpus."""
    bos_id = corpus.eos_id if corpus.bos_id is None else corpus.bos_id
    return {"vocab_size": corpus.vocab_size, "eos_token_id": corpus.eos_id, "bos_token_id": bos_id}


def _model_config(config: TrainConfig, corpus: Corpus) -> Any:
    return (
        read_config(config.model) if isinstance(config.model, str) else model_config(config.model, **_of_corpus(corpus))
    )
