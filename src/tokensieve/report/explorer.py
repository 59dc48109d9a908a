"""The token explorer's data: documents of token logs and of dynamics, packed small enough for one page.

A *view* is one set of documents seen at one or more *frames* (logged steps, or checkpoints). Columns are little-endian arrays,
gzipped, as base64: ``piece`` (index into the page's strings), ``ref`` and ``nll`` (uint16, hundredths of a nat, 65535: none),
``keep`` (uint8: 0 dropped, 1 kept), ``cls`` (uint8, 255: none), ``weight`` (float32, NaN: no target), which only a corpus
with weights has. ``nll`` and ``keep`` hold, for each document in turn, all its
tokens at its first frame, then at its second, and so on.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..analysis.folders import Arm, Dynamics, Run
from ..analysis.token_classes import CLASSES
from ..data.half import within
from ..runs.layout import nll_file
from .pieces import PieceTable, shown_text

Array = np.ndarray[Any, Any]
NONE = 65535
MAX_PASSAGE = 8192
"""Longer documents are shown in parts: sorting and filtering go by document."""


@dataclass
class Passage:
    """Part of a text as it lies in the corpus: ``spans`` of (row, start, stop), at most MAX_PASSAGE tokens."""

    doc_id: int
    source: int
    frames: tuple[int, ...]
    spans: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(stop - start for _, start, stop in self.spans)


def views(run: Run, pieces: PieceTable, max_tokens: int, max_bytes: int) -> list[dict[str, Any]]:
    """Everything there is to look at: dynamics first, then the logs of the arms, those that choose by score before the others.

    At most ``max_tokens`` tokens over all views, in about ``max_bytes`` of page; what is left out is said in each ``note``.
    """
    arms = sorted((a for a in run.arms if a.corpus and a.logged()), key=_interest)
    wanted: list[Dynamics | Arm] = [*(d for d in run.dynamics if d.corpus), *arms]
    made = []
    while wanted:  # from the end: logs are small, and what they leave of their share is for the dynamics
        share, each = len(wanted), wanted.pop()
        room = (max_tokens // share, max_bytes // share)
        view = _dynamics_view(each, pieces, *room) if isinstance(each, Dynamics) else _log_view(each, pieces, *room)
        max_tokens -= view["tokens"]
        max_bytes -= sum(len(c) for c in view["columns"].values())
        made.append(view)
    return made[::-1]


def _interest(arm: Arm) -> int:
    """Arms that choose by score come first, then the random control, then those that keep everything."""
    return 2 if not arm.is_selective else int(arm.summary["objective"] == "random")


# --- the log of a training run ---------------------------------------------------------------------------------------------


def _log_view(arm: Arm, pieces: PieceTable, max_tokens: int, max_bytes: int) -> dict[str, Any]:
    """The rows that an arm logged; a row has the frames at which it was in the batch and drawn for the log."""
    import pyarrow.parquet as pq

    from ..data.corpus import open_corpus

    corpus = open_corpus(Path(str(arm.corpus)), verify="size")
    steps = arm.logged()
    logs = {step: pq.read_table(path) for step, path in steps.items()}
    at: dict[int, list[int]] = {}
    for frame, table in enumerate(logs.values()):
        for row in np.unique(table["row"].to_numpy()).tolist():
            at.setdefault(row, []).append(frame)
    documents, note = _chosen(list(_documents(corpus, {r: tuple(f) for r, f in at.items()})), max_tokens, max_bytes)
    rows = sorted({row for d in documents for row, _, _ in d.spans})
    place = {row: i for i, row in enumerate(rows)}
    nll, keep = {}, {}
    for frame, table in enumerate(logs.values()):
        mine = np.isin(table["row"].to_numpy(), rows)
        where = np.array([place[r] for r in table["row"].to_numpy()[mine].tolist()], np.int64)
        position = table["position"].to_numpy()[mine]
        nll[frame] = np.full((len(rows), corpus.length), np.nan, np.float32)
        nll[frame][where, position] = table["nll"].to_numpy()[mine]
        keep[frame] = np.zeros((len(rows), corpus.length), np.uint8)
        keep[frame][where, position] = table["keep"].to_numpy(zero_copy_only=False)[mine]
    seen = {line["step"]: line["tokens_seen"] for line in arm.steps}
    frames = [{"label": f"step {s:,}", "seen": seen.get(s)} for s in steps]
    view = _view(f"{arm.name}, training log", "log", corpus, documents, pieces, frames)
    view |= {"note": f"Rows of the training corpus that {arm.name} logged token by token, before the step. {note}"}
    columns = _columns(documents, place, nll, keep if arm.is_selective else None)
    if arm.scores is not None:
        columns["ref"] = _of_tokens(documents, place, _scores(arm.scores, corpus, rows), quantised)
    return _packed(view, columns, corpus, documents, pieces, rows)


# --- dynamics --------------------------------------------------------------------------------------------------------------


def _dynamics_view(dynamics: Dynamics, pieces: PieceTable, max_tokens: int, max_bytes: int) -> dict[str, Any]:
    """All rows of the corpus at every checkpoint, with classes; with scores also what the rule would keep."""
    from ..data.corpus import open_corpus

    corpus = open_corpus(Path(str(dynamics.corpus)), verify="size")
    marks = dynamics.tables["checkpoints"]
    num_frames = len(marks)
    every = dict.fromkeys(range(corpus.num_rows), tuple(range(num_frames)))
    documents, note = _chosen(list(_documents(corpus, every)), max_tokens, max_bytes)
    rows = sorted({row for d in documents for row, _, _ in d.spans})
    place = {row: i for i, row in enumerate(rows)}
    ref = None if dynamics.scores is None else _scores(dynamics.scores, corpus, range(corpus.num_rows))
    nll, keep = {}, {}
    for frame in range(num_frames):
        values = _column(nll_file(dynamics.path, frame), "nll", corpus, range(corpus.num_rows))
        nll[frame] = values[rows]
        if ref is not None and dynamics.tables["ratio"] is not None:
            keep[frame] = kept(values - ref, dynamics.tables["ratio"])[rows]
    classes = _column(dynamics.path / "tokens.arrow", "class", corpus, rows)
    seen: Sequence[int | None] = dynamics.tokens_seen or [None] * num_frames
    frames = [{"label": _mark(c), "seen": s} for c, s in zip(marks, seen, strict=True)]
    view = _view(
        f"{dynamics.model} at its checkpoints ({corpus.folder.name})", "dynamics", corpus, documents, pieces, frames
    )
    rule = "" if not keep else f" Kept: the top {dynamics.tables['ratio']:.0%} by excess at each checkpoint."
    view |= {"classes": list(CLASSES), "note": f"The same text at every checkpoint. {note}{rule}"}
    columns = _columns(documents, place, nll, keep or None)
    columns["cls"] = _of_tokens(documents, place, classes, lambda c: np.where(c < 0, 255, c).astype(np.uint8))
    if ref is not None:
        columns["ref"] = _of_tokens(documents, place, ref[rows], quantised)
    return _packed(view, columns, corpus, documents, pieces, rows)


def _mark(checkpoint: dict[str, Any]) -> str:
    step = checkpoint["step"]
    return str(checkpoint["model"]) if step is None else f"{checkpoint['model']}, step {step:,}"


def kept(score: Array, ratio: float) -> Array:
    """uint8 in the shape of ``score``: 1 for the top ``ratio`` of the scores that are not NaN, as the method ranks them."""
    import torch

    from ..core import top_fraction

    found = torch.from_numpy(np.asarray(score, np.float32))
    return top_fraction(found, ~found.isnan(), ratio).numpy().astype(np.uint8)


# --- documents -------------------------------------------------------------------------------------------------------------


def _documents(corpus: Any, frames: dict[int, tuple[int, ...]]) -> Iterator[Passage]:
    """The texts that lie in these rows, whole where they run on from row to row; ``frames``: row -> the frames it is in."""
    table = corpus.rows.select_columns(["num_tokens", "doc_starts", "doc_ids", "doc_sources"]).with_format("numpy")
    current: Passage | None = None
    for row in sorted(frames):
        found = table[row]
        starts = [*np.asarray(found["doc_starts"]).tolist(), int(found["num_tokens"])]
        for i, doc_id in enumerate(np.asarray(found["doc_ids"]).tolist()):
            span = (row, starts[i], starts[i + 1])
            if current is not None and _runs_on(current, doc_id, frames[row], span):
                current.spans.append(span)
                continue
            if current is not None:
                yield current
            current = Passage(doc_id, int(np.asarray(found["doc_sources"])[i]), frames[row], [span])
    if current is not None:
        yield current


def _runs_on(document: Passage, doc_id: int, frames: tuple[int, ...], span: tuple[int, int, int]) -> bool:
    """Whether ``span`` is the next row's part of the same text, looked at in the same frames."""
    row, start, stop = span
    fits = document.tokens + stop - start <= MAX_PASSAGE
    return fits and (doc_id, frames, row - 1, 0) == (
        document.doc_id,
        document.frames,
        document.spans[-1][0],
        start,
    )


def _chosen(documents: list[Passage], max_tokens: int, max_bytes: int) -> tuple[list[Passage], str]:
    """As many documents, drawn with a fixed seed, as fit; in the corpus's order, and a sentence that says so."""
    total, tokens, cost = sum(d.tokens for d in documents), 0, 0.0
    keep = []
    for i in np.random.default_rng(0).permutation(len(documents)).tolist():
        each = documents[i].tokens
        # Measured after gzip and base64, on nll that nothing smooths: 5 bytes for what a token has once, 2.1 for each frame.
        price = each * (5.0 + 2.1 * len(documents[i].frames))
        if tokens + each <= max_tokens and cost + price <= max_bytes:
            keep.append(i)
            tokens, cost = tokens + each, cost + price
    if len(keep) == len(documents):
        return documents, f"All {len(documents):,} passages, {total:,} tokens."
    drawn = f"A random {len(keep):,} of {len(documents):,} passages, {tokens:,} of {total:,} tokens (seed 0)."
    return [documents[i] for i in sorted(keep)], drawn


# --- columns ---------------------------------------------------------------------------------------------------------------


def quantised(nll: Array) -> Array:
    """Nats as hundredths in uint16: 0 to 655.34; NaN is 65535."""
    nats = np.clip(
        np.nan_to_num(nll.astype(np.float32), nan=0.0), 0, 1e6
    )  # an nll of inf, of a masked token, is the last
    cents = np.clip(np.round(nats * 100), 0, NONE - 1)
    return np.where(np.isnan(nll), NONE, cents).astype(np.uint16)


def _columns(
    documents: Sequence[Passage], place: dict[int, int], nll: dict[int, Array], keep: dict[int, Array] | None
) -> dict[str, Array]:
    columns = {"nll": quantised(_by_frame(documents, place, nll))}
    if keep is not None:
        columns["keep"] = _by_frame(documents, place, keep).astype(np.uint8)
    return columns


def _by_frame(documents: Sequence[Passage], place: dict[int, int], values: dict[int, Array]) -> Array:
    parts = [
        values[frame][place[row], start:stop]
        for document in documents
        for frame in document.frames
        for row, start, stop in document.spans
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


def _of_tokens(documents: Sequence[Passage], place: dict[int, int], values: Array, to: Any) -> Array:
    parts = [values[place[row], start:stop] for d in documents for row, start, stop in d.spans]
    return np.asarray(to(np.concatenate(parts) if parts else np.empty(0, np.float32)))


def _scores(folder: Path, corpus: Any, rows: Sequence[int]) -> Array:
    """ref_nll of these rows, float32 ``[rows, length]``."""
    from ..data.scored import open_scores

    found = open_scores(folder, corpus, verify="size").with_format("numpy")[list(rows)]["ref_nll"]
    return within(np.asarray(found, np.float32), "ref_nll").reshape(len(rows), corpus.length)


def _column(path: Path, name: str, corpus: Any, rows: Sequence[int]) -> Array:
    """One list column of an Arrow stream beside the corpus, ``[rows, length]``."""
    from datasets import Dataset

    found = Dataset.from_file(str(path)).with_format("numpy")[list(rows)][name]
    return within(np.asarray(found), name).reshape(len(rows), corpus.length)


def _view(
    name: str, kind: str, corpus: Any, documents: Sequence[Passage], pieces: PieceTable, frames: list[dict[str, Any]]
) -> dict[str, Any]:
    ids = corpus.documents()["id"].to_pylist()
    docs = {
        "name": [shown_text(str(ids[d.doc_id])) for d in documents],
        "source": [d.source for d in documents],
        "row": [d.spans[0][0] for d in documents],
        "position": [d.spans[0][1] for d in documents],
        "tokens": [d.tokens for d in documents],
    }
    if kind == "log":
        docs["frames"] = [list(d.frames) for d in documents]
    return {
        "name": shown_text(name),
        "kind": kind,
        "frames": frames,
        "length": corpus.length,
        "sources": [shown_text(s) for s in corpus.sources],
        "docs": docs,
        "tokens": sum(d.tokens for d in documents),
    }


def _packed(
    view: dict[str, Any],
    columns: dict[str, Array],
    corpus: Any,
    documents: Sequence[Passage],
    pieces: PieceTable,
    rows: Sequence[int],
) -> dict[str, Any]:
    place = {row: i for i, row in enumerate(rows)}
    ids = np.asarray(corpus.rows.with_format("numpy")[list(rows)]["input_ids"], np.int64) if rows else np.empty((0, 0))
    tokenizer = corpus.tokenizer()
    parts = [
        pieces.encode(tokenizer, np.concatenate([ids[place[row], start:stop] for row, start, stop in d.spans]))
        for d in documents
    ]
    if "weight" in corpus.rows.column_names:
        columns["weight"] = _of_tokens(documents, place, corpus.target_weights(rows), np.float32)
    columns["piece"] = np.concatenate(parts or [np.empty(0)]).astype(np.uint32)
    return {**view, "columns": {name: encoded(values) for name, values in columns.items()}}


def encoded(values: Array) -> str:
    """An array as base64 of gzip of its little-endian bytes; equal arrays give equal strings."""
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    return base64.b64encode(gzip.compress(little.tobytes(), 6, mtime=0)).decode()
