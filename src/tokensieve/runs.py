"""Folders that a stage writes: a manifest written last, hashes of what stands beside it, and nothing half-written.

    folder/
      rows-00000.arrow ...     written as rows-00000.arrow.tmp, fsynced, renamed
      manifest.json            written last; its presence means *done*

A manifest says what the folder holds (``kind``), what it was made from (``config``, ``inputs``: each input folder's
identity) and the xxh3 hash of every file. ``fingerprint`` is the identity of the :class:`Work` that made it: equal
fingerprints mean that doing it again would give the same folder. A verb writes its folder as a :func:`stage`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import math
import os
import platform
import secrets
import shutil
import subprocess
import sys
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

MANIFEST = "manifest.json"
WORK = "work.json"
LOCK = ".lock"
PARTS = "parts"
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
# What every manifest must say for its folder to be used; what else its reader needs, the reader names.
EVERY_KIND = ("fingerprint", "config", "inputs", "files")


class UserError(ValueError):
    """Something the user can put right, told in one sentence. The command line prints it without a traceback."""

    code = 2
    """What the command line exits with."""


class StaleFolder(UserError):
    """A folder that was made, in whole or in part, by other work than is asked for now; ``changed`` names what differs."""

    def __init__(self, sentence: str, changed: str = "") -> None:
        super().__init__(sentence)
        self.changed = changed


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
    return _write_manifest(Path(folder), Work(kind, config, inputs), files, fields)


def _write_manifest(folder: Path, work: Work, files: list[dict[str, Any]], fields: Mapping[str, Any]) -> dict[str, Any]:
    manifest = {
        "format": FORMAT,
        "kind": work.kind,
        "fingerprint": work.fingerprint,
        "config": work.config,
        "inputs": dict(work.inputs),
        **fields,
        "files": files,
        "versions": versions(),
    }
    write_json(folder / MANIFEST, manifest)
    (folder / WORK).unlink(missing_ok=True)  # after: parts without a note would be anybody's
    return manifest


def is_done(folder: Path | str) -> bool:
    """True if the folder's manifest is there."""
    return (Path(folder) / MANIFEST).is_file()


def read_manifest(folder: Path | str, kind: str | None = None, keys: Collection[str] = ()) -> dict[str, Any]:
    """The manifest of a finished folder. Raises :class:`UserError` if it is missing, malformed, or of another kind.

    ``keys``: what the caller reads in it, beside what every manifest has; one that is not there is an error that names it.
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
    _check_manifest(folder, manifest, keys)
    return manifest


def _check_manifest(folder: Path, manifest: Mapping[str, Any], keys: Collection[str]) -> None:
    path = folder / MANIFEST
    for key in (*EVERY_KIND, *keys):
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
    if "shards" in keys and not shards:
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


def note_part(path: Path, **told: Any) -> None:
    """Write down a finished file's size and hash in ``parts/`` beside it: before there is a manifest, they speak for it.

    ``told``: what else the manifest will say of it, see :func:`told_of_part`.
    """
    write_json(_note(path), {**describe_files(path.parent, [path.name])[0], **told})


def told_of_part(path: Path, key: str, default: Any) -> Any:
    """What :func:`note_part` was told of a part; ``default`` where it was not, by an earlier version."""
    return read_json(_note(path)).get(key, default)


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
    return path.parent / PARTS / f"{path.name}.json"


# --- what work is it ----------------------------------------------------------------------------------------------------

# Inputs that early versions did not note: where one is not there, nobody knows what it was, and it is taken for the same.
LATER_INPUTS = ("isolated", "isolated_sets")


@dataclass(frozen=True)
class Work:
    """A piece of work: the ``kind`` of folder it makes, how (``config``) and from what (``inputs``: role -> identity).

    What of it counts: every field of ``config`` but those in ``not_work`` and those at the default they have in
    ``config_class``; of ``inputs`` what is given. So a field that is added later makes no folder stale. A default must
    never change its value: the same fingerprint would stand for other work. Give such a field a new name.
    """

    kind: str
    config: Mapping[str, Any]
    """JSON, as the manifest shows it. May have fields that do not count: where text came from is worth knowing."""
    inputs: Mapping[str, Any]
    config_class: type | None = None
    """The dataclass of ``config``; None: no field has a default."""
    not_work: Collection[str] = ("out",)
    """Fields that do not say what work it is, dotted: ``sources.path`` is the path of each of the sources."""

    @classmethod
    def of(cls, kind: str, config: Any, not_work: Collection[str], inputs: Mapping[str, Any], **instead: Any) -> Work:
        """Of a config dataclass. ``instead``: fields that count, or are shown, by another value than the config's."""
        shown = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in not_work}
        return cls(kind, _plain({**shown, **instead}), _plain(dict(inputs)), type(config), not_work)

    @property
    def fingerprint(self) -> str:
        """sha256 over kind, config and inputs, as far as they count: equal work has an equal fingerprint."""
        config = _counted(_plain(self.config), self.config_class, self.not_work)
        return hash_json({"kind": self.kind, "config": config, "inputs": _given(self.inputs)})

    def changes(self, noted: Mapping[str, Any]) -> list[str] | None:
        """In what it differs from the work of a manifest or a ``work.json``; ``[]``: it is the same work.

        ``seed 0 -> 1`` for each config field, dotted, and ``input corpus`` for each input. None if it differs and nothing
        is noted that would say in what. Folders of earlier versions have other fingerprints: what they note is compared
        with defaults filled in.
        """
        if noted.get("fingerprint") == self.fingerprint:
            return []
        if (
            noted.get("kind", self.kind) != self.kind
            or not isinstance(noted.get("config"), Mapping)
            or not isinstance(noted.get("inputs"), Mapping)
        ):
            return None
        configs = (_filled(_plain(c), self.config_class, self.not_work) for c in (noted["config"], self.config))
        old, new = (flat(config) for config in configs)
        was, now = _given(noted["inputs"]), _given(self.inputs)
        fields = sorted(k for k in {*old, *new} if old.get(k) != new.get(k))
        late = {k for k in LATER_INPUTS if k not in was}
        roles = sorted(k for k in {*was, *now} - late if was.get(k) != now.get(k))
        return [f"{k} {_shown(old, k)} -> {_shown(new, k)}" for k in fields] + [f"input {r}" for r in roles]


def _plain(value: Any) -> Any:
    """As JSON reads it back: tuples are lists, and a nested dataclass is a mapping."""
    return json.loads(json.dumps(value, default=lambda v: dataclasses.asdict(v) if _is_dataclass(v) else str(v)))


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _given(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """An input that is not there counts as one that nobody knew of yet."""
    return {role: value for role, value in inputs.items() if value not in (None, [], {})}


@functools.cache
def _defaults(config_class: type | None) -> dict[str, Any]:
    """field -> its default, of the fields that have one."""
    found = {}
    for field in dataclasses.fields(config_class) if config_class is not None else ():
        if field.default_factory is not dataclasses.MISSING:
            found[field.name] = _plain(field.default_factory())
        elif field.default is not dataclasses.MISSING:
            found[field.name] = _plain(field.default)
    return found


@functools.cache
def _items(config_class: type | None) -> dict[str, type]:
    """field -> the dataclass in its type, as SourceConfig in ``list[SourceConfig]``, of the fields that have one."""
    hints = {} if config_class is None else typing.get_type_hints(config_class)
    inside = {name: [hint, *typing.get_args(hint)] for name, hint in hints.items()}
    return {name: t for name, types in inside.items() for t in types if dataclasses.is_dataclass(t)}  # type: ignore[misc]


def _filled(config: Mapping[str, Any], config_class: type | None, not_work: Collection[str]) -> dict[str, Any]:
    """``config`` with the defaults of what it does not say, and without what is not work; so are the items in it."""
    named = {**_defaults(config_class), **config}
    return {k: _in_items(_filled, k, v, config_class, not_work) for k, v in named.items() if k not in not_work}


def _counted(config: Mapping[str, Any], config_class: type | None, not_work: Collection[str]) -> dict[str, Any]:
    """``config`` without what is not work, and without what is at its default."""
    defaults = _defaults(config_class)
    named = {k: v for k, v in config.items() if k not in not_work and not (k in defaults and v == defaults[k])}
    return {k: _in_items(_counted, k, v, config_class, not_work) for k, v in named.items()}


def _in_items(
    change: Callable[..., dict[str, Any]], name: str, value: Any, config_class: type | None, not_work: Collection[str]
) -> Any:
    """``value`` of a field, with the dataclasses in it changed: one, or a list of them."""
    if (item := _items(config_class).get(name)) is None or not value:
        return value
    below = {n.removeprefix(f"{name}.") for n in not_work if n.startswith(f"{name}.")}
    if isinstance(value, list):
        return [change(v, item, below) if isinstance(v, Mapping) else v for v in value]
    return change(value, item, below) if isinstance(value, Mapping) else value


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings, and lists of them, as one mapping with dotted keys; an empty mapping is a value."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
            value = {str(i): v for i, v in enumerate(value)}
        nested = isinstance(value, Mapping) and value
        found.update(flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value})
    return found


# --- a stage ------------------------------------------------------------------------------------------------------------


class Stage:
    """A folder that a verb writes, from its first part to its manifest. Made by :func:`stage`."""

    def __init__(self, folder: Path | str, work: Work, *, writes: bool = True, refuse: bool = True) -> None:
        self.folder, self.work = Path(folder), work
        self._writes, self._refuse = writes, refuse
        self.done = self._is_done()
        """This very work is done already: leave the folder as it is."""

    def _is_done(self) -> bool:
        if not is_done(self.folder):
            return False
        manifest = read_manifest(self.folder)
        if manifest["kind"] != self.work.kind:
            holds = f"{manifest['kind']!r}"
            raise StaleFolder(f"{self.folder} holds {holds}: choose another --out, or remove the folder", holds)
        changes = self.work.changes(manifest)
        if changes != []:
            changed = ", ".join(changes or ["fingerprint"])
            raise StaleFolder(
                f"{self.folder} is done, but from other inputs ({changed}): "
                "choose another --out, or remove the folder to do it again",
                changed,
            )
        return True

    def changed(self, free: Collection[str] = ()) -> str | None:
        """In what the unfinished work in the folder differs from this work, in words; None if it is the same, or none.

        ``free`` names config fields, dotted, that may differ.
        """
        path = self.folder / WORK
        note = read_json(path) if path.exists() else None
        changes = [] if note is None else self.work.changes(note)
        if changes is None:
            return "another config or other inputs"
        changes = [c for c in changes if c.split(" ")[0] not in free]
        return f"another config or other inputs ({', '.join(changes)})" if changes else None

    def refuse_other(self, free: Collection[str] = ()) -> None:
        """StaleFolder if the folder holds unfinished parts of other work."""
        if changed := self.changed(free):
            raise StaleFolder(f"{self.folder} holds unfinished work of {changed}: remove it or choose another --out")

    def bind(self) -> None:
        """Note in ``work.json`` whose parts come now. Only when nothing can refuse the config any more: one that was
        refused must not leave a mark that the next one trips over. Finishing removes the note."""
        if self._refuse:
            self.refuse_other()  # of tasks that need not run together another may have been first
        path = self.folder / WORK
        if self._writes and not (self._refuse and path.exists()):
            note = {"kind": self.work.kind, "config": self.work.config, "inputs": dict(self.work.inputs)}
            write_json(path, {"fingerprint": self.work.fingerprint, **note})

    def need(self, files: Sequence[str]) -> None:
        """UserError naming the first of these parts that is not there."""
        if missing := [n for n in files if not (self.folder / n).exists()]:
            raise UserError(
                f"{self.folder / missing[0]} is missing: another process of this run failed; start it again to go on"
            )

    def finish(self, files: Sequence[str], **fields: Any) -> None:
        """Hash ``files`` (names in the folder) and write the manifest, with these further ``fields``: the folder is done."""
        self.need(files)
        for name in files:
            sync(self.folder / name)  # what a library wrote: the manifest must not be on the disk before it
        _write_manifest(self.folder, self.work, describe_files(self.folder, files), fields)
        shutil.rmtree(self.folder / PARTS, ignore_errors=True)


@contextlib.contextmanager
def stage(folder: Path | str, work: Work, *, rank: int = 0, alone: bool = True, refuse: bool = True) -> Iterator[Stage]:
    """Write ``folder`` as the work's::

        with stage(out, work(config)) as s:
            if s.done:
                return out
            ...                       # what can refuse the config
            s.bind()
            ...                       # files, by atomic_file; parts that are worth keeping with note_part
            s.finish(files)

    A folder that other work made or began is refused (StaleFolder), one that another process works in as well (UserError),
    and a full disk is one sentence (UserError). ``rank``: of several processes the first one holds the lock and binds.
    ``alone=False``: a task among others that write into the folder at any time: no lock, and every task binds.
    ``refuse=False``: the verb looks itself at what is unfinished there (``changed``).
    """
    made = Stage(folder, work, writes=rank == 0 or not alone, refuse=refuse)
    if made.done:
        yield made
        return
    _make_folder(made.folder)
    with locked(made.folder) if rank == 0 and alone else contextlib.nullcontext(), writing(made.folder):
        made.done = made._is_done()  # by a process that held the lock until now
        if refuse and not made.done:
            made.refuse_other()
        yield made


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{_mine()}.tmp"
        probe.touch()
        probe.unlink()
    except OSError as e:
        raise UserError(f"cannot write into {folder}: {e.strerror or e}") from None


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
