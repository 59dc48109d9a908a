"""What ``tokensieve filter`` is told: sources -> a table that says which of their documents a corpus takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ...data.filter.options import Classifier, Decontaminate, Dedup, Ensemble, Measure
from ...data.read.source import SourceConfig

KIND = "documents"
# Text, models and tables count by what is in them: moved elsewhere, they are the same.
NOT_WORK = (
    *("out", "workers", "documents", "sources.path", "decontaminate.against.path", "classifier.positive.path"),
    *("classifier.negative.path", "ensemble.tables", "model.model", "model.reference", "model.device"),
)


@dataclass(frozen=True)
class FilterConfig:
    """Say of each document of some sources whether a corpus takes it, and why: a table that prepare --documents reads."""

    out: str
    """Folder to write."""
    kind: Literal["decontaminate", "dedup", "classifier", "ensemble", "model"]
    """What decides: runs shared with evaluation sets, copies, a linear classifier, several tables, or a model's nll."""
    sources: list[SourceConfig] = field(default_factory=list)
    """Where the text comes from, as in prepare."""
    documents: list[str] = field(default_factory=list)
    """Only documents that these tables keep, folders of earlier filters over the same sources."""
    decontaminate: Decontaminate = field(default_factory=Decontaminate)
    """Of kind decontaminate:"""
    dedup: Dedup = field(default_factory=Dedup)
    """Of kind dedup:"""
    classifier: Classifier = field(default_factory=Classifier)
    """Of kind classifier:"""
    ensemble: Ensemble = field(default_factory=Ensemble)
    """Of kind ensemble:"""
    model: Measure = field(default_factory=Measure)
    """Of kind model:"""
    share: float | dict[str, float] | None = None
    """Of kinds with scores: keep this share of the documents, those of the highest scores; or {source or group: share}."""
    threshold: float | dict[str, float] | None = None
    """Of kinds with scores: keep documents of at least this score; or {source or group: threshold}."""
    by: Literal["all", "source"] = "all"
    """What a share is of: all documents together, or those of each source (language, with source_column)."""
    groups: dict[str, list[str]] = field(default_factory=dict)
    """Sources that a share takes together, {european: [de, fr]}."""
    reverse: bool = False
    """Keep the lowest scores instead."""
    repeat: dict[int, int] = field(default_factory=dict)
    """How often prepare takes a kept document by its rounded score, {4: 2, 5: 10}; 1 where nothing is said."""
    seed: int = 0
    """Seed of samples of text to train on, and of the probe for heads."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What to do with a malformed row: stop and name it, or count it and list it in bad_rows.jsonl."""
    workers: int = 0
    """Processes; 0: one for small inputs, else as many as there are cores, at most 8. Of kind model always one."""
    unit_bytes: int = 16 << 20
    """Input bytes of a unit of work, what a kill can lose; text files longer than this are several documents, as in prepare."""
