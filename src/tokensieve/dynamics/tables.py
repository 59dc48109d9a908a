"""From nll files to the tables of a dynamics folder: rows in blocks, each read once, memory of one block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset

from ..analysis.token_classes import CLASSES
from ..core import random_uniform, top_fraction
from ..data.corpus import Corpus, open_corpus
from ..data.half import stored
from ..data.list_columns import column_block, list_values, write_columns
from ..data.pieces import per_token
from ..data.text import token_pieces
from ..modeling.checkpoints import Checkpoint
from ..runs.errors import UserError
from ..runs.files import atomic_file, write_json
from ..runs.layout import nll_files, token_files
from . import classes as d
from .render import render
from .rows import BLOCK_TOKENS, NllReader, TokenBlock

BEFORE = 16  # tokens of context shown with a sample
TABLES = ("classes", "curves", "breakdowns", "samples", "selection")


@dataclass(frozen=True)
class TableOptions:
    """What the tables of a dynamics folder depend on beside the nll files; the verb's config has the defaults."""

    scores: str | None
    """Folder of scores with ref_nll: adds what is kept by excess."""
    ratio: float
    """Share of the targets that is kept at a checkpoint."""
    selector: str | None
    """Another dynamics folder, whose nll choose what is kept."""
    counts: str | None
    """Corpus in which a token's frequency is counted; the corpus itself if not given."""
    log: str | None
    """A run whose token log is counted by class."""
    threshold: float
    """Change in nats from which on a token rises or falls."""
    samples: int
    """Tokens of each class whose trajectories are written out."""
    seed: int
    """Which tokens these are."""


def write_tables(
    options: TableOptions, corpus: Corpus, checkpoints: Sequence[Checkpoint], paths: Sequence[Path], out: Path
) -> tuple[list[str], int, dict[str, int]]:
    """Write everything but the nll files and the manifest: (names of the files, tokens, column -> values that were clipped)."""
    reader = NllReader(corpus, paths, options.scores)
    means = _checkpoint_means(reader)
    clipped = {"delta": 0, "fluctuation": 0}
    tables = _tables(options, reader, means, out, clipped)
    for row in tables["curves"]:
        target = checkpoints[row["checkpoint"]]
        row.update(step=target.step, tokens_seen=target.tokens_seen)
    described = {
        "checkpoints": [
            {
                "index": i,
                "model": t.name,
                "step": t.step,
                "tokens_seen": t.tokens_seen,
                "tokens_trained": t.tokens_trained,
                "nll": mean,
            }
            for i, (t, mean) in enumerate(zip(checkpoints, means, strict=True))
        ],
        "tokens": tables["classes"][-1]["tokens"],
        "rows": corpus.num_rows,
        "length": corpus.length,
        "threshold": options.threshold,
        "mean_last": means[-1],
        "ratio": options.ratio if options.scores else None,
        **tables,
    }
    write_json(out / "dynamics.json", described)
    names = [_write_parquet(out, name, tables[name]) for name in TABLES if tables[name]]
    with atomic_file(out / "table.txt", "w") as f:
        f.write(render(described) + "\n")
    return ["tokens.arrow", "dynamics.json", *names, "table.txt"], described["tokens"], clipped


def _checkpoint_means(reader: NllReader) -> list[float]:
    """Mean nll of every checkpoint over the targets, the same at all of them."""
    sums, counts = np.zeros(len(reader.files)), np.zeros(len(reader.files))
    for start, stop in reader.spans():
        first_BT = None
        for c in range(len(reader.files)):
            nll_BT = reader.nll(c, start, stop)
            target_BT = ~np.isnan(nll_BT)
            first_BT = target_BT if first_BT is None else first_BT
            if (target_BT != first_BT).any():  # of equal number, too: a NaN on a target would be left out unseen
                row, position = (int(i[0]) for i in (target_BT != first_BT).nonzero())
                raise UserError(
                    f"checkpoint {c} has nll at other tokens than the first one, as at row {start + row}, position {position}"
                )
            sums[c] += np.nansum(nll_BT, dtype=np.float64)
            counts[c] += np.count_nonzero(target_BT)
    if not counts[0]:
        raise UserError(f"{reader.corpus.folder} has no token to predict")
    return [float(mean) for mean in sums / counts]


def _tables(
    options: TableOptions, reader: NllReader, means: list[float], out: Path, clipped: dict[str, int]
) -> dict[str, list[dict[str, Any]]]:
    """The tables, and ``tokens.arrow`` on the way; values that are too large for it are counted in ``clipped``."""
    sums, samples = d.ClassSums(len(means)), d.Samples(options.samples)
    groups, group_V = d.frequency_groups(*_token_counts(options, reader))
    by_source = d.Breakdown("source", [d.Group(name) for name in reader.corpus.sources])
    by_position = d.Breakdown("position", d.position_groups(reader.length))
    by_frequency = d.Breakdown("frequency", groups)
    kept = _Kept(options, reader) if options.scores else None

    def classified() -> Iterator[dict[str, np.ndarray]]:
        for span in reader.spans():
            block = reader.block(*span)
            lines = d.classify(block.nll_CN, means[-1], options.threshold)
            sums.add(block.nll_CN, lines)
            samples.add(_random(options.seed, block.place_N, reader.length), block.place_N, block.nll_CN, lines)
            by_source.add(block.source_N, lines.class_N)
            by_position.add(d.position_group(block.position_N), lines.class_N)
            by_frequency.add(group_V[block.ids_N], lines.class_N)
            if kept is not None:
                kept.add(block, lines.class_N)
            columns = {"class": _spread(block, lines.class_N, np.int8, d.NO_CLASS)}
            for name, values_N in (("delta", lines.delta_N), ("fluctuation", lines.fluctuation_N)):
                half_N, count = stored(values_N, np.float16)
                columns[name] = _spread(block, half_N, np.float16, np.nan)
                clipped[name] += count
            yield columns

    write_columns(out / "tokens.arrow", classified())
    breakdowns = [by_source, by_position, by_frequency, *([kept.breakdown] if kept is not None else [])]
    shares = kept.selection.kept_share() if kept is not None else [None] * (len(CLASSES) + 1)
    logged = _logged(options.log, out)
    return {
        "classes": [
            {**record, "kept_share": share, "logged": log[0], "logged_kept_share": log[1]}
            for record, share, log in zip(sums.classes(), shares, logged, strict=True)
        ],
        "curves": sums.curves(),
        "breakdowns": [record for breakdown in breakdowns for record in breakdown.records()],
        "samples": _with_text(reader.corpus, samples.records()),
        "selection": kept.selection.records() if kept is not None else [],
    }


class _Kept:
    """Which tokens are kept at which checkpoint: the top share of all targets of the corpus by excess."""

    def __init__(self, options: TableOptions, reader: NllReader) -> None:
        self.selector = (
            NllReader(reader.corpus, nll_files(Path(options.selector)), options.scores) if options.selector else reader
        )
        selections = range(len(self.selector.files))
        self.bits_S, thresholds = [], []
        for s in selections:
            keep, lowest = self._keep(s, options.ratio)
            self.bits_S.append(np.packbits(keep))  # a bit a token: bytes would be most of the memory of a large corpus
            thresholds.append(lowest)
        self.selection = d.Selection(thresholds, len(reader.files))
        self.breakdown = d.Breakdown("kept", d.kept_groups(len(selections)))
        self.first = 0

    def _keep(self, index: int, ratio: float) -> tuple[np.ndarray, float]:
        """(whether each target of the corpus is kept at a checkpoint, in order, bool [all N]; the lowest excess kept)."""
        reader, parts = self.selector, []
        for start, stop in reader.spans():
            nll_BT = reader.nll(index, start, stop)
            target_BT = ~np.isnan(nll_BT)
            place_N = start * reader.length + np.flatnonzero(target_BT)
            empty = np.empty(0)
            block = TokenBlock(start, target_BT, place_N, empty, empty, empty, empty)
            parts.append(reader.excess(block, nll_BT[target_BT]))
        score = torch.from_numpy(np.concatenate(parts))
        keep = top_fraction(score, torch.ones_like(score, dtype=torch.bool), ratio)
        return keep.numpy(), float(score[keep].min())

    def add(self, block: TokenBlock, class_N: np.ndarray) -> None:
        stop = self.first + len(class_N)
        byte, offset = self.first // 8, self.first % 8
        bits_SN = [np.unpackbits(b[byte : -(-stop // 8)])[offset : offset + len(class_N)] for b in self.bits_S]
        keep_SN = np.stack(bits_SN).astype(bool)
        self.selection.add(block.nll_CN, keep_SN, class_N)
        self.breakdown.add(keep_SN.sum(0), class_N)
        self.first = stop


def _token_counts(options: TableOptions, reader: NllReader) -> tuple[np.ndarray, np.ndarray]:
    """(count of each id in the counted corpus, targets of each id in this one), int64 [V]."""
    counted = open_corpus(options.counts) if options.counts else reader.corpus
    vocab = max(counted.vocab_size, reader.corpus.vocab_size)
    count_V, targets_V = np.zeros(vocab, np.int64), np.zeros(vocab, np.int64)
    step = max(1, BLOCK_TOKENS // counted.length)
    for start in range(0, counted.num_rows, step):
        stop = min(start + step, counted.num_rows)
        lengths = np.asarray(counted.rows.with_format("arrow")[start:stop]["num_tokens"])
        text_BT = np.arange(counted.length) < lengths[:, None]
        if counted.bos_id is not None:  # never a target, and its id may be that of EOS, which is
            starts, pieces = list_values(counted.rows, "doc_starts", start, stop)
            begins = list_values(counted.rows, "doc_offsets", start, stop)[0] == 0
            text_BT[np.repeat(np.arange(stop - start), pieces)[begins], starts[begins]] = False
        count_V += np.bincount(column_block(counted.rows, "input_ids", start, stop)[text_BT], minlength=vocab)
    for start, stop in reader.spans():
        ids_BT = column_block(reader.corpus.rows, "input_ids", start, stop)
        targets_V += np.bincount(ids_BT[~np.isnan(reader.nll(-1, start, stop))], minlength=vocab)
    return count_V, targets_V


def _random(seed: int, place_N: np.ndarray, length: int) -> np.ndarray:
    """A uniform number for each token, keyed by (seed, row, position)."""
    place = torch.from_numpy(place_N)
    order: np.ndarray = random_uniform(seed, 0, place // length, place % length).numpy()
    return order


def _spread(block: TokenBlock, values_N: np.ndarray, dtype: Any, fill: float) -> np.ndarray:
    values_BT = np.full(block.target_BT.shape, fill, dtype)
    values_BT[block.target_BT] = values_N
    return values_BT


def _with_text(corpus: Corpus, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Samples with where they stand and what they say."""
    tokenizer, made = corpus.tokenizer(), []
    for sample in samples:
        row, position = divmod(sample.pop("place"), corpus.length)
        content = corpus.rows[row]
        ids, first = content["input_ids"], max(0, position - BEFORE)
        # One token more on either side: a character whose bytes go on beyond the window stays whole.
        pieces = token_pieces(tokenizer, ids[max(0, first - 1) : position + 2])[min(first, 1) :]
        sources = per_token(np.asarray(content["doc_sources"]), np.asarray(content["doc_starts"]), corpus.length)
        place = {"row": row, "position": position, "token_id": int(ids[position])}
        text = {"before": "".join(pieces[: position - first]), "token": pieces[position - first]}
        found = {"source": corpus.sources[int(sources[position])], **text}
        made.append({"class": sample.pop("class"), **place, **found, **sample})
    return made


def _logged(run: str | None, out: Path) -> list[tuple[int | None, float | None]]:
    """(logged tokens, share of them kept) of each class and of all, from a run's token log; None without one."""
    if run is None:
        return [(None, None)] * (len(CLASSES) + 1)
    classes = Dataset.from_file(str(out / "tokens.arrow")).with_format("numpy")
    valid_K, kept_K = np.zeros(len(CLASSES) + 1, np.int64), np.zeros(len(CLASSES) + 1, np.int64)
    for path in token_files(Path(run)).values():
        columns = pq.read_table(path, columns=["row", "position", "keep"])
        row, position, keep = (columns[name].to_numpy() for name in ("row", "position", "keep"))
        rows, inverse = np.unique(row, return_inverse=True)
        class_N = np.stack([np.asarray(classes[int(r)]["class"]) for r in rows])[inverse, position]
        valid_K[:-1] += np.bincount(class_N, minlength=len(CLASSES))
        kept_K[:-1] += np.bincount(class_N[keep], minlength=len(CLASSES))
    if not valid_K.any():
        raise UserError(f"log: {run} logged no rows token by token: train with token_log_every")
    valid_K[-1], kept_K[-1] = valid_K.sum(), kept_K.sum()
    return [(int(v), float(k / v) if v else None) for v, k in zip(valid_K, kept_K, strict=True)]


def _write_parquet(out: Path, name: str, records: list[dict[str, Any]]) -> str:
    table = pa.Table.from_pylist(records)
    if name == "samples":
        table = table.set_column(table.schema.get_field_index("nll"), "nll", table["nll"].cast(pa.list_(pa.float32())))
    with atomic_file(out / f"{name}.parquet") as f:
        pq.write_table(table, f)
    return f"{name}.parquet"
