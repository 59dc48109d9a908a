"""Selective language modeling in one page: the method of Rho-1 (arXiv 2404.07965) with tokensieve's core and a plain loop.

    python examples/plain_loop.py            about a minute on one core

Curated text: docstrings of Python's standard library. Noisy corpus: the source code around them. Tokens are bytes.
1. train a reference model on the curated text        2. score every byte of the corpus with it, once
3. train a student on the corpus, keeping the loss only on the top 60 % of tokens by excess loss
"""

import importlib
import inspect
import random

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import tokensieve as ts

LENGTH, ROWS, RATIO = 128, 16, 0.6  # tokens a row, rows a micro-batch, share of tokens kept
MODULES = "argparse ast bdb cmd codecs csv dis doctest email enum heapq inspect json logging os pdb pickle"


def rows_of(texts: list[str], seed: int) -> torch.Tensor:
    """Bytes of all texts end to end, cut into rows of LENGTH, shuffled. int64 [rows, LENGTH]"""
    data = torch.frombuffer(bytearray("\n".join(texts).encode()), dtype=torch.uint8).long()
    rows = data[: len(data) // LENGTH * LENGTH].view(-1, LENGTH)
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]


def shifted(values_BT: torch.Tensor, fill: float) -> torch.Tensor:
    """What belongs to token t + 1, at t: hidden states predict the next token. The last has none."""
    return torch.nn.functional.pad(values_BT[:, 1:], (0, 1), value=fill)


def head_of(model: LlamaForCausalLM, input_ids: torch.Tensor) -> ts.LinearNLL:
    """Forward the body; the head's nll of every token follows in chunks, without [tokens, vocab] logits."""
    hidden = model.model(input_ids=input_ids).last_hidden_state  # [B, T, D]
    return ts.LinearNLL(hidden, model.lm_head.weight, shifted(input_ids, ts.IGNORE_INDEX))


@torch.no_grad()
def score(reference: LlamaForCausalLM, rows: torch.Tensor) -> torch.Tensor:
    """ref_nll of every token, aligned with the rows: entry t belongs to token t, the first is NaN. [rows, LENGTH]"""
    nll = torch.cat([head_of(reference, part).nll for part in rows.split(ROWS)])
    return torch.nn.functional.pad(nll[:, :-1], (1, 0), value=float("nan"))


def backward(model: LlamaForCausalLM, micro_batches: list[dict[str, torch.Tensor]], ratio: float) -> float:
    """Gradients of one optimizer step: sum of the kept tokens' nll over all micro-batches, divided once (Eq. 4)."""
    valid = [shifted(b["input_ids"], ts.IGNORE_INDEX) != ts.IGNORE_INDEX for b in micro_batches]
    denominator = sum(ts.kept_count(v.sum(), ratio) for v in valid)  # known before any forward
    total = 0.0
    for batch, valid_BT in zip(micro_batches, valid, strict=True):
        head = head_of(model, batch["input_ids"])
        if ratio < 1:
            score_BT = ts.excess(head.nll, shifted(batch["ref_nll"], 0.0))
            keep_BT = ts.top_fraction(score_BT, valid_BT, ratio, scope="batch")
        else:
            keep_BT = valid_BT
        loss_sum, _ = head.weighted_sum(keep_BT)
        loss = loss_sum / denominator
        loss.backward()
        total += float(loss.detach())
    return total


def train(model: LlamaForCausalLM, rows: torch.Tensor, ref_nll: torch.Tensor | None, ratio: float) -> LlamaForCausalLM:
    """One epoch, two micro-batches a step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    scores = torch.zeros(rows.shape) if ref_nll is None else ref_nll
    batches = [{"input_ids": i, "ref_nll": r} for i, r in zip(rows.split(ROWS), scores.split(ROWS), strict=True)]
    for first in range(0, len(batches) - 1, 2):
        backward(model, batches[first : first + 2], ratio)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model


def new_model(seed: int) -> LlamaForCausalLM:
    """A small byte-level Llama."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=256, max_position_embeddings=LENGTH, use_cache=False, **sizes))


@torch.no_grad()
def mean_nll(model: LlamaForCausalLM, rows: torch.Tensor) -> float:
    """nats per byte: sums first, one division at the end."""
    return sum(float(head_of(model, part).nll.sum()) for part in rows.split(ROWS)) / (len(rows) * (LENGTH - 1))


def main() -> None:
    modules = [importlib.import_module(name) for name in MODULES.split()]
    random.Random(0).shuffle(modules)
    docs = [inspect.getdoc(thing) or "" for m in modules for _, thing in inspect.getmembers(m)]
    held_out, curated = docs[: len(docs) // 5], docs[len(docs) // 5 :]
    curated_rows, corpus_rows = rows_of(curated, 0), rows_of([inspect.getsource(m) for m in modules], 1)
    target_rows = rows_of(held_out, 2)[:200]
    reference = train(new_model(0), curated_rows[:2000], None, ratio=1.0)
    ref_nll = score(reference, corpus_rows[:3000])
    for name, ratio in (("full loss", 1.0), ("rho1", RATIO)):
        student = train(new_model(1), corpus_rows[:3000], ref_nll, ratio)
        print(f"{name:10s} held-out docstrings: {mean_nll(student, target_rows):.3f} nats per byte")


if __name__ == "__main__":
    main()
