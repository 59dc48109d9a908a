"""OLMo-core: NumpyFSLDataset with its label masks, then get_labels."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from olmo_core.data import NumpyFSLDataset
from olmo_core.data.utils import get_labels

folder, length = Path(sys.argv[1]), int(sys.argv[2])
dataset = NumpyFSLDataset(
    *map(str, sorted(folder.glob("tokens-*.npy"))),
    label_mask_paths=list(map(str, sorted(folder.glob("label_mask-*.npy")))),
    sequence_length=length,
    pad_token_id=0,
    eos_token_id=0,
    vocab_size=300,
    dtype=np.uint16,
)
dataset.prepare()
terms = []
for i in range(len(dataset)):
    item = dataset[i]
    batch = {name: item[name][None] for name in ("input_ids", "label_mask")}
    ids, labels = batch["input_ids"][0].tolist(), get_labels(batch)[0].tolist()
    terms.append([[a, b, 1.0] for a, b in zip(ids, labels, strict=True) if b != -100])
print(json.dumps({"version": f"ai2-olmo-core {version('ai2-olmo-core')}", "terms": [t for t in terms if t]}))
