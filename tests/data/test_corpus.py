import json
import random
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from tokensieve.data.corpus import LATER_COLUMNS, ROW_COLUMNS, ContentHash, Corpus, describe, open_corpus
from tokensieve.data.read.source import SourceConfig
from tokensieve.pipeline.prepare import PrepareConfig, run
from tokensieve.runs.errors import UserError
from tokensieve.runs.manifest import is_done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of 16 rows of 32 tokens (the last is smaller), two sources."""
    here = tmp_path_factory.mktemp("corpus")
    rng = random.Random(0)
    rows = [
        {"text": " ".join(rng.choices(["alpha", "beta", "gamma é"], k=rng.randint(1, 60))), "source": "ab"[i % 2]}
        for i in range(60)
    ]
    (here / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    config = PrepareConfig(
        str(here / "out"),
        [SourceConfig(str(here / "a.jsonl"))],
        vocab_size=262,
        length=32,
        shard_tokens=700,
        unit_bytes=4000,
    )
    return run(config, progress=False)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_rows_are_those_of_load_from_disk(folder: Path) -> None:
    corpus = open_corpus(folder, "full")
    plain = datasets.load_from_disk(str(folder))
    assert isinstance(plain, datasets.Dataset)
    assert corpus.rows[:] == plain[:]
    assert corpus.rows.features == plain.features
    columns = {**ROW_COLUMNS, **LATER_COLUMNS}
    assert {f.name: str(f.type) for f in corpus.rows.features.arrow_schema} == {k: str(t) for k, t in columns.items()}
    assert len(corpus.manifest["shards"]) > 2
    assert [s["rows"] for s in corpus.manifest["shards"]][:-1] == [700 // 32] * (len(corpus.manifest["shards"]) - 1)
    assert corpus.num_rows == sum(s["rows"] for s in corpus.manifest["shards"]) == corpus.stats["rows"]


def test_documents_and_rows_agree(folder: Path) -> None:
    corpus = open_corpus(folder)
    documents = corpus.documents().to_pydict()
    assert documents["doc_id"] == list(range(60))
    found: dict[int, list[int]] = {}
    for row in corpus.rows:
        ends = [*row["doc_starts"][1:], row["num_tokens"]]
        for start, end, doc, source in zip(row["doc_starts"], ends, row["doc_ids"], row["doc_sources"], strict=True):
            found.setdefault(doc, []).extend(row["input_ids"][start:end])
            assert source == documents["source"][doc]
        assert set(row["input_ids"][row["num_tokens"] :]) <= {corpus.pad_id}
    tokenizer = corpus.tokenizer()
    lines = [json.loads(line) for line in (folder.parent / "a.jsonl").read_text().splitlines()]
    for doc, line in enumerate(lines):
        assert tokenizer.decode(found[doc][:-1]) == line["text"]
        assert found[doc][-1] == corpus.eos_id
        assert documents["id"][doc] == f"a.jsonl:{doc + 1}"
        assert (documents["num_bytes"][doc], documents["num_tokens"][doc]) == (
            len(line["text"].encode()),
            len(found[doc]),
        )
        assert corpus.sources[documents["source"][doc]] == line["source"]
    for name, tally in corpus.stats["by_source"].items():
        mine = [d for d in range(60) if corpus.sources[documents["source"][d]] == name]
        assert tally == {
            "documents": len(mine),
            "tokens": sum(documents["num_tokens"][d] for d in mine),
            "bytes": sum(documents["num_bytes"][d] for d in mine),
        }


def content_hash(rows: Any, step: int) -> str:
    digest = ContentHash()
    table = rows.data.table.select(list(ROW_COLUMNS))
    for start in range(0, len(table), step):
        digest.update(table.slice(start, step))
    return digest.hexdigest()


def test_content_hash_is_of_the_rows_however_they_are_sharded(folder: Path, tmp_path: Path) -> None:
    corpus = open_corpus(folder)
    assert {content_hash(corpus.rows, step) for step in (1, 7, 1000)} == {corpus.content_hash}
    [config] = [corpus.manifest["config"]]
    other = PrepareConfig(
        **{**config, "sources": [SourceConfig(**config["sources"][0])], "out": str(tmp_path / "o"), "shard_tokens": 99}
    )
    assert open_corpus(run(other, progress=False)).content_hash == corpus.content_hash
    swapped = corpus.rows.select([1, 0, *range(2, corpus.num_rows)]).flatten_indices()
    assert content_hash(swapped, 1000) != corpus.content_hash


@pytest.mark.parametrize("verify", ["size", "full", None])
def test_damage_is_refused_by_name(copy: Path, verify: Any) -> None:
    shard = copy / "rows-00001.arrow"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    if verify == "full":
        with pytest.raises(UserError, match=r"rows-00001\.arrow has other bytes"):
            open_corpus(copy, verify)
    else:
        assert isinstance(open_corpus(copy, verify), Corpus)
    shard.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"rows-00001\.arrow has|cannot be read"):
        open_corpus(copy, verify)
    shard.unlink()
    with pytest.raises(UserError, match=r"rows-00001\.arrow is missing|cannot be read"):
        open_corpus(copy, verify)


def test_an_unfinished_or_foreign_folder_is_refused(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        open_corpus(tmp_path / "nowhere")
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "kind": "scores"}))
    with pytest.raises(UserError, match="holds 'scores', 'corpus' is needed"):
        open_corpus(copy)
    (copy / "manifest.json").unlink()
    assert not is_done(copy)
    with pytest.raises(UserError, match="not finished"):
        open_corpus(copy)


def test_describe_names_every_source(folder: Path) -> None:
    corpus = open_corpus(folder)
    text = describe(corpus.manifest)
    first, a, b = text.splitlines()
    assert f"{corpus.stats['tokens']:,} tokens in {corpus.num_rows:,} rows of 32, 60 documents" in first
    assert a.split()[0] == "a"
    assert b.split()[0] == "b"
    assert np.isclose(corpus.stats["bytes_per_token"], corpus.stats["bytes"] / corpus.stats["tokens"])
