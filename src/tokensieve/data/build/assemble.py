"""Parts -> corpus: choose rows, number sources and documents in row order, and write the shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ...runs.errors import UserError
from ...runs.files import atomic_file
from ..corpus import DOCUMENT_COLUMNS, ShardWriter, with_documents, with_labels, with_weight
from ..read.documents import NO_TARGET
from .earlier import Earlier, Supply
from .mixture import read_over
from .units import Counts, read_table

MAX_SOURCES = 1 << 15  # an index into them is an int16


@dataclass(frozen=True)
class Part:
    """A finished unit."""

    source_index: int
    stem: Path  # path without ".rows.arrow"
    counts: Counts


@dataclass
class Tally:
    """Figures of the rows that were kept."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0


@dataclass
class Assembly:
    """State of the pass over the parts."""

    numbers: dict[str, int] = field(default_factory=dict)  # source name -> index, in the order of their first document
    by_source: list[Tally] = field(default_factory=list)
    num_documents: int = 0
    no_targets: int = 0  # tokens that labels say are none
    weights: dict[str, int] = field(default_factory=dict)  # targets whose weight is zero or negative; empty: no weights


def assemble(
    parts: Sequence[Part],
    rows: Sequence[int],
    out: Path,
    length: int,
    shard_rows: int,
    seed: int,
    earlier: Sequence[Earlier] = (),
) -> tuple[ShardWriter, Assembly]:
    """Write the shards and ``documents.parquet``; ``rows[s]`` is how many rows source s gives, chosen by the seed; rows of
    ``earlier`` corpora stand behind them. What is read again stands again, as documents of their own."""
    optional = [
        name
        for name in ("labels", "weight")
        if any(getattr(p.counts, name) for p in parts) or any(name in e.corpus.rows.column_names for e in earlier)
    ]
    state, writer = Assembly(), ShardWriter(out, length, shard_rows, optional)
    schema = pa.schema(list(DOCUMENT_COLUMNS.items()))
    with atomic_file(out / "documents.parquet") as f, pq.ParquetWriter(f, schema) as documents:
        for supply in chain(
            _supplies(parts, rows, seed), *(e.supplies([seed, MAX_SOURCES, i]) for i, e in enumerate(earlier))
        ):
            if len(supply.rows):
                table, docs = _numbered(supply, state)
                if "labels" in optional:
                    table = with_labels(table)
                    state.no_targets += _no_targets(table)
                if "weight" in optional:
                    table = with_weight(table)
                    _count_weights(table, state)
                # A part may have had one of the two itself: the other was put behind it.
                writer.write(table.select([*(n for n in table.column_names if n not in optional), *optional]))
                documents.write_table(docs.cast(schema))
    writer.close()
    return writer, state


def _supplies(parts: Sequence[Part], rows: Sequence[int], seed: int) -> Iterator[Supply]:
    """The chosen rows of each part, in row order; of a source that is read several times, once more behind its last part."""
    for s, wanted in enumerate(rows):
        mine = [p for p in parts if p.source_index == s]
        bounds = np.cumsum([0, *(p.counts.rows for p in mine)])
        for chosen in read_over(int(bounds[-1]), wanted, [seed, s]):
            for part, start, end in zip(mine, bounds, bounds[1:], strict=False):
                lo, hi = np.searchsorted(chosen, [start, end])
                if hi > lo:
                    yield _from_part(part, chosen[lo:hi] - start)


def _from_part(part: Part, chosen: npt.NDArray[np.int64]) -> Supply:
    table, docs = (read_table(Path(f"{part.stem}.{what}.arrow")) for what in ("rows", "docs"))
    return Supply(table.take(chosen) if len(chosen) < len(table) else table, docs, part.counts.sources)


def _numbered(supply: Supply, state: Assembly) -> tuple[pa.Table, pa.Table]:
    """Rows and their documents, renumbered."""
    table, docs = supply.rows, supply.documents
    names = np.array([_number(name, state) for name in supply.sources], np.int16)
    pieces = table["doc_ids"].combine_chunks().flatten().to_numpy()  # [P]
    kept = np.unique(pieces)  # documents of which at least one piece is in
    sources = names[docs["source"].to_numpy()]  # [D]
    table = with_documents(table, state.num_documents + np.searchsorted(kept, pieces), sources[pieces])
    tokens = np.bincount(pieces, _piece_tokens(table), minlength=len(docs))[kept].astype(np.int64)
    docs = docs.take(kept)
    numbers = pa.array(state.num_documents + np.arange(len(kept)), pa.int64())
    docs = docs.set_column(0, "doc_id", numbers).set_column(2, "source", pa.array(sources[kept], pa.int16()))
    _count(docs, tokens, state)
    state.num_documents += len(kept)
    return table, docs


def _no_targets(table: pa.Table) -> int:
    labels = table["labels"].combine_chunks().flatten().to_numpy()
    padding = len(labels) - int(table["num_tokens"].to_numpy().sum())
    return int((labels == NO_TARGET).sum()) - padding


def _count_weights(table: pa.Table, state: Assembly) -> None:
    """Targets of weight 0 and below; padding, and what labels leave out, are none."""
    labels = with_labels(table)["labels"].combine_chunks().flatten().to_numpy()
    weight = table["weight"].combine_chunks().flatten().to_numpy()[labels != NO_TARGET]
    for name, count in (("zero", int((weight == 0).sum())), ("negative", int((weight < 0).sum()))):
        state.weights[name] = state.weights.get(name, 0) + count


def _number(name: str, state: Assembly) -> int:
    if name not in state.numbers:
        if len(state.numbers) == MAX_SOURCES:
            raise UserError(f"more than {MAX_SOURCES} source names in the rows: set a name for the source")
        state.numbers[name] = len(state.numbers)
        state.by_source.append(Tally())
    return state.numbers[name]


def _piece_tokens(table: pa.Table) -> npt.NDArray[np.int64]:
    """Tokens of each piece, ``[P]``: up to the next piece of the row, or to the end of its text."""
    starts = table["doc_starts"].combine_chunks()
    flat = starts.flatten().to_numpy().astype(np.int64)
    last = np.cumsum(starts.value_lengths().to_numpy()) - 1
    ends = np.append(flat[1:], 0)
    ends[last] = table["num_tokens"].to_numpy()
    return np.asarray(ends - flat)


def _count(docs: pa.Table, tokens: npt.NDArray[np.int64], state: Assembly) -> None:
    """Add documents to their sources' figures; a document that is partly in counts its bytes in proportion."""
    share = tokens / docs["num_tokens"].to_numpy()
    size = np.rint(docs["num_bytes"].to_numpy() * share).astype(np.int64)
    source = docs["source"].to_numpy()
    for i in np.unique(source):
        tally, mine = state.by_source[i], source == i
        tally.documents += int(mine.sum())
        tally.tokens += int(tokens[mine].sum())
        tally.bytes += int(size[mine].sum())


def corpus_stats(
    state: Assembly, rows: int, length: int, parts: Sequence[Part], transforms: Sequence[str] = ()
) -> dict[str, Any]:
    """``stats`` of a corpus's manifest."""
    tokens = sum(t.tokens for t in state.by_source)
    size = sum(t.bytes for t in state.by_source)
    unknown = sum(p.counts.unknown for p in parts)  # of all that was read, be it kept or not
    chats = sum(p.counts.chats for p in parts)  # likewise
    skipped: dict[str, int] = {}
    for part in parts:
        for reason, n in part.counts.skipped.items():
            skipped[reason] = skipped.get(reason, 0) + n
    return {
        "rows": rows,
        "tokens": tokens,
        "padding": 1 - tokens / (rows * length),
        **({"no_targets": state.no_targets} if state.no_targets else {}),
        **({"chats": chats, "cut_chats": sum(p.counts.cut_chats for p in parts)} if chats else {}),
        **({"weights": state.weights} if state.weights else {}),
        **({"transforms": list(_transformed(transforms, parts))} if transforms else {}),
        "documents": state.num_documents,
        "bytes": size,
        "bytes_per_token": size / tokens,
        "by_source": {name: vars(state.by_source[i]) for name, i in state.numbers.items()},
        "bad_rows": sum(p.counts.num_bad_rows for p in parts),
        "skipped": dict(sorted(skipped.items())),
        "unknown": unknown,
        "unknown_share": unknown / max(1, sum(p.counts.tokens for p in parts)),
        "token_bytes_exact": all(p.counts.token_bytes_exact for p in parts),
    }


def _transformed(names: Sequence[str], parts: Sequence[Part]) -> Iterator[dict[str, Any]]:
    """Of each transform the documents that it changed, and those of them that a row's end cuts; of all that was read."""
    for i, name in enumerate(names):
        changed, cut = (sum(p.counts.transforms[i][j] for p in parts) for j in range(2))
        yield {"name": name, "documents": changed, "cut": cut}
