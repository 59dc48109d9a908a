"""``tokensieve score``: a model x a corpus -> score columns, shard by shard.

rank r of W writes shards r, r + W, ...   a shard that is there is done; the last rank to finish writes the manifest
"""

from __future__ import annotations

import re
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..core.stats import STATISTICS
from ..data.bos import disagreement
from ..data.columns import BOS_COLUMNS, LOSS_MASKS, OPTIONAL
from ..data.corpus import COLUMNS as OF_CORPUS
from ..data.corpus import LATER_COLUMNS, Corpus, open_corpus
from ..data.half import stored, tell_clipped
from ..data.rows import Rows, check_targets
from ..data.scored import DTYPES, join_scores, write_score_shard
from ..modeling.flops import known_or_none, token_flops
from ..modeling.folder import model_hash
from ..modeling.load import check_dtype, check_length, check_tokenizer, check_vocabulary, load_causal_lm, quiet_loading
from ..runs.errors import UserError
from ..runs.manifest import is_done, note_part, part_is_whole, read_manifest, told_of_part
from ..runs.stage import Stage, stage
from ..runs.work import Work
from ..scoring.engine import Scorer
from . import launch
from .configs.score import KIND, NOT_WORK, ScoreConfig
from .lineage import lineage
from .recipe.cost import Cost, Known

# Columns that need no word of what they hold, and what a column may hold.
COLUMNS = {"ref_nll": "nll", "ref_entropy": "entropy"}
HOLDS = ("nll", "entropy")


def run(config: ScoreConfig, part: launch.Ranks | None = None) -> Path:
    """Write the scores folder of docs/formats.md; shards that an interrupted run finished are kept.

    ``part``: only the shards of this one of many processes that need not run at the same time, see cluster.py.
    """
    validate(config)
    launch.check_device(config.device)
    out, corpus = Path(config.out), open_corpus(config.corpus, verify=config.verify)
    check_tokenizer(config.model, corpus.tokenizer(), config.corpus)
    ranks = part or launch.ranks()
    note = disagreement(config.model, corpus.bos_id, config.corpus)
    with stage(out, _work(config, corpus), rank=ranks.rank, alone=part is None) as s:
        if s.done:
            return out
        if note and ranks.rank == 0:
            print(f"tokensieve: {note}", file=sys.stderr, flush=True)
        scorer = _scorer(config, corpus, ranks)
        s.bind()
        flops = write_shards(config, scorer, corpus, out, ranks)
        if part:
            return out  # others may still be at work: a run without a part finishes the folder
        launch.wait_for_all(ranks)
        if ranks.rank == 0:
            _finish(s, config, corpus, flops, note)
        launch.wait_for_all(ranks)
    return out


def work(config: ScoreConfig) -> Work:
    """What says which scores they are: the rows, their tokenizer, the model's weights, and how scores are made and stored."""
    return _work(config, open_corpus(config.corpus))


def _work(config: ScoreConfig, corpus: Corpus) -> Work:
    made_from = {**corpus.identity, "model": model_hash(config.model)}
    plain = all(COLUMNS.get(name) == holds for name, holds in columns_of(config).items())
    return Work.of(KIND, config, NOT_WORK, made_from, columns=list(columns_of(config)) if plain else config.columns)


def estimate(config: ScoreConfig, known: Known) -> Cost:
    """One forward of every token; a number of each column on the disk."""
    tokens, exact = known.tokens(config.corpus)
    bytes_each = (2 if config.dtype == "float16" else 4) * len(config.columns)
    flops = known.forward_flops(config.model, tokens, known.length(config.corpus))
    memory = known.num_parameters(config.model) * (4 if config.model_dtype == "float32" else 2)
    return Cost(tokens, flops, tokens * bytes_each, exact, memory=memory)


def validate(config: ScoreConfig) -> None:
    """Raise UserError for columns or dtypes that do not exist."""
    _check_columns(config.columns)
    if config.dtype not in DTYPES:
        raise UserError(f"dtype: scores are stored as {' or '.join(DTYPES)}, not {config.dtype!r}")
    check_dtype(config.model_dtype)
    if config.batch_rows < 0:
        raise UserError("batch_rows must be at least 0")


def _check_columns(columns: list[str] | dict[str, str]) -> None:
    if not columns:
        raise UserError("columns: name at least one of " + ", ".join(COLUMNS))
    if isinstance(columns, list):
        if unknown := [c for c in columns if c not in COLUMNS]:
            raise UserError(
                f"columns: unknown column {unknown[0]!r}, one of {', '.join(COLUMNS)}; a name of your own says what it holds, "
                f"as {{{unknown[0]}: nll}}"
            )
        if len(set(columns)) < len(columns):
            raise UserError("columns: one is named twice")
        return
    taken = {*OF_CORPUS, *LATER_COLUMNS, *OPTIONAL, *BOS_COLUMNS, *LOSS_MASKS, "targets", "valid"}
    taken |= {name for name, s in STATISTICS.items() if s.origin != "column"}
    for name, holds in columns.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise UserError(f"columns: {name!r} is no name for a column: letters, digits and '_' only")
        if name in taken:
            raise UserError(f"columns: {name!r} is the name of something else, choose another")
        if holds not in HOLDS:
            raise UserError(f"columns.{name}: one of {', '.join(HOLDS)} is needed, not {holds}")
        if COLUMNS.get(name, holds) != holds:
            raise UserError(f"columns.{name}: by its name it holds {COLUMNS[name]}, not {holds}")


def columns_of(config: ScoreConfig) -> dict[str, str]:
    """column -> nll or entropy."""
    return config.columns if isinstance(config.columns, dict) else {name: COLUMNS[name] for name in config.columns}


def _scorer(config: ScoreConfig, corpus: Corpus, ranks: launch.Ranks) -> Scorer:
    """The model, checked against the corpus."""
    check_targets(join_scores(corpus, verify=None), config.corpus)
    quiet_loading()
    model = load_causal_lm(config.model, dtype=config.model_dtype)
    check_vocabulary(model, corpus.vocab_size, config.model)
    check_length(model.config, corpus.length, config.model)
    device = config.device or launch.device(ranks)
    return Scorer(model, device=device, batch_rows=config.batch_rows, entropy="entropy" in columns_of(config).values())


def write_shards(config: ScoreConfig, scorer: Scorer, corpus: Corpus, out: Path, ranks: launch.Ranks) -> float | None:
    """Score this rank's missing shards, each written while the next is scored; the FLOPs that the whole corpus takes, None
    where they are not known."""
    rows = Rows(join_scores(corpus, verify=None))
    mine = corpus.manifest["shards"][ranks.rank :: ranks.size]
    todo = {shard["file"] for shard in mine if not part_is_whole(out / shard["file"])}
    start = 0
    written: Future[None] | None = None
    with (
        ThreadPoolExecutor(1, "write") as writer,
        tqdm(
            total=corpus.num_rows * corpus.length,
            desc=f"score {out.name}",
            unit="tok",
            unit_scale=True,
            disable=ranks.rank > 0,
        ) as bar,
    ):
        for shard in corpus.manifest["shards"]:
            stop = start + shard["rows"]
            if shard["file"] in todo:
                columns, clipped = _score_shard(config, scorer, rows, start, stop, bar)
                if written is not None:
                    written.result()  # raises what went wrong; and no more than one shard waits in memory
                written = writer.submit(_write_shard, out / shard["file"], columns, clipped)
            elif ranks.rank == 0:
                bar.update(shard["rows"] * corpus.length)
            start = stop
        if written is not None:
            written.result()
    return known_or_none(token_flops(scorer.model, corpus.length).forward(corpus.num_rows * corpus.length))


def _write_shard(path: Path, columns: dict[str, Any], clipped: dict[str, int]) -> None:
    write_score_shard(path, columns)
    note_part(path, clipped=clipped)


def _score_shard(
    config: ScoreConfig, scorer: Any, rows: Any, start: int, stop: int, bar: Any
) -> tuple[dict[str, Any], dict[str, int]]:
    """(column -> [rows, length] as it is stored, column -> values that were too large for that)."""
    columns = columns_of(config)
    parts: dict[str, list[Any]] = {name: [] for name in columns}
    clipped = dict.fromkeys(columns, 0)
    for batch in scorer.run(rows, start=start, stop=stop):
        for name, holds in columns.items():
            values, count = stored(getattr(batch, holds), DTYPES[config.dtype])
            parts[name].append(values)
            clipped[name] += count
        bar.update(batch.nll.size)
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}, clipped


def _finish(s: Stage, config: ScoreConfig, corpus: Corpus, flops: float | None, note: str | None) -> None:
    shards = [{"file": shard["file"], "rows": shard["rows"]} for shard in corpus.manifest["shards"]]
    s.need([shard["file"] for shard in shards])
    told = [told_of_part(s.folder / shard["file"], "clipped", {}) for shard in shards]
    clipped = {name: sum(t.get(name, 0) for t in told) for name in columns_of(config)}
    tell_clipped(s.folder, clipped, "; dtype: float32 keeps them")
    s.finish(
        [shard["file"] for shard in shards],
        columns=list(columns_of(config)),
        holds=columns_of(config),
        dtype=config.dtype,
        clipped=clipped,
        corpus_hash=corpus.content_hash,
        tokenizer_hash=corpus.tokenizer_hash,
        model_hash=s.work.inputs["model"],
        length=corpus.length,
        isolate_documents=corpus.isolate_documents,
        shards=shards,
        flops=flops,
        reference_flops=training_flops(config.model),
        begun_from=lineage(config.model)[1:],
        **({"bos_note": note} if note else {}),
    )


def training_flops(model: str) -> float | None:
    """FLOPs that trained a model, if `train` wrote its folder (None: not known); 0 for a model from elsewhere."""
    for folder in (Path(model), Path(model).parent):
        if is_done(folder) and read_manifest(folder)["kind"] == "model":
            flops = read_manifest(folder, "model", ("summary",))["summary"]["flops_student"]
            return None if flops is None else float(flops)
    return 0.0
