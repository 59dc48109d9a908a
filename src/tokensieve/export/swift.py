"""JSON lines for ms-swift: a message whose content are token ids, each with a ``loss_scale``.

    {"messages": [{"role": "user", "content": ""},
                  {"role": "assistant", "content": {"token_ids": [5, 9, 7], "loss_scale": [0.0, 1.0, 0.5]}}], "add_eos": false}

ms-swift makes ``labels`` of the ids where ``loss_scale`` is above 0 and -100 elsewhere, and shifts both together:
``loss = sum(nll * torch.roll(loss_scale, -1)) / labels``. A weight below 0 would be no label, and is refused. Its
``cached_dataset`` is no way in: since 4.0 it holds messages and their lengths, and no ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .jsonl import SampleIds, SampleWeights, write_lines
from .layout import Shape
from .selection import RowBlock


def write_swift(folder: Path, blocks: Iterator[RowBlock], shape: Shape) -> list[str]:
    """``train-00000.jsonl`` ..., a file a shard of the corpus: names of the files written."""
    return write_lines(folder, blocks, _messages)


def _messages(ids_T: SampleIds, weight_T: SampleWeights) -> dict[str, Any]:
    content = {"token_ids": ids_T.tolist(), "loss_scale": weight_T.tolist()}
    said = [{"role": "user", "content": ""}, {"role": "assistant", "content": content}]
    return {"messages": said, "add_eos": False}
