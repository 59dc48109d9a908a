"""``tokensieve show``: logged rows of a run as running text, kept and dropped tokens coloured."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runs import UserError, read_manifest


@dataclass(frozen=True)
class ShowConfig:
    """Show which tokens a run kept, in the rows that it logged token by token (token_log_every)."""

    run: str
    """A folder that `train` wrote."""
    corpus: str
    """The corpus it was trained on."""
    step: int | None = None
    """The step to look at; the last one that was logged if not given."""
    row: int | None = None
    """The corpus row; all logged rows of that step if not given."""
    lines: int = 30
    """Lines of text at most."""
    width: int = 0
    """Columns; 0 for the terminal's."""
    color: bool | None = None
    """Colours or [brackets]; colours if this is a terminal and NO_COLOR is not set."""


def run(config: ShowConfig) -> str:
    """The text to print."""
    from ..data.corpus import open_corpus
    from ..report.terminal import colour_tokens, token_pieces

    if config.lines < 3 or config.width < 0:
        raise UserError("lines must be at least 3, and width at least 0")
    manifest, corpus = read_manifest(config.run, "model"), open_corpus(config.corpus, verify="size")
    if manifest["corpus_hash"] != corpus.content_hash:
        raise UserError(f"{config.run} was trained on another corpus than {config.corpus}")
    logged, step = _logged(config)
    rows = sorted(set(logged["row"].tolist())) if config.row is None else [config.row]
    color = sys.stdout.isatty() and "NO_COLOR" not in os.environ if config.color is None else config.color
    width = config.width or min(120, shutil.get_terminal_size((100, 24)).columns)
    tokenizer, shown, left = corpus.tokenizer(), [], config.lines
    for row in rows:
        here = logged["row"] == row
        if not here.any():
            there = ", ".join(map(str, sorted(set(logged["row"].tolist()))))
            raise UserError(f"row {row} was not logged at step {step}; logged rows: {there}")
        if left <= 2:
            break
        ids = list(corpus.rows[int(row)]["input_ids"])
        keep, valid = [False] * len(ids), [False] * len(ids)
        for position, kept in zip(logged["position"][here], logged["keep"][here], strict=True):
            keep[position], valid[position] = bool(kept), True
        text = colour_tokens(token_pieces(tokenizer, ids), keep, valid, width=width, lines=left - 1, color=color)
        shown.append(f"row {row}, step {step}: {text}")
        left -= text.count("\n") + 2
    return "\n\n".join(shown)


def _logged(config: ShowConfig) -> tuple[dict[str, Any], int]:
    """(column -> array, step) of the rows logged at the step wanted."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = {int(p.stem.split("-")[1]): p for p in (Path(config.run) / "tokens").glob("step-*.parquet")}
    if not files:
        raise UserError(f"{config.run} logged no rows token by token: train with token_log_every")
    step = max(files) if config.step is None else config.step
    if step not in files:
        raise UserError(f"step {step} was not logged; logged steps: {', '.join(map(str, sorted(files)))}")
    try:
        columns = pq.read_table(files[step], columns=["row", "position", "keep"]).to_pydict()
    except (pa.ArrowException, OSError) as e:
        raise UserError(f"{files[step]} cannot be read: {' '.join(str(e).split())}") from None
    return {k: np.asarray(v) for k, v in columns.items()}, step
