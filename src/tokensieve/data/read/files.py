"""The files that a path names: a file, a folder, a pattern or an installed package; each file once, links followed.

A file is one file whatever names lead to it (its real path counts): a pattern that matches a folder and what lies in it, or a
link beside what it points to, gives it once, under the name that leads through no link where there is one. A linked folder is
walked like any other, unless it was walked already or holds the link itself (a loop).
"""

from __future__ import annotations

import glob
import importlib.util
import os
import sysconfig
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ...runs.errors import UserError


class InputFile(NamedTuple):
    """A file of a source. ``name`` is relative to the source's folder and is what keys are made of."""

    name: str
    path: str
    size: int


def find_files(path: str) -> tuple[Path, str, list[Path]]:
    """(folder that names are relative to, default name, what the path names)."""
    if path.startswith("package:"):
        return _package(path.removeprefix("package:"))
    where = Path(os.path.expanduser(path))
    if where.is_dir():
        return where, where.resolve().name, [where]
    if where.exists():
        return where.parent, where.name.split(".")[0] or where.name, [where]
    if not glob.has_magic(path):
        raise UserError(f"source {path} does not exist")
    fixed = _without_magic(where)
    found = sorted(_matches(Path(glob.escape(str(fixed)), *where.parts[len(fixed.parts) :])))
    if not found:
        raise UserError(f"source {path}: nothing matches this pattern")
    return fixed, fixed.resolve().name, found


def _without_magic(pattern: Path) -> Path:
    """The folder that a pattern begins with. One that is there by this very name, as "data [v1]", is no pattern itself."""
    fixed = Path()
    for part in pattern.parts[:-1]:
        if glob.has_magic(part) and not (fixed / part).is_dir():
            break
        fixed /= part
    return fixed


def _matches(pattern: Path) -> Iterator[Path]:
    """What a pattern matches. ``**`` goes through our own walk: that of ``glob`` goes round a loop of links forty times."""
    parts = pattern.parts
    if "**" not in parts:
        yield from map(Path, glob.glob(str(pattern)))
        return
    at = parts.index("**")
    rest = parts[at + 1 :]
    for base in map(Path, glob.glob(str(Path(*parts[:at]))) if at else ["."]):
        for folder, names in _folders(base, ()) if base.is_dir() else ():
            if rest:
                yield from _matches(Path(glob.escape(str(folder)), *rest))
            else:
                yield from (folder / n for n in names)


def _package(name: str) -> tuple[Path, str, list[Path]]:
    """The folder of an installed package, found without importing it; names start with the package (``torch/nn/...``)."""
    if name == "stdlib":
        folder = Path(sysconfig.get_path("stdlib"))
        return folder, "stdlib", [folder]
    try:
        spec = importlib.util.find_spec(name) if name and "." not in name else None
    except (ImportError, ValueError):
        spec = None
    if spec is None or not (spec.origin or spec.submodule_search_locations):
        raise UserError(f"source package:{name}: no installed package of this name")
    if spec.submodule_search_locations:
        folder = Path(next(iter(spec.submodule_search_locations)))
        return folder.parent, name, [folder]
    return Path(str(spec.origin)).parent, name, [Path(str(spec.origin))]


def walk(root: Path, paths: Iterable[Path], left_out: Collection[str]) -> Iterator[InputFile]:
    """All files under ``paths``, of each path in name order; hidden ones and byte code are left out.

    Two names of one file both come: :func:`once` leaves one. :class:`UserError` for a folder that cannot be listed.
    """
    for path in paths:
        if path.is_dir():
            found = [_named(folder / n) for folder, names in _folders(path, left_out) for n in names]
            yield from sorted(_input(root, p) for p in found if p.is_file() or p.is_symlink())
        else:
            yield _input(root, path)


def once(root: Path, files: Iterable[InputFile]) -> list[InputFile]:
    """Each file once, by its real path and in the order given; of two names the one that leads through no link.

    :class:`UserError` for a link that leads nowhere: its documents would be missing without a word.
    """
    files = list(dict.fromkeys(files))
    home = os.path.realpath(root)
    best: dict[str, InputFile] = {}
    for file in files:
        real = os.path.realpath(file.path)
        if not os.path.isfile(real):
            raise UserError(
                f"{file.path} is {'a link that leads to no' if os.path.islink(file.path) else 'no regular'} file"
            )
        if real not in best or (real == os.path.join(home, file.name) and best[real].name != file.name):
            best[real] = file
    kept = {f.path for f in best.values()}
    return [f for f in files if f.path in kept]


def _input(root: Path, path: Path) -> InputFile:
    return InputFile(path.relative_to(root).as_posix(), str(path), path.stat().st_size if path.is_file() else 0)


def _folders(top: Path, left_out: Collection[str]) -> Iterator[tuple[Path, list[str]]]:
    """(folder, names of its files) of ``top`` and all below it; linked folders come after those that are really there."""
    seen: set[str] = set()
    waiting = [top]
    while waiting:
        links: list[Path] = []
        for start in waiting:
            for folder, folders, names in os.walk(start, onerror=_unlistable):
                real = os.path.realpath(folder)
                folders[:] = [d for d in folders if d[0] != "." and d != "__pycache__" and d not in left_out]
                if real in seen:
                    folders.clear()
                    continue
                seen.add(real)
                links += [Path(folder, d) for d in folders if os.path.islink(os.path.join(folder, d))]
                yield Path(folder), [n for n in names if n[0] != "."]
        waiting = sorted(p for p in links if not _holds(p.resolve(), p.parent.resolve()))


def _holds(target: Path, folder: Path) -> bool:
    return target == folder or target in folder.parents


def _unlistable(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be listed: {error.strerror or error}")


def _named(path: Path) -> Path:
    """Names become the ids of documents, which are text."""
    try:
        path.as_posix().encode()
    except UnicodeEncodeError:
        raise UserError(f"the file name {str(path)!r} is not valid UTF-8: rename it") from None
    return path
