"""TRL: its own preparation and collator, then the shift of transformers' loss."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

from datasets import load_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

folder = Path(sys.argv[1])
rows = load_dataset(
    "parquet", data_files=str(folder / "train-*.parquet"), split="train", cache_dir=str(folder.parent / "cache")
)
collate = DataCollatorForLanguageModeling(pad_token_id=0)
terms = []
for row in rows:
    batch = collate([row])
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0, 1:].tolist()
    terms.append([[i, label, 1.0] for i, label in zip(ids, labels, strict=False) if label != -100])
print(json.dumps({"version": f"trl {version('trl')}", "terms": terms}))
