"""What ``tokensieve evaluate`` is told: models x evaluation sets -> nll per token, or models x tasks -> right answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ...evaluation.measures.options import (
    ContaminationOptions,
    ProbeOptions,
    QuantisationOptions,
    SignalOptions,
    SurprisalOptions,
)

KIND = "evaluation"
# Folders and files that measures read count by what is in them.
NOT_WORK = (
    *("out", "baselines", "batch_rows", "device", "verify", "data", "surprisal.words", "signal.of"),
    *("contamination.seen.path", "contamination.unseen.path"),
)
TASKS_KIND = "tasks"
MEASURES_KIND = "measures"
TASKS_ONLY = ("data", "shots", "num_shots", "max_tokens", "limit", "programs")


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure models: nats per token and bits per byte on evaluation sets, answers to few-shot tasks, or further measures."""

    out: str
    """Folder to write: evaluation.json, documents.parquet, table.txt; of tasks: tasks.json, table.txt, answers-*.jsonl."""
    models: dict[str, str]
    """name -> Hugging Face folder or a folder that `train` wrote."""
    sets: dict[str, str] = field(default_factory=dict)
    """name -> a folder that `prepare` wrote."""
    checkpoints: bool = False
    """Also every checkpoint of the runs among the models."""
    average: int = 1
    """Of the runs among the models: the mean of the weights of the last so many checkpoints, in place of the last one."""
    baselines: list[str] = field(default_factory=list)
    """Corpora to count a unigram and a trigram model on: an undertrained model must not look like a result."""
    batch_rows: int = 0
    """Rows of one forward; 0 for about 8192 tokens."""
    device: str | None = None
    """cpu, cuda or cuda:0; the GPU where there is one."""
    verify: Literal["full", "size"] = "full"
    """full: the bytes of what is read are hashed, once a machine, and remembered by size and times; size: sizes only."""
    tasks: list[str] | str = field(default_factory=list)
    """In place of sets: paper-math (its nine), paper-general (its fifteen), or some of them by name; docs/tasks.md."""
    data: str | None = None
    """Folder with the tasks' files, gsm8k.jsonl and so on; what is not there is listed, and left out."""
    shots: Literal["ours", "first"] = "ours"
    """Worked examples: ours come with this package; first: the first rows of the task's own file, which are not asked then."""
    num_shots: int | None = None
    """Worked examples before each question; none: as many as the paper's harness has, 8 or 4."""
    max_tokens: int | None = None
    """Most tokens of an answer; none: 512, and 1024 of MATH."""
    limit: int | None = None
    """Only the first so many problems of each task."""
    programs: bool = False
    """Answers are programs (tool-integrated): each is run by itself, without network, files or much time or memory."""
    measures: list[str] | str = field(default_factory=list)
    """Instead: surprisal, probes, quantisation, contamination, signal, or some of them; docs/measures.md."""
    surprisal: SurprisalOptions = field(default_factory=SurprisalOptions)
    """Of the measure surprisal:"""
    probes: ProbeOptions = field(default_factory=ProbeOptions)
    """Of probes:"""
    quantisation: QuantisationOptions = field(default_factory=QuantisationOptions)
    """Of quantisation:"""
    contamination: ContaminationOptions = field(default_factory=ContaminationOptions)
    """Of contamination:"""
    signal: SignalOptions = field(default_factory=SignalOptions)
    """Of signal:"""
