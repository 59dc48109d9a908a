"""Input folders are hashed once a machine, and what was found is remembered by size and times.

    process 1   lock ─ hash 84 GB ─ remember ─ unlock
    process 2   lock ........................ ─ all remembered ─ unlock        ranks of a node, jobs beside each other

What is remembered: of each file that had the hash its manifest names, its size, mtime and ctime at that moment. Every write
gives a file another ctime, and so do copying it and setting its mtime back, so what is changed by anybody is hashed again.
What this cannot see is damage that no write made: a disk that changes bytes by itself. ``tokensieve check`` hashes always.

It lies beside the files, as ``.verified.json``, no part of the folder's manifest. Where that cannot be written (a read-only
folder) it lies in a folder of this user's below the machine's temporary one. Lost or unreadable, it costs a reading.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from ..runs.errors import UserError
from ..runs.files import atomic_file, file_hash, inside
from ..runs.manifest import check_files

NAME = ".verified.json"
Verify = Literal["full", "size"]
Entry = tuple[str, int, int, int, str]  # file, size, mtime, ctime, hash; times in nanoseconds
# A file that was written while it was hashed can have the same times after it: what is younger than its file system's clock
# can tell apart is not remembered. Without nanoseconds it may count in seconds, or in two.
FINE, COARSE = 0.1, 2.5


def check_input(folder: Path | str, manifest: Mapping[str, Any], verify: Verify | None) -> None:
    """Raise :class:`UserError` naming the first file of ``manifest`` that is missing or of another size, or (``full``) that
    has other bytes. None checks nothing. ``full`` reads what is not remembered; one process of a machine at a time."""
    folder = Path(folder)
    if verify is None:
        return
    check_files(folder, manifest, hashes=False)  # costs nothing: what is truncated is told before hours of reading
    if verify == "size":
        return
    with _alone(folder):
        _check_hashes(folder, manifest["files"])


def remembered_hash(path: Path) -> str:
    """A file's :func:`file_hash`, read once a machine. For folders that are not ours: nothing is written beside the file."""
    with _alone(path.parent):
        was = _stamp(path)
        for entry in _read(_local(path.parent)):
            if entry[:4] == (path.name, *was):
                return entry[4]
        settled, hashed = _settled(was), file_hash(path)
        if settled and _stamp(path) == was:
            _write(_local(path.parent), [(path.name, *was, hashed)])
        return hashed


def _check_hashes(folder: Path, files: list[dict[str, Any]]) -> None:
    places = (folder / NAME, _local(folder))
    found: list[Entry] = []
    known = {entry for place in places for entry in _read(place)}
    try:
        for entry in files:
            was = _stamp(inside(folder, entry["file"]))
            wanted = (str(entry["file"]), *was, str(entry["hash"]))
            if wanted in known:
                continue
            settled = _settled(was)
            check_files(folder, {"files": [entry]})
            if settled and _stamp(inside(folder, entry["file"])) == was:
                found.append(wanted)
    finally:  # what was good before the damaged one need not be read again
        if found and not _write(places[0], found):
            _write(places[1], found)


def _stamp(path: Path) -> tuple[int, int, int]:
    """(size, mtime, ctime); times in nanoseconds."""
    try:
        found = path.stat()
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _settled(stamp: tuple[int, int, int]) -> bool:
    """Whether a write from now on will give the file other times than these."""
    age = COARSE if stamp[2] % 1_000_000_000 == 0 else FINE
    return time.time_ns() - stamp[2] > age * 1e9


# --- where it is remembered ---------------------------------------------------------------------------------------------


def _read(place: Path | None) -> list[Entry]:
    """The entries of a record; none of one that is not there or cannot be read."""
    try:
        record = json.loads(place.read_bytes()) if place is not None and place.is_file() else []
    except (OSError, ValueError, RecursionError):  # what JSON and UTF-8 raise are ValueErrors
        return []
    kinds = [str, int, int, int, str]
    entries = record if isinstance(record, list) else []
    return [tuple(e) for e in entries if isinstance(e, list) and [type(x) for x in e] == kinds]


def _write(place: Path | None, found: list[Entry]) -> bool:
    """Add to a record; whether that could be done. Written whole under a name of its own and renamed: of two processes the
    later one's stands, and what it did not know of is read once more."""
    if place is None:
        return False
    names = {name for name, *_ in found}
    try:
        with atomic_file(place, "w") as f:
            json.dump([*(e for e in _read(place) if e[0] not in names), *found], f)
    except OSError:
        return False
    return True


def _local(folder: Path, name: str = "") -> Path | None:
    """This machine's and user's record of ``folder`` (or ``name`` beside it), which nobody else can write; None without one."""
    home = Path(tempfile.gettempdir()) / f"tokensieve-{os.getuid()}"
    try:
        home.mkdir(mode=0o700, exist_ok=True)
        there = home.lstat()
    except OSError:
        return None
    if not stat.S_ISDIR(there.st_mode) or there.st_uid != os.getuid() or there.st_mode & 0o022:
        return None
    return home / (name or f"{_key(folder)}.json")


def _key(folder: Path) -> str:
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Of the processes of this machine one at a time: the others find what it read. Without a place for a lock all read."""
    path = _local(folder, f"{_key(folder)[:2]}.lock")  # of few names: they stay there
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600) if path is not None else None
    except OSError:
        fd = None
    try:
        if fd is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        if fd is not None:
            os.close(fd)
