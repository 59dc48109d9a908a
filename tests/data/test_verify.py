"""Corpora and scores are hashed once a machine: how many bytes are read, and what is found all the same."""

from __future__ import annotations

import os
import shutil
import stat
import time
from pathlib import Path
from typing import Any

import corpora
import pytest

from tokensieve.data import verify
from tokensieve.data.verify import check_input, remembered_hash
from tokensieve.modeling.folder import model_hash
from tokensieve.runs import files, manifest
from tokensieve.runs.errors import UserError
from tokensieve.runs.manifest import check_files, read_manifest, write_manifest


class Counter:
    """Bytes that files were hashed of, by this process."""

    def __init__(self) -> None:
        self.bytes = 0

    def take(self) -> int:
        taken, self.bytes = self.bytes, 0
        return taken


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Counter:
    counter, real = Counter(), files.file_hash

    def counted(path: Path, *args: Any) -> str:
        counter.bytes += Path(path).stat().st_size
        return real(path, *args)

    monkeypatch.setattr(manifest, "file_hash", counted)
    monkeypatch.setattr(verify, "file_hash", counted)
    monkeypatch.setattr(verify, "FINE", 0.02)
    monkeypatch.setattr(verify.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    return counter


@pytest.fixture
def folder(tmp_path: Path, hashed: Counter) -> Path:
    """Three files of 10, 200 and 3000 bytes and their manifest, old enough to be remembered."""
    path = tmp_path / "folder"
    path.mkdir()
    for name, size in (("a", 10), ("b", 200), ("c", 3000)):
        (path / name).write_bytes(name.encode() * size)
    write_manifest(path, "corpus", config={}, inputs={}, files=files.describe_files(path, "abc"))
    settle()
    hashed.take()
    return path


def check(folder: Path, how: Any = "full") -> None:
    check_input(folder, read_manifest(folder), how)


def settle() -> None:
    time.sleep(0.03)


def test_bytes_are_read_once(folder: Path, hashed: Counter) -> None:
    """Every rank, every stage and every start read all of a corpus: 84 GB a rank at 14 billion tokens."""
    check(folder)
    assert hashed.take() == 3210
    for _ in range(3):
        check(folder)
    assert hashed.take() == 0
    check(folder, "size")
    check(folder, None)
    assert hashed.take() == 0
    check_files(folder, read_manifest(folder))  # what `check` does: always all
    assert hashed.take() == 3210


@pytest.mark.parametrize("name", "abc")
@pytest.mark.parametrize("how", ["written", "mtime set back", "replaced, mtime set back"])
def test_changed_bytes_are_found(how: str, name: str, folder: Path, hashed: Counter) -> None:
    """By their times: the mtime, and the ctime that nobody can set. Only what changed is read again."""
    check(folder)
    hashed.take()
    path, before = folder / name, (folder / name).stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    if how.startswith("replaced"):
        (folder / "new").write_bytes(data)
        os.replace(folder / "new", path)
    else:
        with open(path, "r+b") as f:
            f.write(data)
    if how != "written":
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path.stat().st_mtime_ns == before.st_mtime_ns
    for _ in range(2):  # a damaged file is not remembered as one
        with pytest.raises(UserError, match=rf"{name} has other bytes than were written"):
            check(folder)
        assert hashed.take() == before.st_size
    check(folder, "size")  # says no more than it says


@pytest.mark.parametrize("harm", ["missing", "truncated", "longer"])
def test_sizes_are_looked_at_first(harm: str, folder: Path, hashed: Counter) -> None:
    if harm == "missing":
        (folder / "c").unlink()
    else:
        (folder / "c").write_bytes(b"c" * (2999 if harm == "truncated" else 3001))
    with pytest.raises(UserError, match="is missing" if harm == "missing" else "bytes, 3000 were written"):
        check(folder)
    assert hashed.take() == 0


def test_what_was_good_before_the_damage_is_remembered(folder: Path, hashed: Counter) -> None:
    (folder / "c").write_bytes(b"d" * 3000)
    for read in (3210, 3000):
        with pytest.raises(UserError, match="c has other bytes"):
            check(folder)
        assert hashed.take() == read


def test_a_file_that_was_just_written_is_not_remembered(
    folder: Path, hashed: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second write within the same tick of the clock leaves size and times as they are."""
    check(folder)
    (folder / "b").write_bytes(b"b" * 200)
    hashed.take()
    monkeypatch.setattr(verify, "FINE", 999)
    for _ in range(2):
        check(folder)
        assert hashed.take() == 200
    settle()
    monkeypatch.setattr(verify, "FINE", 0.02)
    check(folder)
    check(folder)
    assert hashed.take() == 200


SECOND = 10**9


@pytest.mark.parametrize(
    ("ctime", "settled"),
    [
        (100 * SECOND, False),  # by whole seconds: a clock that may count in two of them
        (98 * SECOND, False),
        (97 * SECOND, True),
        (100 * SECOND - 1, False),
        (99 * SECOND + 1, True),
        (101 * SECOND + 1, False),  # a server whose clock is ahead
    ],
)
def test_a_clock_of_seconds_is_given_seconds(ctime: int, settled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify.time, "time_ns", lambda: 100 * SECOND)
    assert verify._settled((1, 0, ctime)) == settled


def test_a_copy_is_read(folder: Path, tmp_path: Path, hashed: Counter) -> None:
    """With its record and its mtimes: what one disk has read says nothing of what another one wrote."""
    check(folder)
    hashed.take()
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copy2)
    assert (tmp_path / "copy" / verify.NAME).exists()
    settle()
    check(tmp_path / "copy")
    assert hashed.take() == 3210


@pytest.mark.parametrize(
    "record", [b"", b"[", b"{}", b"null", b'[["a"]]', b"\xff\xfe", b'[["a", 1, 2, 3, {}], 7]', b"[" * 99999]
)
def test_a_broken_record_costs_a_reading(record: bytes, folder: Path, hashed: Counter) -> None:
    check(folder)
    (folder / verify.NAME).write_bytes(record)
    hashed.take()
    check(folder)
    assert hashed.take() == 3210
    check(folder)
    assert hashed.take() == 0
    (folder / verify.NAME).unlink()
    check(folder)
    assert hashed.take() == 3210


def test_a_record_of_another_hash_vouches_for_nothing(folder: Path, hashed: Counter) -> None:
    check(folder)
    manifest = read_manifest(folder)
    manifest["files"][1]["hash"] = "xxh3:0"
    with pytest.raises(UserError, match="b has other bytes"):
        check_input(folder, manifest, "full")


@pytest.mark.parametrize("where", ["read-only folder", "no place at all", "a strange temporary folder", "a link there"])
def test_where_a_record_cannot_lie(
    where: str, folder: Path, hashed: Counter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the files, else in this user's own temporary folder, else nowhere: that costs a reading and no more."""
    mine = tmp_path / "tmp" / f"tokensieve-{os.getuid()}"
    if where == "a strange temporary folder":  # somebody else's could say that damage is none
        mine.mkdir()
        mine.chmod(0o777)
    if where == "a link there":
        (tmp_path / "elsewhere").mkdir()
        mine.symlink_to(tmp_path / "elsewhere")
    if where == "no place at all":
        monkeypatch.setattr(verify.tempfile, "gettempdir", lambda: str(tmp_path / "nowhere"))
    real = verify.atomic_file

    def refused(path: Path, mode: str) -> Any:  # root may write into folders that are read-only
        if Path(path).parent == folder:
            raise PermissionError(13, "Permission denied")
        return real(path, mode)

    monkeypatch.setattr(verify, "atomic_file", refused)
    check(folder)
    check(folder)
    assert not (folder / verify.NAME).exists()
    assert hashed.take() == 3210 * (1 if where == "read-only folder" else 2)
    if where == "read-only folder":
        assert stat.S_IMODE(mine.stat().st_mode) == 0o700


def test_a_model_is_read_once_and_nothing_is_written_beside_it(tmp_path: Path, hashed: Counter) -> None:
    """Its hash says which work is done: every rank and every stage read all of its weights."""
    model = corpora.model_folder(tmp_path / "model")
    there = sorted(p.name for p in model.iterdir())
    settle()
    first, size = model_hash(model), hashed.take()
    assert (model_hash(model), hashed.take()) == (first, 0)
    assert size > 0
    assert sorted(p.name for p in model.iterdir()) == there
    with open(model / "model.safetensors", "r+b") as f:
        f.seek(-1, os.SEEK_END)
        f.write(b"\x01")
    assert model_hash(model) != first
    with pytest.raises(UserError, match="is missing"):
        remembered_hash(model / "nothing")
