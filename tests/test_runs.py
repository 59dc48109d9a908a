"""Folders that a stage writes: done last, whole or not at all, and refused where other work stands."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tokensieve.runs import manifest, versions
from tokensieve.runs.errors import StaleFolder, UserError
from tokensieve.runs.files import (
    LOCK,
    MANIFEST,
    WORK,
    atomic_file,
    describe_files,
    file_hash,
    hash_json,
    read_json,
    write_json,
)
from tokensieve.runs.manifest import check_files, is_done, read_manifest, write_manifest
from tokensieve.runs.stage import Stage, stage
from tokensieve.runs.work import Work

CONFIG = {"a": 1, "out": "x"}
INPUTS = {"corpus": "c"}


def work(kind: str = "corpus", config: Any = CONFIG, inputs: Any = INPUTS) -> Work:
    return Work(kind, config, inputs)


def finish(folder: Path, kind: str = "corpus", **fields: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    (folder / "data").write_bytes(b"some bytes")
    given = {"config": CONFIG, "inputs": INPUTS, "files": describe_files(folder, ["data"]), **fields}
    return write_manifest(folder, kind, **given)


# --- files appear whole or not at all -----------------------------------------------------------------------------------


def test_a_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file"
    with atomic_file(path) as f:
        f.write(b"half")
        assert not path.exists()
        f.write(b" and half")
    assert path.read_bytes() == b"half and half"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")

    def write() -> None:
        with atomic_file(tmp_path / "file", "w") as f:
            f.write("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"file": "old"}


def test_processes_of_one_number_on_two_machines_write_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In containers process ids repeat: two wrote the same temporary file, and the second to rename it found none."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    with atomic_file(tmp_path / "file", "w") as one, atomic_file(tmp_path / "file", "w") as other:
        one.write("same")
        other.write("same")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"file": "same"}


def test_a_killed_write_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    code = f"""
import os, signal
from tokensieve.runs.files import atomic_file
with atomic_file({str(tmp_path / "file")!r}, "w") as f:
    f.write("new"); f.flush(); os.kill(os.getpid(), signal.SIGKILL)
"""
    env = {**os.environ, "PYTHONPATH": str(Path(versions.__file__).parents[2])}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == -9
    assert (tmp_path / "file").read_text() == "old"


def test_json_is_json(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"é": [1, None, 0.1]})
    assert read_json(tmp_path / "x.json") == {"é": [1, None, 0.1]}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "nan.json", {"loss": float("nan")})
    assert not (tmp_path / "nan.json").exists()
    (tmp_path / "broken.json").write_text('{"a": ')
    for name, said in (("broken.json", "is not valid JSON"), ("nope.json", "does not exist")):
        with pytest.raises(UserError, match=f"{name} {said}"):
            read_json(tmp_path / name)


# --- identity -----------------------------------------------------------------------------------------------------------


def test_fingerprint_is_of_the_work_and_not_of_the_place() -> None:
    same = work().fingerprint
    assert same == work(config={"out": "elsewhere", "a": 1}, inputs=dict(INPUTS)).fingerprint
    others = [
        ("scores", CONFIG, INPUTS),
        ("corpus", {"a": 2}, INPUTS),
        ("corpus", CONFIG, {"corpus": "d"}),
        ("corpus", CONFIG, {}),
    ]
    assert len({same, *(work(*o).fingerprint for o in others)}) == 5


@dataclass(frozen=True)
class Item:
    path: str
    weight: float | None = None


@dataclass(frozen=True)
class Config:
    out: str
    length: int
    items: list[Item] = field(default_factory=list)
    seed: int = 0


@dataclass(frozen=True)
class LaterItem(Item):
    filter: str = "none"
    span: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class LaterConfig(Config):
    items: list[LaterItem] = field(default_factory=list)  # type: ignore[assignment]
    groups: dict[str, int] = field(default_factory=dict)


def of(config: Any, **inputs: Any) -> Work:
    return Work.of("corpus", config, ("out", "items.path"), {**INPUTS, **inputs})


def test_a_field_added_later_is_no_other_work() -> None:
    """Every new field changed every fingerprint, and `run` then removed finished trainings of weeks."""
    was, now = of(Config("x", 8, [Item("a", 2.0)])), of(LaterConfig("y", 8, [LaterItem("a", 2.0)]), filters=[])
    assert was.fingerprint == now.fingerprint
    assert now.changes({"fingerprint": "of an earlier version", "config": was.config, "inputs": was.inputs}) == []
    other = of(LaterConfig("y", 8, [LaterItem("a", 2.0, filter="all")], groups={"a": 1}), filters=["f"])
    assert other.fingerprint != now.fingerprint
    assert other.changes({"config": was.config, "inputs": was.inputs}) == [
        "groups {} -> not set",
        "groups.a not set -> 1",
        'items.0.filter "none" -> "all"',
        "input filters",
    ]


def test_what_is_not_work_does_not_count_wherever_it_stands() -> None:
    here, there = (of(Config("x", 8, [Item(f"/{folder}/text")])) for folder in ("here", "there"))
    assert here.fingerprint == there.fingerprint
    assert here.config["items"][0]["path"] == "/here/text"  # and is told all the same
    assert of(Config("x", 8, [Item("a", 1.0)])).fingerprint != here.fingerprint
    assert of(Config("x", 8, [Item("a"), Item("b")])).fingerprint != here.fingerprint


def test_a_default_said_aloud_is_the_default() -> None:
    noted = {"config": {"length": 8, "items": [], "seed": 0}, "inputs": INPUTS}
    assert of(Config("x", 8)).changes(noted) == []
    assert of(Config("x", 8)).changes({"fingerprint": "x"}) is None
    noted["config"] = {"length": 8}
    assert of(Config("x", 8, seed=3)).changes(noted) == ["seed 0 -> 3"]
    assert of(Config("x", 8, seed=3)).changes({**noted, "config": {"length": 8, "gone": 1, "seed": 3}}) == [
        "gone 1 -> not set"
    ]


def test_hash_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"")
    assert file_hash(tmp_path / "x") == "xxh3:99aa06d3014798d86001c324468d497f"  # XXH3-128 of nothing
    big = os.urandom((1 << 22) + 1)
    (tmp_path / "x").write_bytes(big)
    (tmp_path / "y").write_bytes(big[:-1] + bytes([big[-1] ^ 1]))
    assert file_hash(tmp_path / "x") != file_hash(tmp_path / "y")


def test_hash_of_json_ignores_the_order_of_keys() -> None:
    assert hash_json({"a": 1, "b": [1, 2]}) == hash_json({"b": [1, 2], "a": 1})
    assert hash_json({"a": [1, 2]}) != hash_json({"a": [2, 1]})


# --- manifests ----------------------------------------------------------------------------------------------------------


def test_manifest_has_its_keys_and_ends_the_note(tmp_path: Path) -> None:
    Stage(tmp_path, work("evaluation")).bind()
    assert not is_done(tmp_path)
    manifest = finish(tmp_path, "evaluation", stats={"rows": 3})
    assert json.loads((tmp_path / MANIFEST).read_text()) == manifest == read_manifest(tmp_path, "evaluation")
    assert list(manifest) == ["format", "kind", "fingerprint", "config", "inputs", "stats", "files", "versions"]
    assert manifest["files"] == [{"file": "data", "bytes": 10, "hash": file_hash(tmp_path / "data")}]
    assert {"python", "platform", "torch"} <= set(manifest["versions"])
    assert not (tmp_path / WORK).exists()


def test_the_note_goes_after_the_manifest_has_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill between the two left checkpoints without a note: the next run took them, whatever its config."""
    Stage(tmp_path, work()).bind()

    def fail(path: Any, value: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(manifest, "write_json", fail)
    with pytest.raises(ZeroDivisionError):
        finish(tmp_path)
    assert (tmp_path / WORK).exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "has no manifest.json: it is not finished"),
        ("[1]", "is not a tokensieve manifest"),
        ("{", "is not valid JSON"),
        ('{"kind": "corpus", "format": 99}', "has format 99, this version reads 1"),
        ('{"kind": "scores", "format": 1}', "holds 'scores', 'corpus' is needed here"),
    ],
)
def test_what_is_no_manifest(text: str | None, said: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(UserError, match=said):
        read_manifest(tmp_path, "corpus")


def test_a_manifest_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name, said in (("nope", "nope does not exist"), ("file", "file is not a folder")):
        with pytest.raises(UserError, match=said):
            read_manifest(tmp_path / name)


def test_files_are_checked(tmp_path: Path) -> None:
    manifest = finish(tmp_path)
    check_files(tmp_path, manifest)
    (tmp_path / "data").write_bytes(b"some_bytes")
    check_files(tmp_path, manifest, hashes=False)
    with pytest.raises(UserError, match="data has other bytes than were written"):
        check_files(tmp_path, manifest)
    (tmp_path / "data").write_bytes(b"some")
    with pytest.raises(UserError, match="data has 4 bytes, 10 were written"):
        check_files(tmp_path, manifest, hashes=False)
    (tmp_path / "data").unlink()
    with pytest.raises(UserError, match="data is missing"):
        check_files(tmp_path, manifest)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "link/secret"])
def test_a_manifest_cannot_point_out_of_its_folder(name: str, tmp_path: Path) -> None:
    """A manifest from elsewhere would have any file of this machine read, and its hash told."""
    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="which is outside its folder"):
        check_files(folder, {"files": [{"file": name, "bytes": 1, "hash": "x"}]})


# --- other work ---------------------------------------------------------------------------------------------------------


def test_done_work_is_skipped_and_other_work_refused(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    with stage(folder, work()) as s:
        assert not s.done
        assert [p.name for p in folder.iterdir()] == [LOCK]
        (folder / "data").write_bytes(b"some bytes")
        s.finish(["data"], rows=3)
    assert sorted(p.name for p in folder.iterdir()) == ["data", MANIFEST]
    assert read_manifest(folder, "corpus", ("rows",))["rows"] == 3
    with stage(folder, work(config={**CONFIG, "out": "moved"})) as s:
        assert s.done
    for kind, config, inputs, said in (
        ("corpus", {"a": 2, "b": 3}, {"corpus": "d"}, r"from other inputs \(a 1 -> 2, b not set -> 3, input corpus\)"),
        ("corpus", CONFIG, {**INPUTS, "model": "m"}, r"from other inputs \(input model\)"),
        ("scores", CONFIG, INPUTS, "holds 'corpus': choose another --out"),
    ):
        with pytest.raises(StaleFolder, match=said), stage(folder, work(kind, config, inputs)):
            raise AssertionError


def test_a_manifest_that_does_not_say_from_what_is_not_this_work(tmp_path: Path) -> None:
    write_json(tmp_path / MANIFEST, {**finish(tmp_path), "fingerprint": "of something", "config": "damaged"})
    with pytest.raises(StaleFolder, match=r"done, but from other inputs \(fingerprint\)"):
        Stage(tmp_path, work())


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write into .*file/out: Not a directory"):
        stage(tmp_path / "file" / "out", work()).__enter__()


def test_unfinished_work_is_bound(tmp_path: Path) -> None:
    with stage(tmp_path, work()):
        pass  # refused by what the verb looks at
    assert not (tmp_path / WORK).exists()
    with stage(tmp_path, work()) as s:
        s.bind()
    with stage(tmp_path, work(config={**CONFIG, "out": "moved"})) as s:
        s.bind()
    other = work(config={**CONFIG, "a": 2})
    with (
        pytest.raises(StaleFolder, match=r"unfinished work of another config or other inputs \(a 1 -> 2\)"),
        stage(tmp_path, other),
    ):
        raise AssertionError
    with stage(tmp_path, other, refuse=False) as s:  # a verb that looks itself
        assert s.changed() == "another config or other inputs (a 1 -> 2)"
        assert s.changed(free=("a",)) is None
        s.bind()
    assert read_json(tmp_path / WORK)["config"]["a"] == 2


def test_tasks_that_share_a_folder_bind_it_to_the_first(tmp_path: Path) -> None:
    """Only the first of several processes noted whose parts these are; of tasks any may be the first."""
    with (
        stage(tmp_path, work(), rank=3, alone=False) as first,
        stage(tmp_path, work("scores"), rank=1, alone=False) as s,
    ):
        first.bind()
        with pytest.raises(StaleFolder, match="holds unfinished work"):
            s.bind()
    with stage(tmp_path, work(), rank=1) as s:
        (tmp_path / WORK).unlink()
        s.bind()
    assert not (tmp_path / WORK).exists()  # of ranks the first one does


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    with stage(tmp_path, work()), pytest.raises(UserError, match="another process is at work in"):
        stage(tmp_path, work()).__enter__()
    with stage(tmp_path, work()) as s:
        assert not s.done


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"cannot write .*: No space left on device; what was finished"),
        stage(tmp_path, work()),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_part_that_is_missing_at_the_end(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="gone is missing: another process of this run failed"),
        stage(tmp_path, work()) as s,
    ):
        s.finish(["gone"])
    assert not is_done(tmp_path)


def test_revision_is_of_our_source_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package inside somebody else's checkout would report that repository's commit."""
    git = ("git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x")
    subprocess.run([*git, "init", "-q"], check=True)
    module = tmp_path / ".venv" / "runs" / "versions.py"
    module.parent.mkdir(parents=True)
    module.write_text("")
    monkeypatch.setattr(versions, "__file__", str(module))
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    assert versions.git_revision() is None
    subprocess.run([*git, "add", "-f", str(module)], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "y"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert versions.git_revision() == head
    module.write_text("changed")
    assert versions.git_revision() == f"{head}+dirty"
