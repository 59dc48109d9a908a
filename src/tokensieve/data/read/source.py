"""A source of text: what its config says, and which of its documents it admits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import xxhash

from .files import InputFile


@dataclass(frozen=True)
class SourceConfig:
    """One source of text of a corpus."""

    path: str
    """File, folder, glob, ``package:NAME`` (an installed one), ``package:stdlib``, ``hub:owner/name[:config[:split]]``; or the
    URL of a file, folder or glob: ``s3://bucket/text/*.jsonl.gz``, whatever fsspec opens."""
    name: str | None = None
    """Name in per-source figures; default: each row's ``source`` field, else the file's or folder's name."""
    format: str = "auto"
    """``auto`` (by suffix), jsonl, parquet, text, python, docstrings, datasets, tokens (``input_ids``), chat (messages ...)."""
    text: str = "text"
    """Column that holds the text."""
    problem: str | None = None
    """Column of the problem: the text is then "Problem: ...\\nSolution: ...", and the solution's tokens are marked."""
    solution: str | None = None
    """Column of the solution."""
    split: tuple[float, float] = (0.0, 1.0)
    """Keep the documents whose hash lies in [lo, hi): disjoint ranges give disjoint documents."""
    max_bytes: int | None = None
    """Keep a seeded sample of at most this many bytes of text."""
    ignore_columns: tuple[str, ...] = ()
    """Columns to leave unread: ``weight``, or of ``tokens`` a list for each token, which is refused if nothing reads it."""
    source_column: str = "source"
    """Column that names a row's source, where `name` does not: `language`, to keep so much of each language."""
    label: str | None = None
    """Column of a number that a row is labelled with, for `filter --kind classifier`."""
    program: str | None = None
    """Column of a program of deletions (RefineX's: ``remove_lines(1, 3)``, ``remove_str(5, 'x')``), for `transforms`."""
    weight: float | None = None
    """Share of this source in the corpus's rows, relative to the other weights; needs ``max_rows``."""
    epochs: float = 1.0
    """How often it is read: 2.5 is all of its rows twice, and a seeded half again; with weights or a temperature at most."""
    only: tuple[str, ...] = ()
    """Rows of these sources alone, as `source_column` names them (`[novels, code/*]`); () takes all."""


@dataclass(frozen=True)
class Source:
    """A resolved source: small, picklable, and all that a worker needs to judge a document."""

    config: SourceConfig
    format: str
    name: str  # what documents are called that do not name their source themselves
    files: tuple[InputFile, ...]
    seed: int = 0
    limit: float = 1.0  # of the sampling hash: documents at or above it did not fit into max_bytes
    texts: Mapping[str, str] = field(default_factory=dict)  # file name -> text that sampling had to extract anyway

    @property
    def label(self) -> str:
        return self.config.path

    @property
    def size(self) -> int:
        """Bytes of its files on disk; 0 where that is unknown."""
        return sum(f.size for f in self.files)

    def in_split(self, key: str) -> bool:
        lo, hi = self.config.split
        return lo <= split_position(key) < hi

    def admits(self, key: str) -> bool:
        """True if the document with this key belongs to the corpus: in the split range, and in the sample."""
        return self.in_split(key) and (self.limit >= 1.0 or sample_position(key, self.seed) < self.limit)


def split_position(key: str) -> float:
    """hash(key) / 2^64: uniform in [0, 1), the same for every seed, machine and format."""
    return (xxhash.xxh3_64_intdigest(key.encode("utf-8", "surrogatepass")) >> 11) / (1 << 53)


def sample_position(key: str, seed: int) -> float:
    """hash(seed, key) / 2^64: uniform in [0, 1), independent of :func:`split_position`."""
    return split_position(f"sample {seed}\n{key}")
