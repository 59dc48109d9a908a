"""What ``tokensieve init`` is told: a model, or several -> a model to begin with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

KIND = "start"
# Models, tokenizers and calibration rows count by what is in them.
NOT_WORK = ("out", "model", "prune.corpus", "merge.models", "vocab.tokenizer")
MANIFEST_KEYS = ("source_hash", "source_flops")


@dataclass(frozen=True)
class PruneConfig:
    """What is left of a model; the least important goes, by a forward of some rows."""

    corpus: str = ""
    """A folder that `prepare` wrote with the model's tokenizer: its first rows say what is important."""
    rows: int = 256
    """How many of them."""
    layers: int | None = None
    """Blocks to keep, by block importance 1 - cos(in, out)."""
    intermediate_size: int | None = None
    """Neurons of each MLP to keep, by their activations."""
    heads: int | None = None
    """Attention heads to keep, with their keys and values, by what they add."""
    hidden_size: int | None = None
    """Channels of the stream to keep, by what the blocks' norms give out."""


@dataclass(frozen=True)
class MergeConfig:
    """Models of one shape as one; `model` is the base, whose tokenizer and config stay."""

    models: list[str] = field(default_factory=list)
    """Folders of the others; of task_arithmetic and ties what was trained from the base."""
    method: Literal["linear", "task_arithmetic", "ties"] = "linear"
    """linear: a mean, base included; task_arithmetic: base + sum of differences; ties: trimmed, of one sign, their mean."""
    weights: list[float] = field(default_factory=list)
    """One for each of `models`, of linear one for the base before them; none: all 1."""
    scale: float = 1.0
    """What the merged difference counts times: lambda. Not of linear."""
    density: float = 0.2
    """ties: share of each difference's weights that is kept, those of largest magnitude."""


@dataclass(frozen=True)
class VocabConfig:
    """Tables for another tokenizer: rows of tokens that both know stay, new ones are made of the old tokenizer's pieces."""

    tokenizer: str = ""
    """A folder with tokenizer.json, or a corpus: it becomes the model's tokenizer."""
    head: Literal["mean", "first"] = "mean"
    """A new token's row of the head: mean of its pieces' rows, or the first piece's [EEVE]. Of a tied head always the mean."""


@dataclass(frozen=True)
class GrowConfig:
    """A larger model that begins as the same function."""

    layers: int | None = None
    """Blocks to grow to: copies stand behind the block that they are of."""
    copies: Literal["silent", "exact"] = "silent"
    """silent: what copies of blocks write is 0, the function stays; exact: copies to the last bit, which changes it."""
    intermediate_size: int | None = None
    """Neurons of each MLP to grow to: new ones write 0."""
    experts: int | None = None
    """Of a mixture: experts to grow to, a multiple; as many times as many are visited."""
    noise: float = 0.0
    """Normal noise on copied experts and their rows of the router, in standard deviations of each weight; 0: exact copies."""


@dataclass(frozen=True)
class MixtureConfig:
    """A dense model as a mixture: each MLP's neurons shared out over experts."""

    experts: int = 8
    """How many of equal width."""
    active: int = 2
    """How many a token visits; all of them: the dense model's logits."""


@dataclass(frozen=True)
class InitConfig:
    """Make a model to begin with out of others: cut, pruned, merged, grown, for another vocabulary, or as a mixture."""

    out: str
    """Folder to write: model/."""
    model: str
    """A Hugging Face folder, or a folder that `train` or `init` wrote. Exactly one of the following says what is made of it."""
    layers: int | None = None
    """How many of its blocks to keep, from the first on [Inheritune]. All of them: the model as it is."""
    prune: PruneConfig | None = None
    """Depth by block importance, width by activation [Minitron]:"""
    merge: MergeConfig | None = None
    """It and others as one:"""
    vocab: VocabConfig | None = None
    """It with another tokenizer:"""
    grow: GrowConfig | None = None
    """It with more blocks, neurons or experts:"""
    moe_from_dense: MixtureConfig | None = None
    """It as a mixture of experts [LLaMA-MoE]:"""
    seed: int = 0
    """Seed of a mixture's router and shares, and of noise."""
    rope: dict[str, Any] = field(default_factory=dict)
    """Rotary positions other than its own: rope_theta, rope_type, factor ... of the config's rope_parameters."""
    max_positions: int | None = None
    """The longest row it is then for (max_position_embeddings); its own if not given."""
