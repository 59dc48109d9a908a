"""LLaMA-Factory: get_dataset over tokenized_path, then the collator of its SFT stage and the shift of transformers' loss."""

import json
import os
import sys
import types
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from types import SimpleNamespace

sound = types.ModuleType(
    "torchaudio"
)  # imported at the top, for sound, which no row here has; its builds follow torch's
sound.__spec__ = ModuleSpec("torchaudio", None)
sys.modules["torchaudio"] = sound
os.environ["DISABLE_VERSION_CHECK"] = "1"  # it names the versions of transformers that it was tried with

from llamafactory.data import TEMPLATES, SFTDataCollatorWith4DAttentionMask, get_dataset  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402

tokenizer = PreTrainedTokenizerFast(tokenizer_file=sys.argv[3], pad_token="<|endoftext|>")
told = SimpleNamespace(tokenized_path=sys.argv[1], streaming=False)
rows = get_dataset(TEMPLATES["empty"], SimpleNamespace(), told, SimpleNamespace(), "sft", tokenizer)["train_dataset"]
collate = SFTDataCollatorWith4DAttentionMask(tokenizer=tokenizer, template=TEMPLATES["empty"])
terms = []
for row in rows:
    batch = collate([dict(row)])
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0, 1:].tolist()
    terms.append([[i, label, 1.0] for i, label in zip(ids, labels, strict=False) if label != -100])
print(json.dumps({"version": f"llamafactory {version('llamafactory')}", "terms": terms}))
