"""Test items that were in the training text n times: what they gained, and the most of it that can be left.

    gap    mean nll of unseen items - mean nll of items seen n times; an item's nll is its mean over its tokens, nats
    bound  product of (1 - learning rate * weight decay) over the steps since: what weight decay alone leaves of an update

"How Much Can We Forget about Data Contamination?", arXiv 2410.03249, section 5: AdamW multiplies every earlier update by the
factor (1 - lr * wd) of each later step, so their product bounds what is left of it; the paper finds that forgetting is faster.
It measures gaps of accuracy in multiple choice, and of the loss, which is what stands here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...data.read.readers import sampled_documents
from ...data.read.source import SourceConfig
from ...data.read.sources import resolve
from ...runs.errors import UserError
from ...runs.files import read_json
from .options import ContaminationOptions
from .subject import MeasureRecord, ModelFigures, Subject, mean_record, record

_UNIT_BYTES = 16 << 20


def contamination(subject: Subject, options: ContaminationOptions) -> ModelFigures:
    """``nll`` and ``gap`` by times seen, ``bound`` of the run. UserError for an item on both sides, or a side without one."""
    times = counted(options)
    texts = list(times)
    ids = subject.encoder.encode(texts)
    longest = (subject.longest or 1 << 20) - 1
    nll = subject.nll([[subject.start, *i[:longest].tolist()] for i in ids])
    of = np.array([x[1:].mean() for x in nll])
    seen = np.array([times[t] for t in texts])
    unseen = of[seen == 0]
    records: list[MeasureRecord] = [mean_record("nll", unseen, on="unseen", times=0)]
    for n in sorted({*seen.tolist()} - {0}):
        found = of[seen == n]
        on = "seen once" if n == 1 else f"seen {n} times"
        records.append(mean_record("nll", found, on=on, times=n))
        gap = float(unseen.mean() - found.mean())
        records.append(record("gap", gap, _error(unseen, found), n=len(found), on=on, times=n))
    if (left := bound(subject, options.until)) is not None:
        records.append(record("bound", left, on=f"since step {options.until}"))
    return ModelFigures(records)


def counted(options: ContaminationOptions) -> dict[str, int]:
    """text -> times seen, 0 of the unseen; in order of the text, so that batches do not follow the order of files."""
    seen, unseen = (Counter(_texts(sources)) for sources in (options.seen, options.unseen))
    for name, side in (("seen", seen), ("unseen", unseen)):
        if not side:
            raise UserError(f"contamination.{name}: there is no item: name the sources that hold them")
    if both := next((t for t in unseen if t in seen), None):
        raise UserError(f"contamination: an item is both seen and unseen: {both[:60]!r}")
    return dict(sorted({**dict(seen), **dict.fromkeys(unseen, 0)}.items()))


def _texts(sources: Sequence[SourceConfig]) -> list[str]:
    return [d.text for source in sources for d in sampled_documents(resolve(source), _UNIT_BYTES) if d.text]


def bound(subject: Subject, since: int) -> float | None:
    """What weight decay leaves at the model's step of an update at step ``since``: 1 before it. None where no run says.

    Learning rates between the steps that the run logged are interpolated.
    """
    step, folder = subject.target.step, Path(subject.target.folder)
    config = next((f for f in (folder, folder.parent) if (f / "train_config.json").is_file()), None)
    if step is None or config is None or not subject.rates:
        return None
    decay = float(read_json(config / "train_config.json")["training_arguments"]["weight_decay"])
    steps = np.arange(since + 1, step + 1)
    rates = np.interp(steps, sorted(subject.rates), [subject.rates[s] for s in sorted(subject.rates)])
    return float(np.prod(1 - rates * decay))


def _error(a: np.ndarray, b: np.ndarray) -> float | None:
    """Of a difference of two independent means."""
    if min(len(a), len(b)) < 2:
        return None
    return float((a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b)) ** 0.5)
