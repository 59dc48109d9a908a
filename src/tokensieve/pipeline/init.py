"""``tokensieve init``: a model to begin with, out of others. What can be made of them is in starts.py, a function a kind."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data.bos import expected
from ..data.corpus import open_corpus
from ..data.tokenizer import tokenizer_folder, tokenizer_identity
from ..modeling.cut import check_saved
from ..modeling.folder import model_folder, model_hash
from ..modeling.load import quiet_loading
from ..modeling.rope import with_rope
from ..runs.errors import UserError
from ..runs.stage import Stage, stage
from ..runs.work import Work
from .config.help import check_seed
from .configs.init import KIND, NOT_WORK, InitConfig
from .lineage import lineage, trained_by, training_flops
from .recipe.cost import Cost, Known
from .starts import MADE, WAYS_TO_BEGIN, asked_for, check_start, shapes_of

# What tokenises, of every layout that a folder may have: copied byte for byte.
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "chat_template.jinja", "chat_template.json"),
)

UNCHECKED = "unchecked"  # model/ is never one that was not read again


def run(config: InitConfig) -> Path:
    """Write the model, read it again, and hold it against the one in memory."""
    validate(config)
    out, asked = Path(config.out), asked_for(config)
    with stage(out, work(config)) as s:
        if s.done:
            return out
        quiet_loading()
        model, told = WAYS_TO_BEGIN[asked](config)
        if config.rope or config.max_positions is not None:
            model = with_rope(model, config.rope, config.max_positions)
        shutil.rmtree(made := out / UNCHECKED, ignore_errors=True)
        try:
            _write(config, model, made)
            check_saved(made, model, MADE[asked])
            s.bind()
            shutil.rmtree(out / "model", ignore_errors=True)  # of this very work, killed before its manifest
            made.rename(out / "model")
        finally:
            shutil.rmtree(made, ignore_errors=True)
        _finish(s, config, model, told)
    return out


def work(config: InitConfig) -> Work:
    """What says which model it is: weights and configs of the sources, what else is read, and what is made of them."""
    inputs: dict[str, Any] = {"model": model_hash(config.model)}
    if config.prune is not None and config.prune.corpus:
        inputs["rows"] = open_corpus(config.prune.corpus).content_hash
    if config.merge is not None:
        inputs["models"] = [model_hash(folder) for folder in config.merge.models]
    if config.vocab is not None and config.vocab.tokenizer:
        inputs["tokenizer"] = tokenizer_identity(config.vocab.tokenizer)
    return Work.of(KIND, config, NOT_WORK, inputs)


def validate(config: InitConfig) -> None:
    """Raise UserError unless exactly one thing is to be made, with what it needs."""
    check_seed(config.seed)
    check_start(config)
    if config.max_positions is not None and config.max_positions < 1:
        raise UserError(f"max_positions must be at least 1, not {config.max_positions}")


def sources_of(config: InitConfig) -> list[str]:
    """The models that are read."""
    return [config.model, *(config.merge.models if config.merge is not None else ())]


def estimate(config: InitConfig, known: Known) -> Cost:
    """No FLOPs but those of a calibration, which are not counted; the weights that are kept on the disk, and the model's shapes
    for the stages that begin with it."""
    if (source := known.model(config.model)) is None:
        return Cost(None, None, math.nan, False)
    memory = 4.0 * _num_parameters(source) * len(sources_of(config))
    if (kept := shapes_of(config, copy.deepcopy(source))) is None:
        return Cost(None, None, math.nan, False, memory=memory)
    return Cost(None, None, 4 * _num_parameters(kept), False, memory=memory, model=kept)


def _write(config: InitConfig, model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    other = config.vocab.tokenizer if config.vocab is not None else None
    source = model_folder(config.model) if other is None else tokenizer_folder(other)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _finish(s: Stage, config: InitConfig, model: Any, told: Mapping[str, Any]) -> None:
    bos = expected(config.model) if config.vocab is None else None
    sources = {model_hash(name): name for name in sources_of(config)}  # of the same weights one
    links = [link for name in sources.values() for link in lineage(name)]
    flops = [training_flops(name) for name in sources.values()]
    s.finish(
        sorted(str(p.relative_to(s.folder)) for p in (s.folder / "model").glob("*") if p.is_file()),
        source_hash=s.work.inputs["model"],
        made_by=asked_for(config),
        num_parameters=_num_parameters(model),
        source_flops=None if None in flops else sum(f for f in flops if f is not None),
        source_flops_of=sorted({hash for name in sources.values() for hash in trained_by(name)}),
        begun_from=list({link["model"]: link for link in links}.values()),
        **told,
        **({"bos_id": bos.id} if bos is not None and bos.trained else {}),
    )


def _num_parameters(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())
