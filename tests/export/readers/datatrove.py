"""datatrove: DatatroveFileDataset over each file, its positions, and the bytes of .ds.loss."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from datatrove.utils.dataset import DatatroveFileDataset

folder, length = Path(sys.argv[1]), int(sys.argv[2])
terms = []
for path in sorted(folder.glob("*.ds")):
    data = DatatroveFileDataset(str(path), seq_len=length - 1, token_size=2, return_positions=True)
    keep = np.fromfile(f"{path}.loss", bool).reshape(-1, length)
    assert len(data) == len(keep)
    for i in range(len(data)):
        item = data[i]
        assert item["positions"].min() == 0
        tokens, loss = item["input_ids"].tolist(), keep[i].tolist()
        terms.append([[tokens[t], tokens[t + 1], 1.0] for t in range(length - 1) if loss[t + 1]])
print(json.dumps({"version": f"datatrove {version('datatrove')}", "terms": [t for t in terms if t]}))
