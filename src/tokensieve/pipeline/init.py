"""``tokensieve init``: a model to begin with, out of another one. Its first blocks, as they are (modeling/cut.py)."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

from ..data.bos import expected
from ..modeling.cut import check_saved, cut_folder, first_blocks, num_blocks
from ..modeling.folder import model_folder, model_hash, read_config
from ..modeling.load import quiet_loading
from ..modeling.rope import with_rope
from ..runs.errors import UserError
from ..runs.stage import Stage, stage
from ..runs.work import Work
from .configs.init import KIND, NOT_WORK, InitConfig
from .lineage import lineage
from .recipe.cost import Cost, Known
from .score import training_flops

# What tokenises, of every layout that a folder may have: copied byte for byte.
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "chat_template.jinja", "chat_template.json"),
)

UNCHECKED = "unchecked"  # model/ is never one that was not read again


def run(config: InitConfig) -> Path:
    """Write the model, read it again, and hold it against the one that was cut."""
    validate(config)
    out = Path(config.out)
    with stage(out, work(config)) as s:
        if s.done:
            return out
        quiet_loading()
        model = cut_folder(config.model, config.layers)
        if config.rope or config.max_positions is not None:
            model = with_rope(model, config.rope, config.max_positions)
        shutil.rmtree(made := out / UNCHECKED, ignore_errors=True)
        try:
            _write(config, model, made)
            check_saved(made, model)
            s.bind()
            shutil.rmtree(out / "model", ignore_errors=True)  # of this very work, killed before its manifest
            made.rename(out / "model")
        finally:
            shutil.rmtree(made, ignore_errors=True)
        _finish(s, config, model)
    return out


def work(config: InitConfig) -> Work:
    """What says which model it is: the source's weights and config, and what is kept of it."""
    return Work.of(KIND, config, NOT_WORK, {"model": model_hash(config.model)})


def validate(config: InitConfig) -> None:
    if config.layers < 1:
        raise UserError(f"layers must be at least 1, not {config.layers}")
    if config.max_positions is not None and config.max_positions < 1:
        raise UserError(f"max_positions must be at least 1, not {config.max_positions}")


def estimate(config: InitConfig, known: Known) -> Cost:
    """No FLOPs; the weights that are kept on the disk, and the model's shapes for the stages that begin with it."""
    if (source := known.model(config.model)) is None:
        return Cost(None, None, math.nan, False)
    memory = 4 * _num_parameters(source)
    kept = first_blocks(source, config.layers)
    return Cost(None, None, 4 * _num_parameters(kept), False, memory=memory, model=kept)


def _write(config: InitConfig, model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    source = model_folder(config.model)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _finish(s: Stage, config: InitConfig, model: Any) -> None:
    read = read_config(config.model)
    known = expected(config.model)
    s.finish(
        sorted(str(p.relative_to(s.folder)) for p in (s.folder / "model").glob("*") if p.is_file()),
        source_hash=s.work.inputs["model"],
        source_blocks=num_blocks(read.get_text_config(), read.model_type),
        kept_blocks=list(range(config.layers)),
        num_parameters=_num_parameters(model),
        source_flops=training_flops(config.model),
        begun_from=lineage(config.model),
        **({"bos_id": known.id} if known is not None and known.trained else {}),
    )


def _num_parameters(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())
