"""Text by URL, as fsspec opens it: what is read of it is what is read of the same files on a disk, by whatever reads text."""

from __future__ import annotations

import gzip
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec.implementations.memory
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokensieve.data.filter.options import Decontaminate, Dedup
from tokensieve.data.read.documents import Document
from tokensieve.data.read.readers import blocks, documents, sample
from tokensieve.data.read.source import SourceConfig
from tokensieve.data.read.sources import identity, resolve
from tokensieve.evaluation.measures.contamination import counted
from tokensieve.evaluation.measures.options import ContaminationOptions
from tokensieve.pipeline import filter as filtering
from tokensieve.pipeline import prepare
from tokensieve.pipeline.configs.filter import FilterConfig
from tokensieve.pipeline.configs.prepare import PrepareConfig
from tokensieve.pipeline.recipe.inputs import inputs_of
from tokensieve.runs.errors import UserError
from tokensieve.runs.manifest import read_manifest

ROWS = [{"id": f"{i:02d}", "text": f"row {i} " + "é word" * (i % 7)} for i in range(40)]


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """(a folder, the URL of the same files in fsspec's memory)."""
    folder = tmp_path / "text"
    (folder / "more").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (folder / "a.jsonl").write_text(lines)
    (folder / "more" / "b.jsonl.gz").write_bytes(gzip.compress(lines.replace('"id": "', '"id": "b').encode()))
    (folder / ".hidden" / "c.jsonl").write_text(lines)
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "rows.parquet", row_group_size=7)
    (folder / "long.txt").write_text("".join(f"line {i}\n" for i in range(200)))
    (folder / "code.py").write_text(f'"""{"said of a module " * 20}"""\n')
    url = f"memory://{uuid.uuid4().hex}/text"
    fs = fsspec.filesystem("memory")
    fs.put(f"{folder}/", url.removeprefix("memory:/") + "/", recursive=True)
    yield folder, url
    fs.rm(url.removeprefix("memory:/"), recursive=True)


def read(path: str, **settings: Any) -> list[tuple[str, str]]:
    """(id, text) of its documents, in blocks of 300 bytes."""
    source = sample(resolve(SourceConfig(path, **settings)), 300)
    found = [item for block in blocks(source, 300) for item in documents(source, block)]
    return [(d.id, d.text) for d in found if isinstance(d, Document)]


@pytest.mark.parametrize(
    ("at", "settings"),
    [
        ("", {"format": "jsonl"}),
        ("/a.jsonl", {}),
        ("/**/*.jsonl*", {}),
        ("/m*", {}),  # a folder by a pattern
        ("/rows.parquet", {}),
        ("/long.txt", {}),  # larger than a block: entered in the middle
        ("/code.py", {"format": "docstrings", "max_bytes": 1000}),  # read for its sample
        ("/a.jsonl", {"split": (0.2, 0.7), "max_bytes": 400}),
    ],
)
def test_a_url_is_read_as_its_files_on_a_disk(both: tuple[Path, str], at: str, settings: dict[str, Any]) -> None:
    folder, url = both
    here = read(f"{folder}{at}", **settings)
    assert here
    for there in (url, f"file://{folder}"):
        assert read(there + at, **settings) == here
        one, other = (resolve(SourceConfig(base + at, **settings)) for base in (str(folder), there))
        assert (one.name, [f.name for f in one.files]) == (other.name, [f.name for f in other.files])
        assert identity(one) == identity(other)


def test_prepare_makes_the_same_corpus_of_a_url(both: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = both
    outs = [tmp_path / name for name in ("disk", "memory")]
    for out, path in zip(outs, (str(folder), url), strict=True):
        sources = [SourceConfig(path, format="jsonl"), SourceConfig(f"{path}/rows.parquet", max_bytes=900)]
        prepare.run(PrepareConfig(str(out), sources, vocab_size=280, length=32, workers=1), progress=False)
    one, other = (read_manifest(out, "corpus") for out in outs)
    assert one["content_hash"] == other["content_hash"]
    assert one["fingerprint"] == other["fingerprint"]  # moved elsewhere, it is the same work


@pytest.mark.parametrize("kind", ["dedup", "decontaminate"])
def test_filter_reads_every_text_by_url(both: tuple[Path, str], tmp_path: Path, kind: str) -> None:
    folder, url = both
    outs = [tmp_path / name for name in ("disk", "memory")]
    for out, path in zip(outs, (str(folder), url), strict=True):
        against = Decontaminate([SourceConfig(f"{path}/rows.parquet")], run=4)
        options: dict[str, Any] = {"dedup": {"dedup": Dedup("exact")}, "decontaminate": {"decontaminate": against}}
        sources = [SourceConfig(path, format="jsonl")]
        config = FilterConfig(str(out), kind, sources, workers=1, **options[kind])  # type: ignore[arg-type]
        filtering.run(config, progress=False)
    assert (outs[0] / "table.parquet").read_bytes() == (outs[1] / "table.parquet").read_bytes()


def test_the_measure_of_contamination_reads_by_url(both: tuple[Path, str]) -> None:
    found = [
        counted(ContaminationOptions([SourceConfig(f"{p}/a.jsonl")], [SourceConfig(f"{p}/long.txt")])) for p in both
    ]
    assert found[0] == found[1]


def test_what_cannot_be_read_is_one_sentence(both: tuple[Path, str]) -> None:
    _, url = both
    for path, told in {
        f"{url}/none.jsonl": "does not exist",
        f"{url}/*.csv": "nothing matches this pattern",
        f"{url}": "files of several formats",
        "nosuchscheme://x/y": "nosuchscheme",
        f"zip://a.jsonl::{url}/a.zip": "chained URLs",
    }.items():
        with pytest.raises(UserError, match=told) as raised:
            resolve(SourceConfig(path))
        assert path in str(raised.value)
    fsspec.filesystem("memory").pipe(f"{url}/set/state.json".removeprefix("memory:/"), b"{}")
    with pytest.raises(UserError, match="a datasets folder is read from a disk"):
        resolve(SourceConfig(f"{url}/set"))


def test_a_damaged_file_names_the_url(both: tuple[Path, str]) -> None:
    folder, url = both
    whole = (folder / "more" / "b.jsonl.gz").read_bytes()
    fsspec.filesystem("memory").pipe(f"{url}/half.jsonl.gz".removeprefix("memory:/"), whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"memory://.*half.jsonl.gz is a damaged gzip file after line"):
        read(f"{url}/half.jsonl.gz")


def test_a_recipe_does_not_look_for_a_url() -> None:
    """It was looked for on the disk, and the recipe refused as if it were not here."""
    found = inputs_of(Path("r.yaml"), {"web": {"what": "text"}}, {"web": "s3://bucket/web"})
    assert found["web"].is_here
    assert found["web"].from_hub


def test_a_library_that_fails_while_it_reads_is_one_sentence(
    both: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A web server that gives no parts of a file, as Python's own, ended in a traceback of fsspec's ValueError."""
    _, url = both

    def refuse(self: Any, *args: Any) -> Any:
        raise ValueError("The HTTP server doesn't appear to support range requests.")

    for name in ("long.txt", "rows.parquet"):
        source = resolve(SourceConfig(f"{url}/{name}"))
        with monkeypatch.context() as patched:
            patched.setattr(fsspec.implementations.memory.MemoryFile, "read", refuse)
            with pytest.raises(UserError, match=r"memory://.* cannot be read over the network: .* range requests"):
                list(blocks(source, 300))
