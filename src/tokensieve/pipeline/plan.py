"""What a recipe would do, before it does it: tokens, FLOPs and disk of each stage. Estimates are marked with ~."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runs import is_done, read_manifest
from .recipe import Recipe, Stage
from .verbs import make_config

BYTES_PER_TOKEN = 3.5  # of text, before a tokenizer has been seen: between small and large vocabularies
ADAM_BYTES = 12  # float32 weights and two moments, of a checkpoint that can be resumed from


@dataclass(frozen=True)
class Cost:
    """What a stage takes. ``None``: does not apply; ``exact`` is False where a number is an estimate."""

    tokens: float | None = None
    flops: float | None = None
    disk: float | None = None
    exact: bool = True


def describe(recipe: Recipe) -> str:
    """The plan as a table: a line a stage, and the sum of what is still to do."""
    from ..analysis.table import table

    costs = costs_of(recipe)
    rows = [_line(stage.name, stage.verb, is_done(stage.folder), costs[stage.name]) for stage in recipe.stages]
    todo = [costs[s.name] for s in recipe.stages if not is_done(s.folder)]
    total = Cost(None, sum(c.flops or 0 for c in todo), sum(c.disk or 0 for c in todo), False)
    rows.append(_line("to do", "", False, total))
    return f"{recipe.name}: {len(recipe.stages)} stages into {recipe.out}\n\n{table(rows, list(rows[0]))}"


def costs_of(recipe: Recipe) -> dict[str, Cost]:
    """name -> cost of every stage, in order: later stages build on what earlier ones would give."""
    costs: dict[str, Cost] = {}
    by_folder = {str(stage.folder): stage for stage in recipe.stages}
    estimate = {"prepare": _prepare, "train": _train, "score": _score, "evaluate": _evaluate, "dynamics": _dynamics}
    for stage in recipe.stages:
        cost = estimate[stage.verb](stage, costs, by_folder) if stage.verb in estimate else Cost()
        costs[stage.name] = cost
    return costs


def _prepare(stage: Stage, costs: Mapping[str, Cost], by_folder: Mapping[str, Stage]) -> Cost:
    if is_done(stage.folder):
        manifest = read_manifest(stage.folder, "corpus")
        return Cost(manifest["stats"]["tokens"], None, sum(f["bytes"] for f in manifest["files"]))
    config = make_config("prepare", stage.fields, stage.name)
    tokens = sum(_source_bytes(source) for source in config.sources) / BYTES_PER_TOKEN
    if config.max_rows is not None:
        tokens = min(tokens, config.max_rows * config.length)
    return Cost(tokens, None, tokens * 5, False)


def _source_bytes(source: Any) -> float:
    """Bytes of text that a source can give: its files, gzip counted threefold, at most its cap."""
    from ..data.sources import resolve

    files = resolve(source).files
    size = sum(f.size * (3 if f.name.endswith(".gz") else 1) for f in files)
    low, high = source.split
    size *= high - low
    return float(min(size, source.max_bytes) if source.max_bytes is not None else size)


def _train(stage: Stage, costs: Mapping[str, Cost], by_folder: Mapping[str, Stage]) -> Cost:
    from .train import training_arguments

    config = make_config("train", stage.fields, stage.name)
    args, length = training_arguments(config), _length(config.corpus, by_folder)
    corpus_tokens, exact = _corpus_tokens(config.corpus, costs, by_folder)
    step = args.per_device_train_batch_size * args.gradient_accumulation_steps * max(1, args.world_size) * length
    tokens = args.max_steps * step if args.max_steps > 0 else corpus_tokens * args.num_train_epochs
    model, ratio = _meta_model(config.model, by_folder), _ratio(config.objective)
    if model is None:
        return Cost(tokens, None, None, False)
    from ..modeling.flops import token_flops

    parameters = sum(p.numel() for p in model.parameters())
    flops = token_flops(model, length).train(tokens, tokens * ratio)
    each = 4 if args.save_only_model else ADAM_BYTES
    copies = 0 if args.save_strategy == "no" else max(1, round(1 / args.save_steps)) if args.save_steps < 1 else 5
    return Cost(tokens, flops, parameters * (4 + each * copies), exact and is_done(stage.folder))


def _ratio(objective: Mapping[str, Any]) -> float:
    """The share of tokens an objective keeps, its own default included; 1 where it does not say."""
    from ..core.objective import objective as make_objective

    options = dict(objective)
    return float(make_objective(options.pop("name", "clm"), **options).options.get("ratio", 1.0))


def _score(stage: Stage, costs: Mapping[str, Cost], by_folder: Mapping[str, Stage]) -> Cost:
    config = make_config("score", stage.fields, stage.name)
    tokens, exact = _corpus_tokens(config.corpus, costs, by_folder)
    bytes_each = (2 if config.dtype == "float16" else 4) * len(config.columns)
    flops = _forward_flops(config.model, tokens, _length(config.corpus, by_folder), by_folder)
    return Cost(tokens, flops, tokens * bytes_each, exact)


def _evaluate(stage: Stage, costs: Mapping[str, Cost], by_folder: Mapping[str, Stage]) -> Cost:
    config = make_config("evaluate", stage.fields, stage.name)
    per_model = sum(_corpus_tokens(folder, costs, by_folder)[0] for folder in config.sets.values())
    total_flops = total = 0.0
    for folder in config.models.values():
        copies = _checkpoints(folder, by_folder) if config.checkpoints else 1
        length = _length(next(iter(config.sets.values())), by_folder)
        total += per_model * copies
        total_flops += copies * (_forward_flops(folder, per_model, length, by_folder) or 0)
    return Cost(total, total_flops, None, False)


def _dynamics(stage: Stage, costs: Mapping[str, Cost], by_folder: Mapping[str, Stage]) -> Cost:
    config = make_config("dynamics", stage.fields, stage.name)
    each, length = _corpus_tokens(config.corpus, costs, by_folder)[0], _length(config.corpus, by_folder)
    copies = [_checkpoints(folder, by_folder) for folder in config.models]
    runs = [folder.removesuffix("/model") for folder in config.models]
    flops = [n * (_forward_flops(run, each, length, by_folder) or 0) for n, run in zip(copies, runs, strict=True)]
    return Cost(each * sum(copies), sum(flops), each * (2 * sum(copies) + 5), False)


def _checkpoints(folder: str, by_folder: Mapping[str, Stage]) -> int:
    save_steps = by_folder[folder].fields.get("training", {}).get("save_steps", 0.2) if folder in by_folder else 1
    strategy = by_folder[folder].fields.get("training", {}).get("save_strategy") if folder in by_folder else None
    return 1 if strategy in ("no", False) or not save_steps < 1 else max(1, round(1 / save_steps))


def _corpus_tokens(folder: str, costs: Mapping[str, Cost], by_folder: Mapping[str, Stage]) -> tuple[float, bool]:
    if folder in by_folder and (cost := costs[by_folder[folder].name]).tokens is not None:
        return cost.tokens, cost.exact
    return float(read_manifest(folder, "corpus")["stats"]["tokens"]), True


def _length(folder: str, by_folder: Mapping[str, Stage]) -> int:
    if folder in by_folder:
        return int(make_config("prepare", by_folder[folder].fields, folder).length)
    return int(read_manifest(folder, "corpus")["length"])


def _forward_flops(model: str, tokens: float, length: int, by_folder: Mapping[str, Stage]) -> float | None:
    from ..modeling.flops import token_flops

    meta = _meta_model(model, by_folder)
    return None if meta is None else token_flops(meta, length).forward(tokens)


def _meta_model(model: Any, by_folder: Mapping[str, Stage]) -> Any:
    """The model's shapes without its weights: from a config, or by following stages back to one. None if not here yet."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from ..modeling.load import model_folder

    while isinstance(model, str) and model in by_folder:
        model = by_folder[model].fields["model"]
    with torch.device("meta"):
        if not isinstance(model, str):
            fields = dict(model)
            config = AutoConfig.for_model(
                fields.pop("model_type"), **{"vocab_size": 32000, **_vocabulary(by_folder), **fields}
            )
        elif Path(model).is_dir():
            config = AutoConfig.from_pretrained(model_folder(model), local_files_only=True)
        else:
            return None
        return AutoModelForCausalLM.from_config(config)


def _vocabulary(by_folder: Mapping[str, Stage]) -> dict[str, int]:
    """The vocabulary size that the recipe's first corpus sets."""
    sizes = [s.fields["vocab_size"] for s in by_folder.values() if "vocab_size" in s.fields]
    return {"vocab_size": int(sizes[0])} if sizes else {}


def _line(name: str, verb: str, done: bool, cost: Cost) -> dict[str, str]:
    mark = "" if cost.exact else "~"

    def number(value: float | None, unit: str) -> str:
        return "" if value is None else mark + _si(value) + unit

    return {
        "stage": name,
        "verb": verb,
        "state": "done" if done else "to do" if verb else "",
        "tokens": number(cost.tokens, ""),
        "FLOP": number(cost.flops, ""),
        "disk": number(cost.disk, "B"),
    }


def _si(value: float) -> str:
    """1234567 -> 1.23 M"""
    for factor, name in ((1e18, " E"), (1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= factor:
            return f"{value / factor:.3g}{name}"
    return f"{value:.3g} "
