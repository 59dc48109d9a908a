"""When each token was learned: a score column of a dynamics folder, for the objective ``learning_time``.

checkpoint     0    1    2    3    4          level 2.0
nll           5.1  1.9  2.4  1.8  1.7   ->    3 / 4 = .75: from there on it stays at or below the level
nll           4.0  3.9  3.5  3.6  3.1   ->    NEVER
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..data.corpus import Corpus
from ..data.list_columns import write_columns
from ..runs.files import describe_files
from ..runs.manifest import write_manifest
from ..runs.work import Work
from .rows import NllReader

FOLDER, COLUMN = "learning_time", "learning_time"
NEVER = 2.0  # beyond the end of the run, which is 1


def learning_times(nll_CN: np.ndarray, level: float) -> np.ndarray:
    """``c / n`` with c the first of the checkpoints 0..n from which on a token's nll is at most ``level``; NEVER without one.

    A token that falls below the level and rises above it again is not learned yet. float32 [N], of nll in nats without NaN.
    """
    below_CN = np.asarray(nll_CN, np.float64) <= level
    kept_N = np.logical_and.accumulate(below_CN[::-1]).sum(0)  # checkpoints at the end, all of them at or below
    last = len(nll_CN) - 1
    return np.where(kept_N == 0, NEVER, (last + 1 - kept_N) / last).astype(np.float32)


def write_learning_time(
    corpus: Corpus,
    paths: Sequence[Path],
    level: float,
    out: Path,
    work: Work,
    *,
    flops: float | None,
    trained: float | None,
) -> list[str]:
    """Write ``out/learning_time``, a folder of scores of its own, from the nll files; the names of its files below ``out``.

    ``work``: the dynamics that it belongs to. ``flops`` of scoring all checkpoints, ``trained`` of the run that they are of.
    """
    folder, file = out / FOLDER, "rows-00000.arrow"
    folder.mkdir(exist_ok=True)
    write_columns(folder / file, _blocks(NllReader(corpus, paths), level))
    inputs = {**corpus.identity, "models": work.inputs["models"]}
    write_manifest(
        folder,
        "scores",
        config={"learning_time": level},
        inputs=inputs,
        files=describe_files(folder, [file]),
        columns=[COLUMN],
        holds={COLUMN: "learning_time"},
        dtype="float16",
        clipped={COLUMN: 0},
        corpus_hash=corpus.content_hash,
        tokenizer_hash=corpus.tokenizer_hash,
        model_hash=work.inputs["models"][-1][-1],
        length=corpus.length,
        isolate_documents=corpus.isolate_documents,
        shards=[{"file": file, "rows": corpus.num_rows}],
        flops=flops,
        reference_flops=trained,
    )
    return [f"{FOLDER}/{file}", f"{FOLDER}/manifest.json"]


def _blocks(reader: NllReader, level: float) -> Iterator[dict[str, np.ndarray]]:
    for start, stop in reader.spans():
        nll_CBT = np.stack([reader.nll(c, start, stop) for c in range(len(reader.files))])
        target_BT = ~np.isnan(nll_CBT[-1])
        time_BT = np.full(target_BT.shape, np.nan, np.float16)
        time_BT[target_BT] = learning_times(nll_CBT[:, target_BT], level)
        yield {COLUMN: time_BT}
