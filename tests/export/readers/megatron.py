"""Megatron-core: IndexedDataset of tokens, weights and labels; windows of seq_length + 1 as GPTDataset cuts them."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from megatron.core.datasets.indexed_dataset import IndexedDataset

folder, length = Path(sys.argv[1]), int(sys.argv[2])
parts = {name: IndexedDataset(str(folder / name)) for name in ("tokens", "weight", "labels")}
assert len({len(p) for p in parts.values()}) == 1
assert all(p.document_indices.tolist() == list(range(len(p) + 1)) for p in parts.values())
flat = {name: np.concatenate([part[i] for i in range(len(part))]) for name, part in parts.items()}
terms = []
for begin in range(0, len(flat["tokens"]), length):
    text, weight, known = (flat[name][begin : begin + length + 1] for name in ("tokens", "weight", "labels"))
    context, target, mask = text[:-1], text[1:].astype(np.int64), weight[1:]
    assert (np.where(mask != 0, target, -100) == known[1:]).all()
    terms.append([[int(a), int(b), float(w)] for a, b, w in zip(context, target, mask, strict=True) if w])
print(json.dumps({"version": f"megatron-core {version('megatron-core')}", "terms": [t for t in terms if t]}))
