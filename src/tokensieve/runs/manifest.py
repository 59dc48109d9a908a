"""A folder's manifest, written last, and the hashes of what stands beside it."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from .errors import UserError
from .files import MANIFEST, PART_NOTES, WORK, describe_files, file_hash, inside, read_json, write_json
from .versions import versions
from .work import Work

FORMAT = 1


# What every manifest must say for its folder to be used; what else its reader needs, the reader names.
EVERY_KIND = ("fingerprint", "config", "inputs", "files")


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

    ``told``: what else the manifest will say of it, see :func:`part_field`.
    """
    write_json(_note(path), {**describe_files(path.parent, [path.name])[0], **told})


def part_field(path: Path, key: str, default: Any) -> Any:
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
    return path.parent / PART_NOTES / f"{path.name}.json"
