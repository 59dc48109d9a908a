"""Files written whole or not at all, hashed, and locked."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from .errors import UserError

MANIFEST = "manifest.json"


WORK = "work.json"


LOCK = ".lock"


PART_NOTES = "parts"


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


# What safetensors, tokenizers and torch say of the same, in words only.
FULL_WORDS = (
    "No space left on device",
    "File too large",
    "quota exceeded",
    "PytorchStreamWriter failed",
    "unexpected pos",
)


@contextlib.contextmanager
def atomic_file(path: Path | str, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open ``path`` for writing so that it appears whole or not at all: tmp -> fsync -> rename -> fsync of the folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f"{path.name}.{_mine()}.tmp")
    try:
        with names_file(path), open(tmp, mode, encoding=None if "b" in mode else "utf-8") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(tmp, path)
        sync(path.parent)
    finally:
        tmp.unlink(missing_ok=True)


def _mine() -> str:
    """Part of a name that no other process has: containers of several machines share a folder, and process ids as well."""
    return f"{os.getpid()}-{secrets.token_hex(4)}"


@contextlib.contextmanager
def names_file(path: Path | str) -> Iterator[None]:
    """A full disk says so without saying where: the system's error, if it names no file, is told of ``path``."""
    try:
        yield
    except OSError as e:
        if e.errno not in FULL or e.filename is not None:
            raise
        raise OSError(e.errno, os.strerror(e.errno or 0), str(path)) from e


@contextlib.contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """A disk with no room, whichever library met it, as a UserError that names ``path``."""
    try:
        yield
    except Exception as e:
        full = isinstance(e, OSError) and e.errno in FULL
        words = [w for w in FULL_WORDS if w in str(e)]
        if isinstance(e, UserError) or not (full or words):
            raise
        reason = os.strerror(e.errno or 0) if isinstance(e, OSError) and e.errno else words[0]
        reason = "not all of it could be written, as on a full disk" if reason in FULL_WORDS[3:] else reason
        where = (isinstance(e, OSError) and e.filename) or path
        raise UserError(
            f"cannot write {where}: {reason}; what was finished before is kept: make room and start it again to go on"
        ) from e


def sync(path: Path | str) -> None:
    """Make a file, or a rename in a folder, survive a power cut."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def locked(folder: Path | str) -> Iterator[None]:
    """Refuse ``folder`` (UserError) while another process works in it. The lock dies with its process.

    A file system without locks (some network mounts) refuses nobody.
    """
    path = Path(folder) / LOCK
    fd = _lock(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before it is let go: nobody may lock a file that is about to vanish
        os.close(fd)


def _lock(path: Path) -> int:
    import fcntl

    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise UserError(
                f"another process is at work in {path.parent}: wait for it, or choose another --out"
            ) from None
        except OSError:
            return fd
        if path.exists() and os.path.samestat(os.fstat(fd), path.stat()):
            return fd
        os.close(fd)  # of a process that was just done, and removed it: its place is free


def write_json(path: Path | str, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically. NaN is refused: it is not JSON, and other readers would choke on it."""
    with atomic_file(path, "w") as f:
        json.dump(value, f, indent=2, ensure_ascii=False, allow_nan=False)
        f.write("\n")


def read_json(path: Path | str) -> Any:
    """Read JSON; a missing or malformed file is a :class:`UserError` that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as e:
        raise UserError(f"{path} is not valid JSON: {e}") from None


def file_hash(path: Path | str, num_bytes: int | None = None) -> str:
    """xxh3-128 of a file's bytes, as ``xxh3:<hex>``: finds damage and mix-ups at disk speed; it does not prove authorship.

    ``num_bytes``: of the first so many only.
    """
    import xxhash

    digest, left = xxhash.xxh3_128(), math.inf if num_bytes is None else num_bytes
    block = memoryview(bytearray(1 << 18))  # one that stays in the cache: a third faster than large ones
    with open(path, "rb", buffering=0) as f:
        while left > 0 and (size := f.readinto(block[: int(min(left, len(block)))])):
            digest.update(block[:size])
            left -= size
    return f"xxh3:{digest.hexdigest()}"


def hash_json(value: Any) -> str:
    """sha256 of the canonical JSON of ``value``, as ``sha256:<hex>``. Keys are sorted, so that their order does not count."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def describe_files(folder: Path | str, names: Iterable[str]) -> list[dict[str, Any]]:
    """``[{file, bytes, hash}]`` for files inside ``folder``, in the order given."""
    folder = Path(folder)
    return [{"file": n, "bytes": (folder / n).stat().st_size, "hash": file_hash(folder / n)} for n in names]


def inside(folder: Path, name: str) -> Path:
    """``folder/name``, links followed. UserError if that is not inside the folder."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise UserError(f"{folder / MANIFEST} names {name!r}, which is outside its folder")
    return path
