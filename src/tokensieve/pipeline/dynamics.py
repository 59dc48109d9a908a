"""``tokensieve dynamics``: checkpoints x a corpus -> every token's nll over training, and the paper's four classes.

checkpoint 0 .. n ──Scorer──> nll-00000.arrow .. nll-0000n.arrow ──rows in blocks──> classes, curves, breakdowns, samples
rank r of W scores checkpoints r, r + W, ...   a file that is there is done; rank 0 makes the tables when all are
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..data.bos import disagreement
from ..data.corpus import Corpus, open_corpus
from ..data.half import stored, tell_clipped
from ..data.list_columns import write_columns
from ..data.rows import Rows
from ..data.scored import join_scores, open_scores
from ..data.verify import check_input
from ..dynamics.learning import write_learning_time
from ..dynamics.tables import TableOptions, write_tables
from ..modeling.checkpoints import Checkpoint, checkpoints_of
from ..modeling.flops import known_or_none, token_flops
from ..modeling.folder import model_hash, read_config
from ..modeling.load import check_dtype, check_length, check_tokenizer, check_vocabulary, load_causal_lm, quiet_loading
from ..runs.errors import UserError
from ..runs.files import read_json
from ..runs.layout import nll_file
from ..runs.manifest import note_part, part_field, part_is_whole, read_manifest
from ..runs.stage import Stage, stage
from ..runs.work import Work
from ..scoring.engine import Scorer
from . import launch
from .configs.dynamics import KIND, NOT_WORK, DynamicsConfig
from .lineage import training_flops
from .recipe.cost import Cost, Known


def validate(config: DynamicsConfig) -> None:
    """Raise UserError for numbers out of range and for options that need scores."""
    if not config.models:
        raise UserError("models: name a run, or at least two model folders")
    if not 0 < config.ratio <= 1:
        raise UserError(f"ratio is {config.ratio}, it must be in (0, 1]")
    if not config.threshold >= 0:
        raise UserError(f"threshold is {config.threshold}, it must be at least 0")
    if config.samples < 0 or config.batch_rows < 0:
        raise UserError("samples and batch_rows must be at least 0")
    if isinstance(config.learning_time, (int, float)) and not 0 <= config.learning_time < float("inf"):
        raise UserError(f"learning_time is {config.learning_time}, it must be a number of nats, at least 0, or mean")
    if config.selector and not config.scores:
        raise UserError("selector: which tokens it keeps is told by their excess: name scores of this corpus as well")
    check_dtype(config.model_dtype)


def run(config: DynamicsConfig) -> Path:
    """Write the dynamics folder of docs/formats.md; nll files that an interrupted run finished are kept."""
    validate(config)
    launch.check_device(config.device)
    out, corpus = Path(config.out), open_corpus(config.corpus, verify=config.verify)
    checkpoints, hashes = _checkpoints(config.models)
    for target in checkpoints:
        check_tokenizer(target.folder, corpus.tokenizer(), config.corpus)
        check_length(read_config(target.folder), corpus.length, str(target.folder))
    ranks = launch.ranks()
    notes = [note for folder in config.models if (note := disagreement(folder, corpus.bos_id, config.corpus))]
    with stage(out, _work(config, corpus, checkpoints, hashes), rank=ranks.rank) as s:
        if s.done:
            return out
        for note in notes if ranks.rank == 0 else ():
            print(f"tokensieve: {note}", file=sys.stderr, flush=True)
        flops = _write_nll(config, corpus, checkpoints, s, ranks)
        launch.wait_for_all(ranks)
        if ranks.rank == 0:
            _finish(s, config, corpus, checkpoints, flops, notes)
        launch.wait_for_all(ranks)
    return out


def work(config: DynamicsConfig) -> Work:
    """What says which dynamics they are: the rows, the weights of every checkpoint, what else is read, and the settings."""
    return _work(config, open_corpus(config.corpus), *_checkpoints(config.models))


def estimate(config: DynamicsConfig, known: Known) -> Cost:
    """One forward of the corpus for every checkpoint; two bytes a token of each on the disk, and the classes."""
    each, length = known.tokens(config.corpus)[0], known.length(config.corpus)
    copies = [known.checkpoints(folder) for folder in config.models]
    flops = [known.forward_flops(folder, each, length) for folder in config.models]
    total = sum(n * f for n, f in zip(copies, flops, strict=True))
    memory = max(4 * known.num_parameters(folder) for folder in config.models)
    return Cost(each * sum(copies), total, each * (2 * sum(copies) + 5), False, memory=memory)


def _checkpoints(models: list[str]) -> tuple[list[Checkpoint], list[str]]:
    """All checkpoints in order, and their hashes. The same weights twice in a row (a run's start, its last) count once."""
    kept: list[Checkpoint] = []
    hashes: list[str] = []
    for target in (t for folder in models for t in checkpoints_of(_name(folder), folder, True)):
        found = model_hash(target.folder)
        if hashes and hashes[-1] == found:
            print(f"{target.folder}: the same weights as the checkpoint before it, left out", file=sys.stderr)
            continue
        kept.append(target)
        hashes.append(found)
    if len(kept) < 2:
        raise UserError(
            f"models: a change needs at least two checkpoints, {', '.join(models)} has {len(kept)}: "
            "train with save_strategy steps, or name the models one after another"
        )
    return kept, hashes


def _name(folder: str) -> str:
    """What to call a model: its folder, or the run that its folder belongs to."""
    path = Path(folder).resolve()
    return path.parent.name if path.name == "model" else path.name


def _work(config: DynamicsConfig, corpus: Corpus, checkpoints: list[Checkpoint], hashes: list[str]) -> Work:
    """:func:`work`; every input that is named is opened and fits, or is refused here."""
    inputs: dict[str, Any] = dict(corpus.identity)
    inputs["models"] = [[t.name, t.step, h] for t, h in zip(checkpoints, hashes, strict=True)]
    if config.scores:
        if "ref_nll" not in open_scores(config.scores, corpus, verify=config.verify).column_names:
            raise UserError(f"scores: {config.scores} has no column 'ref_nll'")
        inputs["scores"] = read_manifest(config.scores)["fingerprint"]
    if config.counts:
        counted = open_corpus(config.counts, verify="size")
        if counted.tokenizer_hash != corpus.tokenizer_hash:
            raise UserError(f"counts: {config.counts} has another tokenizer than {config.corpus}")
        inputs["counts"] = counted.content_hash
    for role, kind in (("selector", KIND), ("log", "model")):
        if folder := getattr(config, role):
            manifest = read_manifest(folder, kind, ("corpus_hash",))
            if manifest["corpus_hash"] != corpus.content_hash:
                raise UserError(f"{role}: {folder} belongs to another corpus than {config.corpus}")
            check_input(folder, manifest, config.verify)
            inputs[role] = manifest["fingerprint"]
    return Work.of(KIND, config, NOT_WORK, inputs)


def _write_nll(
    config: DynamicsConfig, corpus: Corpus, checkpoints: list[Checkpoint], s: Stage, ranks: launch.Ranks
) -> float | None:
    """Score this rank's checkpoints that have no whole file yet; the FLOPs that all of them take, None where not known."""
    quiet_loading()
    rows, flops = Rows(join_scores(corpus, verify=None)), 0.0
    tokens = corpus.num_rows * corpus.length
    total = len(checkpoints) * tokens
    with tqdm(
        total=total, desc=f"dynamics {s.folder.name}", unit="tok", unit_scale=True, disable=ranks.rank > 0
    ) as bar:
        for index, target in enumerate(checkpoints):
            path = nll_file(s.folder, index)
            todo = index % ranks.size == ranks.rank and not part_is_whole(path)
            if todo or index == 0:  # the first one tells the FLOPs of all
                model = load_causal_lm(target.folder, dtype=config.model_dtype)
                check_vocabulary(model, corpus.vocab_size, str(target.folder))
                flops = flops or token_flops(model, corpus.length).forward(tokens)
            if index == 0:
                s.bind()
            if todo:
                device = config.device or launch.device(ranks)
                scorer = Scorer(model, device=device, batch_rows=config.batch_rows)
                clipped: list[int] = []
                write_columns(path, _nll_blocks(scorer, rows, bar, clipped))
                note_part(path, clipped=sum(clipped))
            else:
                bar.update(tokens)
    return known_or_none(flops * len(checkpoints))


def _nll_blocks(scorer: Any, rows: Any, bar: Any, clipped: list[int]) -> Iterator[dict[str, Any]]:
    """Blocks as they are stored; of each, how many values were too large for that goes into ``clipped``."""
    for batch in scorer.run(rows):
        nll, count = stored(batch.nll, "float16")
        clipped.append(count)
        yield {"nll": nll}
        bar.update(batch.nll.size)


def _finish(
    s: Stage,
    config: DynamicsConfig,
    corpus: Corpus,
    checkpoints: list[Checkpoint],
    flops: float | None,
    notes: list[str],
) -> None:
    paths = [nll_file(s.folder, i) for i in range(len(checkpoints))]
    s.need([p.name for p in paths])
    options = TableOptions(**{f.name: getattr(config, f.name) for f in fields(TableOptions)})
    names, tokens, clipped = write_tables(options, corpus, checkpoints, paths, s.folder)
    if config.learning_time is not None:
        names += _learning_time(s, config, corpus, paths, flops)
    clipped = {"nll": sum(part_field(p, "clipped", 0) for p in paths), **clipped}
    tell_clipped(s.folder, clipped)
    s.finish(
        [*(p.name for p in paths), *names],
        corpus_hash=corpus.content_hash,
        tokenizer_hash=corpus.tokenizer_hash,
        length=corpus.length,
        checkpoints=len(checkpoints),
        tokens=tokens,
        clipped=clipped,
        flops=flops,
        **({"bos_notes": notes} if notes else {}),
    )


def _learning_time(
    s: Stage, config: DynamicsConfig, corpus: Corpus, paths: list[Path], flops: float | None
) -> list[str]:
    """Write the score column; its files. What it took: all forwards, and the training of the run that was looked at."""
    wanted: Any = config.learning_time
    level = read_json(s.folder / "dynamics.json")["mean_last"] if wanted == "mean" else float(wanted)
    trained = training_flops(config.models[-1])
    return write_learning_time(corpus, paths, level, s.folder, s.work, flops=flops, trained=trained)
