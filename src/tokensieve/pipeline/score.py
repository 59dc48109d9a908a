"""``tokensieve score``: a model x a corpus -> score columns, shard by shard.

rank r of W writes shards r, r + W, ...   a shard that is there is done; the last rank to finish writes the manifest
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..data.aligned import AlignedFile, check_values
from ..data.bos import disagreement
from ..data.corpus import Corpus, open_corpus
from ..data.half import stored, tell_clipped
from ..data.rows import Rows, check_targets, collate, is_target
from ..data.scored import SCORE_DTYPES, join_scores, write_score_shard
from ..modeling.flops import known_or_none, token_flops
from ..modeling.folder import model_hash
from ..modeling.load import check_dtype, check_length, check_tokenizer, check_vocabulary, load_causal_lm, quiet_loading
from ..runs.errors import UserError
from ..runs.manifest import note_part, part_field, part_is_whole
from ..runs.stage import Stage, stage
from ..runs.work import Work
from ..scoring.context import Context, ablated
from ..scoring.engine import Scorer
from . import launch
from .config.fields import from_fields
from .configs.score import KIND, NOT_WORK, ScoreConfig
from .lineage import reference_begun_from, training_flops
from .recipe.cost import Cost, Known
from .score_columns import COLUMNS, asked, bytes_of, check_asked, check_origin, column_types, columns_of

_FILE_TOKENS = (
    1 << 18
)  # of a file that are looked at together: as model inputs they take 40 bytes each, a shard's 300 MB


def run(config: ScoreConfig, part: launch.Ranks | None = None) -> Path:
    """Write the scores folder of docs/formats.md; shards that an interrupted run finished are kept.

    ``part``: only the shards of this one of many processes that need not run at the same time, see cluster.py.
    """
    validate(config)
    launch.check_device(config.device)
    out, corpus = Path(config.out), open_corpus(config.corpus, verify=config.verify)
    ranks = part or launch.ranks()
    note = _model_fits(config, corpus) if config.model else None
    with stage(out, _work(config, corpus), rank=ranks.rank, alone=part is None) as s:
        if s.done:
            return out
        if note and ranks.rank == 0:
            print(f"tokensieve: {note}", file=sys.stderr, flush=True)
        scorer = _scorer(config, corpus, ranks) if config.model else _file(config, corpus)
        s.bind()
        flops = write_shards(config, scorer, corpus, out, ranks)
        if part:
            return out  # others may still be at work: a run without a part finishes the folder
        launch.wait_for_all(ranks)
        if ranks.rank == 0:
            _finish(s, config, corpus, flops, note)
        launch.wait_for_all(ranks)
    return out


def _model_fits(config: ScoreConfig, corpus: Corpus) -> str | None:
    """A note on BOS, if there is something to say; UserError where the model has another tokenizer."""
    check_tokenizer(config.model, corpus.tokenizer(), config.corpus)
    return disagreement(config.model, corpus.bos_id, config.corpus)


def work(config: ScoreConfig) -> Work:
    """What says which scores they are: the rows, their tokenizer, the model's weights, and how scores are made and stored."""
    return _work(config, open_corpus(config.corpus))


def _work(config: ScoreConfig, corpus: Corpus) -> Work:
    if config.from_file:
        made_from = {**corpus.identity, "file": _file(config, corpus).identity}
        return Work.of(KIND, config, NOT_WORK, made_from, columns=asked(config))
    made_from = {**corpus.identity, "model": model_hash(config.model)}
    if config.teacher:
        made_from["teacher"] = model_hash(config.teacher)
    plain = all(COLUMNS.get(name) == holds for name, holds in asked(config).items())
    return Work.of(KIND, config, NOT_WORK, made_from, columns=list(asked(config)) if plain else config.columns)


def estimate(config: ScoreConfig, known: Known) -> Cost:
    """One forward of every token; a number of each column on the disk."""
    tokens, exact = known.tokens(config.corpus)
    bytes_each = bytes_of(config)
    if config.from_file:
        return Cost(tokens, 0.0, tokens * bytes_each, exact)
    length = known.length(config.corpus)
    context = context_of(config)
    times, fed_length = (1.0, length) if context is None or length != length else context.cost(int(length))
    flops = known.forward_flops(config.model, tokens * times, fed_length)
    if config.teacher:
        flops += known.forward_flops(config.teacher, tokens, length)
    memory = known.num_parameters(config.model) * (4 if config.model_dtype == "float32" else 2)
    return Cost(tokens, flops, tokens * bytes_each, exact, memory=memory)


def validate(config: ScoreConfig) -> None:
    """Raise UserError for columns, dtypes or a context that do not exist."""
    check_origin(config)
    context_of(config)
    check_asked(config)
    if config.dtype not in SCORE_DTYPES:
        raise UserError(f"dtype: scores are stored as {' or '.join(SCORE_DTYPES)}, not {config.dtype!r}")
    check_dtype(config.model_dtype)
    if config.batch_rows < 0:
        raise UserError("batch_rows must be at least 0")


def context_of(config: ScoreConfig) -> Context | None:
    """What is left of each token's context; None: all of it. UserError for what cannot be."""
    if config.context == "none":
        return None

    made: Context = from_fields(Context, config.context, "context")
    return made


def _file(config: ScoreConfig, corpus: Corpus) -> AlignedFile:
    return AlignedFile(config.from_file, corpus, list(dict.fromkeys(asked(config).values())))


def _scorer(config: ScoreConfig, corpus: Corpus, ranks: launch.Ranks) -> Scorer:
    """The model, checked against the corpus."""
    check_targets(join_scores(corpus, verify=None), config.corpus)
    quiet_loading()
    model = load_causal_lm(config.model, dtype=config.model_dtype)
    check_vocabulary(model, corpus.vocab_size, config.model)
    check_length(model.config, corpus.length, config.model)
    if config.top_k > model.get_output_embeddings().out_features:
        raise UserError(f"top_k is {config.top_k}, and the vocabulary of {config.model} smaller")
    if (context := context_of(config)) is not None:
        context.check(corpus)
    device, holds = config.device or launch.device(ranks), asked(config).values()
    return Scorer(
        model,
        device=device,
        batch_rows=config.batch_rows,
        entropy="entropy" in holds,
        rank="target_rank" in holds,
        top_k=config.top_k,
        teacher=_teacher(config, corpus, model) if config.teacher else None,
        teacher_top_k=config.teacher_top_k,
    )


def _teacher(config: ScoreConfig, corpus: Corpus, model: Any) -> Any:
    """The model that divergences are from, checked against the corpus and the model's vocabulary."""
    check_tokenizer(config.teacher, corpus.tokenizer(), config.corpus)
    teacher = load_causal_lm(config.teacher, dtype=config.model_dtype)
    check_length(teacher.config, corpus.length, config.teacher)
    sizes = [m.get_output_embeddings().out_features for m in (teacher, model)]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"teacher: it has a vocabulary of {sizes[0]}, {config.model} one of {sizes[1]}: they must be the same"
        )
    return teacher


def write_shards(
    config: ScoreConfig, scorer: Scorer | AlignedFile, corpus: Corpus, out: Path, ranks: launch.Ranks
) -> float | None:
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
                blocks = _blocks(config, scorer, corpus, rows, start, stop)
                columns, clipped = _score_shard(config, blocks, shard["rows"], bar)
                if written is not None:
                    written.result()  # raises what went wrong; and no more than one shard waits in memory
                written = writer.submit(_write_shard, out / shard["file"], columns, clipped)
            elif ranks.rank == 0:
                bar.update(shard["rows"] * corpus.length)
            start = stop
        if written is not None:
            written.result()
    return _flops(config, scorer, corpus)


def _flops(config: ScoreConfig, scorer: Scorer | AlignedFile, corpus: Corpus) -> float | None:
    """Of the whole corpus; with less context at most so many. Nobody knows what a file's numbers took."""
    if config.from_file:
        return None
    context, tokens = context_of(config), corpus.num_rows * corpus.length
    times, length = (1, corpus.length) if context is None else context.cost(corpus.length)
    flops = token_flops(scorer.model, length).forward(tokens * times)  # type: ignore[union-attr]
    if config.teacher:
        flops += token_flops(scorer.teacher, length).forward(tokens)  # type: ignore[union-attr]
    return known_or_none(flops)


def _write_shard(path: Path, columns: dict[str, Any], clipped: dict[str, int]) -> None:
    write_score_shard(path, columns)
    note_part(path, clipped=clipped)


def _blocks(
    config: ScoreConfig, scorer: Any, corpus: Corpus, rows: Any, start: int, stop: int
) -> Iterator[dict[str, Any]]:
    """Blocks of rows from ``start`` to ``stop``: column -> [B, length], or [B, length, K]."""
    if config.from_file:
        yield from _blocks_of_file(config, scorer, rows, start, stop)
        return
    if (context := context_of(config)) is None:
        batches = scorer.run(rows, start=start, stop=stop)
    else:
        batches = ablated(scorer, corpus, rows, context, start=start, stop=stop)
    for batch in batches:
        yield {name: batch.of(holds) for name, holds in columns_of(config).items()}


def _blocks_of_file(
    config: ScoreConfig, file: AlignedFile, rows: Any, start: int, stop: int
) -> Iterator[dict[str, Any]]:
    half, step = config.dtype == "float16", max(1, _FILE_TOKENS // file.corpus.length)
    for first in range(start, stop, step):
        last = min(first + step, stop)
        target_BT = is_target(collate(rows.__getitems__(range(first, last)))["targets"])
        yield {
            name: check_values(file.read(column, first, last), target_BT, f"{file.path}: {column}", first, half=half)
            for name, column in asked(config).items()
        }


def _score_shard(
    config: ScoreConfig, blocks: Iterator[dict[str, Any]], num_rows: int, bar: Any
) -> tuple[dict[str, Any], dict[str, int]]:
    """(column -> [rows, length] as it is stored, column -> values that were too large for that).

    Filled in place: kept apart until the shard's end, each batch's few kB held down what the batches before had freed.
    """
    columns, other = columns_of(config), column_types(config)
    made: dict[str, Any] = {}
    clipped, start = dict.fromkeys(columns, 0), 0
    for block in blocks:
        first = next(iter(block.values()))
        for name in columns:
            values, count = (block[name], 0) if name in other else stored(block[name], SCORE_DTYPES[config.dtype])
            if name not in made:
                made[name] = np.empty((num_rows, *values.shape[1:]), values.dtype)
            made[name][start : start + len(first)] = values
            clipped[name] += count
        start += len(first)
        bar.update(first.shape[0] * first.shape[1])
    assert start == num_rows
    return made, clipped


def _finish(s: Stage, config: ScoreConfig, corpus: Corpus, flops: float | None, note: str | None) -> None:
    shards = [{"file": shard["file"], "rows": shard["rows"]} for shard in corpus.manifest["shards"]]
    s.need([shard["file"] for shard in shards])
    told = [part_field(s.folder / shard["file"], "clipped", {}) for shard in shards]
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
        model_hash=s.work.inputs.get("model", s.work.inputs.get("file")),
        length=corpus.length,
        isolate_documents=corpus.isolate_documents,
        shards=shards,
        flops=flops,
        reference_flops=training_flops(config.model) if config.model else 0.0,
        **({"types": column_types(config)} if column_types(config) else {}),
        **({"context": config.context} if config.context != "none" else {}),
        begun_from=reference_begun_from(config.model) if config.model else [],
        **({"bos_note": note} if note else {}),
    )
