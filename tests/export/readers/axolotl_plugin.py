"""axolotl: examples/axolotl_plugin.py in the trainer that its builder makes: a step of it, and its rows as trained."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from axolotl.core.builders import HFCausalTrainerBuilder
from axolotl.integrations.base import PluginManager
from axolotl.utils.dict import DictDefault
from datasets import load_dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainingArguments

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "examples")]

import tokensieve as ts  # noqa: E402
from tokensieve.data.rows import Rows, collate  # noqa: E402

folder = Path(sys.argv[1])
tokenizer = PreTrainedTokenizerFast(tokenizer_file=sys.argv[3], pad_token="<|endoftext|>", eos_token="<|endoftext|>")
files = str(folder / "train-*.parquet")
rows = load_dataset("parquet", data_files=files, split="train", cache_dir=f"{folder}-cache")
told = DictDefault(
    {
        "plugins": ["axolotl_plugin.TokensievePlugin"],
        "tokensieve": {"name": "clm"},
        "datasets": [{"path": str(folder), "ds_type": "parquet", "type": None}],
        "output_dir": f"{folder}-axolotl",
        "micro_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_steps": 1,
        "learning_rate": 0.1,
        "optimizer": "sgd",
        "lr_scheduler": "constant",
        "max_grad_norm": 0.0,
        "sequence_len": int(sys.argv[2]),
        "save_strategy": "no",
        "use_cpu": True,
        "seed": 0,
        "val_set_size": 0,
        "report_to": "none",
    }
)
plugins = PluginManager.get_instance()
plugins.cfg = told
for name in told.plugins:
    plugins.register(name)


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=300, **sizes)).double()


builder = HFCausalTrainerBuilder(told, model(), tokenizer, None)
builder.train_dataset = rows
trainer = builder.build(1)
assert isinstance(trainer, ts.SelectiveTrainer), type(trainer)
trainer.train()

ours, wanted = trainer.args, model()
kept = ("per_device_train_batch_size", "gradient_accumulation_steps", "max_steps", "learning_rate", "optim", "seed")
kept += ("lr_scheduler_type", "max_grad_norm", "use_cpu", "weight_decay", "data_seed", "save_strategy")
args = TrainingArguments(f"{folder}-ours", report_to="none", **{name: getattr(ours, name) for name in kept})
ts.SelectiveTrainer(wanted, args, train_dataset=rows, objective=ts.objective("clm")).train()
for (name, found), other in zip(trainer.model.named_parameters(), wanted.parameters(), strict=True):
    assert torch.equal(found, other), name

data, terms = Rows(rows), []
for i in range(len(rows)):
    batch = collate(data.__getitems__([i]))
    ids, targets = batch["input_ids"][0].tolist(), batch["targets"][0].tolist()
    terms.append([[a, b, 1.0] for a, b in zip(ids, targets, strict=True) if b != -100])
print(json.dumps({"version": f"axolotl {version('axolotl')}, by its plugin", "terms": terms}))
