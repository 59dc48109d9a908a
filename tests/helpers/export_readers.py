"""Readers of exported folders that share nothing with their writers, and what each trainer makes of them.

``READERS[name](folder, length)`` gives a sample at a time what that trainer's loss is made of: (the id a position sees last,
its target, its weight) in order, shifted as the trainer shifts. ``length``: tokens of a row of the corpus.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq

Term = tuple[int, int, float]


def labelled(rows: Iterator[dict[str, Any]]) -> Iterator[list[Term]]:
    """What transformers' causal models do: logits at t against labels[t + 1], -100 left out."""
    for row in rows:
        ids, labels = list(row["input_ids"]), list(row["labels"])
        assert len(ids) == len(labels) == len(row.get("attention_mask", ids))
        assert all(m == 1 for m in row.get("attention_mask", []))
        pairs = [(ids[t], labels[t + 1]) for t in range(len(ids) - 1) if labels[t + 1] != -100]
        yield [(context, target, 1.0) for context, target in pairs]


def jsonl(folder: Path, length: int) -> Iterator[list[Term]]:
    lines = (line for path in sorted(folder.glob("train-*.jsonl")) for line in path.read_text().splitlines())
    yield from labelled(json.loads(line) for line in lines)


def parquet(folder: Path, length: int) -> Iterator[list[Term]]:
    yield from labelled(row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist())


def llama_factory(folder: Path, length: int) -> Iterator[list[Term]]:
    yield from labelled(iter(datasets.load_from_disk(str(folder))["train"]))


def swift(folder: Path, length: int) -> Iterator[list[Term]]:
    """``_encode_context_list``: a label where loss_scale is above 0, none at the first token; both are rolled to the left."""
    lines = (line for path in sorted(folder.glob("train-*.jsonl")) for line in path.read_text().splitlines())
    for row in map(json.loads, lines):
        assert row["add_eos"] is False
        user, assistant = row["messages"]
        assert (user["role"], user["content"], assistant["role"]) == ("user", "", "assistant")
        ids, scale = assistant["content"]["token_ids"], [0.0, *assistant["content"]["loss_scale"][1:]]
        labels = [-100, *(i if s > 0 else -100 for i, s in zip(ids[1:], scale[1:], strict=True))]
        labels, scale = labels[1:] + labels[:1], scale[1:] + scale[:1]
        yield [(ids[t], labels[t], scale[t]) for t in range(len(ids)) if labels[t] != -100]


def olmo(folder: Path, length: int) -> Iterator[list[Term]]:
    """``get_labels``: input_ids where the mask is true, then one to the left."""
    for path in sorted(folder.glob("tokens-*.npy")):
        raw, mask = path.read_bytes(), path.with_name(path.name.replace("tokens", "label_mask")).read_bytes()
        ids = struct.unpack(f"<{len(raw) // 2}H", raw)
        assert len(mask) == len(ids)
        assert len(ids) % length == 0
        for begin in range(0, len(ids), length):
            row, keep = ids[begin : begin + length], mask[begin : begin + length]
            labels = [i if k else -100 for i, k in zip(row, keep, strict=True)]
            shifted = [*labels[1:], -100]
            yield [(row[t], shifted[t], 1.0) for t in range(length) if shifted[t] != -100]


def datatrove(folder: Path, length: int) -> Iterator[list[Term]]:
    """Items of ``seq_len + 1`` tokens, ``seq_len = length - 1``; tokens[:-1] predict tokens[1:], with loss[1:]."""
    for path in sorted(folder.glob("*.ds")):
        raw, loss = path.read_bytes(), Path(f"{path}.loss").read_bytes()
        ids = struct.unpack(f"<{len(raw) // 2}H", raw)
        assert len(loss) == len(ids)
        for item in range(len(ids) // length):
            tokens, keep = (v[item * length : (item + 1) * length] for v in (ids, loss))
            yield [(tokens[t], tokens[t + 1], 1.0) for t in range(length - 1) if keep[t + 1]]


def indexed(prefix: Path) -> tuple[list[tuple[float, ...]], list[int]]:
    """(sequences, sequences before each document) of a Megatron indexed dataset."""
    index, data = Path(f"{prefix}.idx").read_bytes(), Path(f"{prefix}.bin").read_bytes()
    assert index[:9] == b"MMIDIDX\x00\x00"
    version, code, count, documents = struct.unpack_from("<QBQQ", index, 9)
    assert version == 1
    kind = {4: "i", 7: "f", 8: "H"}[code]
    at = 9 + 25
    sizes = struct.unpack_from(f"<{count}i", index, at)
    pointers = struct.unpack_from(f"<{count}q", index, at + 4 * count)
    ends = struct.unpack_from(f"<{documents}q", index, at + 12 * count)
    assert len(index) == at + 12 * count + 8 * documents
    return [struct.unpack_from(f"<{n}{kind}", data, p) for n, p in zip(sizes, pointers, strict=True)], list(ends)


def megatron(folder: Path, length: int) -> Iterator[list[Term]]:
    """``GPTDataset``: windows of seq_length + 1 tokens that share one; labels and weights are [1:] of a window."""
    parts = {name: indexed(folder / name) for name in ("tokens", "weight", "labels")}
    for sequences, ends in parts.values():
        assert ends == list(range(len(sequences) + 1))
        assert {len(s) for s in sequences} == {length}
    tokens, weight, labels = ([v for s in parts[name][0] for v in s] for name in parts)
    for begin in range(0, len(tokens), length):
        text, w, known = (v[begin : begin + length + 1] for v in (tokens, weight, labels))
        terms = [(text[t], text[t + 1], w[t + 1]) for t in range(len(text) - 1) if w[t + 1]]
        assert [x[1] for x in terms] == [label for label in known[1:] if label != -100]
        yield [(int(a), int(b), x) for a, b, x in terms]


def mds(folder: Path, length: int) -> Iterator[list[Term]]:
    """The three columns of each sample; labels shifted by the model, weights with them."""
    index = json.loads((folder / "index.json").read_text())
    assert index["version"] == 2
    for shard in index["shards"]:
        data = (folder / shard["raw_data"]["basename"]).read_bytes()
        assert len(data) == shard["raw_data"]["bytes"]
        [samples] = struct.unpack_from("<I", data)
        assert samples == shard["samples"]
        begins = struct.unpack_from(f"<{samples + 1}I", data, 4)
        assert begins[-1] == len(data)
        config = json.loads(data[4 + 4 * (samples + 1) : begins[0]])
        assert {**config, **{k: shard[k] for k in ("raw_data", "samples", "zip_data")}} == shard
        for begin in begins[:-1]:
            at, row = begin + 4 * len(shard["column_names"]), {}
            sizes = struct.unpack_from(f"<{len(shard['column_names'])}I", data, begin)
            for name, encoding, size in zip(shard["column_names"], shard["column_encodings"], sizes, strict=True):
                row[name], at = _ndarray(data[at : at + size], encoding), at + size
            ids, labels, weight = row["input_ids"], row["labels"], row["weight"]
            kept = [t for t in range(len(ids) - 1) if labels[t + 1] != -100]
            yield [(ids[t], labels[t + 1], weight[t + 1]) for t in kept]


def _ndarray(data: bytes, encoding: str) -> tuple[Any, ...]:
    dimensions, code = data[0] >> 2, data[0] % 4
    assert dimensions == 1
    [count] = struct.unpack_from("<" + "BHI"[code], data, 1)
    kind = {"ndarray:int32": "i", "ndarray:float32": "f"}[encoding]
    return struct.unpack(f"<{count}{kind}", data[1 + (1 << code) :])


READERS: dict[str, Callable[[Path, int], Iterator[list[Term]]]] = {
    "jsonl": jsonl,
    "parquet": parquet,
    "llama_factory": llama_factory,
    "swift": swift,
    "olmo": olmo,
    "datatrove": datatrove,
    "megatron": megatron,
    "mds": mds,
}
