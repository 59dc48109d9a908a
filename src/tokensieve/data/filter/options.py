"""What each kind of ``filter`` may be told. Imports nothing heavy: help and parsing read it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..read.source import SourceConfig


@dataclass(frozen=True)
class Decontaminate:
    """Documents that share a run of words with an evaluation set."""

    against: list[SourceConfig] = field(default_factory=list)
    """The evaluation sets, as sources; their names (`name`, else the rows' source or the file) stand in the table."""
    run: int = 13
    """Words of a run [GPT-3, appendix C]; lower case, without punctuation."""
    action: Literal["drop", "list"] = "drop"
    """drop such documents, or keep them and only say in the table what they share."""


@dataclass(frozen=True)
class Dedup:
    """Copies and near copies: one of each is kept."""

    method: Literal["exact", "minhash"] = "minhash"
    """exact: the same text; minhash: also texts whose runs of words have a Jaccard similarity of about `similarity`."""
    across: Literal["all", "source"] = "all"
    """all: a copy in another source is one, too (global); source: only within a source (local) [SlimPajama-DC]."""
    similarity: float = 0.8
    """Share of runs that two near copies have in common, of those that either has; estimated from the hashes."""
    run: int = 5
    """Words of a run."""
    hashes: int = 128
    """Hashes of a signature, 4 bytes each: the estimate's standard error is sqrt(s (1 - s) / hashes)."""


@dataclass(frozen=True)
class Classifier:
    """How likely a document is of the positive text and not of the negative: a linear model of hashed runs of words."""

    positive: list[SourceConfig] = field(default_factory=list)
    """Text that is wanted [DCLM]; or rows with a number each (`label: COLUMN`), then the score is the number to expect."""
    negative: list[SourceConfig] = field(default_factory=list)
    """Text that is not; none: a sample of the sources themselves. Not with labels."""
    run: int = 2
    """Longest runs of words that are features: 1 to this."""
    bits: int = 20
    """2^bits weights: runs are hashed into so many."""
    training_bytes: int = 32 << 20
    """Text of either side that it is trained on, a seeded sample."""
    balance: bool = True
    """Rare labels count as much as frequent ones in training, as if upsampled; labels are rounded for it."""


@dataclass(frozen=True)
class Ensemble:
    """Tables of the same documents as one: the highest of their percentile ranks."""

    tables: list[str] = field(default_factory=list)
    """Folders of `filter` with scores of the same documents."""
    buckets: int = 20
    """Each table's scores become ranks in so many equal-sized buckets, from 0; the score is the highest [Nemotron-CC]."""


@dataclass(frozen=True)
class Measure:
    """What a model says of a document."""

    model: str = ""
    """A Hugging Face folder, or a folder that `train` wrote: of excess the student."""
    score: Literal["perplexity", "excess", "retrieval"] = "perplexity"
    """perplexity: minus the mean nll; excess: mean of nll - ref_nll; retrieval: (L masked - L) / L [AttentionInfluence]."""
    reference: str = ""
    """The reference model of excess."""
    length: int = 1024
    """Tokens of a piece: longer documents are read in pieces, each by itself."""
    max_tokens: int = 8192
    """Of longer documents only so many tokens are read, from the start; 0: all."""
    heads: float = 0.05
    """Share of all heads that is masked: those of the highest induction scores."""
    batch_tokens: int = 8192
    """Tokens of one forward."""
    model_dtype: str = "float32"
    """What the model computes in: float32, bfloat16 or float16."""
    device: str | None = None
    """cpu, cuda or cuda:0; the GPU where there is one."""
