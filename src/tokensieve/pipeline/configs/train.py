"""What ``tokensieve train`` is told: one verb for every model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ...training.options import Mer, Mup, Noise, SubsetNormOptions
from ...training.schedules import PowerSchedule

KIND = "model"
DEAR = True
# What others read in the manifest of a run.
MANIFEST_KEYS = ("corpus_hash", "tokenizer_hash", "summary")

# Fields that only split a step: what decides is how many rows they come to, which the checkpoint knows.
SPLIT = ("training.per_device_train_batch_size", "training.gradient_accumulation_steps")

# Fields that do not say what work it is: folders count by what is in them, and the rest says how to react to a fault.
NOT_WORK = (
    "out",
    "corpus",
    "scores",
    "eval_sets",
    "allow_code",
    "resume",
    "allow_changed",
    "on_nonfinite",
    "max_skipped_steps",
    "dry_step",
    "self_test",
    "verify",
    "compute_of",
    "max_epochs",
)


@dataclass(frozen=True)
class TrainConfig:
    """Train a causal language model on a corpus with an objective."""

    out: str
    """Folder to write: checkpoints, model/, tokens.jsonl, summary.json."""
    corpus: str
    """A folder that `prepare` wrote."""
    model: str | dict[str, Any]
    """A Hugging Face folder or a folder that `train` wrote (continue from it), or a config (from scratch): model_type, ...; or
    {like: FOLDER or config, hidden_size: ..., num_hidden_layers: ..., num_attention_heads: ...}, a small one of that family."""
    objective: dict[str, Any] = field(default_factory=lambda: {"name": "clm"})
    """name, one of those below, intersect, union or schedule of them, or package.module:factory, and its options."""
    scores: list[str] = field(default_factory=list)
    """Folders that `score` wrote for this corpus, where the objective needs them."""
    eval_sets: dict[str, str] = field(default_factory=dict)
    """name -> a folder that `prepare` wrote: its nll is logged while training (every fifth, see training.eval_steps)."""
    training: dict[str, Any] = field(default_factory=dict)
    """Any field of transformers.TrainingArguments."""
    schedule: PowerSchedule | None = None
    """A learning rate by tokens, {name: power, ...}; none: by steps, training.lr_scheduler_type (warmup_stable_decay ...)."""
    optimizer: SubsetNormOptions | None = None
    """One of ours, {name: subset_norm, ...}; none: training.optim, any of transformers' (galore_adamw needs galore-torch)."""
    mup: Mup | None = None
    """Maximal update parametrisation, {base: hidden size that training.learning_rate was found at}, of new weights."""
    mer: Mer | None = None
    """Meta-experience replay, {every: 100, epsilon: 0.3}, over a corpus that has rows of old text as well."""
    noise: Noise | None = None
    """Diffusion or a masked language model out of a causal one, {token: "<mask>", name: absorbing, anneal_steps: 10000}."""
    compute_of: str | None = None
    """A folder that `train` wrote: train for as many steps as cost what it cost in all, with scoring and reference."""
    max_epochs: float | None = None
    """Refuse to go through the corpus more often than this."""
    lora: dict[str, Any] | None = None
    """Train a LoRA adapter instead of all weights: fields of peft.LoraConfig (r, target_modules ...)."""
    freeze: list[str] = field(default_factory=list)
    """Parameters that stay as they are, by names with * for anything: model.embed_tokens.*, "*.layers.0.*"."""
    seed: int = 0
    """Seed of new weights, row order and dropout."""
    dtype: str = "float32"
    """What weights are kept in. For mixed precision leave it and set training.bf16."""
    head: dict[str, Any] = field(default_factory=dict)
    """How the vocabulary head's gradient is computed: keep_logits (auto, true, false), backend (tokensieve, torch, liger)."""
    backward: Literal["exact", "sparse"] = "exact"
    """exact: dropped tokens still teach every weight below; sparse: kept tokens alone are gone back through, for less
    compute."""
    strict: bool = False
    """sparse: keys and values of dropped tokens are constants as well."""
    token_log_every: int = 0
    """Log some rows token by token every so many steps (and at the first); 0 for never."""
    token_log_rows: int = 8
    """How many rows."""
    allow_code: bool = False
    """Let the objective be code of your own (package.module:factory). On the command line only, never in a file."""
    resume: Literal["auto", "never"] = "auto"
    """auto: go on from the last good checkpoint in `out`, if there is one; never: refuse a folder with checkpoints."""
    allow_changed: bool = False
    """Go on from a checkpoint although config, data or the split of a step over ranks changed since."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """NaN or infinity in a step: stop before the update, or leave this update out. Either way its rows are written down."""
    max_skipped_steps: int = 10
    """skip: how many steps of the run at most."""
    dry_step: Literal["auto", "always", "never"] = "auto"
    """A first step for its memory only, thrown away: auto on a GPU."""
    self_test: bool = False
    """Instead of training: is this loss what it says, as configured and launched? Nothing is written; exit code 2 if not."""
    verify: Literal["full", "size"] = "full"
    """full: the bytes of what is read are hashed, once a machine, and remembered by size and times; size: sizes only."""
