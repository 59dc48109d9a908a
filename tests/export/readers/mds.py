"""MosaicML streaming: StreamingDataset over the folder."""

import json
import sys
from importlib.metadata import version

from streaming import StreamingDataset

data = StreamingDataset(local=sys.argv[1], shuffle=False, batch_size=1)
terms = []
for i in range(len(data)):
    ids, labels, weight = (data[i][name].tolist() for name in ("input_ids", "labels", "weight"))
    terms.append([[ids[t], labels[t + 1], weight[t + 1]] for t in range(len(ids) - 1) if labels[t + 1] != -100])
print(json.dumps({"version": f"mosaicml-streaming {version('mosaicml-streaming')}", "terms": terms}))
