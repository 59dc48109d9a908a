"""MosaicML streaming: StreamingDataset over the folder."""

import json
import sys
import types
from importlib.machinery import ModuleSpec
from importlib.metadata import version

# Imported at the top, for images, which no sample here has. Its build must follow torch's: the newest one brought gigabytes
# of CUDA, and the one for this torch's version was built for another build of it ("operator torchvision::nms does not exist").
for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__spec__ = ModuleSpec(name, None)
sys.modules["torchvision.datasets"].VisionDataset = object
sys.modules["torchvision.transforms.functional"].to_tensor = None

from streaming import StreamingDataset  # noqa: E402

data = StreamingDataset(local=sys.argv[1], shuffle=False, batch_size=1)
terms = []
for i in range(len(data)):
    ids, labels, weight = (data[i][name].tolist() for name in ("input_ids", "labels", "weight"))
    terms.append([[ids[t], labels[t + 1], weight[t + 1]] for t in range(len(ids) - 1) if labels[t + 1] != -100])
print(json.dumps({"version": f"mosaicml-streaming {version('mosaicml-streaming')}", "terms": terms}))
