"""What ``tokensieve prepare`` is told: text -> a corpus of packed token rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ...data.read.source import SourceConfig
from ...data.replay import ReplaySource
from ...data.weight_rules import WeightRule

KIND = "corpus"
# Text and tokenizer count by what is in them: moved elsewhere, they are the same.
# So does BOS, by its id; and how many unknown tokens are too many says when to stop.
# A chat template counts by its text, wherever that stands.
NOT_WORK = (
    "out",
    "workers",
    "tokenizer",
    "bos",
    "chat_template",
    "max_unknown",
    "sources.path",
    "documents",
    "replay.corpus",
)

# Fields that came after fingerprints ceased to cover all of them.
LATER = (
    *("bos", "chat_template", "parse_special_tokens", "max_unknown", "weights", "documents"),
    *("transforms", "temperature", "replay"),
)
LATER_OF_SOURCE = ("ignore_columns", "source_column", "only", "label", "epochs", "program")
# Fields that choose among finished rows: units of work do not depend on them.
OF_ROWS: dict[str, Any] = {"max_rows": None, "temperature": None, "replay": []}
OF_SOURCE_ROWS: dict[str, Any] = {"weight": None, "epochs": 1.0}


@dataclass(frozen=True)
class PrepareConfig:
    """Text -> corpus."""

    out: str
    """Folder to write."""
    sources: list[SourceConfig] = field(default_factory=list)
    """Where the text comes from."""
    tokenizer: str | None = None
    """Folder of a tokenizer, or of a corpus whose tokenizer to use; none: train a byte-level BPE on a sample of the text."""
    vocab_size: int = 32000
    """Size of the vocabulary of a tokenizer trained here."""
    bos: Literal["auto", "always", "never"] = "auto"
    """BOS before each document (never a target): auto does as the tokenizer's template does; always needs a bos_token."""
    parse_special_tokens: bool = False
    """Take control tokens written out in text (<|im_end|>) as control tokens; else they are encoded as the text they are."""
    max_unknown: float = 0.01
    """Refuse a corpus of which more than this share of tokens is unknown to the tokenizer: that text is lost."""
    length: int = 1024
    """Tokens in a row."""
    isolate_documents: bool = False
    """Make each document a context of its own (document masking): positions restart and attention stops at its end."""
    weights: list[WeightRule] = field(default_factory=list)
    """Weights of tokens by what they say: {role, regex, tag or source: ..., weight: ...}, later ones win; docs/weights.md."""
    max_rows: int | None = None
    """Keep at most this many rows, chosen by the seed; with source weights exactly this many."""
    temperature: float | None = None
    """Instead of source weights: shares in proportion to size^(1/T), with size in rows; 1: as they are, larger: more alike."""
    replay: list[ReplaySource] = field(default_factory=list)
    """Rows of earlier corpora among the new ones: {corpus: FOLDER, share: .05}; needs their tokenizer and length."""
    seed: int = 0
    """Seed of every sample."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What to do with a malformed row: stop and name it, or count it and list it in bad_rows.jsonl."""
    workers: int = 0
    """Processes; 0: one for small inputs, else as many as there are cores, at most 8."""
    unit_bytes: int = 16 << 20
    """Input bytes of a unit of work: what a process holds at a time, and what a kill can lose."""
    shard_tokens: int = 8 << 20
    """Most tokens in one file of rows."""
    documents: list[str] = field(default_factory=list)
    """Take only the documents that these tables keep: folders that `filter` wrote for the same sources."""
    chat_template: str | None = None
    """How conversations are written out, in Jinja, or a file that says it; the tokenizer's own if not given."""
    transforms: list[dict[str, Any]] = field(default_factory=list)
    """What is done to documents before scoring, in order: {name: fim, rate: .5, sources: [code]}; docs/mixing.md."""
