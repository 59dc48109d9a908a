"""JSON lines for ms-swift: a message whose content are token ids, each with a ``loss_scale``.

    {"messages": [{"role": "user", "content": ""},
                  {"role": "assistant", "content": {"token_ids": [5, 9, 7], "loss_scale": [0.0, 1.0, 0.5]}}], "add_eos": false}

ms-swift makes ``labels`` of the ids where ``loss_scale`` is above 0 and -100 elsewhere, and shifts both together:
``loss = sum(nll * torch.roll(loss_scale, -1)) / labels``. A weight below 0 would be no label, and is refused. Its
``cached_dataset`` is no way in: since 4.0 it holds messages and their lengths, and no ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from ..runs.files import atomic_file
from .layout import Shape
from .selection import RowBlock


def write_swift(folder: Path, blocks: Iterator[RowBlock], shape: Shape) -> list[str]:
    """``train-00000.jsonl`` ..., a file a shard of the corpus: names of the files written."""
    names = []
    for shard, part in groupby(blocks, key=lambda block: block.shard):
        names.append(f"train-{shard:05d}.jsonl")
        with atomic_file(folder / names[-1], "w") as f:
            for block in part:
                for ids_T, weight_T in block.samples():
                    content = {"token_ids": ids_T.tolist(), "loss_scale": weight_T.tolist()}
                    said = [{"role": "user", "content": ""}, {"role": "assistant", "content": content}]
                    f.write(json.dumps({"messages": said, "add_eos": False}, separators=(",", ":")) + "\n")
    return names
