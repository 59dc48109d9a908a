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
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

MANIFEST = "manifest.json"
WORK = "work.json"
FORMAT = 1
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
    """Something the user can put right, told in one sentence. The command line prints it without a traceback, exit code 2."""


class StaleFolder(UserError):
    """A folder that was made, in whole or in part, by other work than is asked for now."""


@contextlib.contextmanager
def atomic_file(path: Path | str, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open ``path`` for writing so that it appears whole or not at all: tmp -> fsync -> rename -> fsync of the folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(tmp, mode, encoding=None if "b" in mode else "utf-8") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(tmp, path)
        sync_folder(path.parent)
    finally:
        tmp.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut; a rename is only durable once its folder is synced."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


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


def file_hash(path: Path | str) -> str:
    """xxh3-128 of a file's bytes, as ``xxh3:<hex>``: finds damage and mix-ups at disk speed; it does not prove authorship."""
    import xxhash

    digest = xxhash.xxh3_128()
    with open(path, "rb") as f:
        while block := f.read(1 << 22):
            digest.update(block)
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
        raise StaleFolder(
            f"{folder} is done, but from other inputs ({_difference(manifest, config, inputs)}): "
            "choose another --out, or remove the folder to do it again"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{os.getpid()}.tmp"
        probe.touch()
        probe.unlink()
    except OSError as e:
        raise UserError(f"cannot write into {folder}: {e.strerror or e}") from None
    return True


def bind_unfinished(folder: Path | str, kind: str, config: Any, inputs: Any, *, write: bool = True) -> None:
    """Note in ``folder/work.json`` whose parts an unfinished folder holds; refuse parts of other work (StaleFolder).

    Writing the manifest removes the note.
    """
    work, mine = Path(folder) / WORK, {"fingerprint": fingerprint(kind, config, inputs)}
    if work.exists() and read_json(work) != mine:
        raise StaleFolder(
            f"{folder} holds unfinished work of another config or other inputs: remove it or choose another --out"
        )
    if write and not work.exists():
        write_json(work, mine)


def _difference(manifest: Mapping[str, Any], config: Any, inputs: Mapping[str, Any]) -> str:
    """The names of the config fields and inputs in which a finished folder differs from what is asked for now."""
    old, new = dict(manifest["config"] or {}), dict(config or {})
    fields = sorted(k for k in {*old, *new} - {"out"} if old.get(k) != new.get(k))
    roles = sorted(k for k in {*manifest["inputs"], *inputs} if manifest["inputs"].get(k) != inputs.get(k))
    return ", ".join(fields + [f"input {r}" for r in roles]) or "fingerprint"


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
