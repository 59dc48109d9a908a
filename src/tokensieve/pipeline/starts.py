"""What ``init`` can make of a model: a function a field of its config -> (the model, what the manifest says of it)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from ..data.corpus import open_corpus
from ..data.rows import Rows, collate
from ..data.scored import join_scores
from ..data.tokenizer import load_tokenizer, tokenizer_identity
from ..modeling.cut import cut_folder, first_blocks, num_blocks, open_source
from ..modeling.folder import model_folder, model_hash, read_config
from ..modeling.grow import grow_experts, grow_intermediate, grow_layers, grown_config, parts_that_grow
from ..modeling.load import check_length, check_tokenizer, model_shapes
from ..modeling.merge import check_mergeable, merge
from ..modeling.mixture import mixture_config, moe_from_dense
from ..modeling.prune import Sizes, check_sizes, importance, prune, pruned_config
from ..modeling.vocabulary import with_vocabulary
from ..runs.errors import UserError
from .configs.init import InitConfig

Made = tuple[Any, dict[str, Any]]
CALIBRATION_ROWS = 8

# What is said of a model that cannot be made: "cannot be cut", "only decoders can be merged".
MADE = {
    "layers": "cut",
    "prune": "pruned",
    "merge": "merged",
    "vocab": "given another vocabulary",
    "grow": "grown",
    "moe_from_dense": "made a mixture",
    "rope": "given other positions",
}


def asked_for(config: InitConfig) -> str:
    """The one field of MADE that is given, of which other positions may go with any. UserError for none, and for several."""
    given = [name for name in MADE if name != "rope" and getattr(config, name) is not None]
    if not given and (config.rope or config.max_positions is not None):
        return "rope"
    if len(given) != 1:
        what = f"not {' and '.join(given)}" if given else "none is given"
        raise UserError(f"init makes one thing at a time: name one of {', '.join(MADE)}, {what}")
    return given[0]


def _first(config: InitConfig) -> Made:
    assert config.layers is not None
    return cut_folder(config.model, config.layers), {**_blocks(config), "kept_blocks": list(range(config.layers))}


def _blocks(config: InitConfig) -> dict[str, Any]:
    read = read_config(config.model)
    return {"source_blocks": num_blocks(read.get_text_config(), read.model_type)}


def _pruned(config: InitConfig) -> Made:
    assert config.prune is not None
    corpus = open_corpus(config.prune.corpus)
    check_tokenizer(config.model, corpus.tokenizer(), config.prune.corpus)
    model = open_source(config.model, "prune", "pruned")
    check_length(model.config, corpus.length, config.model)
    sizes = sizes_of(config)
    check_sizes(model, sizes)
    rows = Rows(join_scores(corpus, verify=None))
    found = importance(model, _batches(rows, config.prune.rows), width=sizes.width)
    if not found.tokens:
        raise UserError(
            f"prune.corpus: none of the first {config.prune.rows} rows of {config.prune.corpus} is without padding"
        )
    made, told = prune(model, found, sizes)
    left = {name: n for name, n in dataclasses.asdict(sizes).items() if n is not None}
    return made, {**_blocks(config), **told, "kept": left, "calibration_tokens": found.tokens}


def _batches(rows: Rows, most: int) -> Iterator[dict[str, Tensor]]:
    """The first rows, some at a time; a batch with a row that ends in padding is left out."""
    for start in range(0, min(most, len(rows)), CALIBRATION_ROWS):
        batch = collate(rows.__getitems__(range(start, min(start + CALIBRATION_ROWS, most, len(rows)))))
        if "attention_mask" in batch:
            continue
        yield {name: batch[name] for name in ("input_ids", "position_ids") if name in batch}


def sizes_of(config: InitConfig) -> Sizes:
    """What a pruned model has left."""
    p = config.prune
    assert p is not None
    return Sizes(p.layers, p.intermediate_size, p.heads, p.hidden_size)


def _merged(config: InitConfig) -> Made:
    m = config.merge
    assert m is not None
    names = [config.model, *m.models]
    models = [open_source(name, "merge", "merged") for name in names]
    check_mergeable(models, names)
    if (model_folder(config.model) / "tokenizer.json").is_file():
        for name in m.models:
            check_tokenizer(name, load_tokenizer(model_folder(config.model)), config.model)
    weights = m.weights or [1.0] * (len(names) if m.method == "linear" else len(m.models))
    made = merge(models[0], models[1:], m.method, weights, m.scale, m.density)
    return made, {"merged_hashes": [model_hash(name) for name in names]}


def _with_vocabulary(config: InitConfig) -> Made:
    assert config.vocab is not None
    model = open_source(config.model, "change", "given another vocabulary")
    old, new = load_tokenizer(model_folder(config.model)), load_tokenizer(config.vocab.tokenizer)
    made, rows = with_vocabulary(model, old, new, config.vocab.head)
    told = {"kept": rows.kept, "of_pieces": len(rows.pieces) - rows.kept - rows.unknown, "of_all": rows.unknown}
    return made, {"rows": told, "tokenizer_hash": tokenizer_identity(config.vocab.tokenizer)}


def _grown(config: InitConfig) -> Made:
    g = config.grow
    assert g is not None
    made = open_source(config.model, "grow", "grown")
    if g.layers is not None:
        made = grow_layers(made, g.layers, g.copies)
    if g.intermediate_size is not None:
        made = grow_intermediate(made, g.intermediate_size)
    if g.experts is not None:
        made = grow_experts(made, g.experts, g.noise, config.seed)
    return made, _blocks(config)


def _mixture(config: InitConfig) -> Made:
    x = config.moe_from_dense
    assert x is not None
    model = open_source(config.model, "make a mixture of", "made a mixture")
    return moe_from_dense(model, x.experts, x.active, config.seed), _blocks(config)


def _as_it_is(config: InitConfig) -> Made:
    return open_source(config.model, "rope", MADE["rope"]), _blocks(config)


WAYS_TO_BEGIN: dict[str, Callable[[InitConfig], Made]] = {
    "layers": _first,
    "prune": _pruned,
    "merge": _merged,
    "vocab": _with_vocabulary,
    "grow": _grown,
    "moe_from_dense": _mixture,
    "rope": _as_it_is,
}


def check_start(config: InitConfig) -> None:
    """Raise UserError for what is wrong with a config by itself."""
    asked = asked_for(config)
    if config.layers is not None and config.layers < 1:
        raise UserError(f"layers must be at least 1, not {config.layers}")
    if asked in _CHECKS:
        _CHECKS[asked](config)


def _check_prune(config: InitConfig) -> None:
    assert config.prune is not None
    if not config.prune.corpus:
        raise UserError("prune.corpus: name a folder that `prepare` wrote, whose rows say what is important")
    if config.prune.rows < 1:
        raise UserError(f"prune.rows must be at least 1, not {config.prune.rows}")
    if sizes_of(config) == Sizes():
        raise UserError("prune: say what is left: layers, intermediate_size, heads or hidden_size")


def _check_merge(config: InitConfig) -> None:
    m = config.merge
    assert m is not None
    if not m.models:
        raise UserError("merge.models: name at least one model to merge with")
    wanted = len(m.models) + (m.method == "linear")
    if m.weights and len(m.weights) != wanted:
        base = ", the base's first" if m.method == "linear" else ""
        raise UserError(f"merge.weights: {wanted} are needed{base}, not {len(m.weights)}")
    if m.weights and (min(m.weights) < 0 or sum(m.weights) <= 0):
        raise UserError("merge.weights must be at least 0, and one above it")
    if not 0 < m.density <= 1:
        raise UserError(f"merge.density must be in (0, 1], not {m.density}")


def _check_vocab(config: InitConfig) -> None:
    assert config.vocab is not None
    if not config.vocab.tokenizer:
        raise UserError("vocab.tokenizer: name a folder with tokenizer.json, or a corpus")


def _check_grow(config: InitConfig) -> None:
    g = config.grow
    assert g is not None
    if not parts_that_grow(g.layers, g.intermediate_size, g.experts):
        raise UserError("grow: say what grows: layers, intermediate_size or experts")
    if g.noise < 0:
        raise UserError(f"grow.noise must be at least 0, not {g.noise}")


_CHECKS: dict[str, Callable[[InitConfig], None]] = {
    "prune": _check_prune,
    "merge": _check_merge,
    "vocab": _check_vocab,
    "grow": _check_grow,
}


def shapes_of(config: InitConfig, source: Any) -> Any:
    """What a plan counts with: the shapes of the model that is left, on the meta device; None where it cannot say."""
    if config.layers is not None:
        return first_blocks(source, config.layers)
    if config.prune is not None:
        check_sizes(source, sizes_of(config))
        return model_shapes(pruned_config(source.config, sizes_of(config)))
    if (g := config.grow) is not None:
        return model_shapes(grown_config(source.config, g.layers, g.intermediate_size, g.experts))
    if (x := config.moe_from_dense) is not None:
        return model_shapes(mixture_config(source.config, x.experts, x.active))
    return source if config.merge is not None or asked_for(config) == "rope" else None
