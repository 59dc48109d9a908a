"""prepare over many files: short ones are packed together, and what that costs or saves is said."""

from __future__ import annotations

import dataclasses
import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokensieve.data.build.workers import sampled
from tokensieve.data.corpus import Corpus, describe, open_corpus
from tokensieve.data.read import readers
from tokensieve.data.read.source import SourceConfig
from tokensieve.data.read.sources import identity, resolve
from tokensieve.pipeline.prepare import PARTS, PrepareConfig, run, work
from tokensieve.runs.errors import UserError
from tokensieve.runs.manifest import read_manifest

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    here = tmp_path_factory.mktemp("base")
    (here / "a.jsonl").write_text('{"text": "row alpha beta gamma 0123456789"}\n')
    return str(
        run(PrepareConfig(str(here / "out"), [SourceConfig(str(here / "a.jsonl"))], vocab_size=260), progress=False)
    )


def prepare(out: Path, tokenizer: str, *sources: SourceConfig, **settings: Any) -> Corpus:
    config = PrepareConfig(str(out), list(sources), tokenizer=tokenizer, **{"length": 64, **settings})
    return open_corpus(run(config, progress=False), "full")


def rows(n: int, seed: int = 0) -> Rows:
    rng = random.Random(seed)
    return [
        {"text": " ".join(rng.choices(["alpha", "beta", "gamma"], k=rng.randint(1, 9))) + f" {i}"} for i in range(n)
    ]


def lines(found: Rows) -> bytes:
    return "".join(json.dumps(r) + "\n" for r in found).encode()


def parquet(found: Rows) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(found), sink)
    return bytes(sink.getvalue())


FORMS: dict[str, Callable[[Rows], bytes]] = {
    "jsonl": lines,
    "jsonl.gz": lambda found: gzip.compress(lines(found)),
    "jsonl.zst": lambda found: bytes(pa.compress(lines(found), codec="zstd", asbytes=True)),
    "parquet": parquet,
}


def many(folder: Path, form: str, found: Rows, each: int = 1) -> Path:
    folder.mkdir()
    for i in range(0, len(found), each):
        (folder / f"{i:04d}.{form}").write_bytes(FORMS[form](found[i : i + each]))
    return folder


def texts(corpus: Corpus) -> list[str]:
    ids = [t for row in corpus.rows for t in row["input_ids"][: row["num_tokens"]]]
    return str(corpus.tokenizer().decode(ids)).split("<|endoftext|>")[:-1]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("each", [1, 7])
def test_short_files_fill_rows_together(tmp_path: Path, tokenizer: str, form: str, each: int) -> None:
    """Each file ended a row: 200 files of a line each were 200 rows of 1024, 98.7 % padding, and nothing said so."""
    found = rows(60)
    (tmp_path / f"one.{form}").write_bytes(FORMS[form](found))
    one = prepare(tmp_path / "1", tokenizer, SourceConfig(str(tmp_path / f"one.{form}")))
    both = prepare(tmp_path / "2", tokenizer, SourceConfig(str(many(tmp_path / "many", form, found, each))))
    assert both.rows["input_ids"] == one.rows["input_ids"]
    assert texts(both) == [r["text"] for r in found]
    assert both.documents()["id"].to_pylist()[:2] == [
        f"0000.{form}:1",
        f"0001.{form}:1" if each == 1 else f"0000.{form}:2",
    ]
    assert both.stats["padding"] == pytest.approx(1 - both.stats["tokens"] / (both.num_rows * 64))
    assert both.stats["padding"] < 0.05


@pytest.mark.parametrize("form", FORMS)
def test_nothing_else_depends_on_how_files_are_packed(tmp_path: Path, tokenizer: str, form: str) -> None:
    """Splits, samples and skipped rows are those of each file."""
    found = rows(90)
    found[40] = {"text": None}
    source = SourceConfig(str(many(tmp_path / "many", form, found, 9)), split=(0.1, 0.9), max_bytes=1500, name="x")
    kept = []
    for unit_bytes in (600, 1 << 20):
        out = tmp_path / str(unit_bytes)
        kept.append(prepare(out, tokenizer, source, unit_bytes=unit_bytes, on_bad_row="skip"))
        [bad] = [json.loads(line) for line in (out / "bad_rows.jsonl").read_text().splitlines()]
        assert bad["where"].startswith(f"{tmp_path}/many/0036.{form} ")
        assert bad["where"].endswith((" line 5", " row 5"))
    ids = [c.documents()["id"].to_pylist() for c in kept]
    assert all(i == ids[0] for i in ids)
    assert 10 < len(ids[0]) < 70
    with pytest.raises(UserError, match=rf"0036\.{form} (line|row) 5: "):
        prepare(tmp_path / "bad", tokenizer, dataclasses.replace(source, max_bytes=None, split=(0.0, 1.0)))


def test_a_sample_is_the_same_by_several_processes(tmp_path: Path) -> None:
    source = resolve(SourceConfig(str(many(tmp_path / "many", "jsonl", rows(60), 7))))
    groups = list(readers.groups(source, 500))
    assert len(groups) > 3
    alone, pooled = (dict(sampled(source, iter(groups), workers)) for workers in (1, 2))
    assert alone == pooled
    assert sum(map(len, alone.values())) == 60


def test_a_killed_run_keeps_units_of_several_files_and_its_sample(tmp_path: Path, tokenizer: str) -> None:
    source = SourceConfig(str(many(tmp_path / "many", "jsonl", rows(60), 2)), max_bytes=1200)
    (tmp_path / "many/0058.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"0058\.jsonl line 1: not valid JSON"):
        prepare(tmp_path / "out", tokenizer, source, unit_bytes=500)
    parts = tmp_path / "out" / PARTS
    done = sorted(parts.glob("0000-*.json"))
    assert 2 < len(done) < 30
    counts = json.loads(done[1].read_text())
    done[1].write_text(json.dumps({**counts, "skipped": {"left by the killed run": 1}}))
    limit = json.loads((parts / "sample-0000.json").read_text())["limit"]
    (parts / "sample-0000.json").write_text(json.dumps({"limit": limit / 2}))  # not read from the files again
    with pytest.raises(UserError, match=r"0058\.jsonl line 1"):
        prepare(tmp_path / "out", tokenizer, source, unit_bytes=500)
    assert "left by the killed run" in done[1].read_text()
    assert json.loads((parts / "sample-0000.json").read_text())["limit"] == limit / 2


@pytest.mark.parametrize(
    ("sizes", "packed"),
    [((900,), False), ((5000,), False), ((900, 900), True), ((5000, 900), True), ((5000, 5000), False)],
)
def test_only_work_that_comes_out_otherwise_is_other_work(
    tmp_path: Path, tokenizer: str, sizes: tuple[int, ...], packed: bool
) -> None:
    """One file, or files as large as a unit, are packed as they were: corpora of earlier versions stay that very work."""
    folder = tmp_path / "many"
    folder.mkdir()
    for i, size in enumerate(sizes):
        (folder / f"{i}.jsonl").write_text((json.dumps({"text": "alpha " * 10}) + "\n") * (size // 70))
    source = resolve(SourceConfig(str(folder)))
    unit_bytes = 4000
    assert (identity(source, unit_bytes) != identity(source)) == packed
    config = PrepareConfig("", [source.config], tokenizer=tokenizer, unit_bytes=unit_bytes)
    assert work(config).inputs["source 0"] == identity(source, unit_bytes)
    for text in folder.glob("*.jsonl"):
        text.rename(text.with_suffix(".txt"))
    source = resolve(SourceConfig(str(folder)))  # files that are documents were packed together before
    assert identity(source, unit_bytes) == identity(source)


@pytest.mark.parametrize(("length", "loud"), [(16, False), (1024, True), (4096, True)])
def test_padding_is_said(tmp_path: Path, tokenizer: str, length: int, loud: bool) -> None:
    source = SourceConfig(str(many(tmp_path / "many", "jsonl", rows(20))))
    corpus = prepare(tmp_path / "out", tokenizer, source, length=length)
    said = describe(corpus.manifest)
    assert f"{corpus.stats['padding']:.1%} padding" in said.splitlines()[0]
    assert ("of the rows is padding, and every forward pass pays for it" in said) == loud
    manifest = read_manifest(corpus.folder, "corpus")
    del manifest["stats"]["padding"]  # of an earlier version
    assert describe(manifest) == said
