"""A run folder with chosen numbers: a real corpus of given texts, and beside it what `score`, `train`, `evaluate`,
`compare` and `dynamics` would have written. For looking at, not for going on from: it has no weights.

Token i of the corpus (counted over all rows, in order) has the planted nll of :func:`planted`, so that a test can say what
a page must show.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tokensieve.data.corpus import Corpus, open_corpus
from tokensieve.data.read.source import SourceConfig
from tokensieve.data.scored import write_score_shard
from tokensieve.pipeline import prepare
from tokensieve.runs.files import describe_files, hash_json, write_json
from tokensieve.runs.manifest import write_manifest

STEPS = (1, 10, 20)
ARMS = {"clm": 1.0, "random": 0.6, "rho1": 0.6}


def make_run(
    out: Path,
    texts: Mapping[str, Sequence[str]],
    *,
    length: int = 32,
    vocab_size: int = 300,
    frames: int = 4,
    logged_rows: int = 6,
    seed: int = 0,
    gain: float = 0.2,
    name: str = "made",
) -> Path:
    """Write the run; ``texts``: source -> documents. ``gain``: nats by which rho1 ends below clm."""
    for source, documents in texts.items():
        path = out.parent / "texts" / f"{source}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"id": f"{source}/{i}", "text": text}) for i, text in enumerate(documents)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    sources = [SourceConfig(path=str(out.parent / "texts" / f"{s}.jsonl"), name=s) for s in texts]
    config = prepare.PrepareConfig(str(out / "corpus"), sources, vocab_size=vocab_size, length=length, workers=1)
    corpus = open_corpus(prepare.run(config, progress=False))
    nll_FRT, ref_RT = planted(corpus, frames, seed)
    scores = _scores(out / "scores", corpus, ref_RT)
    prints = {arm: _train(out / arm, corpus, arm, scores, nll_FRT, ref_RT, logged_rows, gain, seed) for arm in ARMS}
    evaluated = _evaluation(out / "evaluation", gain)
    _comparison(out / "table", prints, evaluated, gain)
    _dynamics(out / "dynamics", corpus, nll_FRT, scores)
    verbs = {"corpus": "prepare", "scores": "score", **dict.fromkeys(ARMS, "train"), "evaluation": "evaluate"}
    verbs |= {"table": "compare", "dynamics": "dynamics"}
    stages = {
        stage: {
            "verb": verb,
            "folder": stage,
            "fingerprint": json.loads((out / stage / "manifest.json").read_text())["fingerprint"],
        }
        for stage, verb in verbs.items()
    }
    inputs = {stage: s["fingerprint"] for stage, s in stages.items()} | {"seed": seed}
    write_manifest(
        out, "run", config={"name": name, "settings": {"seed": seed}}, inputs=inputs, files=[], stages=stages
    )
    return out


def planted(corpus: Corpus, frames: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(nll [frames, rows, length], ref_nll [rows, length]): a random walk that mostly falls, NaN where there is no target."""
    rng = np.random.default_rng(seed)
    shape = (corpus.num_rows, corpus.length)
    ref = rng.gamma(2.0, 1.5, shape)
    start = ref + rng.normal(0.5, 1.0, shape)
    walk = rng.normal(-0.15, 0.35, (frames, *shape)).cumsum(0)
    nll = np.maximum(start + walk, 0.0)
    missing = np.zeros(shape, bool)
    missing[:, 0] = True
    for row, count in enumerate(corpus.rows["num_tokens"]):
        missing[row, count:] = True
    nll[:, missing], ref[missing] = np.nan, np.nan
    return nll.astype(np.float16), ref.astype(np.float16)


def _scores(out: Path, corpus: Corpus, ref_RT: np.ndarray) -> str:
    write_score_shard(out / "rows-00000.arrow", {"ref_nll": ref_RT})
    manifest = write_manifest(
        out,
        "scores",
        config={"columns": ["ref_nll"]},
        inputs={"corpus": corpus.content_hash},
        files=describe_files(out, ["rows-00000.arrow"]),
        columns=["ref_nll"],
        dtype="float16",
        corpus_hash=corpus.content_hash,
        tokenizer_hash=corpus.tokenizer_hash,
        model_hash="reference",
        length=corpus.length,
        isolate_documents=corpus.isolate_documents,
        shards=[{"file": "rows-00000.arrow", "rows": corpus.num_rows}],
        flops=0.0,
        reference_flops=0.0,
    )
    return str(manifest["fingerprint"])


def logged_keep(nll_RT: np.ndarray, ref_RT: np.ndarray, arm: str) -> np.ndarray:
    """What the made log says was kept: everything, every other position, or excess above -0.1."""
    if arm == "clm":
        return ~np.isnan(nll_RT)
    if arm == "random":
        return np.broadcast_to(np.arange(nll_RT.shape[1]) % 2 == 0, nll_RT.shape) & ~np.isnan(nll_RT)
    return np.nan_to_num(nll_RT.astype(np.float32) - ref_RT.astype(np.float32), nan=-9.0) > -0.1


def logged_rows_of(step: int, count: int, num_rows: int) -> list[int]:
    return [(step * 7 + i * 3) % num_rows for i in range(min(count, num_rows))]


def _train(
    out: Path,
    corpus: Corpus,
    arm: str,
    scores: str,
    nll_FRT: np.ndarray,
    ref_RT: np.ndarray,
    count: int,
    gain: float,
    seed: int,
) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    share, tokens, scored = ARMS[arm], 1000, arm == "rho1"
    lines = []
    for step in range(1, STEPS[-1] + 1):
        kept = round(tokens * share)
        nll = 6.0 - 0.1 * step
        lines.append({
            "step": step, "valid": tokens, "kept": kept, "ratio": share, "threshold": None if arm == "clm" else -0.1,
            "loss": nll, "nll": nll, "kept_nll": nll + 0.3, "dropped_nll": None if arm == "clm" else nll - 0.3,
            "valid_by_source": dict.fromkeys(corpus.sources, tokens // 2),
            "kept_by_source": dict.fromkeys(corpus.sources, kept // 2),
            "tokens_seen": tokens * step, "tokens_trained": kept * step, "flops_student": 1e9 * step,
            "flops_scoring": 4e9 * scored, "flops_reference": 8e9 * scored,
        })  # fmt: skip
    out.mkdir(parents=True)
    (out / "tokens.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (out / "tokens").mkdir()
    frames = dict(zip(STEPS, np.linspace(0, len(nll_FRT) - 1, len(STEPS)).astype(int).tolist(), strict=True))
    files = ["tokens.jsonl"]
    for step in STEPS:
        nll_RT = nll_FRT[frames[step]]
        keep_RT = logged_keep(nll_RT, ref_RT, arm)
        rows = sorted(set(logged_rows_of(step, count, corpus.num_rows)))
        where = [(r, t) for r in rows for t in np.flatnonzero(~np.isnan(nll_RT[r])).tolist()]
        row, position = (np.array(v) for v in zip(*where, strict=True))
        table = pa.table({
            "step": np.full(len(row), step, np.int64), "row": row.astype(np.int64), "position": position.astype(np.int32),
            "nll": nll_RT[row, position].astype(np.float32), "keep": keep_RT[row, position],
        })  # fmt: skip
        files.append(f"tokens/step-{step:08d}.parquet")
        pq.write_table(table, out / files[-1])
    last = lines[-1]
    summary = {
        k: last[k] for k in ("tokens_seen", "tokens_trained", "flops_student", "flops_scoring", "flops_reference")
    }
    summary |= {"objective": arm, "scope": "batch", "steps": STEPS[-1], "seconds": 1.0, "kept_share": share}
    summary["kept_share_by_source"] = dict.fromkeys(corpus.sources, share)
    manifest = write_manifest(
        out,
        "model",
        config={"objective": {"name": arm}, "seed": seed},
        inputs={"corpus": corpus.content_hash, "scores": [scores] if scored else [], "gain": gain},
        files=describe_files(out, files),
        summary=summary,
        corpus_hash=corpus.content_hash,
        tokenizer_hash=corpus.tokenizer_hash,
    )
    return str(manifest["fingerprint"])


def ends(gain: float) -> dict[str, float]:
    return {"clm": 5.0, "random": 5.1, "rho1": 5.0 - gain}


def _evaluation(out: Path, gain: float) -> str:
    def record(model: str, step: int | None, on_set: str, nll: float) -> dict[str, Any]:
        seen = None if step is None else 1000 * step
        trained = None if seen is None else round(seen * ARMS[model])
        where = {
            "model": model,
            "step": step,
            "tokens_seen": seen,
            "tokens_trained": trained,
            "set": on_set,
            "on": "all",
        }
        return {
            **where,
            "nll": nll,
            "bits_per_byte": nll / 2,
            "bits_per_byte_exact": True,
            "tokens": 500,
            "bytes": 1500,
        }

    records = [record("reference", None, s, 4.5) for s in ("target", "other")]
    for arm, end in ends(gain).items():
        for step in (5, 10, 15, 20):
            records.append(record(arm, step, "target", end + 0.05 * (20 - step)))
            records.append(record(arm, step, "other", 6.0 + 0.01 * step))
    write_json(out / "evaluation.json", records)
    files = describe_files(out, ["evaluation.json"])
    return str(write_manifest(out, "evaluation", config={}, inputs={"gain": gain}, files=files)["fingerprint"])


def _comparison(out: Path, prints: Mapping[str, str], evaluated: str, gain: float) -> None:
    rows: list[dict[str, Any]] = [{"arm": "reference", "nll": 4.5, "bits_per_byte": 2.25, "others": {"other": 6.2}}]
    for arm, nll in ends(gain).items():
        summary = json.loads((out.parent / arm / "manifest.json").read_text())["summary"]
        speedup = {"clm": None, "random": None, "rho1": 1.5}[arm]
        rows.append({"arm": arm, "nll": nll, "bits_per_byte": nll / 2, "others": {"other": 6.2}, **summary,
                     "speedup": speedup, "speedup_is_bound": False})  # fmt: skip
    write_json(out / "comparison.json", rows)
    settings = {"target": "target", "others": ["other"], "solution": False, "baseline": "clm", "arms": list(ARMS)}
    inputs = {"evaluation": evaluated, "runs": dict(prints)}
    files = describe_files(out, ["comparison.json"])
    write_manifest(out, "comparison", config=settings, inputs=inputs, files=files)


CLASSES = ("H->H", "L->H", "H->L", "L->L")


def planted_classes(nll_FRT: np.ndarray) -> np.ndarray:
    """The paper's four classes of the planted nll; -1 where there is none."""
    y = nll_FRT.astype(np.float64)
    x = np.arange(len(y)) - (len(y) - 1) / 2
    delta = np.tensordot(x, y - y.mean(0), 1) / (x**2).sum() * (len(y) - 1)
    high = y[-1] > np.nanmean(y[-1])
    classes = np.where(delta > 0.2, 1, np.where(delta < -0.2, 2, np.where(high, 0, 3)))
    return np.where(np.isnan(y[0]), -1, classes).astype(np.int8)


def _dynamics(out: Path, corpus: Corpus, nll_FRT: np.ndarray, scores: str) -> None:
    import pyarrow as pa

    from tokensieve.runs.files import atomic_file

    frames, classes = len(nll_FRT), planted_classes(nll_FRT)
    names = [f"nll-{i:05d}.arrow" for i in range(frames)]
    for name, nll_RT in zip(names, nll_FRT, strict=True):
        write_score_shard(out / name, {"nll": nll_RT})
    offsets = pa.array(np.arange(corpus.num_rows + 1, dtype=np.int32) * np.int32(corpus.length))
    column = pa.ListArray.from_arrays(offsets, pa.array(classes.reshape(-1)))
    with atomic_file(out / "tokens.arrow") as f:
        table = pa.table({"class": column})
        with pa.ipc.new_stream(f, table.schema) as stream:
            stream.write_table(table)
    valid = classes >= 0
    marks = [{"index": i, "model": "rho1", "step": 5 * (i + 1), "tokens_seen": 5000 * (i + 1),
              "tokens_trained": 3000 * (i + 1), "nll": float(np.nanmean(n.astype(np.float64)))}
             for i, n in enumerate(nll_FRT)]  # fmt: skip

    def mean(which: np.ndarray, frame: int) -> float | None:
        found = nll_FRT[frame][which].astype(np.float64)
        return float(found.mean()) if len(found) else None

    rows, curves, samples = [], [], []
    for i, name in enumerate(CLASSES):
        which = classes == i
        rows.append({"class": name, "tokens": int(which.sum()), "share": float(which.sum() / valid.sum()), "paper": 0.25,
                     "kept_share": 0.6})  # fmt: skip
        curves += [{"class": name, "checkpoint": f, "nll": mean(which, f)} for f in range(frames)]
        for row, position in np.argwhere(which)[:3].tolist():
            samples.append({"class": name, "nll": nll_FRT[:, row, position].astype(float).tolist()})
    kept = logged_keep(nll_FRT[-1], np.zeros_like(nll_FRT[-1]) + 2, "rho1")
    selection = [{"selected_at": frames - 1, "checkpoint": f, "kept": int(kept.sum()), "dropped": int((valid & ~kept).sum()),
                  "kept_nll": mean(kept, f), "dropped_nll": mean(valid & ~kept, f)} for f in range(frames)]  # fmt: skip
    tables = {"checkpoints": marks, "tokens": int(valid.sum()), "rows": corpus.num_rows, "length": corpus.length,
              "threshold": 0.2, "ratio": 0.6, "classes": rows, "curves": curves, "samples": samples,
              "breakdowns": [], "selection": selection}  # fmt: skip
    write_json(out / "dynamics.json", tables)
    write_manifest(
        out,
        "dynamics",
        config={"ratio": 0.6},
        inputs={"corpus": corpus.content_hash, "scores": scores, "nll": hash_json(marks)},
        files=describe_files(out, [*names, "tokens.arrow", "dynamics.json"]),
        corpus_hash=corpus.content_hash,
        tokenizer_hash=corpus.tokenizer_hash,
        length=corpus.length,
        checkpoints=frames,
    )
