"""A corpus and a static selection as other trainers read them. A format is a module here and a line in ``FORMATS``.

corpus + scores ── selection.py: the trainer's own weights, at their own tokens ──> blocks of rows ── a format ──> its files
"""

from __future__ import annotations

from . import arrow, datatrove, jsonl, mds, megatron, olmo, parquet, swift
from .layout import Format

FORMATS: dict[str, Format] = {
    "jsonl": Format(
        "TRL and axolotl",
        "selection",
        jsonl.write_jsonl,
        14.0,
        """\
# TRL
train = load_dataset("json", data_files="$folder/train-*.jsonl", split="train")
trainer = SFTTrainer(model, SFTConfig(out, max_length=None), train_dataset=train)
# axolotl: the path, ds_type, and no type
datasets: [{path: $folder, data_files: train-*.jsonl, ds_type: json, type: }]
""",
        "TRL 1.16 (trl/trainer/sft_trainer.py); axolotl 0.19.0 (utils/data/wrappers.py)",
    ),
    "parquet": Format(
        "TRL and axolotl",
        "selection",
        parquet.write_parquet,
        3.5,
        """\
# TRL
train = load_dataset("parquet", data_files="$folder/train-*.parquet", split="train")
trainer = SFTTrainer(model, SFTConfig(out, max_length=None), train_dataset=train)
# axolotl: the path, ds_type, and no type
datasets: [{path: $folder, data_files: train-*.parquet, ds_type: parquet, type: }]
""",
        "TRL 1.16 (trl/trainer/sft_trainer.py); axolotl 0.19.0 (utils/data/wrappers.py)",
    ),
    "llama_factory": Format(
        "LLaMA-Factory",
        "selection",
        arrow.write_llama_factory,
        9.0,
        """\
# LLaMA-Factory, beside model and output in the file of its settings
stage: sft
tokenized_path: $folder
cutoff_len: $length
""",
        "LLaMA-Factory 0.9.5 (llamafactory/data/loader.py, data_utils.py)",
    ),
    "swift": Format(
        "ms-swift",
        "weights",
        swift.write_swift,
        16.0,
        """\
# ms-swift; it trains an EOS behind a trained token too, whatever its loss_scale says
swift sft --model MODEL --dataset $folder/train-*.jsonl --use_chat_template false \\
  --is_binary_loss_scale false --remove_unused_columns false \\
  --max_length $longer
""",
        "ms-swift 4.6.0 (swift/loss_scale/base.py, swift/template/base.py, swift/trainers/seq2seq_trainer.py)",
        signed=False,
    ),
    "olmo": Format(
        "OLMo-core",
        "selection",
        olmo.write_olmo,
        3.0,
        """\
# OLMo-core, with TokenizerConfig(vocab_size=$vocab_size, eos_token_id=$eos_id, pad_token_id=$pad_id)
files = sorted(glob("$folder/tokens-*.npy")), sorted(glob("$folder/label_mask-*.npy"))
NumpyFSLDatasetConfig(paths=files[0], label_mask_paths=files[1], sequence_length=$length,
                      tokenizer=tokenizer, dtype=NumpyDatasetDType.$dtype$apart)
""",
        "OLMo-core 3.0.0 (olmo_core/data/numpy_dataset.py, data/utils.py: get_labels)",
    ),
    "datatrove": Format(
        "datatrove, and what reads its .ds and .ds.loss",
        "selection",
        datatrove.write_datatrove,
        3.1,
        """\
# datatrove: a file a shard, an item is a row; loss[1:] goes with tokens[1:]
data = DatatroveFileDataset("$folder/00000.ds", seq_len=$seq_len, token_size=$token_size, return_positions=True)
loss = np.memmap("$folder/00000.ds.loss", bool).reshape(-1, $length)
tokens, keep = data[0]["input_ids"], loss[0]
""",
        "datatrove 0.10.1 (utils/dataset.py, pipeline/tokens/tokenizer.py)",
        divides="",
    ),
    "megatron": Format(
        "Megatron-LM, and GPT-NeoX by labels",
        "weights",
        megatron.write_megatron,
        10.0,
        """\
# Megatron-LM: --data-path $folder/tokens --seq-length $length $mask
#   --calculate-per-token-loss (else each micro-batch is divided by itself), and a GPTDataset with
class Weighted(GPTDataset):
    def __getitem__(self, idx):
        sample, tokens = super().__getitem__(idx), self.dataset
        self.dataset = IndexedDataset("$folder/weight")  # the same rows in the same order
        weight, self.dataset = self._query_document_sample_shuffle_indices(idx or 0)[0], tokens
        return {**sample, "loss_mask": sample["loss_mask"] * torch.tensor(weight[1:])}
# GPT-NeoX
"train_data_paths": ["$folder/tokens"], "train_label_data_paths": ["$folder/labels"], "seq_length": $length
""",
        "megatron-core 0.16.1 (datasets/indexed_dataset.py, gpt_dataset.py); GPT-NeoX (data/gpt2_dataset.py, training.py)",
        signed=False,
        divides="the sum of the weights",
    ),
    "mds": Format(
        "MosaicML streaming, and LLM Foundry by labels",
        "weights",
        mds.write_mds,
        12.0,
        """\
# MosaicML streaming: input_ids, labels (-100) and weight, as numpy arrays, none of them shifted
data = StreamingDataset(local="$folder", shuffle=True, batch_size=8)
sample = data[0]
""",
        "mosaicml-streaming 0.13.0 (base/format/mds/writer.py, reader.py, encodings.py)",
        divides="",
        all_targets=True,
    ),
}
