"""filter: sources in, a table out that says of each document whether a corpus takes it.

    sources ──units (several processes)──> parts.tmp/ ──judge──> table.parquet ──> prepare --documents

A kind is a function in FILTER_KINDS: it says what to measure of each document by itself, and how to judge all of them from
that.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tqdm.auto import tqdm

from ..data.build.units import WorkUnit
from ..data.build.workers import WorkerDied, pooled
from ..data.filter.classifier import fit_text
from ..data.filter.decontaminate import EvaluationRuns, judge_shared
from ..data.filter.dedup import Signatures, judge_copies, no_signatures
from ..data.filter.ensemble import ensemble_score
from ..data.filter.judge import Judgement, Keep, table_rows, table_stats, write_table
from ..data.filter.measured import Measured, MeasureTexts, UnitSetup, measure_unit
from ..data.filter.table import TABLE_FILE, Tables, table_hash
from ..data.read.readers import groups, input_bytes, sample
from ..data.read.source import Source, SourceConfig
from ..data.read.sources import identity, read_twice, resolve
from ..runs.errors import UserError
from ..runs.files import atomic_file
from ..runs.stage import Stage, stage
from ..runs.work import Work
from .config.help import check_seed
from .configs.filter import KIND, NOT_WORK, FilterConfig
from .recipe.cost import Cost, Known

_PARTS = "parts.tmp"
_MAX_WORKERS = 8
_ONE_PROCESS_BYTES = 32 << 20  # as in prepare: below this, starting processes costs more than they bring


class Kind(NamedTuple):
    """What a kind does: numbers of each document by itself, and a judgement of all of them."""

    measure: MeasureTexts
    judge: Callable[[Measured], Judgement]
    alone: bool = False
    """One process: the measure holds what cannot be sent to others."""
    close: Callable[[], Any] = lambda: None


def run(config: FilterConfig, progress: bool = True) -> Path:
    """Write the table of docs/formats.md; units that an interrupted run finished are kept."""
    validate(config)
    out = Path(config.out)
    sources = _resolved(config.sources, config.seed)
    with stage(out, _work(config, sources)) as s:
        if not s.done:
            tables = Tables.of(config.documents, out / _PARTS) if config.documents else None
            kind = FILTER_KINDS[config.kind](config)
            s.bind()
            for sentence in read_twice(sources):
                print(f"tokensieve: {out}: {sentence}", file=sys.stderr, flush=True)
            try:
                _make(config, s, sources, kind, tables, progress)
            except WorkerDied:
                raise
            except UserError:  # a bad row, no document: with the same text and settings it would be refused again
                shutil.rmtree(out / _PARTS, ignore_errors=True)
                s.forget()
                raise
            finally:
                kind.close()
    shutil.rmtree(out / _PARTS, ignore_errors=True)
    return out


def work(config: FilterConfig) -> Work:
    """What says which table it is: settings, each source's text, and what documents are compared with."""
    return _work(config, _resolved(config.sources, config.seed))


def _work(config: FilterConfig, sources: Sequence[Source]) -> Work:
    inputs: dict[str, Any] = {f"source {i}": identity(s, config.unit_bytes) for i, s in enumerate(sources)}
    inputs["documents"] = [table_hash(folder) for folder in config.documents]
    for role, more in _SOURCES[config.kind](config).items() if config.kind in _SOURCES else ():
        for i, source in enumerate(_resolved(more, config.seed)):
            inputs[f"{role} {i}"] = identity(source, config.unit_bytes)
    if config.kind == "ensemble":
        inputs["tables"] = [table_hash(folder) for folder in config.ensemble.tables]
    if config.kind == "model":
        from ..modeling.folder import model_hash

        inputs["models"] = [model_hash(m) for m in (config.model.model, config.model.reference) if m]
    return Work.of(KIND, config, NOT_WORK, inputs)


def validate(config: FilterConfig) -> None:
    """Raise UserError for what makes no sense, and for what a kind needs and is not given."""
    check_seed(config.seed)
    if not config.sources:
        raise UserError("filter needs at least one source")
    if config.unit_bytes < 1 or config.workers < 0:
        raise UserError("unit_bytes must be at least 1, and workers at least 0")
    scored = config.kind in SCORED
    limits = {"share": config.share, "threshold": config.threshold}
    given = [name for name, value in limits.items() if value is not None]
    if len(given) > 1:
        raise UserError("share and threshold: give one of them")
    if given and not scored:
        raise UserError(f"{given[0]}: kind {config.kind} has no score to keep by; it is of {', '.join(SCORED)}")
    for value in config.share.values() if isinstance(config.share, dict) else [config.share]:
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"share is a share of the documents, from 0 to 1, not {value}")
    for value in config.threshold.values() if isinstance(config.threshold, dict) else [config.threshold]:
        if value is not None and not math.isfinite(value):
            raise UserError(f"threshold is a score, a finite number, not {value}")
    if config.repeat and (not scored or any(not 1 <= n <= 1000 for n in config.repeat.values())):
        raise UserError("repeat: of kinds with scores, 1 to 1000 times each")
    members = [source for sources in config.groups.values() for source in sources]
    if len(members) > len(set(members)):
        raise UserError("groups: a source stands in two groups")
    _check_options(config)


def _check_options(config: FilterConfig) -> None:
    d, c, m, e = config.dedup, config.classifier, config.model, config.ensemble
    wrong = {
        "decontaminate": [
            (not config.decontaminate.against, "decontaminate.against: name at least one evaluation set"),
            (config.decontaminate.run < 1, "decontaminate.run must be at least 1"),
        ],
        "dedup": [
            (d.run < 1, "dedup.run must be at least 1"),
            (not 0 < d.similarity <= 1, f"dedup.similarity is from 0 to 1, not {d.similarity}"),
            (not 2 <= d.hashes <= 1024, f"dedup.hashes must be 2 to 1024, not {d.hashes}"),
        ],
        "classifier": [
            (not c.positive, "classifier.positive: name at least one source of text that is wanted"),
            (not 1 <= c.run <= 8, f"classifier.run must be 1 to 8, not {c.run}"),
            (not 8 <= c.bits <= 26, f"classifier.bits must be 8 to 26, not {c.bits}"),
            (c.training_bytes < 1, "classifier.training_bytes must be at least 1"),
        ],
        "ensemble": [
            (not e.tables, "ensemble.tables: name at least one folder of filter"),
            (e.buckets < 2, "ensemble.buckets must be at least 2"),
        ],
        "model": [
            (not m.model, "model.model: name a model folder"),
            ((m.score == "excess") != bool(m.reference), "model.reference: excess needs one, and nothing else does"),
            (
                m.length < 2 or m.batch_tokens < m.length,
                "model.length must be at least 2, batch_tokens at least length",
            ),
            (m.max_tokens < 0, "model.max_tokens must be at least 0"),
            (not 0 < m.heads <= 1, f"model.heads is a share of the heads, from 0 to 1, not {m.heads}"),
        ],
    }
    for fails, sentence in wrong[config.kind]:
        if fails:
            raise UserError(sentence)


def estimate(config: FilterConfig, known: Known) -> Cost:
    """About 150 bytes a document of 2 kB on the disk; FLOPs of the forwards of a model."""
    if (done := known.manifest(config.out, KIND)) is not None:
        return Cost(None, done.get("flops"), sum(f["bytes"] for f in done["files"]))
    size = float(sum(input_bytes(s) for s in _resolved(config.sources, config.seed)))
    flops = None
    if config.kind == "model":
        tokens = size / 3.5
        flops = known.forward_flops(config.model.model, tokens, config.model.length) * (
            1 if config.model.score == "perplexity" else 2
        )
        if config.model.score == "excess":
            flops = flops / 2 + known.forward_flops(config.model.reference, tokens, config.model.length)
    return Cost(None, flops, size * 0.07, False)


# ---- the pass over the sources ----


def _make(
    config: FilterConfig, s: Stage, sources: list[Source], kind: Kind, tables: Tables | None, progress: bool
) -> None:
    sources = [sample(source, config.unit_bytes) for source in sources]
    setup = UnitSetup(s.folder / _PARTS, kind.measure, config.on_bad_row == "skip", tables)
    setup.parts.mkdir(exist_ok=True)
    measured = Measured(_measure(config, sources, setup, kind.alone, progress))
    if not len(measured):
        raise UserError(f"no document found in {', '.join(source.label for source in sources)}")
    judgement = kind.judge(measured)
    write_table(s.folder, table_rows(measured, judgement))
    bad = measured.left().bad_rows
    if bad:
        with atomic_file(s.folder / "bad_rows.jsonl", "w") as f:
            f.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in bad)
    names = [TABLE_FILE, *(["bad_rows.jsonl"] if bad else [])]
    s.finish(names, sources=measured.sources, stats=table_stats(measured, judgement), **judgement.told)


def _measure(
    config: FilterConfig, sources: Sequence[Source], setup: UnitSetup, alone: bool, progress: bool
) -> list[Path]:
    """Measure every unit that is not measured yet; their parts, in order."""
    size = sum(input_bytes(s) for s in sources)
    total = None if any(s.format == "hub" for s in sources) else sum(s.size for s in sources)
    found, units = list[Path](), _units(config, sources)
    workers = 1 if alone else _num_workers(config, size)
    with tqdm(total=total, unit="B", unit_scale=True, desc="filter", disable=not progress) as bar:
        for unit, _ in _results(units, setup, workers):
            found.append(setup.path(unit))
            bar.update(unit.cost)
    return sorted(found)


def _units(config: FilterConfig, sources: Sequence[Source]) -> Iterator[WorkUnit]:
    for s, source in enumerate(sources):
        light = replace(source, texts={}, files=source.files[:1])  # all that reading a block needs
        for i, group in enumerate(groups(source, config.unit_bytes)):
            yield WorkUnit(s, i, light, group)


def _results(units: Iterator[WorkUnit], setup: UnitSetup, workers: int) -> Iterator[tuple[WorkUnit, bool]]:
    def known(unit: WorkUnit) -> bool | None:
        return setup.path(unit).is_file() or None

    if workers == 1:
        for unit in units:
            yield unit, known(unit) or measure_unit(setup, unit)
        return
    yield from pooled(units, partial(measure_unit, setup), workers, known=known)


def _num_workers(config: FilterConfig, size: int) -> int:
    if config.workers:
        return config.workers
    return min(_MAX_WORKERS, os.cpu_count() or 1) if size > _ONE_PROCESS_BYTES else 1


def _resolved(sources: Sequence[SourceConfig], seed: int) -> list[Source]:
    return [resolve(s, seed) for s in sources]


# ---- kinds ----


def decontaminate(config: FilterConfig) -> Kind:
    """Documents that share a run of words with an evaluation set are dropped, or listed."""
    options = config.decontaminate
    runs = EvaluationRuns(_resolved(options.against, config.seed), options.run, config.unit_bytes)
    return Kind(runs, partial(judge_shared, options, runs))


def dedup(config: FilterConfig) -> Kind:
    """One of each text, and of each cluster of texts that are nearly the same."""
    options = config.dedup
    measure = no_signatures if options.method == "exact" else Signatures(options.run, options.hashes)
    return Kind(measure, partial(judge_copies, options))


def classifier(config: FilterConfig) -> Kind:
    """The score of a linear model of hashed runs of words."""
    options = config.classifier
    positive, negative = (_resolved(some, config.seed) for some in (options.positive, options.negative))
    labelled = any(s.label for s in options.positive)
    if not negative and not labelled:
        negative = _resolved(config.sources, config.seed)
    model, told = fit_text(options, positive, negative, config.seed, config.unit_bytes)
    return Kind(model, lambda measured: _keep(config).judge(measured.numbers("score"), measured, classifier=told))


def ensemble(config: FilterConfig) -> Kind:
    """The highest of several tables' percentile ranks."""
    options = config.ensemble

    def judge(measured: Measured) -> Judgement:
        return _keep(config).judge(ensemble_score(options.tables, measured, options.buckets), measured)

    return Kind(no_signatures, judge)


def model(config: FilterConfig) -> Kind:
    """What a model's nll say of a document."""
    from .filter_model import ModelMeasure

    measure = ModelMeasure(config.model, config.seed)
    return Kind(
        measure,
        lambda m: _keep(config).judge(m.numbers("score"), m, **measure.told(m)),
        alone=True,
        close=measure.close,
    )


def _keep(config: FilterConfig) -> Keep:
    return Keep(config.share, config.threshold, config.by == "source", config.groups, config.reverse, config.repeat)


FILTER_KINDS: Mapping[str, Callable[[FilterConfig], Kind]] = {
    "decontaminate": decontaminate,
    "dedup": dedup,
    "classifier": classifier,
    "ensemble": ensemble,
    "model": model,
}
SCORED = ("classifier", "ensemble", "model")
# What text a kind reads beside the sources, for a table's inputs.
_SOURCES: Mapping[str, Callable[[FilterConfig], Mapping[str, Sequence[SourceConfig]]]] = {
    "decontaminate": lambda config: {"against": config.decontaminate.against},
    "classifier": lambda config: {"positive": config.classifier.positive, "negative": config.classifier.negative},
}
