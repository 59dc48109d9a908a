"""Where text comes from: a source names files, and says which of their documents belong to a corpus.

    path ──resolve──> files ──split──> documents whose hash lies in [lo, hi) ──max_bytes──> a seeded sample of them

Whether a document is in is decided by a hash of its *key* alone: the row's own ``id``, else ``file:line``, or for formats with
one document a file the file's name relative to the source's folder. A key knows nothing about the machine, the format or the
seed, so two corpora that take ``split: [0, 0.5]`` and ``split: [0.5, 1]`` of the same files share no document, even where one
reads ``.py`` files as code and the other reads their docstrings.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
from collections.abc import Collection, Sequence
from importlib import metadata
from pathlib import Path

import xxhash

from ...runs.errors import UserError
from ...runs.files import hash_json
from .compressed import COMPRESSED, RATIO
from .files import InputFile, find_files, once, walk
from .remote import find_remote, is_url, open_binary
from .row_files import first_columns, hub_revision
from .source import Source, SourceConfig
from .token_rows import BESIDE_IDS
from .weight_values import WEIGHT

_JSON_LINES = (".jsonl", *(form + packed for packed in COMPRESSED for form in (".jsonl", ".json")))
# Which files of a folder a format reads. An empty tuple: the format does not read single files.
SUFFIXES: dict[str, tuple[str, ...]] = {
    "jsonl": _JSON_LINES,
    "parquet": (".parquet",),
    "text": (".txt", ".md", *(form + packed for packed in COMPRESSED for form in (".txt", ".md"))),
    "python": (".py",),
    "docstrings": (".py",),
    "tokens": (*_JSON_LINES, ".parquet"),
    "chat": (*_JSON_LINES, ".parquet"),
    "datasets": (),
    "hub": (),
}
ONE_DOCUMENT_A_FILE = ("text", "python", "docstrings")
_AUTO = ("jsonl", "parquet", "text", "python")
_HASH_WHOLE_BYTES = 64 << 20  # larger inputs are identified by sizes and the ends of their files
_HASH_END_BYTES = 1 << 16
_STDLIB_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test"}


def resolve(config: SourceConfig, seed: int = 0) -> Source:
    """Find a source's files, in name order. :class:`UserError` for a path, format or setting that makes no sense."""
    _check(config)
    if config.path.startswith("hub:"):
        hub = config.path.removeprefix("hub:").split(":")[0].rstrip("/")
        if not hub:
            raise UserError(f"source {config.path}: the name is missing, as in hub:owner/name")
        return Source(config, "hub", hub.split("/")[-1], (), seed)
    if is_url(config.path):
        return _of_url(config, seed)
    root, name, paths = find_files(config.path)
    if len(paths) == 1 and _is_dataset(paths[0]):
        if config.format not in ("auto", "datasets", "tokens", "chat"):
            raise UserError(f"{config.path} is a datasets folder, it cannot be read as format {config.format!r}")
        return Source(config, "datasets", name, tuple(once(root, walk(root, [paths[0]], ()))), seed)
    if config.format == "datasets":
        raise UserError(f"{config.path} is not a folder written by datasets' save_to_disk")
    files, format = _matching(config, root, paths)
    return Source(config, format, name, tuple(files), seed)


def _of_url(config: SourceConfig, seed: int) -> Source:
    found = find_remote(config.path)
    if found.is_dataset or config.format == "datasets":
        raise UserError(
            f"source {config.path}: a datasets folder is read from a disk: download it, or name its hub:owner/name"
        )
    files, format = _fitting(config, found.files, found.named)
    return Source(config, format, found.name, tuple(files), seed)


def _check(config: SourceConfig) -> None:
    formats = sorted({"auto", *SUFFIXES} - {"hub"})
    if config.format not in formats:
        raise UserError(f"source {config.path}: unknown format {config.format!r}; there are {', '.join(formats)}")
    if (config.problem is None) != (config.solution is None):
        raise UserError(f"source {config.path}: problem and solution columns go together, only one is set")
    lo, hi = config.split
    if not 0.0 <= lo < hi <= 1.0:
        raise UserError(f"source {config.path}: split must be [lo, hi] with 0 <= lo < hi <= 1, not [{lo}, {hi}]")
    if config.max_bytes is not None and config.max_bytes <= 0:
        raise UserError(f"source {config.path}: max_bytes must be positive, not {config.max_bytes}")
    if config.weight is not None and not 0 <= config.weight < float("inf"):
        raise UserError(f"source {config.path}: weight must be a number >= 0, not {config.weight}")


def _is_dataset(path: Path) -> bool:
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def _matching(config: SourceConfig, root: Path, paths: list[Path]) -> tuple[list[InputFile], str]:
    """The files to read and their one format. Files named singly or by a glob are taken whatever their suffix is."""
    stdlib = config.path == "package:stdlib"
    found = list(walk(root, paths, _STDLIB_LEFT_OUT if stdlib else ()))
    fitting, format = _fitting(config, found, {str(p) for p in paths if p.is_file()})
    return once(root, fitting), format


def _fitting(config: SourceConfig, found: list[InputFile], named: Collection[str]) -> tuple[list[InputFile], str]:
    """(those of the files that have the format, the format); ``named`` paths have it whatever their suffix is."""
    format = config.format if config.format != "auto" else _guess(config.path, found)
    fitting = [
        f
        for f in found
        if f.name.lower().endswith(SUFFIXES[format]) or (f.path in named and format not in ("tokens", "chat"))
    ]
    if not fitting:
        raise UserError(
            f"source {config.path}: no file for format {format!r} ({', '.join(SUFFIXES[format])}); "
            f"it holds {_suffixes(found) or 'no files'}"
        )
    if config.only and format in ONE_DOCUMENT_A_FILE:
        raise UserError(
            f"source {config.path}: only chooses rows by their {config.source_column!r}; {format} files have none"
        )
    if format in ("tokens", "chat") and len({f.name.lower().endswith(".parquet") for f in fitting}) > 1:
        raise UserError(f"source {config.path}: JSON lines and Parquet in one source: name each by a source of its own")
    return fitting, format


def _guess(path: str, files: list[InputFile]) -> str:
    formats = {form for f in files for form in _AUTO if f.name.lower().endswith(SUFFIXES[form])}
    if len(formats) == 1:
        return formats.pop()
    problem = "files of several formats" if formats else "no file of a known suffix"
    raise UserError(
        f"source {path}: {problem} ({_suffixes(files) or 'no files'}); set format to one of {', '.join(SUFFIXES)}"
    )


def _suffixes(files: list[InputFile]) -> str:
    return ", ".join(sorted({Path(f.name).suffix or Path(f.name).name for f in files})[:12])


def read_twice(sources: Sequence[Source]) -> list[str]:
    """A sentence on each two sources that take the same documents of the same file: it may be meant, and is told."""
    paths = [{os.path.realpath(f.path): f.path for f in s.files} or {s.label: s.label} for s in sources]
    found = []
    for i, j in itertools.combinations(range(len(sources)), 2):
        one, other = sources[i], sources[j]
        lo, hi = max(one.config.split[0], other.config.split[0]), min(one.config.split[1], other.config.split[1])
        both = sorted(paths[j][real] for real in paths[i].keys() & paths[j].keys())
        if lo < hi and both and not _apart(one.config, other.config) and _reads(one) == _reads(other):
            found.append(
                f"sources {i} ({one.label}) and {j} ({other.label}) both read {both[0]}"
                f"{f' and {len(both) - 1} more' if len(both) > 1 else ''}: they count twice; disjoint splits would not"
            )
    return found


def _apart(one: SourceConfig, other: SourceConfig) -> bool:
    """Whether ``only`` lets them share no row, as far as names without a pattern in them tell."""
    names = [*one.only, *other.only]
    told = one.only and other.only and one.source_column == other.source_column
    return bool(told) and not any(c in name for name in names for c in "*?[") and not {*one.only} & {*other.only}


def _reads(source: Source) -> tuple[str, ...]:
    c = source.config
    return (source.format, *((c.problem, c.solution or "") if c.problem is not None else (c.text,)))


def packs_across(source: Source, unit_bytes: int) -> bool:
    """Whether short files of rows fill a unit of work together: where a source has several and one is smaller than a unit.

    Files that are as large as a unit lose less than a row each by being packed for themselves, and that is how earlier
    versions packed: corpora of such files stay what they are.
    """
    rows = source.format in ("jsonl", "parquet", "tokens", "chat")
    return rows and len(source.files) > 1 and any(f.size < unit_bytes for f in source.files)


def text_bytes(file: InputFile) -> float:
    """About how much text a file holds."""
    return file.size * (RATIO if file.name.lower().endswith(COMPRESSED) else 1)


def identity(source: Source, unit_bytes: int = 0) -> str:
    """What a source was, as a hash: names, sizes and bytes (past 64 MB: the ends of the files; packages: names and sizes).

    ``unit_bytes``: of the units it is packed in. What earlier versions made otherwise of the same files is in it.
    """
    if source.format == "hub":
        return hash_json(["hub", source.config.path, hub_revision(source)])
    since = ["packed across files"] if packs_across(source, unit_bytes) else []
    tokens = "tokens" in (source.format, source.config.format)
    if tokens or source.format not in ONE_DOCUMENT_A_FILE:
        read = (*(BESIDE_IDS if tokens else ()), WEIGHT)
        since += [c for c in read if c in first_columns(source) and c not in source.config.ignore_columns]
    if source.config.path.startswith("package:"):
        return hash_json(["package", _version(source.name), [(f.name, f.size) for f in source.files], *since])
    whole = source.size <= _HASH_WHOLE_BYTES
    return hash_json(["files", [(f.name, f.size, _content(f, whole)) for f in source.files], *since])


def _version(package: str) -> str:
    if package == "stdlib":
        return platform.python_version()
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return ""


def _content(file: InputFile, whole: bool) -> str:
    digest = xxhash.xxh3_128()
    with open_binary(file.path) as f:
        if whole or file.size <= 2 * _HASH_END_BYTES:
            while block := f.read(1 << 22):
                digest.update(block)
        else:
            digest.update(f.read(_HASH_END_BYTES))
            f.seek(-_HASH_END_BYTES, os.SEEK_END)
            digest.update(f.read())
    return digest.hexdigest()
