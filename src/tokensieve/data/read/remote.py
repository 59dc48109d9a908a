"""Files by URL, ``scheme://...``, as fsspec opens them: s3, gs, hf, http, memory, file and others, read as they stream."""

from __future__ import annotations

import contextlib
import glob
import io
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO, Any, NamedTuple

from ...runs.errors import UserError
from .files import InputFile

_BUFFER = 1 << 16


class RemoteFiles(NamedTuple):
    """What a URL names."""

    name: str
    files: list[InputFile]
    named: frozenset[str] = frozenset()
    """Paths of those that it names themselves, not by a folder that they lie in."""
    is_dataset: bool = False


def is_url(path: str) -> bool:
    return "://" in path


def find_remote(url: str) -> RemoteFiles:
    """The files of a URL, a folder or a pattern (``s3://bucket/text/**/*.jsonl.gz``), in name order; hidden ones are left out.

    :class:`UserError` for a scheme that is not known or lacks its library, for what does not exist, and for what has no size.
    """
    fs, inner = _file_system(url)
    try:
        return _found(url, fs, inner.rstrip("/"))
    except UserError:
        raise
    except Exception as e:  # no credentials, no network, no such bucket: each library has its own errors
        raise UserError(f"source {url} cannot be listed: {_said(e)}") from None


def open_binary(path: str) -> IO[bytes]:
    """A file of this machine or of a URL, open for reading. OSError where that fails, whatever the library raises, and of a
    URL :class:`UserError` where reading does: a server that gives no parts of a file, a lost connection."""
    if not is_url(path):
        return open(path, "rb")
    fs, inner = _file_system(path)
    try:
        opened: IO[bytes] = fs.open(inner, "rb")
    except OSError:
        raise
    except Exception as e:
        raise OSError(_said(e)) from e
    return io.BufferedReader(_Told(path, opened), _BUFFER)


class _Told(io.RawIOBase):
    """The open file of a URL; what its library raises while it is read, of many kinds, is one sentence."""

    def __init__(self, path: str, file: IO[bytes]) -> None:
        self.path, self.file = path, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.file.tell()

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._told(self.file.seek, offset, whence))

    def readinto(self, buffer: Any) -> int:
        data = self._told(self.file.read, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self.file.close()
        super().close()

    def _told(self, call: Any, *args: Any) -> Any:
        try:
            return call(*args)
        except Exception as e:
            raise UserError(f"{self.path} cannot be read over the network: {_said(e)}") from e


@contextlib.contextmanager
def arrow_input(path: str) -> Iterator[Any]:
    """What Arrow's readers take: a local path as it is, since Arrow reads it itself; of a URL the open file."""
    if not is_url(path):
        yield path
        return
    with open_binary(path) as file:
        yield file


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec  # here: a run that reads local files need not wait for it

    if "::" in url:
        raise UserError(f"source {url}: chained URLs (::) are not read; name the files themselves")
    try:
        fs, inner = fsspec.core.url_to_fs(url)
    except Exception as e:  # an unknown scheme is a ValueError, a missing library an ImportError
        raise UserError(f"source {url} cannot be opened: {_said(e)}") from None
    return fs, str(inner)


def _found(url: str, fs: Any, inner: str) -> RemoteFiles:
    if glob.has_magic(inner) and not fs.exists(inner):
        root, found, named = _without_magic(inner), dict[str, Any](), set[str]()
        for path, info in fs.glob(inner, detail=True).items():
            folder = info["type"] == "directory"
            found |= fs.find(path, detail=True) if folder else {path: info}
            named |= set() if folder else {str(fs.unstrip_protocol(path))}
        if not found:
            raise UserError(f"source {url}: nothing matches this pattern")
        return RemoteFiles(PurePosixPath(root).name, _inputs(url, fs, root, found), frozenset(named))
    if fs.isdir(inner):
        names = {PurePosixPath(path).name for path in fs.ls(inner, detail=False)}
        is_dataset = bool(names & {"state.json", "dataset_dict.json"})
        files = _inputs(url, fs, inner, fs.find(inner, detail=True))
        return RemoteFiles(PurePosixPath(inner).name, files, is_dataset=is_dataset)
    if not fs.exists(inner):
        raise UserError(f"source {url} does not exist")
    path = PurePosixPath(inner)
    files = _inputs(url, fs, str(path.parent), {inner: fs.info(inner)})
    return RemoteFiles(path.name.split(".")[0] or path.name, files, frozenset(f.path for f in files))


def _without_magic(pattern: str) -> str:
    """The folder that a pattern begins with."""
    parts = PurePosixPath(pattern).parts
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    return str(PurePosixPath(*parts[:first]))


def _inputs(url: str, fs: Any, root: str, found: dict[str, Any]) -> list[InputFile]:
    made = []
    for path, info in found.items():
        name = PurePosixPath(path).relative_to(root)
        if any(part[0] == "." or part == "__pycache__" for part in name.parts):
            continue
        if info.get("size") is None:
            raise UserError(f"source {url}: {path} does not say how large it is: download it")
        made.append(InputFile(name.as_posix(), str(fs.unstrip_protocol(path)), int(info["size"])))
    return sorted(made)


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
