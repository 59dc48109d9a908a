"""Scoring against a bare backbone and against lm-evaluation-harness: ratios measured in one run, on the same text and model.

    python benchmarks/score.py                                       about six minutes on two cores
    python benchmarks/score.py --models tinyllama-1.1b --layers 22 --device cuda --dtype bfloat16 --tokens 262144

ours      what `score` does with a corpus: rows read from its shards, a forward without logits, columns written and noted
backbone  the model without its head on the same batches, ready in memory: no reading, no writing, no nll
matmul    [2048, 2048] x [2048, 8192], twice: how fast this machine multiplies
lm-eval   lm_eval's HFLM.loglikelihood_rolling of the same model object, at the batch size that was its fastest here

efficiency = (backbone time / our time) / (backbone FLOPs / (backbone + head FLOPs)): 1 if the head runs at the backbone's speed
and nothing else costs anything.

Two texts, cut from the standard library's sources with a tokenizer that `prepare` trained on them. packed: rows of --length
tokens, one document a row. short: documents of 20 to 200 tokens, isolated, as many as fill a row of --short_length. Every
document stands alone: EOS, its tokens, EOS; all but the first are predicted. lm-eval gets the text with EOS at its end, and
puts EOS before it. Each document's nll must agree before anything is timed. lm-eval tokenises within its time, ours was
done by `prepare`. Weights are random, with a head stretched so that nll differ between tokens.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import io
import json
import tempfile
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from measure import interleaved, ratios, report, spread
from step import MODELS, make_model

from tokensieve.data.corpus import Corpus, open_corpus
from tokensieve.data.read.source import SourceConfig
from tokensieve.data.rows import Rows, collate
from tokensieve.data.scored import join_scores
from tokensieve.modeling.flops import token_flops
from tokensieve.pipeline import prepare, score
from tokensieve.pipeline.launch import Ranks
from tokensieve.scoring.engine import BATCH_TOKENS, Scorer

LAYERS = {"tinyllama-1.1b": 2, "llama-3.2-1b": 1, "qwen2.5-0.5b": 2}  # of 22, 16 and 24: the head weighs more here
SHORTEST, LONGEST = 20, 200
HEAD_STRETCH = 5.0
MATMULS = 2
MATMUL_FLOPS = MATMULS * 2 * 2048 * 2048 * 8192
BATCHES = {"packed": [1, 2], "short": [1, 2, 4]}  # that lm-eval chooses from; 16 were slower on two cores each time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(LAYERS), choices=LAYERS)
    parser.add_argument("--layers", type=int, default=0, help="0: as in this file")
    parser.add_argument("--texts", nargs="+", default=["packed", "short"], choices=["packed", "short"])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--short_length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch_sizes", type=int, nargs="+", help="that lm-eval chooses from; a GPU wants larger ones")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/score-<date>-<device>.{md,json}")
    parser.add_argument("--name", default="score", help="of the results files")
    args = parser.parse_args()
    harness = importlib.util.find_spec("lm_eval") is not None
    if not harness:
        print("lm_eval is not installed (pip install lm_eval==0.4.13): only the comparison with the backbone is made")
    records = []
    with tempfile.TemporaryDirectory() as folder:
        corpora = {text: make_corpus(args, Path(folder), text) for text in args.texts}
        for name in args.models:
            config = {**MODELS[name], "num_hidden_layers": args.layers or LAYERS[name]}
            model = make_model(config, 0, args.device).to(getattr(torch, args.dtype)).eval()
            with torch.no_grad():
                model.get_output_embeddings().weight.mul_(HEAD_STRETCH)
            for text, (corpus, strings) in corpora.items():
                with contextlib.redirect_stderr(io.StringIO()):  # a progress bar a batch
                    records.append({"model": name, **measure(args, model, text, corpus, strings, harness)})
                print("  ".join(f"{k} {v}" for k, v in shown(records[-1]).items()), flush=True)
            del model
            gc.collect()
    about = (
        f"Ratios of {args.rounds} rounds, median (lowest-highest); {args.dtype} on {args.device}. Efficiency: the bare "
        "backbone's time over ours, over its share of the FLOPs. Of matmul speed: our FLOPs a second over those of one large "
        "matmul, timed in the same rounds. Ours reads rows and writes scores within its time."
        + (f" lm_eval {version('lm_eval')} at its fastest batch size." if harness else " lm_eval is not installed.")
    )
    report(args.name, "Scoring", about, [[shown(r) for r in records]], records, save=args.save)


def make_corpus(args: argparse.Namespace, folder: Path, text: str) -> tuple[Corpus, list[str]]:
    """A corpus of ``--tokens`` tokens whose rows are filled by whole documents, and the documents' text."""
    length = args.length if text == "packed" else args.short_length
    source = folder / "source"
    prepare.run(
        prepare.PrepareConfig(
            out=str(source),
            sources=[SourceConfig("package:stdlib", format="python", max_bytes=1_000_000 + 8 * args.tokens)],
            vocab_size=8192,
        ),
        progress=False,
    )
    corpus = open_corpus(source)
    tokenizer = corpus.tokenizer()
    eos = tokenizer.eos_token_id
    sizes = [length] * (args.tokens // length) if text == "packed" else short_sizes(args.tokens // length, length)
    found = list(whole_windows(corpus, tokenizer, [size - 2 for size in sizes]))
    with (folder / f"{text}.jsonl").open("w") as f:
        f.writelines(json.dumps({"input_ids": [eos, *ids, eos]}) + "\n" for ids, _ in found)
    config = prepare.PrepareConfig(
        out=str(folder / text),
        sources=[SourceConfig(str(folder / f"{text}.jsonl"), format="tokens")],
        tokenizer=str(source),
        length=length,
        isolate_documents=text == "short",
    )
    return open_corpus(prepare.run(config, progress=False)), [string + tokenizer.eos_token for _, string in found]


def short_sizes(num_rows: int, length: int) -> list[int]:
    """Sizes between SHORTEST and LONGEST that fill each row to its end: no document is cut."""
    generator, sizes = np.random.default_rng(0), []
    for _ in range(num_rows):
        left = length
        while left > LONGEST:
            sizes.append(int(generator.integers(SHORTEST, min(LONGEST, left - SHORTEST) + 1)))
            left -= sizes[-1]
        sizes.append(left)
    return sizes


def whole_windows(corpus: Corpus, tokenizer: Any, sizes: list[int]) -> Iterator[tuple[list[int], str]]:
    """Windows of the text, one after another, whose string is tokenised to the same tokens again."""
    stream = np.concatenate(list(corpus.contexts()))
    stream, place = stream[stream != tokenizer.eos_token_id].tolist(), 0
    for size in sizes:
        while True:
            ids = stream[place : place + size]
            if len(ids) < size:
                raise SystemExit("the standard library's text is too short for --tokens")
            string = tokenizer.decode(ids)
            if tokenizer(string, add_special_tokens=False)["input_ids"] == ids:
                break
            place += 1
        place += size
        yield ids, string


def measure(
    args: argparse.Namespace, model: Any, text: str, corpus: Corpus, strings: list[str], harness: bool
) -> dict[str, Any]:
    scorer = Scorer(model, device=args.device)
    calls: dict[str, Any] = {
        "ours": partial(ours, scorer, corpus),
        "backbone": partial(backbone, model, batches(corpus, args.device)),
        "matmul": partial(matmul, *(torch.randn(2048, n, dtype=model.dtype, device=args.device) for n in (2048, 8192))),
    }
    chosen: dict[str, Any] = {}
    if harness:
        tried = {
            n: lm_eval(args, model, corpus, strings, n) for n in args.batch_sizes or BATCHES[text] if n <= len(strings)
        }
        chosen["largest_relative_difference"] = check_parity(args, scorer, corpus, tried[min(tried)]())
        seconds = {n: min(times) for n, times in interleaved(tried, 1, args.device).items()}
        chosen["lm_eval_batch_size"] = min(seconds, key=seconds.__getitem__)
        chosen["lm_eval_seconds_by_batch_size"] = seconds
        calls["lm-eval"] = tried[chosen["lm_eval_batch_size"]]
    taken = interleaved(calls, args.rounds, args.device)
    scorer.seam.close()
    flops = token_flops(model, corpus.length)
    return {
        "layers": model.config.num_hidden_layers,
        "d": model.config.hidden_size,
        "V": model.config.vocab_size,
        "text": text,
        "length": corpus.length,
        "documents": len(strings),
        "tokens": corpus.num_rows * corpus.length,
        "dtype": args.dtype,
        "device": args.device,
        "flops": flops.forward(corpus.num_rows * corpus.length),
        "backbone_share": flops.body / (flops.body + flops.head),
        "seconds": taken,
        **chosen,
    }


def ours(scorer: Scorer, corpus: Corpus, out: str | None = None) -> None:
    """Score the corpus into a new folder, all but the manifest."""
    config = score.ScoreConfig(out="", model="", corpus=str(corpus.folder))
    with contextlib.nullcontext(out) if out else tempfile.TemporaryDirectory() as folder:
        score.write_shards(config, scorer, corpus, Path(folder), Ranks())


def batches(corpus: Corpus, device: str) -> list[dict[str, torch.Tensor]]:
    """The batches that ours makes, as the model's inputs."""
    rows, step = Rows(join_scores(corpus, verify=None)), max(1, BATCH_TOKENS // corpus.length)
    made = [collate(rows.__getitems__(range(i, min(i + step, len(rows))))) for i in range(0, len(rows), step)]
    return [{k: b[k].to(device) for k in ("input_ids", "position_ids") if k in b} for b in made]


@torch.inference_mode()
def backbone(model: Any, inputs: list[dict[str, torch.Tensor]]) -> None:
    for batch in inputs:
        model.base_model(**batch, use_cache=False)


def matmul(left: torch.Tensor, right: torch.Tensor) -> None:
    for _ in range(MATMULS):
        torch.mm(left, right)


def lm_eval(args: argparse.Namespace, model: Any, corpus: Corpus, strings: list[str], batch_size: int) -> Any:
    """A call that gives each string's log-likelihood, EOS put before it."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    tokenizer = corpus.tokenizer()
    harness = HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        device=args.device,
        batch_size=batch_size,
        max_length=corpus.length,
        prefix_token_id=tokenizer.eos_token_id,
    )
    requests = [Instance("loglikelihood_rolling", {}, (string,), i) for i, string in enumerate(strings)]
    return partial(harness.loglikelihood_rolling, requests, disable_tqdm=True)


def check_parity(args: argparse.Namespace, scorer: Scorer, corpus: Corpus, loglikelihoods: list[float]) -> float:
    """The largest relative difference between nll of documents, which are in the same order in both."""
    with tempfile.TemporaryDirectory() as out:
        ours(scorer, corpus, out)
        files = [str(Path(out) / shard["file"]) for shard in corpus.manifest["shards"]]
        nll_RT = np.nan_to_num(np.concatenate([Dataset.from_file(f).with_format("numpy")["ref_nll"][:] for f in files]))
    starts = corpus.rows.with_format("numpy")["doc_starts"]
    found = np.concatenate(
        [np.add.reduceat(nll_T.astype(np.float64), s) for nll_T, s in zip(nll_RT, starts, strict=True)]
    )
    wanted = -np.array(loglikelihoods)
    if len(found) != len(wanted):
        raise SystemExit(f"{len(found)} documents here, {len(wanted)} there: a row cut one")
    difference = float(np.max(np.abs(found - wanted) / wanted))
    if difference > (1e-3 if args.dtype == "float32" else 2e-2):
        raise SystemExit(
            f"a document's nll differs by {difference:.1e} of it: ours and lm-eval do not measure the same"
        )
    return difference


def shown(record: dict[str, Any]) -> dict[str, str]:
    seconds = record["seconds"]
    per_share = [r / record["backbone_share"] for r in ratios(seconds, "backbone", "ours")]
    row = {
        "model": f"{record['model']}, {record['layers']} layers, d {record['d']}, V {record['V']}",
        "text": f"{record['text']}: {record['documents']} documents, rows of {record['length']}",
        "tokens": f"{record['tokens']}",
        "ours": f"{record['tokens'] / median(seconds['ours']):.0f} tok/s",
        "of matmul speed": spread([r * record["flops"] / MATMUL_FLOPS for r in ratios(seconds, "matmul", "ours")]),
        "backbone's share of FLOPs": f"{record['backbone_share']:.2f}",
        "efficiency": spread(per_share),
    }
    if "lm-eval" in seconds:
        row["lm-eval / ours"] = spread(ratios(seconds, "lm-eval", "ours"))
        row["lm-eval's batch size"] = f"{record['lm_eval_batch_size']}"
        row["nll differ by"] = f"{record['largest_relative_difference']:.0e}"
    return row


if __name__ == "__main__":
    main()
