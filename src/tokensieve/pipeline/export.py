"""``tokensieve export``: a corpus with a static selection, in the files of another trainer."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from ..core import Objective
from ..core.stats import score_columns
from ..data.corpus import Corpus, open_corpus
from ..data.rows import check_targets
from ..data.scored import join_scores
from ..export import FORMATS
from ..export.layout import Format, Shape
from ..export.selection import RowBlock, StaticSelection, check_stands
from ..runs.errors import UserError
from ..runs.files import atomic_file
from ..runs.manifest import read_manifest
from ..runs.stage import Stage, stage
from ..runs.work import Work
from . import corpus_scope
from .configs.export import KIND, NOT_WORK, ExportConfig
from .objectives import check_sources, objective_of
from .recipe.cost import Cost, Known

USE = "USE.md"
UNFINISHED = "unfinished"  # what is refused or killed on its way leaves nothing that looks like an export


def run(config: ExportConfig) -> Path:
    """Write the files, and ``USE.md`` with what their reader's user writes."""
    validate(config)
    out, corpus, to = Path(config.out), open_corpus(config.corpus, verify=config.verify), FORMATS[config.to]
    with stage(out, _work(config, corpus)) as s:
        if s.done:
            return out
        selection = _selection(config, corpus)
        check_holds(to, selection.objective, config.to)
        corpus_scope.find(config, corpus, selection)
        selection.check_steps()
        counted = Counted(selection.blocks([shard["rows"] for shard in corpus.manifest["shards"]]), to, config.to)
        shutil.rmtree(made := out / UNFINISHED, ignore_errors=True)
        try:
            names = _write(to, made, out, counted, shape_of(corpus))
            if not counted.trained:
                raise UserError(f"{config.corpus}: no token is trained on, there is nothing to export")
            s.bind()
            for name in names:
                (out / name).parent.mkdir(exist_ok=True)
                os.replace(made / name, out / name)
        finally:
            shutil.rmtree(made, ignore_errors=True)
        _finish(s, config, corpus, selection, counted, names)
    return out


def _write(to: Format, made: Path, out: Path, counted: Counted, shape: Shape) -> list[str]:
    """Write into ``made`` what will be in ``out``: names of the files."""
    made.mkdir()
    names = to.write(made, iter(counted), shape)
    with atomic_file(made / USE, "w") as f:
        f.write(usage_of(to, out, shape))
    return [*names, USE]


def work(config: ExportConfig) -> Work:
    """What says which export it is: the rows, the scores by their fingerprints, the rule and the format."""
    return _work(config, open_corpus(config.corpus))


def _work(config: ExportConfig, corpus: Corpus) -> Work:
    scores = [read_manifest(folder, "scores")["fingerprint"] for folder in config.scores]
    return Work.of(KIND, config, NOT_WORK, {**corpus.identity, "scores": scores})


def validate(config: ExportConfig) -> None:
    """Raise UserError for an objective that does not exist, does not stand before training, or needs scores not named."""
    made = _objective(config)
    if config.at_step is not None and config.at_step < 0:
        raise UserError("at_step must be at least 0")
    check_stands(made, config.student, config.at_step)
    needs = [n for n in score_columns(made.needs | set(config.student.values())) if n != "weight"]
    if needs and not config.scores:
        raise UserError(f"scores: the objective needs the column {needs[0]!r}: name a folder that `score` wrote")
    check_holds(FORMATS[config.to], made, config.to)


def estimate(config: ExportConfig, known: Known) -> Cost:
    """No FLOPs; the files on the disk."""
    tokens, _ = known.tokens(config.corpus)
    return Cost(tokens, None, tokens * FORMATS[config.to].bytes_each, False)


def check_holds(to: Format, objective: Objective, name: str) -> None:
    """Refuse a denominator that a format's reader has not. Weights are looked at as they come."""
    if objective.denominator == "valid" and not to.all_targets:
        by = to.divides or "what its user writes"
        raise UserError(
            f"to: a trainer of {name} divides by {by}, and {objective.name!r} by that of all targets: "
            "give the objective denominator: nonzero, or take mds, whose reader divides as it likes"
        )


def other_denominator(to: Format, objective: Objective, counted: Counted, name: str) -> str | None:
    """A sentence where the reader divides a step by something else than the objective does, with what that comes to; or None.

    Weights of 0 and 1 are the same sum by every name but ``valid``, which :func:`check_holds` refuses.
    """
    sums = {"weight": counted.weight, "nonzero": counted.trained, "abs": counted.absolute}
    theirs = counted.weight if to.divides == "the sum of the weights" else counted.trained
    mine = sums.get(objective.denominator)
    if not to.divides or mine is None or math.isclose(mine, theirs, rel_tol=1e-6):
        return None
    what = {"weight": "the sum of the weights", "nonzero": "their number", "abs": "the sum of their absolute values"}
    return (
        f"{objective.name!r} divides a step by {what[objective.denominator]} ({mine:.6g} over the corpus), and a trainer of "
        f"{name} by {to.divides} ({theirs:.6g}): its loss and gradients are {mine / theirs:.4g} times those of tokensieve "
        "train on average, so that it needs another learning rate for the same updates"
    )


def _objective(config: ExportConfig) -> Objective:
    return objective_of(config.objective, config.allow_code)


def _selection(config: ExportConfig, corpus: Corpus) -> StaticSelection:
    objective = _objective(config)
    check_sources(config.objective, corpus.sources)
    dataset = join_scores(corpus, *config.scores, verify=config.verify)
    check_targets(dataset, config.corpus)
    found = corpus_scope.found_before(config, corpus, objective)
    return StaticSelection(
        objective, dataset, corpus.sources, student=config.student, step=config.at_step, thresholds=found
    )


def shape_of(corpus: Corpus) -> Shape:
    return Shape(
        corpus.num_rows, corpus.length, corpus.vocab_size, corpus.eos_id, corpus.pad_id, corpus.isolate_documents
    )


def usage_of(to: Format, folder: Path, shape: Shape) -> str:
    """What a user of the format's reader writes, for this folder."""
    told: dict[str, Any] = {
        "folder": folder,
        "length": shape.length,
        "seq_len": shape.length - 1,
        "longer": shape.length + 1,
        "dtype": np.dtype(shape.token_dtype).name,
        "token_size": np.dtype(shape.token_dtype).itemsize,
        "vocab_size": shape.vocab_size,
        "eos_id": shape.eos_id,
        "pad_id": shape.pad_id,
        "mask": "--reset-attention-mask --reset-position-ids"
        if shape.isolated
        else "--no-create-attention-mask-in-dataloader",
        "apart": ", generate_doc_lengths=True" if shape.isolated else "",
    }
    return Template(to.use).substitute(told)


class Counted:
    """Blocks as they pass, checked and counted: tokens, targets that are trained, what they weigh, samples."""

    def __init__(self, blocks: Iterator[RowBlock], to: Format, name: str) -> None:
        self._blocks, self._to, self._name = blocks, to, name
        self.rows = self.samples = self.tokens = self.trained = 0
        self.weight = self.absolute = 0.0

    def __iter__(self) -> Iterator[RowBlock]:
        for block in self._blocks:
            self._check(block)
            self.samples += sum(1 for _ in block.samples())
            self.tokens += int(block.num_tokens_B.sum())
            self.trained += int((block.weight_BT != 0).sum())
            self.weight += float(block.weight_BT.sum(dtype=np.float64))
            self.absolute += float(np.abs(block.weight_BT).sum(dtype=np.float64))
            yield block
            self.rows += len(block.ids_BT)

    def _check(self, block: RowBlock) -> None:
        holds, others, wrong_BT = "weights from 0 on", "mds", block.weight_BT < 0
        if self._to.holds == "selection":
            wrong_BT = (block.weight_BT != 0) & (block.weight_BT != 1)
            holds = "which tokens are trained and no more"
            others = "mds" if wrong_BT[block.weight_BT < 0].any() else "swift, megatron, mds"
        if wrong_BT.any() and not (self._to.holds == "weights" and self._to.signed):
            row, at = (int(i[0]) for i in np.nonzero(wrong_BT))
            raise UserError(
                f"to: {self._name} says {holds}, but the token at position {at} of row {self.rows + row} weighs "
                f"{block.weight_BT[row, at]:g}: take {others}"
            )


def _finish(
    s: Stage, config: ExportConfig, corpus: Corpus, selection: StaticSelection, counted: Counted, names: list[str]
) -> None:
    summary = {
        "rows": counted.rows,
        "samples": counted.samples,
        "tokens": counted.tokens,
        "tokens_trained": counted.trained,
        "weight": counted.weight,
        "absolute_weight": counted.absolute,
    }
    note = other_denominator(FORMATS[config.to], selection.objective, counted, config.to)
    if note:
        print(f"tokensieve: {config.out}: {note}", file=sys.stderr, flush=True)
    s.finish(
        names,
        to=config.to,
        holds=FORMATS[config.to].holds,
        denominator=selection.objective.denominator,
        denominator_note=note,
        length=corpus.length,
        isolate_documents=corpus.isolate_documents,
        corpus_hash=corpus.content_hash,
        tokenizer_hash=corpus.tokenizer_hash,
        exported=summary,
        **corpus_scope.in_manifest(selection.objective, selection.thresholds),
    )
