"""Compressed files as streams of their text, known by their first bytes and not by their names; and what is no text at all.

gzip, bzip2, xz (and .lzma) and Zstandard are read a block at a time, never whole.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

from ...runs.errors import UserError
from .remote import open_binary

COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
RATIO = 3  # how much larger text is than what it was compressed to, about


class _Members(io.RawIOBase):
    """The text of compressed members that stand one behind the other, as ``cat`` makes them; NULs between and behind them pass.

    ``bz2.BZ2File`` and ``lzma.LZMAFile`` take a second member whose first bytes are damaged, and all behind it, for nothing at
    all: its documents would be missing without a word.
    """

    def __init__(self, raw: IO[bytes], new: Callable[[], Any]) -> None:
        self._raw, self._new, self._member = raw, new, new()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            data = b""
            if self._member.eof:
                data = self._member.unused_data.lstrip(b"\0")
                while not data:
                    if not (block := self._raw.read(io.DEFAULT_BUFFER_SIZE)):
                        return 0
                    data = block.lstrip(b"\0")
                self._member = self._new()
            elif self._member.needs_input and not (data := self._raw.read(io.DEFAULT_BUFFER_SIZE)):
                raise EOFError("it ends before its end is marked")
            if found := self._member.decompress(data, len(buffer)):
                buffer[: len(found)] = found
                return len(found)


def _members(new: Callable[[], Any]) -> Callable[[IO[bytes]], Any]:
    return lambda raw: io.BufferedReader(_Members(raw, new), 1 << 16)


def _zstd(raw: IO[bytes]) -> Any:
    import pyarrow as pa

    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd"))


_READ: dict[bytes, tuple[str, Callable[[IO[bytes]], Any]]] = {
    b"\x1f\x8b": ("gzip", lambda raw: gzip.GzipFile(fileobj=raw)),
    **{
        b"BZh%d" % i + b: ("bzip2", _members(bz2.BZ2Decompressor))
        for i in range(1, 10)
        for b in (b"1AY&SY", b"\x17rE8P\x90")
    },
    b"\xfd7zXZ\x00": ("xz", _members(lzma.LZMADecompressor)),
    b"\x5d\x00\x00": ("lzma", _members(lzma.LZMADecompressor)),
    b"\x28\xb5\x2f\xfd": ("zstd", _zstd),
    **{
        bytes([0x50 + i]) + b"\x2a\x4d\x18": ("zstd", _zstd) for i in range(16)
    },  # a frame to skip, as pzstd writes first
}
# What is neither text nor read here, by how it begins: (bytes, what it is, what to do).
_UNPACK = "unpack it"
_OTHER: tuple[tuple[bytes, str, str], ...] = (
    (b"PK\x03\x04", "a zip archive", _UNPACK),
    (b"PK\x05\x06", "an empty zip archive", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!\x1a\x07", "a rar archive", _UNPACK),
    (b"\x04\x22\x4d\x18", "compressed with lz4", _UNPACK),
    (b"\x02\x21\x4c\x18", "compressed with lz4", _UNPACK),
    (b"\xff\x06\x00\x00sNaPpY", "compressed with snappy", _UNPACK),
    (b"LZIP", "compressed with lzip", _UNPACK),
    (b"\x89LZO", "compressed with lzop", _UNPACK),
    (b"\x1f\x9d", "compressed with compress (.Z)", _UNPACK),
    (b"PAR1", "a Parquet file", "set format to parquet"),
    (b"ARROW1", "an Arrow file", "name the datasets folder it lies in"),
    (b"\xff\xff\xff\xff", "an Arrow stream", "name the datasets folder it lies in"),
    (b"Obj\x01", "an Avro file", "write it as JSON lines"),
    (b"ORC", "an ORC file", "write it as JSON lines"),
    (b"SQLite format 3\x00", "an SQLite data base", "write it as JSON lines"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "write it as JSON lines"),
    (b"\x93NUMPY", "a NumPy array", "write it as JSON lines"),
    (b"%PDF-", "a PDF", "extract its text"),
    (b"\xff\xfe", "UTF-16 text", "write it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "write it as UTF-8"),
    (b"\x80\x04\x95", "a Python pickle", "write it as JSON lines"),
    (b"\x7fELF", "a program", "leave it out"),
    (b"\x89PNG", "an image", "leave it out"),
)
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_TAR_AT, HEAD_BYTES = 257, 265


class Opened(NamedTuple):
    """A file that is being read: ``text`` gives its bytes as they were before compression, ``raw`` says how far one is."""

    text: IO[bytes]
    raw: IO[bytes]
    compressed: bool


def is_compressed(path: str) -> bool:
    with _open(path) as raw:
        return _compression(raw.read(HEAD_BYTES)) is not None


def not_text(head: bytes) -> str | None:
    """What a file is that begins with these bytes and is no text, with what to do about it; None if it may be text.

    Plain text may begin with any of these letters ("ORC", "%PDF-"): only what holds other bytes, too, is no text.
    """
    if head.isascii() and not _CONTROL.search(head):
        return None
    for magic, what, advice in _OTHER:
        if head.startswith(magic):
            return f"is {what}, which is not read as text: {advice}"
    if head[_TAR_AT : _TAR_AT + 5] == b"ustar":
        return "is a tar archive, which is not read as text: unpack it"
    return None


def _compression(head: bytes) -> tuple[str, Callable[[IO[bytes]], Any]] | None:
    return next((found for magic, found in _READ.items() if head.startswith(magic)), None)


def _stream(found: tuple[str, Callable[[IO[bytes]], Any]] | None, raw: IO[bytes]) -> Any:
    return contextlib.nullcontext(raw) if found is None else found[1](raw)


def _open(path: str) -> IO[bytes]:
    try:
        return open_binary(path)
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror or e}") from None


@contextlib.contextmanager
def opened(path: str, place: Callable[[], str]) -> Iterator[Opened]:
    """Open a file for reading, compressed or not.

    :class:`UserError` naming the file if it is no text, cannot be read, or is damaged: ``place()`` says after what.
    """
    with _open(path) as raw:
        head = raw.read(HEAD_BYTES)
        raw.seek(0)
        found = _compression(head)
        if found is None and (what := not_text(head)) is not None:
            raise UserError(f"{path} {what}")
        try:
            with _stream(found, raw) as text:
                if found is not None and (what := not_text(text.peek(HEAD_BYTES)[:HEAD_BYTES])) is not None:
                    raise UserError(f"{path}: what is compressed in it {what}")
                yield Opened(text, raw, found is not None)
        except (EOFError, zlib.error, lzma.LZMAError, OSError) as e:  # BadGzipFile and Arrow's errors are OSErrors
            if found is None or (isinstance(e, OSError) and getattr(e, "errno", None)):
                raise UserError(f"{path} cannot be read: {getattr(e, 'strerror', None) or e}") from None
            said = " ".join(str(e).split())
            raise UserError(f"{path} is a damaged {found[0]} file after {place()}: {said}") from None
