"""Compressed files are read by what is in them; damaged ones, and what is no text, are named in one sentence."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokensieve.data.read.documents import BadRow, Document
from tokensieve.data.read.readers import blocks, documents, sample
from tokensieve.data.read.source import SourceConfig
from tokensieve.data.read.sources import resolve, text_bytes
from tokensieve.runs.errors import UserError


def zstd(data: bytes) -> bytes:
    """Two frames, as tools that compress in parallel write them."""
    half = len(data) // 2
    return b"".join(pa.compress(part, codec="zstd", asbytes=True) for part in (data[:half], data[half:]))


PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    ".zst": zstd,
}
LINES = b"".join(json.dumps({"text": f"line {i} é"}).encode() + b"\n" for i in range(200))


def read(path: Path, size: int = 1 << 20, **settings: object) -> list[Document]:
    source = sample(resolve(SourceConfig(str(path), **settings)), size)  # type: ignore[arg-type]
    return [d for block in blocks(source, size) for d in documents(source, block)]  # type: ignore[misc]


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("name", ["a.jsonl{}", "a.jsonl"])
@pytest.mark.parametrize("size", [300, 1 << 20])
def test_lines_come_as_from_the_plain_file(tmp_path: Path, suffix: str, name: str, size: int) -> None:
    """Only gzip was read; a ``.zst`` was "not valid JSON" at line 1."""
    (tmp_path / "plain.jsonl").write_bytes(LINES)
    path = tmp_path / name.format(suffix)
    path.write_bytes(PACK[suffix](LINES))
    settings = {} if suffix != ".lzma" else {"format": "jsonl"}
    found = read(path, size, **settings)
    assert [d.text for d in found] == [d.text for d in read(tmp_path / "plain.jsonl", size)]
    assert [d.where for d in found][:2] == [f"{path} line 1", f"{path} line 2"]
    some = read(path, size, max_bytes=500, **settings)
    assert 0 < sum(d.size for d in some) <= 500


@pytest.mark.parametrize("suffix", [s for s in PACK if s != ".lzma"])
@pytest.mark.parametrize("size", [150, 1 << 20])
def test_text_is_cut_as_the_plain_file_is(tmp_path: Path, suffix: str, size: int) -> None:
    (tmp_path / "a.txt").write_bytes(LINES)
    path = tmp_path / f"b.txt{suffix}"
    path.write_bytes(PACK[suffix](LINES))
    plain, packed = read(tmp_path / "a.txt", size), read(path, size)
    assert [d.text for d in packed] == [d.text for d in plain]
    assert [d.id.replace("b.txt" + suffix, "a.txt") for d in packed] == [d.id for d in plain]
    half = read(path, size, split=(0.0, 0.5))
    assert {d.id for d in half} | {d.id for d in read(path, size, split=(0.5, 1.0))} == {d.id for d in packed}


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_a_damaged_file_is_named(tmp_path: Path, suffix: str, name: str) -> None:
    """Cut off, or with a byte changed: one sentence, whatever the library raises."""
    whole = PACK[suffix](LINES)
    path = tmp_path / f"{name}{suffix}"
    for damaged in (whole[: len(whole) * 2 // 3], whole[:60] + bytes(4) + whole[64:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"is a damaged \w+ file after (line )?\d+") as e:
            read(path, format="jsonl" if name == "a.jsonl" else "text")
        assert str(path) in str(e.value)
        assert "\n" not in str(e.value)


@pytest.mark.parametrize("suffix", PACK)
def test_members_one_behind_the_other_are_all_read(tmp_path: Path, suffix: str) -> None:
    """``cat a.bz2 b.bz2``: a second member with damaged first bytes, and all behind it, was missing without a word."""
    half = len(LINES) // 2
    first, second = (PACK[suffix](part) for part in (LINES[:half], LINES[half:]))
    (tmp_path / "plain.jsonl").write_bytes(LINES)
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(first + second)
    assert [d.text for d in read(path, format="jsonl")] == [d.text for d in read(tmp_path / "plain.jsonl")]
    path.write_bytes(first + b"XYZ" + second[3:])
    with pytest.raises(UserError, match="is a damaged"):
        read(path, format="jsonl")


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
def test_zeros_behind_a_member_pass(tmp_path: Path, suffix: str) -> None:
    """Tapes and block devices fill files up with them."""
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(PACK[suffix](LINES) + bytes(512))
    assert len(read(path)) == 200


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        z.writestr("a.jsonl", LINES)
    return out.getvalue()


def tarred() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as t:
        t.addfile(tarfile.TarInfo("a.jsonl"), io.BytesIO(b""))
    return out.getvalue()


def parquet() -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"text": ["a"]}), out)
    return out.getvalue()


OTHER = {
    "a zip archive": zipped(),
    "a tar archive": tarred(),
    "a Parquet file": parquet(),
    "a 7z archive": b"7z\xbc\xaf\x27\x1c\x00\x04",
    "compressed with lz4": pa.compress(LINES, codec="lz4", asbytes=True),
    "UTF-16 text": '{"text": "a"}\n'.encode("utf-16"),
    "an SQLite data base": b"SQLite format 3\x00",
    "a PDF": b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n",
}


@pytest.mark.parametrize("what", OTHER)
def test_what_is_no_text_is_named(tmp_path: Path, what: str) -> None:
    """It was "not valid JSON: Expecting value at character 1", or "not valid UTF-8"."""
    for name in ("a.jsonl", "a.txt"):
        (tmp_path / name).write_bytes(OTHER[what])
    with pytest.raises(UserError, match=f"a.jsonl is {what}, which is not read as text: "):
        read(tmp_path / "a.jsonl")
    [bad] = read(tmp_path / "a.txt")
    assert isinstance(bad, BadRow)
    assert bad.reason.startswith(f"is {what}, which")


def test_an_archive_inside_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(tarred()))
    with pytest.raises(UserError, match=r"a\.jsonl\.gz: what is compressed in it is a tar archive"):
        read(tmp_path / "a.jsonl.gz")


@pytest.mark.parametrize("text", ["ORC is a file format", "LZIP me", "%PDF-1.4 begins a PDF", "BZh91 is bzip2", "PAR1"])
def test_text_may_begin_with_any_letters(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    assert [d.text for d in read(tmp_path / "a.txt")] == [text]


@pytest.mark.parametrize("suffix", [s for s in PACK if s != ".lzma"])
def test_the_estimate_knows_compressed_files(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a.jsonl{suffix}").write_bytes(b"x" * 100)
    [file] = resolve(SourceConfig(str(tmp_path))).files
    assert text_bytes(file) == 300
