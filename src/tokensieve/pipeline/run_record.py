"""What a ``train`` run leaves beside its weights: its config, its metrics, its figures and what it was made of."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from ..core import Objective
from ..core.objective import SecondTarget
from ..data.corpus import Corpus
from ..modeling.folder import model_hash
from ..runs import layout
from ..runs.errors import UserError
from ..runs.files import atomic_file, write_json
from ..runs.manifest import read_manifest
from ..runs.stage import Stage
from . import corpus_scope, launch, second
from .configs.train import TrainConfig
from .lineage import lineage, reference_begun_from, training_flops


def write_config(config: TrainConfig, args: Any, out: Path) -> None:
    """The resolved config beside the run: ours, and every TrainingArgument as it came out."""
    if launch.ranks().rank == 0:
        write_json(
            out / "train_config.json", {**dataclasses.asdict(config), "training_arguments": args.to_sanitized_dict()}
        )


def write_metrics(out: Path, history: list[dict[str, Any]]) -> None:
    """The Trainer's log, a line each, without what another start would say otherwise."""
    # Clocks, a mean that starts again at each resume, and a sum of floats whose last digits depend on where the run was
    # saved (ours is in tokens.jsonl); sorted, because a resumed history is.
    left_out = ("total_flos", "_runtime", "_samples_per_second", "_steps_per_second", "train_loss")
    lines = [{k: _number(v) for k, v in line.items() if not k.endswith(left_out)} for line in history]
    with atomic_file(out / layout.METRICS, "w") as f:
        f.writelines(json.dumps(line, sort_keys=True) + "\n" for line in lines)


def _number(value: Any) -> Any:
    """null for NaN and infinity, which are not JSON: the nll of a set with a target of probability 0 is infinite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def summarize(out: Path) -> dict[str, Any]:
    """The figures of a finished run, from its logs.

    ``steps``, ``tokens_seen``, ``tokens_trained``, ``flops_student``, ``flops_scoring``, ``flops_reference``, ``seconds``,
    ``ran_alone`` (no other stage of its recipe beside it: only then are ``seconds`` a measurement), ``kept_share``
    (tokens_trained / tokens_seen), ``kept_share_by_source``.
    """
    lines = layout.token_lines(out)
    if not lines:
        raise UserError(f"{out / layout.TOKEN_LOG} holds no step: it was removed or emptied")
    last = lines[-1]
    valid: dict[str, int] = {}
    kept: dict[str, int] = {}
    for line in lines:
        for name, count in line.get("valid_by_source", {}).items():
            valid[name] = valid.get(name, 0) + count
            kept[name] = kept.get(name, 0) + line["kept_by_source"][name]
    keys = ("tokens_seen", "tokens_trained", "flops_student", "flops_scoring", "flops_reference")
    return {
        "steps": last["step"],
        **{key: last[key] for key in keys},
        "seconds": layout.seconds(out),
        "ran_alone": layout.ran_alone(out),
        "kept_share": last["tokens_trained"] / max(1, last["tokens_seen"]),
        "kept_share_by_source": {name: kept[name] / valid[name] for name in sorted(valid)},
    }


def flops_spent(config: TrainConfig, target: SecondTarget | None = None) -> tuple[float, float]:
    """(scoring, reference training) of the scores and the teacher used: every scoring counts, a model's training once. NaN:
    not known."""

    def known(flops: float | None) -> float:
        return math.nan if flops is None else flops

    manifests = [read_manifest(s, "scores", ("flops", "reference_flops", "model_hash")) for s in config.scores]
    trained: dict[str, float] = {}
    for m in manifests:  # scored from a copy of its folder, nobody knows any more what training it took
        spent, before = known(m["reference_flops"]), trained.get(m["model_hash"], 0.0)
        trained[m["model_hash"]] = before if before > spent else spent  # one that is not known stays so
    if target is not None and target.origin == "teacher" and target.model is not None:
        trained[model_hash(target.model)] = known(training_flops(target.model))
    return sum(known(m["flops"]) for m in manifests), sum(trained.values())


def references_used(config: TrainConfig) -> list[dict[str, Any]]:
    """The models whose scores were used, and teachers: what training them took, and what they were begun from, each once."""
    manifests = [read_manifest(s, "scores") for s in config.scores]
    found = {m["model_hash"]: (m["reference_flops"], m.get("begun_from", [])) for m in manifests}
    found |= {model_hash(t): (training_flops(t), reference_begun_from(t)) for t in second.teachers(config.objective)}
    return [{"model": name, "flops": flops, "begun_from": links} for name, (flops, links) in found.items()]


def finish_run(s: Stage, config: TrainConfig, corpus: Corpus, objective: Objective, trainer: Any) -> None:
    """Write ``summary.json``, and the manifest last: with it the run is done."""
    out = s.folder
    summary = {"objective": objective.name, "scope": objective.scope, **summarize(out)}
    summary["passes"] = round(float(trainer.state.epoch or 0.0), 4)
    write_json(out / "summary.json", summary)
    names = ["train_config.json", "summary.json", layout.TOKEN_LOG, layout.METRICS]
    for folder in ("model", "adapter", layout.TOKENS):
        names += sorted(str(p.relative_to(out)) for p in (out / folder).glob("*") if p.is_file())
    made_of: dict[str, Any] = {
        "corpus_hash": corpus.content_hash,
        "tokenizer_hash": corpus.tokenizer_hash,
        "bos_id": corpus.bos_id,
    }
    made_of["begun_from"] = lineage(config.model) if isinstance(config.model, str) else []
    made_of["references"] = references_used(config)
    s.finish(names, **made_of, summary=summary, **corpus_scope.in_manifest(objective, trainer.thresholds))
