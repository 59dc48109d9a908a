"""``tokensieve evaluate``: models x evaluation sets -> nll per token and bits per byte, with n-gram baselines beside them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..layout import checkpoints, token_lines
from ..runs import MANIFEST, UserError, Work, atomic_file, stage, write_json
from . import launch
from .plan import Cost, Known

if TYPE_CHECKING:
    import numpy as np

    from ..data.corpus import Corpus

KIND = "evaluation"
NOT_WORK = ("out", "baselines", "batch_rows", "device", "verify")
NGRAMS = {"unigram": 1, "trigram": 3}


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure models on evaluation sets: nats per token and bits per byte, on whole texts and on solutions only."""

    out: str
    """Folder to write: evaluation.json, table.txt."""
    models: dict[str, str]
    """name -> Hugging Face folder or a folder that `train` wrote."""
    sets: dict[str, str]
    """name -> a folder that `prepare` wrote."""
    checkpoints: bool = False
    """Also every checkpoint of the runs among the models."""
    baselines: list[str] = field(default_factory=list)
    """Corpora to count a unigram and a trigram model on: an undertrained model must not look like a result."""
    batch_rows: int = 0
    """Rows of one forward; 0 for about 8192 tokens."""
    device: str | None = None
    """cpu, cuda or cuda:0; the GPU where there is one."""
    verify: Literal["full", "size"] = "full"
    """full: the bytes of what is read are hashed, once a machine, and remembered by size and times; size: sizes only."""


def run(config: EvaluateConfig) -> Path:
    """Write ``evaluation.json``, a list of records (docs/formats.md), and ``table.txt`` of the models' last weights.

    ``nll`` is the mean over target tokens in nats; ``on`` is ``all`` or, for sets with marked solutions, also ``solution``;
    ``step`` and ``tokens_seen`` are null for models that no run of ours trained.
    """
    from ..data.corpus import open_corpus
    from ..modeling.load import check_length, check_tokenizer, read_config

    validate(config)
    launch.check_device(config.device)
    out = Path(config.out)
    sets = {name: open_corpus(folder, verify=config.verify) for name, folder in config.sets.items()}
    for folder in config.models.values():
        for corpus in sets.values():
            check_length(read_config(folder), corpus.length, folder)
            check_tokenizer(folder, corpus.tokenizer(), str(corpus.folder))
    notes = list(_check_bos(config, sets))
    targets = [t for name, folder in config.models.items() for t in targets_of(name, folder, config.checkpoints)]
    with stage(out, _work(config, sets, targets)) as s:
        if s.done:
            return out
        for note in notes:
            print(f"tokensieve: {note}", file=sys.stderr, flush=True)
        results = list(_baseline_results(config, sets))
        results += [record for target in targets for record in _results(config, target, sets)]
        s.bind()
        write_json(out / "evaluation.json", results)
        with atomic_file(out / "table.txt", "w") as f:
            f.write(render(results) + "\n")
        s.finish(["evaluation.json", "table.txt"], results=len(results), **({"bos_notes": notes} if notes else {}))
    return out


def _check_bos(config: EvaluateConfig, sets: dict[str, Corpus]) -> Iterator[str]:
    """A sentence a model from elsewhere and set that begin texts in two ways. UserError for a model that `train` wrote."""
    from ..data.bos import disagreement, expected, told

    for folder in config.models.values():
        for name, corpus in sets.items():
            wants = expected(folder)
            if wants is not None and wants.trained and wants.id != corpus.bos_id:
                raise UserError(
                    f"sets: the documents of {name} begin with {told(corpus.bos_id)}, those that {folder} was trained on "
                    f"with {told(wants.id)}: prepare both in the same way"
                )
            if note := disagreement(folder, corpus.bos_id, corpus.folder):
                yield note


def work(config: EvaluateConfig) -> Work:
    """What says which evaluation it is: the models' names and weights, the rows of the sets, and what baselines count."""
    from ..data.corpus import open_corpus

    targets = [t for name, folder in config.models.items() for t in targets_of(name, folder, config.checkpoints)]
    return _work(config, {name: open_corpus(folder) for name, folder in config.sets.items()}, targets)


def _work(config: EvaluateConfig, sets: dict[str, Corpus], targets: list[Target]) -> Work:
    from ..analysis.ngram import MOST_TOKENS
    from ..data.corpus import open_corpus
    from ..modeling.load import model_hash

    baselines = [open_corpus(folder, verify="size") for folder in config.baselines]
    inputs = {
        "models": [(t.name, t.step, model_hash(t.folder)) for t in targets],
        "sets": {name: corpus.content_hash for name, corpus in sets.items()},
        "isolated_sets": {name: corpus.isolate_documents for name, corpus in sets.items()},
        "baselines": [b.content_hash for b in baselines],
        # Of so much text earlier versions counted all.
        "baseline_sample": MOST_TOKENS if sum(b.stats["tokens"] for b in baselines) > MOST_TOKENS else None,
    }
    return Work.of(KIND, config, NOT_WORK, inputs, models=sorted(config.models), sets=sorted(config.sets))


def estimate(config: EvaluateConfig, known: Known) -> Cost:
    """One forward of every set for every model and, if asked for, each of its checkpoints. n-grams are not counted."""
    each = sum(known.tokens(folder)[0] for folder in config.sets.values())
    length = known.length(next(iter(config.sets.values())))
    copies = [known.checkpoints(folder) if config.checkpoints else 1 for folder in config.models.values()]
    flops = [known.forward_flops(folder, each, length) for folder in config.models.values()]
    total = sum(n * f for n, f in zip(copies, flops, strict=True))
    memory = max((4 * known.num_parameters(folder) for folder in config.models.values()), default=0)
    return Cost(each * sum(copies), total, None, False, memory=memory)


def validate(config: EvaluateConfig) -> None:
    """Raise UserError where there is nothing to evaluate, or a model's name would be taken for an n-gram baseline's."""
    if not config.models and not config.baselines:
        raise UserError("models: name at least one model to evaluate")
    if not config.sets:
        raise UserError("sets: name at least one evaluation set")
    if config.batch_rows < 0:
        raise UserError("batch_rows must be at least 0")
    if config.baselines and (taken := [name for name in config.models if name in NGRAMS]):
        raise UserError(f"models: {taken[0]!r} is the name of a baseline, choose another")


def render(results: list[dict[str, Any]]) -> str:
    """A line a model and set, of the model's last weights."""
    from ..analysis.table import table

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


@dataclass(frozen=True)
class Target:
    """One set of weights to evaluate."""

    name: str
    folder: Path
    step: int | None = None
    tokens_seen: int | None = None
    tokens_trained: int | None = None


def targets_of(name: str, folder: str, checkpoints: bool) -> Iterator[Target]:
    """The model of a folder and, if asked for, the checkpoints of the run it belongs to, in order of steps.

    An unfinished run, which has no model yet, gives its checkpoints alone.
    """
    from ..modeling.load import model_folder

    log = {line["step"]: line for line in _token_lines(Path(folder))}
    last, found = max(log, default=None), _checkpoints(Path(folder)) if checkpoints else []
    finished = not found or any((Path(folder) / sub / "config.json").is_file() for sub in ("", "model"))
    for step, path in found:
        if step != last or not finished:  # the last one is the model itself
            yield Target(name, path, step, *_seen(log, step))
    if finished:
        yield Target(name, model_folder(folder), last, *_seen(log, last))


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, folder) of a run's checkpoints that hold a whole model. A LoRA run's hold only the adapter: said, left out."""
    found = checkpoints(folder)
    whole = {step: p for step, p in found.items() if (p / "config.json").is_file()}
    if len(whole) < len(found):
        print(f"{folder}: {len(found) - len(whole)} checkpoints hold no whole model and are left out", file=sys.stderr)
    return list(whole.items())


def _seen(log: dict[int, dict[str, Any]], step: int | None) -> tuple[int | None, int | None]:
    line = log.get(step, {}) if step is not None else {}
    return line.get("tokens_seen"), line.get("tokens_trained")


def _token_lines(folder: Path) -> list[dict[str, Any]]:
    """The token log of the run that a model folder belongs to; a run at work may be writing its last line just now."""
    run = folder.parent if folder.name == "model" else folder
    return token_lines(run, live=not (run / MANIFEST).exists())


def _results(config: EvaluateConfig, target: Target, sets: dict[str, Corpus]) -> Iterator[dict[str, Any]]:
    from tqdm.auto import tqdm

    from ..data.rows import Rows
    from ..data.scored import join_scores
    from ..modeling.load import check_length, check_vocabulary, load_causal_lm, quiet_loading
    from ..scoring.engine import Scorer

    quiet_loading()
    model = load_causal_lm(target.folder)
    scorer = Scorer(model, device=config.device, batch_rows=config.batch_rows)
    for name, corpus in sets.items():
        check_vocabulary(model, corpus.vocab_size, str(target.folder))
        check_length(model.config, corpus.length, str(target.folder))
        rows = Rows(join_scores(corpus, verify=None))
        label = f"{target.name}{'' if target.step is None else f' @{target.step}'} on {name}"
        with tqdm(total=corpus.num_rows * corpus.length, desc=label, unit="tok", unit_scale=True, leave=False) as bar:
            sums = _Sums(corpus)
            for batch in scorer.run(rows):
                for i, nll_T in enumerate(batch.nll):
                    sums.add(batch.start + i, nll_T)
                bar.update(batch.nll.size)
        for record in sums.records():
            yield _record(target, name, record)


def _record(target: Target, name: str, figures: dict[str, Any]) -> dict[str, Any]:
    trained = {"step": target.step, "tokens_seen": target.tokens_seen, "tokens_trained": target.tokens_trained}
    return {"model": target.name, **trained, "set": name, **figures}


class _Sums:
    """(nll, tokens, bytes) sums of a set, over all targets and over those of solutions."""

    def __init__(self, corpus: Corpus) -> None:
        import numpy as np

        from ..data.tokenizer import token_bytes

        self.rows = corpus.rows.with_format("numpy")
        self.bytes_V = token_bytes(corpus.tokenizer())
        self.exact = bool(corpus.manifest["stats"]["token_bytes_exact"])
        self.sums = {"all": np.zeros(3), "solution": np.zeros(3)}
        self.has_solutions = False

    def add(self, index: int, nll_T: np.ndarray) -> None:
        import numpy as np

        from ..data.rows import solution_mask

        row = self.rows[index]
        ids_T, starts, targets = (np.asarray(row[k]) for k in ("input_ids", "doc_starts", "doc_targets"))
        self.has_solutions |= bool((targets != starts).any())
        solution_T = solution_mask(starts, targets, len(ids_T))
        target_T = ~np.isnan(nll_T)
        for on, mask_T in (("all", target_T), ("solution", target_T & solution_T)):
            self.sums[on] += (nll_T[mask_T].sum(dtype=np.float64), mask_T.sum(), self.bytes_V[ids_T[mask_T]].sum())

    def records(self) -> Iterator[dict[str, Any]]:
        import math

        for on in ("all", "solution") if self.has_solutions else ("all",):
            nll, tokens, num_bytes = self.sums[on].tolist()
            yield {
                "on": on,
                "nll": nll / tokens if tokens else None,
                "bits_per_byte": nll / (math.log(2) * num_bytes) if num_bytes else None,
                "bits_per_byte_exact": self.exact,
                "tokens": round(tokens),
                "bytes": round(num_bytes),
            }


def _baseline_results(config: EvaluateConfig, sets: dict[str, Corpus]) -> Iterator[dict[str, Any]]:
    """n-gram models counted on the baseline corpora, on exactly the target positions of the neural evaluation.

    Counted on a sample, their records also say of how many tokens of how many.
    """
    if not config.baselines:
        return
    from ..analysis.ngram import NGram, sample_rows
    from ..data.bos import told as told_bos
    from ..data.corpus import open_corpus
    from ..data.rows import Rows
    from ..data.scored import join_scores

    corpora = [open_corpus(folder, verify="size") for folder in config.baselines]
    vocab_size = max(c.vocab_size for c in [*corpora, *sets.values()])
    for corpus in [*corpora, *sets.values()]:
        if corpus.tokenizer_hash != corpora[0].tokenizer_hash:
            raise UserError(f"baselines: {corpus.folder} has another tokenizer than {corpora[0].folder}")
        if corpus.bos_id != corpora[0].bos_id:
            both = f"{told_bos(corpus.bos_id)}, those of {corpora[0].folder} with {told_bos(corpora[0].bos_id)}"
            raise UserError(f"baselines: the documents of {corpus.folder} begin with {both}")
    sizes = [c.row_tokens() for c in corpora]
    drawn = sample_rows(sizes)
    text = [ids for corpus, rows in zip(corpora, drawn, strict=True) for ids in corpus.contexts(rows)]
    has_bos = corpora[0].bos_id is not None
    outcomes = (
        [o for corpus, rows in zip(corpora, drawn, strict=True) for o in corpus.outcomes(rows)] if has_bos else None
    )
    total = sum(int(s.sum(dtype="int64")) for s in sizes)
    told = {} if drawn[0] is None else {"counted_tokens": sum(map(len, text)), "counted_of": total}
    if told:
        print(f"n-gram baselines from a sample of {told['counted_tokens']:,} of {total:,} tokens", file=sys.stderr)
    for label, order in NGRAMS.items():
        ngram = NGram.fit(text, vocab_size, order, outcomes)
        for name, corpus in sets.items():
            sums, rows = _Sums(corpus), Rows(join_scores(corpus, verify=None))
            for index in range(corpus.num_rows):
                sums.add(index, _ngram_nll(ngram, rows[index]))
            for record in sums.records():
                yield {**_record(Target(label, Path()), name, record), **told}


def _ngram_nll(ngram: Any, row: Any) -> np.ndarray:
    """nll of a row's targets, NaN elsewhere: the masks and the contexts of the neural evaluation."""
    import numpy as np

    ids_T = row["input_ids"].numpy()
    pieces = np.split(ids_T, np.flatnonzero(row["position_ids"].numpy() == 0)[1:]) if "position_ids" in row else [ids_T]
    nll_T = np.concatenate([ngram.nll(ids) for ids in pieces])
    labels_T = row["labels"].numpy()
    return np.where(labels_T == -100, np.nan, nll_T)
