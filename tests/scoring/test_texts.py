"""Mean nll of whole texts, and what `filter --kind model` makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny import llama

from tokensieve.data.filter.options import Measure
from tokensieve.data.read.source import SourceConfig
from tokensieve.data.tokenizer import load_tokenizer, train_tokenizer
from tokensieve.pipeline import filter as filtering
from tokensieve.pipeline.configs.filter import FilterConfig
from tokensieve.runs.errors import UserError
from tokensieve.runs.manifest import read_manifest

TEXTS = [
    "a short one",
    "b",
    "one that is read in more than one piece, since it has many more tokens than a piece",
    "é ü",
]
LENGTH = 12


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models of one byte-level tokenizer."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = train_tokenizer(iter(TEXTS), 260)
    made = []
    for seed in (0, 1):
        folder = root / str(seed)
        llama(seed=seed, vocab_size=len(tokenizer), num_attention_heads=4).save_pretrained(folder)
        tokenizer.save_pretrained(str(folder))
        made.append(folder)
    return made[0], made[1]


def mean_nll(folder: Path, text: str, max_tokens: int = 0) -> tuple[float, int]:
    """Of a text by its pieces, from full logits in float64; and its tokens in pieces that have a target."""
    from transformers import LlamaForCausalLM

    return of_model(LlamaForCausalLM.from_pretrained(folder).double(), folder, text, max_tokens)


def of_model(model: Any, folder: Path, text: str, max_tokens: int = 0) -> tuple[float, int]:
    tokenizer = load_tokenizer(folder)
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    ids = ids[:max_tokens] if max_tokens else ids
    found, tokens = [], 0
    for start in range(0, len(ids), LENGTH):
        piece = ids[start : start + LENGTH]
        with torch.no_grad():
            logp = model(input_ids=torch.tensor([piece])).logits[0].log_softmax(-1)
        found += [-float(logp[t, piece[t + 1]]) for t in range(len(piece) - 1)]
        tokens += len(piece) if len(piece) > 1 else 0
    return sum(found) / len(found), tokens


def filtered(
    out: Path, texts: list[str], options: Measure, **fields: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    rows = [{"id": str(i), "text": text} for i, text in enumerate(texts)]
    out.mkdir(parents=True)
    (out / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = FilterConfig(str(out / "table"), "model", [SourceConfig(str(out / "rows.jsonl"))], model=options, **fields)
    filtering.run(config, progress=False)
    found = pq.read_table(out / "table" / "table.parquet").to_pylist()
    return sorted(found, key=lambda r: int(r["id"])), read_manifest(out / "table", "documents")


def measure(model: Path, score: str, **fields: Any) -> Measure:
    return Measure(str(model), score, length=LENGTH, batch_tokens=30, **fields)  # type: ignore[arg-type]


def test_perplexity_and_excess_are_their_definitions(models: tuple[Path, Path], tmp_path: Path) -> None:
    student, reference = models
    nll = [mean_nll(student, text) for text in TEXTS]
    found, manifest = filtered(tmp_path / "p", TEXTS, measure(student, "perplexity"), share=0.5)
    assert np.allclose([r["score"] for r in found], [-n for n, _ in nll], atol=1e-4)
    assert [r["kept"] for r in found] == [-n >= sorted(-n for n, _ in nll)[2] for n, _ in nll]
    assert manifest["tokens"] == sum(tokens for _, tokens in nll)
    assert manifest["flops"] > 0
    ref = [mean_nll(reference, text)[0] for text in TEXTS]
    found, _ = filtered(tmp_path / "e", TEXTS, measure(student, "excess", reference=str(reference)))
    assert np.allclose([r["score"] for r in found], [n - r for (n, _), r in zip(nll, ref, strict=True)], atol=1e-4)
    found, _ = filtered(tmp_path / "m", TEXTS, measure(student, "perplexity", max_tokens=14))
    assert np.allclose([-r["score"] for r in found], [mean_nll(student, text, 14)[0] for text in TEXTS], atol=1e-4)


def test_retrieval_is_what_masking_costs(models: tuple[Path, Path], tmp_path: Path) -> None:
    """(L masked - L) / L, against a model whose chosen heads have no query: they attend evenly."""
    from transformers import LlamaForCausalLM

    folder, _ = models
    found, manifest = filtered(tmp_path / "r", TEXTS, measure(folder, "retrieval", heads=0.25))
    model = LlamaForCausalLM.from_pretrained(folder).double()
    heads = [(layer, head) for layer, head, _ in manifest["heads"]]
    assert len(heads) == 2
    for layer, head in heads:
        attention = model.model.layers[layer].self_attn
        with torch.no_grad():
            attention.q_proj.weight[head * attention.head_dim : (head + 1) * attention.head_dim] = 0
    for row, text in zip(found, TEXTS, strict=True):
        plain, masked = mean_nll(folder, text)[0], of_model(model, folder, text)[0]
        assert row["score"] == pytest.approx((masked - plain) / plain, abs=2e-4)
    assert max(abs(r["score"]) for r in found) > 1e-3


def test_another_tokenizer_and_what_is_missing_are_refused(models: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    tokenizer = train_tokenizer(iter(["zzz yyy zzz yyy"]), 260)
    llama(vocab_size=300).save_pretrained(other)
    tokenizer.save_pretrained(str(other))
    with pytest.raises(UserError, match="was trained with another tokenizer"):
        filtered(tmp_path / "a", TEXTS, measure(models[0], "excess", reference=str(other)))
    with pytest.raises(UserError, match=r"model\.reference: excess needs one"):
        filtered(tmp_path / "b", TEXTS, measure(models[0], "excess"))
    with pytest.raises(UserError, match="does not exist"):
        filtered(tmp_path / "c", TEXTS, measure(tmp_path / "nothing", "perplexity"))
