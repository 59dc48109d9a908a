"""ms-swift: its template over each line, as its `swift sft` encodes it, then the roll of its trainer's loss."""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

from swift.template import get_template
from transformers import PreTrainedTokenizerFast

folder, length = Path(sys.argv[1]), int(sys.argv[2])
tokenizer = PreTrainedTokenizerFast(tokenizer_file=sys.argv[3], pad_token="<|endoftext|>", eos_token="<|endoftext|>")
tokenizer.model_meta = SimpleNamespace(is_multimodal=False, template=None, task_type="causal_lm")
tokenizer.model_info = SimpleNamespace(
    max_model_len=None,
    task_type="causal_lm",
    config=None,
    torch_dtype=None,
    rope_scaling=None,
    model_dir="",
    model_type="",
)
options = {"use_chat_template": False, "is_binary_loss_scale": False, "remove_unused_columns": False}
template = get_template(tokenizer, max_length=length + 1, template_type="dummy", **options)
template.set_mode("train")
terms, beyond = [], 0
for path in sorted(folder.glob("train-*.jsonl")):
    for line in path.read_text().splitlines():
        given = json.loads(line)
        weights = list(given["messages"][1]["content"]["loss_scale"])
        made = template.encode(given)
        ids, labels, scale = made["input_ids"], made["labels"], made["loss_scale"]
        assert len(weights) == len(ids)
        # _add_dynamic_eos: an EOS behind a trained token is trained, whatever the line says of it.
        added = [t for t in range(1, len(ids)) if labels[t] == tokenizer.eos_token_id and not weights[t]]
        beyond += len(added)
        labels = [-100 if t in added else label for t, label in enumerate(labels)]
        labels, scale = labels[1:] + labels[:1], scale[1:] + scale[:1]
        terms.append([[ids[t], labels[t], scale[t]] for t in range(len(ids)) if labels[t] != -100])
print(json.dumps({"version": f"ms-swift {version('ms-swift')}", "terms": terms, "beyond": beyond}))
