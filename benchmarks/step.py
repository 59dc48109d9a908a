"""One optimizer step through real trainers, the same model, rows and AdamW: what selection costs, and saves.

    python benchmarks/step.py                       about fifteen minutes on two cores
    python benchmarks/step.py --models llama-3.2-1b --device cuda --layers 16 --rows 8 --length 2048

plain   transformers.Trainer, the model's own loss
clm     SelectiveTrainer, objective clm
naive   transformers.Trainer with compute_loss as found in the wild: the reference model runs online, logits of both, top share
rho1    SelectiveTrainer, objective rho1, reference nll from a column of the data set

Shapes are those of the models, their number of layers is cut to fit (--layers): the head weighs more then, and the bounds
beside each ratio are for the model that ran. A step is timed from the end of the one before it to its own end: data, forward,
backward, clipping, optimizer and the Trainer's own work. Weights are random: what is timed does not depend on them.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from measure import interleaved, peak_memory, ratios, report, spread, synchronize
from torch.nn import functional as F

import tokensieve as ts
from tokensieve.modeling.flops import token_flops

# Fields of a Llama or Qwen2 config, and how many layers run here.
MODELS: dict[str, dict[str, Any]] = {
    "tinyllama-1.1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
        "num_hidden_layers": 2,
        "tie_word_embeddings": False,
    },
    "llama-3.2-1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "num_hidden_layers": 2,
        "tie_word_embeddings": True,
    },
    "qwen2.5-0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "num_hidden_layers": 4,
        "tie_word_embeddings": True,
    },
}
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12}  # bfloat16, dense


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--layers", type=int, default=0, help="0: as in this file")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--ratio", type=float, default=0.6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="steps timed in a round, after one that warms up")
    parser.add_argument("--keep_logits", default="auto", choices=["auto", "true", "false"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/step-<date>-<device>.{md,json}")
    parser.add_argument("--name", default="step", help="of the results files")
    args = parser.parse_args()
    records = []
    for name in args.models:
        records.append(measure(args, name))
        show(args, records)  # after each model: what comes later may be stopped
        gc.collect()


def show(args: argparse.Namespace, records: list[dict[str, Any]]) -> None:
    about = (
        f"Time of a step over that of the plain HF Trainer, median (lowest-highest) of {args.rounds} rounds, and in "
        f"brackets the bound from FLOPs; {args.rows} rows of {args.length} tokens, ratio {args.ratio}, AdamW, "
        f"{'bfloat16 autocast' if args.device != 'cpu' else 'float32'} on {args.device}, keep_logits {args.keep_logits}. "
        "Peak memory: of two steps, above the weights; gradients and optimizer state (which the first step makes) included."
    )
    tables = [[times(r) for r in records], [absolute(r) for r in records]]
    report(args.name, "One optimizer step", about, tables, records, save=args.save)


def measure(args: argparse.Namespace, name: str) -> dict[str, Any]:
    config = dict(MODELS[name])
    if args.layers:
        config["num_hidden_layers"] = args.layers
    student, reference = make_model(config, 0, args.device), make_model(config, 1, args.device)
    rows = make_rows(args, config["vocab_size"], args.steps + 1)
    ways: dict[str, Callable[[str], Any]] = {
        "plain": partial(plain, student, rows),
        "clm": partial(selective, student, rows, ts.objective("clm"), args.keep_logits),
        "naive": partial(naive, student, rows, reference, args.ratio),
        "rho1": partial(selective, student, rows, ts.objective("rho1", ratio=args.ratio), args.keep_logits),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}

    def run(way: str) -> None:
        gc.collect()  # the trainer before is a cycle: its optimizer state beside the next one's is memory for nothing
        seconds[way].append(step_seconds(ways[way], args))

    interleaved({way: partial(run, way) for way in ways}, args.rounds)
    seconds = {way: values[1:] for way, values in seconds.items()}  # the first round warmed up
    peak = {way: peak_memory(partial(step_seconds, ways[way], args), args.device) for way in ways}
    flops = token_flops(student, args.length)
    return {
        "model": name,
        "layers": config["num_hidden_layers"],
        "tokens": args.rows * args.length,
        "device": args.device,
        "parameters": sum(p.numel() for p in student.parameters()),
        "seconds": seconds,
        "peak_bytes": peak,
        "flops": {way: step_flops(way, flops, args) for way in ways},
    }


def make_model(config: dict[str, Any], seed: int, device: str) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**config, bos_token_id=0, eos_token_id=0)).to(device)


def make_rows(args: argparse.Namespace, vocab: int, steps: int) -> Any:
    from datasets import Dataset

    generator = np.random.default_rng(0)
    shape = (args.rows * steps, args.length)
    ids = generator.integers(0, vocab, shape)
    score = generator.random(shape, dtype=np.float32) * 10
    return Dataset.from_dict({"input_ids": list(ids), "labels": list(ids), "ref_nll": list(score)})


def arguments(folder: str, args: argparse.Namespace, steps: int) -> Any:
    from transformers import TrainingArguments

    return TrainingArguments(
        folder,
        per_device_train_batch_size=args.rows,
        max_steps=steps,
        report_to="none",
        save_strategy="no",
        logging_steps=10**6,
        disable_tqdm=True,
        use_cpu=args.device == "cpu",
        bf16=args.device != "cpu",
        dataloader_pin_memory=args.device != "cpu",
    )


def step_seconds(make: Callable[[Any], Any], args: argparse.Namespace) -> float:
    """Seconds a step over the steps after the first, of a new trainer."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        trainer = make(arguments(folder, args, args.steps + 1))
        ends = note_ends(trainer, args.device)
        trainer.train()
        trainer.model.zero_grad(set_to_none=True)
        if hasattr(trainer, "seam"):
            trainer.seam.close()
    return (ends[-1] - ends[0]) / args.steps


def note_ends(trainer: Any, device: str) -> list[float]:
    from transformers import TrainerCallback

    ends: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            synchronize(device)
            ends.append(time.perf_counter())

    trainer.add_callback(Clock())
    return ends


def plain(model: Any, rows: Any, args: Any) -> Any:
    from transformers import Trainer

    return Trainer(model, args, train_dataset=rows.select_columns(["input_ids", "labels"]), data_collator=stack)


def selective(model: Any, rows: Any, objective: Any, keep_logits: str, args: Any) -> Any:
    from tokensieve.training.trainer import HeadOptions, SelectiveTrainer

    keep: Any = {"auto": "auto", "true": True, "false": False}[keep_logits]
    return SelectiveTrainer(model, args, train_dataset=rows, objective=objective, head=HeadOptions(keep_logits=keep))


def naive(model: Any, rows: Any, reference: Any, ratio: float, args: Any) -> Any:
    """Rho-1 the obvious way: two forwards with full logits, a mask on the losses of all tokens."""
    from transformers import Trainer

    class NaiveTrainer(Trainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            labels = inputs["labels"][:, 1:].reshape(-1)
            with torch.no_grad():
                ref_logits = reference(input_ids=inputs["input_ids"], use_cache=False).logits[:, :-1]
                ref_nll = F.cross_entropy(ref_logits.flatten(0, 1).float(), labels, reduction="none")
            logits = model(input_ids=inputs["input_ids"], use_cache=False).logits[:, :-1]
            nll = F.cross_entropy(logits.flatten(0, 1).float(), labels, reduction="none")
            kept = (nll.detach() - ref_nll).topk(int(ratio * nll.numel())).indices
            mask = torch.zeros_like(nll).scatter_(0, kept, 1.0)
            return (nll * mask).sum() / mask.sum()

    return NaiveTrainer(model, args, train_dataset=rows.select_columns(["input_ids", "labels"]), data_collator=stack)


def stack(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {k: torch.tensor([r[k] for r in rows]) for k in rows[0]}


def step_flops(way: str, flops: Any, args: argparse.Namespace) -> float:
    tokens = args.rows * args.length
    if way == "rho1":
        return float(flops.train(tokens, args.ratio * tokens))
    return float(flops.train(tokens, tokens) + (flops.forward(tokens) if way == "naive" else 0))


def times(record: dict[str, Any]) -> dict[str, str]:
    shown = {"model": f"{record['model']}, {record['layers']} layers"}
    for way, base in (("clm", "plain"), ("naive", "plain"), ("rho1", "plain"), ("rho1", "naive")):
        bound = record["flops"][way] / record["flops"][base]
        shown[f"{way} / {base}"] = f"{spread(ratios(record['seconds'], way, base))} [{bound:.3f}]"
    return shown


def absolute(record: dict[str, Any]) -> dict[str, str]:
    """tokens/s, peak memory, and on a GPU the share of its peak FLOPs. For orientation: one machine, once."""
    shown = {
        "model": f"{record['model']}, {record['layers']} layers",
        "parameters": f"{record['parameters'] / 1e6:.0f}M",
    }
    name = torch.cuda.get_device_name() if record["device"] != "cpu" else ""
    peak_flops = next((v for k, v in PEAK_FLOPS.items() if k in name), None)
    for way, values in record["seconds"].items():
        seconds = sorted(values)[len(values) // 2]
        shown[way] = f"{record['tokens'] / seconds:.0f} tok/s, {record['peak_bytes'][way] / 2**20:.0f} MiB"
        if peak_flops:
            shown[way] += f", MFU {record['flops'][way] / seconds / peak_flops:.0%}"
    return shown


if __name__ == "__main__":
    main()
