"""axolotl: its wrapper of a data set without a type, then its own collator and the shift of transformers' loss."""

import json
import sys
from importlib.metadata import version

from axolotl.utils.collators import DataCollatorForSeq2Seq
from axolotl.utils.data.wrappers import get_dataset_wrapper
from axolotl.utils.dict import DictDefault
from datasets import load_dataset
from transformers import PreTrainedTokenizerFast

tokenizer = PreTrainedTokenizerFast(tokenizer_file=sys.argv[3], pad_token="<|endoftext|>")
rows = load_dataset(
    "parquet", data_files=f"{sys.argv[1]}/train-*.parquet", split="train", cache_dir=f"{sys.argv[1]}-cache"
)
told = DictDefault({"type": None, "ds_type": "parquet"})
rows, _ = get_dataset_wrapper(told, tokenizer, DictDefault({}), None, rows)
collate = DataCollatorForSeq2Seq(tokenizer)
terms = []
for row in rows:
    batch = collate([dict(row)])
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0, 1:].tolist()
    terms.append([[i, label, 1.0] for i, label in zip(ids, labels, strict=False) if label != -100])
print(json.dumps({"version": f"axolotl {version('axolotl')}", "terms": terms}))
