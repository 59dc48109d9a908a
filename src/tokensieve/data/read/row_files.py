"""Formats in which a row is a document: JSON lines, Parquet, a ``datasets`` folder, and streams from the hub."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ...runs.errors import UserError
from ...runs.files import read_json
from .chat_rows import READ as CHAT
from .chat_rows import chat_document, chat_layout
from .compressed import opened
from .documents import BadRow, Block, Document, Item, Skipped, Turn, kind
from .programs import BadProgram, CharSpans, deleted_spans
from .remote import arrow_input
from .source import Source
from .token_rows import BESIDE_IDS, tokens_document
from .weight_values import WEIGHT, BadWeight, text_weights

_BATCH_ROWS = 256


# ---- what a row means, wherever it was stored ----


def columns(source: Source) -> list[str]:
    """The columns a row must have; a conversation may lie in different ones."""
    if chatty(source):
        return []
    if tokenised(source):
        return ["input_ids"]
    if source.config.problem is not None and source.config.solution is not None:
        return [source.config.problem, source.config.solution]
    return [source.config.text]


def tokenised(source: Source) -> bool:
    return source.format == "tokens" or source.config.format == "tokens"


def chatty(source: Source) -> bool:
    return source.format == "chat" or source.config.format == "chat"


def row_document(source: Source, row: Any, name: str, where: str, number: int) -> Item:
    """A row (dict) as a document. Its key is its ``id`` where it has one, else ``file:number``."""
    if not isinstance(row, Mapping):
        return BadRow(where, f"a row must be an object, this is {kind(row)}")
    found, given = row.get("id"), row.get(source.config.source_column)
    key = str(found) if isinstance(found, (str, int)) and found != "" else f"{name}:{number}"
    own = given if isinstance(given, str) else ""
    taken_by = next((pattern for pattern in source.config.only if fnmatchcase(own, pattern)), "")
    if source.config.only and not taken_by:
        return Skipped("other source")
    label = source.config.name or (given if isinstance(given, str) and given else source.name)
    item = _as_document(source, row, key, label, where)
    if not isinstance(item, Document):
        return item
    number_of, named = None, source.config.label
    if named is not None:
        number_of = row.get(named)
        if isinstance(number_of, bool) or not isinstance(number_of, (int, float)) or not math.isfinite(number_of):
            return BadRow(where, f"label: column {named!r} must be a finite number, this is {kind(number_of)}")
    return item._replace(place=f"{name}:{number}", label=number_of, taken_by=taken_by)


def _as_document(source: Source, row: Mapping[str, Any], key: str, label: str, where: str) -> Item:
    values = []
    for column in columns(source):
        if column not in row:
            return BadRow(where, f"no column {column!r} (there are: {', '.join(map(str, row)) or 'none'})")
        values.append(row[column])
    if chatty(source):
        return chat_document(row, key, label, where, source.config.text, source.config.ignore_columns)
    if tokenised(source):
        return tokens_document(row, key, label, where, source.config.ignore_columns)
    for column, value in zip(columns(source), values, strict=True):
        if not isinstance(value, str):
            return BadRow(where, f"column {column!r} must be a string, this is {kind(value)}")
        if not value.strip():
            return Skipped("empty")
    before = "" if len(values) == 1 else f"Problem: {values[0]}\nSolution: "
    text = before + values[-1]
    try:
        weights = text_weights(row.get(WEIGHT) if WEIGHT not in source.config.ignore_columns else None, len(text))
        program = _program(row, source.config.program, text)
    except (BadWeight, BadProgram) as e:
        return BadRow(where, str(e))
    turns = (Turn("problem", 9, len(before) - 11), Turn("solution", len(before), len(text))) if before else ()
    return Document(key, label, where, text, solution=len(before), turns=turns, weights=weights, program=program)


def _program(row: Mapping[str, Any], column: str | None, text: str) -> CharSpans:
    """What the program in ``column`` would delete; a row has none where null stands there."""
    if column is None or (given := row.get(column, 0)) is None:
        return ()
    if column not in row or not isinstance(given, str):
        what = f"must be a string, this is {kind(given)}" if column in row else "is not there"
        raise BadProgram(f"program: column {column!r} {what}")
    try:
        return deleted_spans(text, given)
    except BadProgram as e:
        raise BadProgram(f"program: column {column!r}: {e}") from None


# ---- jsonl ----


def jsonl_blocks(source: Source, size: int) -> Iterator[Block]:
    """Whole lines. A compressed file is read once, here: it cannot be entered in the middle."""
    for file in source.files:
        line, done = 1, 0
        with opened(file.path, lambda: f"line {line - 1}") as (lines, raw, _):  # noqa: B023
            while data := lines.read(size):
                data += b"" if data.endswith(b"\n") else lines.readline()
                yield Block(data, file.name, file.path, line, raw.tell() - done, len(data))
                line, done = line + data.count(b"\n"), raw.tell()


def jsonl_documents(source: Source, block: Block) -> Iterator[Item]:
    for number, line in enumerate(block.payload.split(b"\n"), block.start):
        if not line.strip():
            continue
        where = f"{block.path} line {number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            row = json.loads(text)
        except UnicodeDecodeError as e:
            yield BadRow(where, f"not valid UTF-8 at byte {e.start + 1} of the line")
        except json.JSONDecodeError as e:
            yield BadRow(where, f"not valid JSON: {e.msg} at character {e.colno}")
        except (ValueError, RecursionError) as e:  # a number of thousands of digits, or of brackets
            yield BadRow(where, f"not valid JSON: {str(e).split(';')[0] or 'nested too deep'}")
        else:
            yield row_document(source, row, block.file, where, number)


# ---- parquet, datasets, hub ----


def _require(source: Source, path: str, schema: Any) -> list[str]:
    """The columns to read, of tokenised rows all lists. :class:`UserError` listing what there is if one is missing."""
    names, needed = list(schema.names), columns(source)
    for column in needed:
        if column not in names:
            raise UserError(f"{path} has no column {column!r}; it has {', '.join(names)}")
    if chatty(source) and not chat_layout(names, source.config.text):
        raise UserError(
            f"{path} has no columns of a conversation (messages, conversations ...); it has {', '.join(names)}"
        )
    more = {
        "id",
        source.config.source_column,
        source.config.label,
        source.config.program,
        WEIGHT,
        *(_lists(schema) if tokenised(source) else ()),
    }
    more |= {*CHAT, source.config.text} if chatty(source) else set()
    more -= {*needed, *source.config.ignore_columns}
    return needed + [c for c in names if c in more]


def _lists(schema: Any) -> list[str]:
    """The columns that may say something of each token: lists, and what should be one."""
    import pyarrow as pa

    def is_list(kind: Any) -> bool:
        return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))

    return [f.name for f in schema if is_list(f.type) or f.name in BESIDE_IDS]


def first_columns(source: Source) -> list[str]:
    """The columns of a source's first row, as far as they can be seen without reading it; [] where that is not so."""
    try:
        if source.format == "datasets":
            return list(read_json(Path(source.config.path) / "dataset_info.json").get("features") or ())
        parquet = source.files[0].name.lower().endswith(".parquet")
        block = next((parquet_blocks if parquet else jsonl_blocks)(source, 1))
        row = dict.fromkeys(block.payload[1]) if parquet else json.loads(block.payload.decode("utf-8-sig"))
        return list(row) if isinstance(row, dict) else []
    except (UserError, ValueError, RecursionError, StopIteration):
        return []  # whatever it is, reading it will say so


def parquet_blocks(source: Source, size: int) -> Iterator[Block]:
    """Whole row groups, as many as fit."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for file in source.files:
        try:
            with arrow_input(file.path) as given:
                meta = pq.read_metadata(given)
        except (pa.ArrowException, OSError) as e:
            raise UserError(f"{file.path} is not a readable Parquet file: {e}") from None
        read = _require(source, file.path, meta.schema.to_arrow_schema())
        groups: list[int] = []
        start = row = 1
        filled = 0
        for i in range(meta.num_row_groups):
            group = meta.row_group(i)
            if groups and filled + group.total_byte_size > size:
                yield Block((groups, read), file.name, file.path, start, filled, filled)
                groups, filled, start = [], 0, row
            groups.append(i)
            filled, row = filled + group.total_byte_size, row + group.num_rows
        if groups:
            yield Block((groups, read), file.name, file.path, start, filled, filled)


def parquet_documents(source: Source, block: Block) -> Iterator[Item]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    groups, read = block.payload
    number = block.start
    try:
        with arrow_input(block.path) as given, pq.ParquetFile(given) as file:
            for batch in file.iter_batches(_BATCH_ROWS, row_groups=groups, columns=read):
                try:
                    rows = batch.to_pylist()
                except UnicodeDecodeError:
                    rows = [_decoded(batch.slice(i, 1)) for i in range(len(batch))]
                yield from _rows(source, rows, block, number)
                number += len(rows)
    except (pa.ArrowException, OSError) as e:
        raise UserError(f"{block.path} is damaged near row {number}: {e}") from None


def _decoded(row: Any) -> Any:
    try:
        return row.to_pylist()[0]
    except UnicodeDecodeError as e:
        return e


def _rows(source: Source, rows: Iterable[Any], block: Block, start: int) -> Iterator[Item]:
    for number, row in enumerate(rows, start):
        where = f"{block.path} row {number}"
        if isinstance(row, UnicodeDecodeError):
            yield BadRow(where, "the text is not valid UTF-8")
        else:
            yield row_document(source, row, block.file, where, number)


def _load_dataset(path: str) -> Any:
    from datasets import DatasetDict, load_from_disk

    _check_state(Path(path))
    try:
        found = load_from_disk(path)
    except Exception as e:  # datasets raises whatever its readers raise
        raise UserError(f"{path} cannot be read as a datasets folder: {e}") from None
    if isinstance(found, DatasetDict):
        raise UserError(f"{path} holds several splits: name one, as {path}/{next(iter(found), 'train')}")
    return found


def _check_state(folder: Path) -> None:
    """The files that a ``datasets`` folder names must lie in it: whoever made it must not choose which files we read."""
    state = folder / "state.json"
    if not state.is_file():
        return
    try:
        names = [entry["filename"] for entry in read_json(state)["_data_files"]]
        outside = [n for n in names if not (folder / n).resolve().is_relative_to(folder.resolve())]
    except (KeyError, TypeError):
        raise UserError(f"{state} does not list its files as it should: it is damaged") from None
    if outside:
        raise UserError(f"{state} names {outside[0]!r}, which is outside its folder")


def datasets_blocks(source: Source, size: int) -> Iterator[Block]:
    path = source.config.path
    rows = _load_dataset(path)
    read = _require(source, path, rows.data.schema)
    each = max(1, size * len(rows) // max(1, rows.data.nbytes))
    for lo in range(0, len(rows), each):
        hi = min(len(rows), lo + each)
        yield Block((hi, read), source.name, path, lo + 1, source.size * (hi - lo) // len(rows))


def datasets_documents(source: Source, block: Block) -> Iterator[Item]:
    hi, read = block.payload
    # As Arrow: decoded, a column of images or sounds would open the files and addresses that its rows name.
    rows = _load_dataset(block.path).select_columns(read).with_format("arrow")
    for lo in range(block.start - 1, hi, _BATCH_ROWS):
        yield from _rows(source, rows[lo : min(hi, lo + _BATCH_ROWS)].to_pylist(), block, lo + 1)


def _hub(source: Source, open_: Callable[..., Any], **options: Any) -> Any:
    name, config, *_ = [*source.config.path.removeprefix("hub:").split(":"), ""]
    try:
        return open_(name, config or None, **options)
    except Exception as e:  # offline, unknown, gated, unknown configuration: datasets says which
        raise UserError(f"source {source.config.path} cannot be opened: {' '.join(str(e).split())[:300]}") from None


def hub_revision(source: Source) -> str:
    """What the name stands for now: changes with the data set's commit."""
    from datasets import load_dataset_builder

    return str(_hub(source, load_dataset_builder).hash)


def hub_blocks(source: Source, size: int) -> Iterator[Block]:
    """Streams the rows; each block carries its rows."""
    from datasets import load_dataset

    split = [*source.config.path.removeprefix("hub:").split(":"), "", ""][2] or "train"
    stream = _hub(source, load_dataset, split=split, streaming=True)
    rows: list[dict[str, Any]] = []
    start, filled = 1, 0
    for row in stream:
        wanted = [
            *columns(source),
            "id",
            source.config.source_column,
            source.config.label,
            source.config.program,
            WEIGHT,
            *BESIDE_IDS,
            *((*CHAT, source.config.text) if chatty(source) else ()),
        ]
        rows.append({k: v for k, v in row.items() if k in wanted or (tokenised(source) and isinstance(v, list))})
        filled += sum(len(v) for v in rows[-1].values() if isinstance(v, (str, list)))
        if filled >= size:
            yield Block(rows, source.name, source.config.path, start, filled)
            rows, start, filled = [], start + len(rows), 0
    if rows:
        yield Block(rows, source.name, source.config.path, start, filled)


def hub_documents(source: Source, block: Block) -> Iterator[Item]:
    yield from _rows(source, block.payload, block, block.start)
