"""Folders that a stage writes: a manifest written last, hashes of what stands beside it, and nothing half-written.

    folder/
      rows-00000.arrow ...     written as rows-00000.arrow.tmp, fsynced, renamed
      manifest.json            written last; its presence means *done*

A manifest says what the folder holds (``kind``), what it was made from (``config``, ``inputs``: each input folder's
identity) and the xxh3 hash of every file. ``fingerprint`` is the identity of the work that made it: equal fingerprints mean
that doing it again would give the same folder.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import math
import os
import platform
import secrets
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

MANIFEST = "manifest.json"
WORK = "work.json"
LOCK = ".lock"
FORMAT = 1
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What safetensors, tokenizers and torch say of the same, in words only.
FULL_WORDS = (
    "No space left on device",
    "File too large",
    "quota exceeded",
    "PytorchStreamWriter failed",
    "unexpected pos",
)
# What a manifest must say for its folder to be used: always, and as what.
EVERY_KIND = ("fingerprint", "config", "inputs", "files")
OF_KIND: dict[str, tuple[str, ...]] = {
    "corpus": (
        *("length", "isolate_documents", "vocab_size", "eos_id", "pad_id", "sources"),
        *("content_hash", "tokenizer_hash", "shards", "stats"),
    ),
    "scores": (
        *("columns", "dtype", "corpus_hash", "tokenizer_hash", "model_hash", "length", "isolate_documents"),
        *("shards", "flops", "reference_flops"),
    ),
    "model": ("corpus_hash", "tokenizer_hash", "summary"),
    "run": ("stages",),
}


class UserError(ValueError):
    """Something the user can put right, told in one sentence. The command line prints it without a traceback."""

    code = 2
    """What the command line exits with."""


class StaleFolder(UserError):
    """A folder that was made, in whole or in part, by other work than is asked for now."""


class Stopped(Exception):
    """A signal ended the work at a point from which it can go on. ``code`` is what a shell shows for that signal."""

    def __init__(self, sentence: str, signal_number: int) -> None:
        super().__init__(sentence)
        self.code = 128 + signal_number


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


def write_manifest(
    folder: Path | str,
    kind: str,
    *,
    config: Any,
    inputs: Mapping[str, Any],
    files: list[dict[str, Any]],
    **fields: Any,
) -> dict[str, Any]:
    """Write ``folder/manifest.json`` and by that declare the folder done. Returns what was written.

    ``inputs`` maps a role ("corpus", "model") to that input's identity; ``files`` comes from :func:`describe_files`.
    """
    manifest = {
        "format": FORMAT,
        "kind": kind,
        "fingerprint": fingerprint(kind, config, inputs),
        "config": config,
        "inputs": dict(inputs),
        **fields,
        "files": files,
        "versions": versions(),
    }
    write_json(Path(folder) / MANIFEST, manifest)
    (Path(folder) / WORK).unlink(missing_ok=True)  # after: parts without a note would be anybody's
    return manifest


def fingerprint(kind: str, config: Any, inputs: Mapping[str, Any]) -> str:
    """Identity of a piece of work: what is done, how, and on what. ``out`` does not count, so that folders can be moved."""
    config = {k: v for k, v in config.items() if k != "out"} if isinstance(config, Mapping) else config
    return hash_json({"kind": kind, "config": config, "inputs": dict(inputs)})


def is_done(folder: Path | str) -> bool:
    """True if the folder's manifest is there."""
    return (Path(folder) / MANIFEST).is_file()


def read_manifest(folder: Path | str, kind: str | None = None) -> dict[str, Any]:
    """The manifest of a finished folder. Raises :class:`UserError` if it is missing, malformed, or of another kind.

    Every name in it lies inside the folder: a manifest is data that may come from anywhere.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder" if folder.exists() else f"{folder} does not exist")
    if not is_done(folder):
        raise UserError(f"{folder} has no {MANIFEST}: it is not finished, or tokensieve did not write it")
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or "kind" not in manifest:
        raise UserError(f"{folder / MANIFEST} is not a tokensieve manifest")
    if manifest.get("format") != FORMAT:
        raise UserError(f"{folder / MANIFEST} has format {manifest.get('format')}, this version reads {FORMAT}")
    if kind is not None and manifest["kind"] != kind:
        raise UserError(f"{folder} holds {manifest['kind']!r}, {kind!r} is needed here")
    _check_manifest(folder, manifest, kind)
    return manifest


def _check_manifest(folder: Path, manifest: Mapping[str, Any], kind: str | None) -> None:
    path = folder / MANIFEST
    for key in (*EVERY_KIND, *OF_KIND.get(kind or "", ())):
        if key not in manifest:
            raise UserError(f"{path} has no {key!r}: it is damaged, or tokensieve did not write it")
    try:
        files = [e["file"] for e in manifest["files"] if type(e["bytes"]) is int and e["hash"]]
        shards = [e["file"] for e in manifest.get("shards", []) if type(e["rows"]) is int]
        stages = [s["folder"] for s in manifest.get("stages", {}).values() if s["verb"] and s["fingerprint"]]
        for name in (*files, *shards):
            inside(folder, name)
        if strange := [name for name in stages if Path(name).name != name]:  # a stage's folder itself may be a link
            raise UserError(f"{path} names {strange[0]!r}, which is outside its folder")
    except (TypeError, KeyError, AttributeError):
        raise UserError(f"{path} does not list its files as it should: it is damaged") from None
    if kind in ("corpus", "scores") and not shards:
        raise UserError(f"{path} lists no shards: it is damaged")
    if unknown := set(shards) - set(files):
        raise UserError(f"{path} lists the shard {min(unknown)!r}, but no hash of it")


def inside(folder: Path, name: str) -> Path:
    """``folder/name``, links followed. UserError if that is not inside the folder."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise UserError(f"{folder / MANIFEST} names {name!r}, which is outside its folder")
    return path


def check_files(folder: Path | str, manifest: Mapping[str, Any], *, hashes: bool = True) -> None:
    """Raise :class:`UserError` naming the first file that is missing, has another size, or (``hashes``) other bytes."""
    folder = Path(folder)
    for entry in manifest["files"]:
        path = inside(folder, entry["file"])
        if not path.is_file():
            raise UserError(f"{path} is missing, but {folder / MANIFEST} lists it")
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise UserError(f"{path} has {size} bytes, {entry['bytes']} were written: it is truncated or was replaced")
        if hashes and file_hash(path) != entry["hash"]:
            raise UserError(f"{path} has other bytes than were written (hash differs): it is damaged or was replaced")


def note_part(path: Path) -> None:
    """Write down a finished file's size and hash in ``parts/`` beside it: before there is a manifest, they speak for it."""
    write_json(_note(path), describe_files(path.parent, [path.name])[0])


def part_is_whole(path: Path) -> bool:
    """Whether a file is as :func:`note_part` saw it. One that is not is told of on stderr: it will be made again."""
    if not _note(path).exists():
        return False  # not there, or of a process that was killed just after it
    try:
        check_files(path.parent, {"files": [read_json(_note(path))]})
    except (UserError, KeyError, TypeError) as e:
        print(f"tokensieve: {e}: it is made again", file=sys.stderr, flush=True)
        return False
    return True


def _note(path: Path) -> Path:
    return path.parent / "parts" / f"{path.name}.json"


def start_folder(folder: Path | str, kind: str, config: Any, inputs: Mapping[str, Any]) -> bool:
    """Make ``folder`` ready for a stage. True: go on and write it. False: this very work is done already, skip it.

    A folder done from another config or other inputs is refused, naming what differs, so that nothing is overwritten.
    """
    folder = Path(folder)
    if is_done(folder):
        manifest = read_manifest(folder)
        if manifest["fingerprint"] == fingerprint(kind, config, inputs):
            return False
        if manifest["kind"] != kind:
            raise StaleFolder(f"{folder} holds {manifest['kind']!r}: choose another --out, or remove the folder")
        changes = ", ".join(_changes(manifest, json.loads(json.dumps(config, default=str)), inputs)) or "fingerprint"
        raise StaleFolder(
            f"{folder} is done, but from other inputs ({changes}): "
            "choose another --out, or remove the folder to do it again"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{_mine()}.tmp"
        probe.touch()
        probe.unlink()
    except OSError as e:
        raise UserError(f"cannot write into {folder}: {e.strerror or e}") from None
    return True


def bind_unfinished(
    folder: Path | str, kind: str, config: Any, inputs: Any, *, write: bool = True, free: Collection[str] = ()
) -> None:
    """Note in ``folder/work.json`` whose parts an unfinished folder holds; refuse parts of other work (StaleFolder).

    ``free`` names config fields, dotted, that may differ. Writing the manifest removes the note.
    """
    if changed := changed_since(folder, kind, config, inputs, free=free):
        raise StaleFolder(f"{folder} holds unfinished work of {changed}: remove it or choose another --out")
    if write and not (Path(folder) / WORK).exists():
        note_work(folder, kind, config, inputs)


def note_work(folder: Path | str, kind: str, config: Any, inputs: Any) -> None:
    """Write ``folder/work.json``: what the unfinished parts in ``folder`` belong to."""
    config = json.loads(json.dumps(config, default=str))
    note = {"fingerprint": fingerprint(kind, config, inputs), "config": config, "inputs": dict(inputs)}
    write_json(Path(folder) / WORK, note)


def changed_since(folder: Path | str, kind: str, config: Any, inputs: Any, *, free: Collection[str] = ()) -> str | None:
    """In what the work noted in ``folder/work.json`` differs from this work, in words; None if it is the same or not noted."""
    path = Path(folder) / WORK
    note = read_json(path) if path.exists() else None
    if note is None or note.get("fingerprint") == fingerprint(kind, config, inputs):
        return None
    if "config" not in note:
        return "another config or other inputs"
    changes = _changes(note, json.loads(json.dumps(config, default=str)), inputs)
    changes = [c for c in changes if c.split(" ")[0] not in free]
    return f"another config or other inputs ({', '.join(changes)})" if changes else None


def _changes(noted: Mapping[str, Any], config: Any, inputs: Mapping[str, Any]) -> list[str]:
    """``seed 0 -> 1`` for each config field that differs, dotted; ``input corpus`` for each input."""
    old, new = flat(noted["config"] or {}), flat(config or {})
    fields = sorted(k for k in {*old, *new} - {"out"} if old.get(k) != new.get(k))
    roles = sorted(k for k in {*noted["inputs"], *inputs} if noted["inputs"].get(k) != inputs.get(k))
    return [f"{k} {_shown(old, k)} -> {_shown(new, k)}" for k in fields] + [f"input {r}" for r in roles]


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys; an empty mapping is a value."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, Mapping) and value
        found.update(flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value})
    return found


def _shown(values: Mapping[str, Any], key: str) -> str:
    text = json.dumps(values[key], ensure_ascii=False, default=str) if key in values else "not set"
    return text if len(text) <= 60 else f"{text[:57]}..."


@functools.cache  # it asks git, and every checkpoint asks it
def versions() -> dict[str, str]:
    """Versions of what decides a number: ours, Python, and the libraries; plus the source revision where there is one."""
    from importlib import metadata

    found = {"python": platform.python_version(), "platform": f"{sys.platform}-{platform.machine()}"}
    for package in ("tokensieve", "torch", "transformers", "tokenizers", "datasets", "accelerate", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    revision = git_revision()
    return {**found, "revision": revision} if revision else found


def git_revision() -> str | None:
    """The commit the package's source is at, with ``+dirty`` if it was changed since; None outside a checkout."""
    here = Path(__file__).resolve().parent

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(here), *args], capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed package may lie inside somebody else's checkout (a .venv in a repository): only a tracked file counts.
    if git("ls-files", "--error-unmatch", str(Path(__file__).resolve())) is None:
        return None
    head = git("rev-parse", "HEAD")
    return f"{head}+dirty" if head and git("status", "--porcelain", "--untracked-files=no", str(here)) else head
