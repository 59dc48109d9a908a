"""Selective language modeling in one page: the method of Rho-1 (arXiv 2404.07965) with tokensieve's core and a plain loop.

    python examples/plain_loop.py            about a minute on one core

Curated text: docstrings of Python's standard library. Noisy corpus: source code of other modules. Tokens are bytes.
1. train a reference model on the curated text        2. score every byte of the corpus with it, once
3. train a student on the corpus, keeping the loss only on the top 60 % of tokens by excess loss
"""

import importlib
import inspect

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import tokensieve as ts

LENGTH, ROWS, RATIO = 128, 16, 0.6  # tokens a row, rows a micro-batch, share of tokens kept
CURATED = "argparse asyncio.events codecs contextlib csv decimal difflib doctest email.message enum functools heapq "
CURATED += "http.client inspect ipaddress json logging optparse pickletools random ssl"
CORPUS = "ast bdb calendar collections configparser datetime fractions ftplib gettext http.cookiejar imaplib mailbox "
CORPUS += "multiprocessing.managers pathlib pdb pickle pydoc shutil smtplib socket statistics subprocess tarfile"
HELD_OUT = "copy dataclasses fileinput graphlib http.server locale sched selectors shelve string tempfile traceback"


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


def docstrings(names: str) -> list[str]:
    """Docstrings of what the modules define themselves: members that they import stand in other modules too."""
    modules = [importlib.import_module(name) for name in names.split()]
    members = [(m.__name__, thing) for m in modules for thing in vars(m).values()]
    things = [thing for name, thing in members if getattr(thing, "__module__", "") == name]
    methods = [f for t in things if inspect.isclass(t) for f in filter(inspect.isfunction, vars(t).values())]
    return list(dict.fromkeys(thing.__doc__ for thing in modules + things + methods if isinstance(thing.__doc__, str)))


def main() -> None:
    curated_rows, target_rows = rows_of(docstrings(CURATED), 0), rows_of(docstrings(HELD_OUT), 2)
    corpus_rows = rows_of([inspect.getsource(importlib.import_module(name)) for name in CORPUS.split()], 1)[:3000]
    reference = train(new_model(0), curated_rows, None, ratio=1.0)
    ref_nll = score(reference, corpus_rows)
    for name, ratio in (("full loss", 1.0), ("rho1", RATIO)):
        student = train(new_model(1), corpus_rows, ref_nll, ratio)
        print(f"{name:10s} held-out docstrings: {mean_nll(student, target_rows):.3f} nats per byte")


if __name__ == "__main__":
    main()
