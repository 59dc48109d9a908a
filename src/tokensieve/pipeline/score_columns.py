"""The columns that ``score`` writes: their names, what they hold, and how each is stored."""

from __future__ import annotations

import re
from typing import Any

from ..core.stats import STATISTICS
from ..data.columns import BOS_COLUMNS, LOSS_MASKS, OPTIONAL
from ..data.corpus import LATER_COLUMNS, ROW_COLUMNS
from ..runs.errors import UserError
from .configs.score import ScoreConfig

# Columns that need no word of what they hold, and what a column may hold.
COLUMNS = {"ref_nll": "nll", "ref_entropy": "entropy", "ref_rank": "target_rank"}
HOLDS = ("nll", "entropy", "target_rank", "divergence")
TOP_K = {"topk_ids": "int32", "topk_logp": "float32"}
LARGEST_TOP_K = 1024


def asked(config: ScoreConfig) -> dict[str, str]:
    """column -> what it holds, of those in ``columns``: nll, entropy or target_rank; of a file's: its column there."""
    if isinstance(config.columns, dict):
        return config.columns
    return {name: name if config.from_file else COLUMNS[name] for name in config.columns}


def columns_of(config: ScoreConfig) -> dict[str, str]:
    """column -> what it holds, of all that are written."""
    return {**asked(config), **({name: name for name in TOP_K} if config.top_k else {})}


def column_types(config: ScoreConfig) -> dict[str, Any]:
    """column -> how it is stored, of those that are not stored as ``dtype``: a rank has no place in float16."""
    ranks = {} if config.from_file else {n: "float32" for n, holds in asked(config).items() if holds == "target_rank"}
    lists = {name: [dtype, config.top_k] for name, dtype in TOP_K.items()} if config.top_k else {}
    return {name: t for name, t in {**ranks, **lists}.items() if t != config.dtype}


def bytes_of(config: ScoreConfig) -> int:
    """Bytes on the disk of each token."""
    other = column_types(config)
    each = [4 if config.dtype == "float32" or other.get(name) == "float32" else 2 for name in asked(config)]
    return sum(each) + 8 * config.top_k


def check_asked(config: ScoreConfig) -> None:
    """Raise UserError for columns that do not exist, or have a name that is taken or says something else."""
    if not config.columns:
        raise UserError("columns: name at least one of " + ", ".join(COLUMNS))
    if isinstance(config.columns, list):
        _check_list(config.columns, bool(config.from_file))
    _check_teacher(config)
    for name, holds in asked(config).items():
        _check_name(name, config)
        if config.from_file:
            continue
        if holds not in HOLDS:
            raise UserError(f"columns.{name}: one of {', '.join(HOLDS)} is needed, not {holds}")
        if COLUMNS.get(name, holds) != holds:
            raise UserError(f"columns.{name}: by its name it holds {COLUMNS[name]}, not {holds}")
        if config.context != "none" and name in COLUMNS:
            raise UserError(
                f"columns: {name!r} is the name of what stands there with all of its context; with less of it give a name of "
                "your own, as {short_nll: nll}"
            )


def _check_teacher(config: ScoreConfig) -> None:
    """A divergence needs a teacher, a teacher a divergence."""
    wanted = not config.from_file and "divergence" in asked(config).values()
    if wanted and not config.teacher:
        raise UserError("columns: a divergence is from a teacher: name its folder in the field teacher")
    if config.teacher and not wanted:
        raise UserError("teacher: no column holds its divergence: columns {ref_divergence: divergence}")
    if config.teacher and config.context != "none":
        raise UserError("context: a divergence goes with all of a token's context")
    if config.teacher_top_k < 1:
        raise UserError(f"teacher_top_k must be at least 1, not {config.teacher_top_k}")


def _check_list(columns: list[str], of_file: bool) -> None:
    if not of_file and (unknown := [c for c in columns if c not in COLUMNS]):
        raise UserError(
            f"columns: unknown column {unknown[0]!r}, one of {', '.join(COLUMNS)}; a name of your own says what it holds, "
            f"as {{{unknown[0]}: nll}}"
        )
    if len(set(columns)) < len(columns):
        raise UserError("columns: one is named twice")


def _check_name(name: str, config: ScoreConfig) -> None:
    taken = {*ROW_COLUMNS, *LATER_COLUMNS, *OPTIONAL, *BOS_COLUMNS, *LOSS_MASKS, *TOP_K, "targets", "valid"}
    taken |= {name for name, s in STATISTICS.items() if s.origin != "column"}
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise UserError(f"columns: {name!r} is no name for a column: letters, digits and '_' only")
    if name in taken:
        raise UserError(f"columns: {name!r} is the name of something else, choose another")


def check_origin(config: ScoreConfig) -> None:
    """Raise UserError unless numbers come from a model or from a file, with what belongs to that."""
    if bool(config.model) == bool(config.from_file):
        what = "not both" if config.model else "neither is given"
        raise UserError(f"model: a reference model, or from_file: a file of numbers, is needed, {what}")
    if config.from_file and (config.top_k or config.context != "none"):
        name = "top_k" if config.top_k else "context"
        raise UserError(f"{name}: a file's numbers are there already: {name} goes with a model")
    if not 0 <= config.top_k <= LARGEST_TOP_K:
        raise UserError(f"top_k is {config.top_k}, it must be between 0 and {LARGEST_TOP_K}")
