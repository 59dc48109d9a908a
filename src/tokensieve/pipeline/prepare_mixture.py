"""How many rows of each source and of each earlier corpus ``prepare`` takes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from ..data.build.assemble import Part
from ..data.build.earlier import Earlier
from ..data.build.mixture import Pool, allot, check_enough, mixture_told, replayed, replayed_of, shares_of
from ..data.build.units import Setup
from ..data.read.source import Source
from ..data.replay import ReplaySource
from ..runs.errors import UserError
from .configs.prepare import PrepareConfig

MAX_EPOCHS = 1000


def check_shares(config: PrepareConfig) -> None:
    """Raise UserError for weights, a temperature, epochs or shares that cannot be, or that need another setting."""
    weights = [s.weight for s in config.sources]
    if any(w is not None for w in weights):
        if None in weights:
            raise UserError("either all sources have a weight or none has")
        if config.max_rows is None:
            raise UserError("source weights need max_rows: they share out its rows")
        if not any(weights):
            raise UserError("at least one source needs a weight above 0")
    for i, source in enumerate(config.sources):
        if not 0 < source.epochs <= MAX_EPOCHS:
            raise UserError(f"sources.{i}: epochs must be above 0 and at most {MAX_EPOCHS}, not {source.epochs}")
    if config.temperature is not None:
        if not 0 < config.temperature < math.inf:
            raise UserError(f"temperature must be a number above 0, not {config.temperature}")
        if config.max_rows is None:
            raise UserError("temperature needs max_rows: it shares out its rows")
        if any(w is not None for w in weights):
            raise UserError("temperature and source weights both say what shares are: give one of them")
    for i, replay in enumerate(config.replay):
        if not 0 < replay.share < 1 or not 0 < replay.epochs <= MAX_EPOCHS:
            raise UserError(f"replay.{i}: share must lie between 0 and 1, and epochs above 0 and at most {MAX_EPOCHS}")
    if sum(r.share for r in config.replay) >= 1:
        raise UserError("replay: the shares come to 1 or more: nothing new would be left")
    if config.replay and config.tokenizer is None:
        raise UserError("replay needs tokenizer: the earlier corpus's, as tokenizer: FOLDER of that corpus")


def earlier_corpus(config: PrepareConfig, replay: ReplaySource, setup: Setup, tokenizer: str) -> Earlier:
    """An earlier corpus whose rows fit; UserError that names what differs."""
    found = Earlier.of(replay)
    theirs, ours = found.corpus, setup.encoder
    pairs: dict[str, tuple[Any, Any]] = {
        "tokenizer": (theirs.tokenizer_hash, tokenizer),
        "length": (theirs.length, config.length),
        "isolate_documents": (theirs.isolate_documents, config.isolate_documents),
        "BOS": (theirs.bos_id, ours.bos_id),
        "padding": (theirs.pad_id, setup.pad_id),
    }
    for what, (there, here) in pairs.items():
        if there != here:
            numbers = "" if what == "tokenizer" else f" ({there}, not {here})"
            raise UserError(
                f"replay: {replay.corpus} has another {what} than this corpus{numbers}: its rows do not fit"
            )
    return found


def mixed_rows(
    config: PrepareConfig, sources: list[Source], parts: list[Part], earlier: list[Earlier]
) -> tuple[list[int], list[Earlier], list[dict[str, Any]]]:
    """(rows of each source, the earlier corpora with the rows taken of each, what the manifest says of it: nothing where
    sources were simply taken)."""
    available = [sum(p.counts.rows for p in parts if p.source_index == s) for s in range(len(sources))]
    if not sum(available):
        left_out = sum(sum(p.counts.skipped.values()) + p.counts.num_bad_rows for p in parts)
        raise UserError(
            f"no document found in {', '.join(s.label for s in sources)} ({left_out} left out as empty, short, bad or "
            "of another source; split, only and max_bytes may leave none)"
        )
    pools = [Pool(s.label, n, s.config.epochs) for s, n in zip(sources, available, strict=True)]
    shares, old = shares_of(pools, [s.config.weight for s in sources], config.temperature), [e.pool for e in earlier]
    taken = replayed_of(config.replay, config.max_rows) if earlier and config.max_rows is not None else []
    rows = allot(pools, shares, None if config.max_rows is None else config.max_rows - sum(taken))
    if (
        earlier and sum(rows) + sum(taken) != config.max_rows
    ):  # all of the new rows are taken: they say how many old ones
        taken = replayed(config.replay, old, sum(rows))
    check_enough(config.replay, old, taken, sum(rows) + sum(taken))
    earlier = [replace(e, taken=n) for e, n in zip(earlier, taken, strict=True)]
    if shares is None and not earlier and all(p.epochs == 1 for p in pools):
        return rows, earlier, []
    total = sum(rows) + sum(taken)
    told = mixture_told(
        [s.config.name or s.name for s in sources],
        pools,
        None if shares is None else [s * (1 - sum(r.share for r in config.replay)) for s in shares],
        rows,
        total,
    )
    labels = [f"replay of {e.corpus.folder.name}" for e in earlier]
    return rows, earlier, told + mixture_told(labels, old, [r.share for r in config.replay], taken, total)
