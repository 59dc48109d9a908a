"""``tokensieve evaluate --measures``: models and their checkpoints x measures -> figures with their standard errors."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..analysis.table import table
from ..data.bos import disagreement
from ..data.corpus import Corpus, open_corpus
from ..data.read.sources import identity, resolve
from ..evaluation.measures.contamination import counted
from ..evaluation.measures.registry import MEASURES, SIGNAL
from ..evaluation.measures.signal import JUDGEMENTS, RECORD_FILES, flattened, read_records, signal
from ..evaluation.measures.subject import MeasureRecord, ModelFigures, Subject
from ..evaluation.measures.surprisal import read_words, words_file
from ..modeling.checkpoints import Checkpoint
from ..modeling.folder import model_hash
from ..modeling.load import check_vocabulary
from ..runs.errors import UserError
from ..runs.files import PART_NOTES, atomic_file, file_hash, read_json, write_json
from ..runs.manifest import note_part, part_is_whole, read_manifest
from ..runs.stage import Stage, stage
from ..runs.work import Work
from . import launch, tasks
from .config.fields import unknown
from .configs.evaluate import MEASURES_KIND, NOT_WORK, EvaluateConfig
from .evaluation_sets import open_sets
from .recipe.cost import Cost, Known

RECORDS = "measures.json"


def run(config: EvaluateConfig) -> Path:
    """Write ``measures.json``, a list of records (docs/formats.md), ``table.txt``, and lines of those measures that have some.

    What was measured of a model is kept: after a kill only the others are measured.
    """
    launch.check_device(config.device)
    _check_inputs(config)
    out, sets = Path(config.out), open_sets(config)
    targets = tasks.targets_of(config)
    with stage(out, _work(config, sets, targets)) as s:
        if s.done:
            return out
        for folder in config.models.values():
            for name, corpus in sets.items():
                if note := disagreement(folder, corpus.bos_id, config.sets[name]):
                    print(f"tokensieve: {note}", file=sys.stderr, flush=True)
        s.bind()
        records, files = list[MeasureRecord](), list[str]()
        for target in tqdm(targets, desc=f"measures {out.name}", unit="model", leave=False, disable=len(targets) < 2):
            records += _of_target(config, target, sets, s, files)
        if SIGNAL in _names(config):
            records += _signal(config, records)
        write_json(out / RECORDS, records)
        with atomic_file(out / "table.txt", "w") as f:
            f.write(render(records) + "\n")
        s.finish([RECORDS, "table.txt", *files], results=len(records))
    return out


def validate(config: EvaluateConfig) -> None:
    """UserError for unknown measures, for what they lack, and for fields that go with other evaluations alone."""
    for name in _names(config):
        if name not in (*MEASURES, SIGNAL):
            raise UserError(f"measures: {unknown(name, [*MEASURES, SIGNAL], 'measure')}")
    if config.tasks or config.baselines:
        raise UserError(
            "measures: tasks and baselines are evaluated by themselves: leave them out, or leave out measures"
        )
    if "contamination" in _names(config) and not (config.contamination.seen and config.contamination.unseen):
        raise UserError("contamination: both seen and unseen are needed: sources of items")
    if _names(config) == [SIGNAL] and not config.signal.of:
        raise UserError(
            "signal.of: name folders that evaluate wrote with checkpoints, or measure something else as well"
        )
    if "quantisation" in _names(config) and not config.sets:
        raise UserError("sets: quantisation is measured on an evaluation set: name one")


def work(config: EvaluateConfig) -> Work:
    """What says which measures they are: the models' weights, the rows of the sets, what files hold, and the options."""
    return _work(config, {name: open_corpus(folder) for name, folder in config.sets.items()}, tasks.targets_of(config))


def _work(config: EvaluateConfig, sets: Mapping[str, Corpus], targets: list[Checkpoint]) -> Work:
    names = _names(config)
    inputs: dict[str, Any] = {
        "models": [(t.name, t.step, model_hash(t.folder)) for t in targets],
        "averaged": [(t.name, [model_hash(f) for f in t.averaged]) for t in targets if t.averaged],
        "sets": {name: corpus.content_hash for name, corpus in sets.items()},
    }
    if "surprisal" in names:
        inputs["words"] = file_hash(words_file(config.surprisal))
    if "contamination" in names:
        both = (config.contamination.seen, config.contamination.unseen)
        inputs["items"] = [[identity(resolve(s)) for s in side] for side in both]
    if SIGNAL in names:
        inputs["signal"] = [read_manifest(folder)["fingerprint"] for folder in config.signal.of]
    return Work.of(
        MEASURES_KIND, config, NOT_WORK, inputs, models=sorted(config.models), sets=sorted(config.sets), measures=names
    )


def estimate(config: EvaluateConfig, known: Known) -> Cost:
    """Of quantisation a forward of every set for every number of bits and one more; of the others it is not known."""
    each = sum(known.tokens(folder)[0] for folder in config.sets.values())
    length = known.length(next(iter(config.sets.values()))) if config.sets else 0
    copies = [known.checkpoints(folder) if config.checkpoints else 1 for folder in config.models.values()]
    times = 1 + len(config.quantisation.bits) if "quantisation" in _names(config) else 0
    others = {*_names(config)} - {"quantisation", SIGNAL}
    tokens = float("nan") if others else float(each * times * sum(copies))
    flops = (
        [known.forward_flops(folder, each, length) * times for folder in config.models.values()] if config.sets else []
    )
    total = float("nan") if others else sum(n * f for n, f in zip(copies, flops, strict=bool(flops)))
    memory = max((8 * known.num_parameters(folder) for folder in config.models.values()), default=0)
    return Cost(tokens, total, None, False, memory=memory)


def render(records: list[MeasureRecord]) -> str:
    """A line a figure, of the models' last weights; below, a line for each metric that was judged over checkpoints."""
    figures = [r for r in records if r["is_last"] and r["measure"] != SIGNAL]
    shown = [
        {
            **{k: r[k] for k in ("model", "measure", "metric", "on")},
            "value": _digits(r["value"]),
            "+-": _digits(r["stderr"]),
        }
        for r in figures
    ]
    judged: dict[tuple[str, str], dict[str, Any]] = {}
    for r in [r for r in records if r["measure"] == SIGNAL]:
        line = judged.setdefault((r["model"], r["on"]), {"model": r["model"], "over checkpoints": r["on"]})
        line[r["metric"]] = _digits(r["value"])
    columns = ["model", "over checkpoints", *JUDGEMENTS]
    tables = [table(shown, list(shown[0]))] if shown else []
    return "\n\n".join([*tables, *([table(list(judged.values()), columns)] if judged else [])])


def _digits(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"


# --- what is measured ----------------------------------------------------------------------------------------------------


def _names(config: EvaluateConfig) -> list[str]:
    return [config.measures] if isinstance(config.measures, str) else list(config.measures)


def _check_inputs(config: EvaluateConfig) -> None:
    """Files that the measures read, looked at before a model is loaded."""
    if "surprisal" in _names(config):
        read_words(config.surprisal)
    if "contamination" in _names(config):
        counted(config.contamination)
    for folder in config.signal.of if SIGNAL in _names(config) else ():
        if (kind := read_manifest(folder)["kind"]) not in RECORD_FILES:
            raise UserError(f"signal.of: {folder} holds {kind!r}: a folder that evaluate wrote is needed")


def _of_target(
    config: EvaluateConfig, target: Checkpoint, sets: Mapping[str, Corpus], s: Stage, files: list[str]
) -> Iterator[MeasureRecord]:
    """The records of a model. It is loaded when something of it is left to measure."""
    subject: Subject | None = None
    for name in [n for n in _names(config) if n != SIGNAL]:
        part = s.folder / PART_NOTES / f"{name}-{tasks.file_stem(target)}.json"
        path = s.folder / f"{name}-{tasks.file_stem(target)}.jsonl"
        if not part_is_whole(part):
            if subject is None:
                model = tasks.model_of(target)
                for corpus in sets.values():
                    check_vocabulary(model, corpus.vocab_size, str(target.folder))
                subject = Subject(target, config.models[target.name], model, sets, config.device, config.batch_rows)
            _measure(name, subject, getattr(config, name), part, path)
        yield from ({**tasks.whose(target), "measure": name, **r} for r in read_json(part))
        if path.exists():
            files.append(path.name)


def _measure(name: str, subject: Subject, options: Any, part: Path, path: Path) -> None:
    found: ModelFigures = MEASURES[name](subject, options)
    if found.lines:
        with atomic_file(path, "w") as f:
            f.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in found.lines)
    part.parent.mkdir(exist_ok=True)
    write_json(part, found.records)
    note_part(part)


def _signal(config: EvaluateConfig, records: list[MeasureRecord]) -> Iterator[MeasureRecord]:
    every = list(flattened(records))
    for folder in config.signal.of:
        every += read_records(folder, read_manifest(folder)["kind"])
    for r in signal(every):
        whose = {"step": None, "tokens_seen": None, "tokens_trained": None, "is_last": True, "measure": SIGNAL}
        yield {"model": r["model"], **whose, **r}
