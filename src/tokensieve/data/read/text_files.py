"""Formats in which a file is a document: text, Python source, and the docstrings of Python source."""

from __future__ import annotations

import ast
import inspect
import io
import itertools
import tokenize
import warnings
from collections.abc import Iterator
from typing import NamedTuple

from ...runs.errors import UserError
from .compressed import HEAD_BYTES, is_compressed, not_text, opened
from .documents import BadRow, Block, Document, Item, Skipped
from .files import InputFile
from .remote import open_binary
from .source import Source

MIN_DOCSTRING_CHARS = 200  # a module that says less than this says nothing


class Span(NamedTuple):
    """A file that is one document, or the bytes [lo, hi) of a file too large to be one."""

    name: str
    path: str
    lo: int
    hi: int
    text: str | None = None
    data: bytes | None = None  # of a compressed file, which cannot be entered in the middle


def spans(source: Source, size: int) -> Iterator[Span]:
    """Every file of the split; a text file larger than ``size`` comes in spans of whole lines, each a document."""
    for file in source.files:
        if source.format == "text" and is_compressed(file.path):
            yield from (span for span in _compressed_spans(file, size) if source.in_split(span.name))
            continue
        cuts = [0, file.size]
        if source.format == "text" and file.size > size:
            cuts = list(_line_cuts(file, size))
        for lo, hi in itertools.pairwise(cuts):
            name = file.name if len(cuts) == 2 else f"{file.name}@{lo}"
            if source.in_split(name):
                yield Span(name, file.path, lo, hi, source.texts.get(file.name))


def _compressed_spans(file: InputFile, size: int) -> Iterator[Span]:
    """What :func:`spans` makes of the same text uncompressed, with its bytes; two spans are held at a time."""
    lo = 0
    with opened(file.path, lambda: f"{lo} bytes of text") as (text, _, _):
        data = text.read(size) + text.readline()
        whole = following = text.read(size) + text.readline()
        while data:
            hi = lo + len(data)
            yield Span(f"{file.name}@{lo}" if whole else file.name, file.path, lo, hi, data=data)
            data, lo = following, hi
            following = text.read(size) + text.readline()


def _line_cuts(file: InputFile, size: int) -> Iterator[int]:
    yield 0
    with open_binary(file.path) as f:
        while f.tell() < file.size:
            f.seek(min(file.size, f.tell() + size))
            f.readline()
            yield f.tell()


def file_blocks(source: Source, size: int) -> Iterator[Block]:
    batch: list[Span] = []
    filled = 0
    for span in spans(source, size):
        if not source.admits(span.name):
            continue
        if source.texts and span.text is None:
            continue  # sampling has read it and found nothing to keep
        weight = len(span.text) if span.text is not None else span.hi - span.lo
        if batch and filled + weight > size:
            yield Block(batch, cost=filled)
            batch, filled = [], 0
        batch.append(span)
        filled += weight
    if batch:
        yield Block(batch, cost=filled)


def file_documents(source: Source, block: Block) -> Iterator[Item]:
    for span in block.payload:
        text = span.text if span.text is not None else _read_span(source.format, span)
        if isinstance(text, str):
            label = source.config.name or source.name
            yield Document(span.name, label, span.path, text, place=span.name) if text.strip() else Skipped("empty")
        else:
            yield text


def _read_span(format: str, span: Span) -> str | BadRow | Skipped:
    data = read_bytes(span.path, span.lo, span.hi) if span.data is None else span.data
    if format == "docstrings":
        return read_docstrings(data)
    if format == "python":
        return _read_python(data)
    if span.lo == 0 and (what := not_text(data[:HEAD_BYTES])) is not None:
        return BadRow(span.path, what)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = data[: e.start].count(b"\n") + 1
        return BadRow(f"{span.path} line {line}", f"not valid UTF-8 at byte {span.lo + e.start + 1} of the file")


def read_bytes(path: str, lo: int, hi: int) -> bytes:
    """The bytes [lo, hi) of a file."""
    try:
        with open_binary(path) as f:
            f.seek(lo)
            return f.read(hi - lo)
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror or e}") from None


def _read_python(data: bytes) -> str | Skipped:
    """Source as text, in the encoding the file itself declares."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        return data.decode(encoding)
    except (SyntaxError, UnicodeDecodeError, LookupError):
        return Skipped("unparsable")


def read_docstrings(data: bytes) -> str | Skipped:
    """The docstrings of a module, its classes and functions, in order, blank lines between them."""
    try:
        with warnings.catch_warnings():  # other people's invalid escapes
            warnings.simplefilter("ignore")
            tree = ast.parse(data)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return Skipped("unparsable")
    text = "\n\n".join(_docstrings(tree))
    return text if len(text) >= MIN_DOCSTRING_CHARS else Skipped("short")


def _docstrings(node: ast.AST) -> Iterator[str]:
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        found = ast.get_docstring(node, clean=False)
        cleaned = inspect.cleandoc(found).strip() if found else ""
        if cleaned:
            yield cleaned
    for child in getattr(node, "body", ()) if isinstance(getattr(node, "body", ()), list) else ():
        yield from _docstrings(child)
