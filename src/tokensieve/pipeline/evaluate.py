"""``tokensieve evaluate``: models x evaluation sets -> nll per token and bits per byte, with n-gram baselines beside them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..analysis.table import table
from ..data.bos import bos_words, disagreement, expected
from ..data.corpus import Corpus, open_corpus
from ..data.rows import Rows
from ..data.scored import join_scores
from ..evaluation import ngram
from ..evaluation.baselines import NGRAMS, baseline_figures
from ..evaluation.documents import DOCUMENTS, DocumentSums
from ..evaluation.sums import Sums
from ..modeling.checkpoints import Checkpoint
from ..modeling.folder import model_hash
from ..modeling.load import check_length, check_vocabulary
from ..runs.errors import UserError
from ..runs.files import atomic_file, write_json
from ..runs.stage import stage
from ..runs.work import Work
from ..scoring.engine import Scorer
from . import launch, measures, tasks
from .configs.evaluate import KIND, NOT_WORK, TASKS_ONLY, EvaluateConfig
from .evaluation_sets import open_sets
from .recipe.cost import Cost, Known


def run(config: EvaluateConfig) -> Path:
    """Write ``evaluation.json``, a list of records (docs/formats.md), and ``table.txt`` of the models' last weights.

    ``nll`` is the mean over target tokens in nats; ``on`` is ``all`` or, for sets with marked solutions, also ``solution``;
    ``step`` and ``tokens_seen`` are null for models that no run of ours trained. With ``tasks`` or
    ``measures``: see the modules of these names.
    """
    validate(config)
    launch.check_device(config.device)
    if config.measures:
        return measures.run(config)
    if config.tasks:
        return tasks.run(config)
    out, sets = Path(config.out), open_sets(config)
    notes = list(_check_bos(config, sets))
    targets = tasks.targets_of(config)
    with stage(out, _work(config, sets, targets)) as s:
        if s.done:
            return out
        for note in notes:
            print(f"tokensieve: {note}", file=sys.stderr, flush=True)
        figures = baseline_figures(config.baselines, sets)
        results = [_record(Checkpoint(label, Path()), name, record) for label, name, record in figures]
        by_document = DocumentSums()
        results += [record for target in targets for record in _results(config, target, sets, by_document)]
        s.bind()
        write_json(out / "evaluation.json", results)
        by_document.write(out / DOCUMENTS)
        with atomic_file(out / "table.txt", "w") as f:
            f.write(render(results) + "\n")
        s.finish(
            ["evaluation.json", DOCUMENTS, "table.txt"], results=len(results), **({"bos_notes": notes} if notes else {})
        )
    return out


def _check_bos(config: EvaluateConfig, sets: dict[str, Corpus]) -> Iterator[str]:
    """A sentence a model from elsewhere and set that begin texts in two ways. UserError for a model that `train` wrote."""
    for folder in config.models.values():
        for name, corpus in sets.items():
            wants = expected(folder)
            if wants is not None and wants.trained and wants.id != corpus.bos_id:
                raise UserError(
                    f"sets: the documents of {name} begin with {bos_words(corpus.bos_id)}, those that {folder} was trained on "
                    f"with {bos_words(wants.id)}: prepare both in the same way"
                )
            if note := disagreement(folder, corpus.bos_id, corpus.folder):
                yield note


def work(config: EvaluateConfig) -> Work:
    """What says which evaluation it is: the models' names and weights, the rows of the sets, and what baselines count."""
    if config.measures:
        return measures.work(config)
    if config.tasks:
        return tasks.work(config)
    targets = tasks.targets_of(config)
    return _work(config, {name: open_corpus(folder) for name, folder in config.sets.items()}, targets)


def _work(config: EvaluateConfig, sets: dict[str, Corpus], targets: list[Checkpoint]) -> Work:
    baselines = [open_corpus(folder, verify="size") for folder in config.baselines]
    inputs = {
        "models": [(t.name, t.step, model_hash(t.folder)) for t in targets],
        "averaged": [(t.name, [model_hash(f) for f in t.averaged]) for t in targets if t.averaged],
        "sets": {name: corpus.content_hash for name, corpus in sets.items()},
        "isolated_sets": {name: corpus.isolate_documents for name, corpus in sets.items()},
        "baselines": [b.content_hash for b in baselines],
        # Of so much text earlier versions counted all.
        "baseline_sample": ngram.MOST_TOKENS if sum(b.stats["tokens"] for b in baselines) > ngram.MOST_TOKENS else None,
    }
    return Work.of(KIND, config, NOT_WORK, inputs, models=sorted(config.models), sets=sorted(config.sets))


def estimate(config: EvaluateConfig, known: Known) -> Cost:
    """One forward of every set for every model and, if asked for, each of its checkpoints. n-grams are not counted."""
    if config.measures:
        return measures.estimate(config, known)
    if config.tasks:
        return tasks.estimate(config, known)
    each = sum(known.tokens(folder)[0] for folder in config.sets.values())
    length = known.length(next(iter(config.sets.values())))
    copies = [known.checkpoints(folder) if config.checkpoints else 1 for folder in config.models.values()]
    flops = [known.forward_flops(folder, each, length) for folder in config.models.values()]
    total = sum(n * f for n, f in zip(copies, flops, strict=True))
    memory = max((4 * known.num_parameters(folder) for folder in config.models.values()), default=0)
    return Cost(each * sum(copies), total, None, False, memory=memory)


def validate(config: EvaluateConfig) -> None:
    """Raise UserError where there is nothing to evaluate, or a model's name would be taken for an n-gram baseline's."""
    if not config.models and not config.baselines and not (config.measures and config.signal.of):
        raise UserError("models: name at least one model to evaluate")
    if config.measures:
        measures.validate(config)
    elif config.tasks:
        tasks.validate(config)
    elif not config.sets:
        raise UserError("sets: name at least one evaluation set, or tasks")
    elif alone := [name for name in TASKS_ONLY if getattr(config, name) not in (None, False, "ours")]:
        raise UserError(f"{alone[0]}: it goes with tasks, and no tasks are named")
    if config.batch_rows < 0:
        raise UserError("batch_rows must be at least 0")
    if config.average < 1:
        raise UserError("average must be at least 1: the last checkpoint alone")
    if config.baselines and (taken := [name for name in config.models if name in NGRAMS]):
        raise UserError(f"models: {taken[0]!r} is the name of a baseline, choose another")


def render(results: list[dict[str, Any]]) -> str:
    """A line a model and set, of the model's last weights."""
    last = {(r["model"], r["set"], r["on"]): r for r in results}  # checkpoints come in order of steps
    lines = [
        {
            "model": r["model"],
            "set": r["set"] if r["on"] == "all" else f"{r['set']} ({r['on']}s)",
            "tokens": r["tokens"],
            "nll": None if r["nll"] is None else f"{r['nll']:.4f}",
            "bits/byte": None if r["bits_per_byte"] is None else f"{r['bits_per_byte']:.4f}",
            "tokens seen": r["tokens_seen"],
        }
        for r in last.values()
    ]
    notes = {
        f"n-gram baselines from a sample of {r['counted_tokens']:,} of {r['counted_of']:,} tokens"
        for r in last.values()
        if "counted_tokens" in r
    }
    return "\n".join([table(lines, list(lines[0])), *sorted(notes)])


def _results(
    config: EvaluateConfig, target: Checkpoint, sets: dict[str, Corpus], by_document: DocumentSums
) -> Iterator[dict[str, Any]]:
    model = tasks.model_of(target)
    scorer = Scorer(model, device=config.device, batch_rows=config.batch_rows)
    for name, corpus in sets.items():
        check_vocabulary(model, corpus.vocab_size, str(target.folder))
        check_length(model.config, corpus.length, str(target.folder))
        rows = Rows(join_scores(corpus, verify=None))
        label = f"{target.name}{'' if target.step is None else f' @{target.step}'} on {name}"
        with tqdm(total=corpus.num_rows * corpus.length, desc=label, unit="tok", unit_scale=True, leave=False) as bar:
            sums = Sums(corpus)
            for batch in scorer.run(rows):
                for i, nll_T in enumerate(batch.nll):
                    sums.add(batch.start + i, nll_T)
                bar.update(batch.nll.size)
        if target.is_last:
            by_document.add(target.name, name, sums)
        for record in sums.records():
            yield _record(target, name, record)


def _record(target: Checkpoint, name: str, figures: dict[str, Any]) -> dict[str, Any]:
    trained = {"step": target.step, "tokens_seen": target.tokens_seen, "tokens_trained": target.tokens_trained}
    averaged = {"averaged": len(target.averaged)} if target.averaged else {}
    return {"model": target.name, **trained, **averaged, "set": name, **figures}
