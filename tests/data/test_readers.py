import gzip
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokensieve.data.read.documents import BadRow, Document, Skipped
from tokensieve.data.read.readers import READERS, blocks, documents, sample, training_texts
from tokensieve.data.read.source import SourceConfig, sample_position, split_position
from tokensieve.data.read.sources import SUFFIXES, resolve
from tokensieve.runs.errors import UserError

ROWS = [{"text": f"row {i} " + "é" * i, "n": i} for i in range(40)]


def read(path: Path | str, size: int = 1 << 20, seed: int = 0, **settings: Any) -> list[Document | BadRow | Skipped]:
    source = sample(resolve(SourceConfig(str(path), **settings), seed), size)
    return [item for block in blocks(source, size) for item in documents(source, block)]


def texts(items: Iterable[Any]) -> list[str]:
    return [item.text for item in items]


def jsonl(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def stored(tmp_path: Path, form: str, rows: list[dict[str, Any]]) -> Path:
    path = tmp_path / f"data.{form}"
    if form == "jsonl":
        return jsonl(path, rows)
    if form == "jsonl.gz":
        path.write_bytes(gzip.compress(jsonl(tmp_path / "plain", rows).read_bytes()))
    elif form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    else:
        datasets.Dataset.from_list(rows).save_to_disk(str(path))
    return path


def test_every_format_has_a_reader() -> None:
    assert set(READERS) == set(SUFFIXES) - {"tokens", "chat"}  # what rows of another format mean


@pytest.mark.parametrize("form", ["jsonl", "parquet", "folder"])
def test_only_takes_the_rows_of_named_sources_and_counts_the_others(tmp_path: Path, form: str) -> None:
    kinds = ["novels", "code/a", "code/b", "wiki"]
    path = stored(tmp_path, form, [{**row, "source": kinds[row["n"] % 4], "of": "x"} for row in ROWS])
    whole = read(path)
    for only, kept in [
        (("novels",), "novels"),
        (("code/*",), "code"),
        (("novels", "wiki"), "novels wiki"),
        ((), "novels code wiki"),
    ]:
        found = read(path, only=only)
        assert [d._replace(taken_by="") for d in found if isinstance(d, Document)] == [
            d for d in whole if isinstance(d, Document) and d.source.split("/")[0] in kept
        ]
        assert {i for i in found if isinstance(i, Skipped)} <= {Skipped("other source")}
        assert len(found) == len(ROWS)
    assert read(path, only=("novels",), name="n")[0].source == "n"  # type: ignore[union-attr]
    assert len(texts(read(path, only=("x",), source_column="of"))) == len(ROWS)
    unnamed = jsonl(
        tmp_path / "unnamed.jsonl", [{"text": "a"}, {"text": "b", "source": None}, {"text": "c", "source": "x"}]
    )
    assert [d.text for d in read(unnamed, only=("*n*", "x")) if isinstance(d, Document)] == [
        "c"
    ]  # none is no name: "None"
    cap = 100
    sampled = [d for d in read(path, only=("wiki",), max_bytes=cap) if isinstance(d, Document)]
    assert sampled
    assert {d.source for d in sampled} == {"wiki"}
    assert sum(d.size for d in sampled) <= cap


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "parquet", "folder"])
@pytest.mark.parametrize("size", [1, 300, 1 << 20])
def test_rows_come_in_order_whatever_the_blocks(tmp_path: Path, form: str, size: int) -> None:
    path = stored(tmp_path, form, ROWS)
    found = read(path, size)
    assert texts(found) == [r["text"] for r in ROWS]
    assert [d.id for d in found] == [f"{path.name}:{i + 1}" for i in range(40)]  # type: ignore[union-attr]


@pytest.mark.parametrize("form", ["jsonl", "parquet", "folder"])
def test_columns_id_source_problem_and_solution(tmp_path: Path, form: str) -> None:
    rows = [{"id": "p1", "source": "gsm", "text": "Problem: other", "problem": "2+2?", "solution": "4"}]
    path = stored(tmp_path, form, rows)
    [found] = read(path, problem="problem", solution="solution")
    assert isinstance(found, Document)
    assert (found.id, found.source, found.text) == ("p1", "gsm", "Problem: 2+2?\nSolution: 4")
    assert found.text[found.solution :] == "4"
    [named] = read(path, name="mine")
    assert isinstance(named, Document)
    assert (named.source, named.text, named.solution) == ("mine", "Problem: other", 0)


def test_a_stream_gives_the_same_rows(tmp_path: Path) -> None:
    """`hub:` with a local folder: the streaming path of `datasets`, without a network."""
    (tmp_path / "set").mkdir()
    jsonl(tmp_path / "set/train.jsonl", ROWS)
    assert texts(read(f"hub:{tmp_path}/set", size=100)) == [r["text"] for r in ROWS]
    with pytest.raises(UserError, match="hub:nobody/nothing cannot be opened"):
        read("hub:nobody/nothing")


def test_tokens(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "a.jsonl", [{"input_ids": [1, 2]}, {"input_ids": "12"}, {"input_ids": [1, True]}, {"input_ids": []}]
    )
    good, text, boolean, empty = read(path, format="tokens")
    assert isinstance(good, Document)
    assert good.tokens == [1, 2]
    assert isinstance(text, BadRow)
    assert isinstance(boolean, BadRow)
    assert empty == Skipped("empty")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "a"', "not valid JSON"),
        (b'{"text": NaN}', "must be a string, this is a number"),
        (b'{"text": null}', "must be a string, this is null"),
        (b'{"text": ["a"]}', "must be a string, this is a list"),
        (b'{"body": "a", "n": 1}', r"no column 'text' \(there are: body, n\)"),
        (b'["a"]', "must be an object, this is a list"),
        (b'{"text": "\xff"}', "not valid UTF-8 at byte 11"),
        (b'{"text": "\\ud800"}', "half of a surrogate pair"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
@pytest.mark.parametrize("size", [5, 1 << 20])
def test_a_malformed_line_is_named_by_file_and_line(tmp_path: Path, line: bytes, reason: str, size: int) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\r\n\n' + line + b'\n{"text": "four"}')
    first, bad, last = read(path, size)
    assert isinstance(bad, BadRow)
    assert bad.where == f"{path} line 3"
    assert re.search(reason, bad.reason)
    assert texts([first, last]) == ["one", "four"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "one"}\n')
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone")
    assert texts(read(tmp_path / "a.jsonl") + read(tmp_path / "a.txt")) == ["one", "one"]


@pytest.mark.parametrize("form", ["parquet", "folder"])
def test_a_null_in_a_table_is_a_bad_row_and_a_missing_column_an_error(tmp_path: Path, form: str) -> None:
    path = stored(tmp_path, form, [{"text": "a", "n": 1}, {"text": None, "n": 2}])
    assert [type(i) for i in read(path)] == [Document, BadRow]
    assert read(path)[1].where == f"{path} row 2"  # type: ignore[union-attr]
    with pytest.raises(UserError, match=f"{path} has no column 'body'; it has text, n"):
        read(path, text="body")


def test_damaged_files_are_errors_by_name(tmp_path: Path) -> None:
    whole = gzip.compress(b'{"text": "a"}\n' * 1000)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(str(tmp_path / "dict"))
    for name, message in [
        ("cut.jsonl.gz", "damaged gzip"),
        ("bad.parquet", "not a readable Parquet"),
        ("dict", "dict/train"),
    ]:
        with pytest.raises(UserError, match=message) as e:
            read(tmp_path / name)
        assert str(tmp_path / name) in str(e.value)


def test_a_file_is_a_document_and_a_huge_one_is_cut_at_line_ends(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"line {i}\n" for i in range(100)))
    (tmp_path / "b.md").write_text("  \n")
    whole = read(tmp_path)
    assert [getattr(i, "id", i.reason if isinstance(i, Skipped) else "") for i in whole] == ["a.txt", "empty"]
    cut = [d for d in read(tmp_path, size=100) if isinstance(d, Document)]
    assert len(cut) > 5
    assert "".join(d.text for d in cut) == (tmp_path / "a.txt").read_text()
    assert all(d.text.endswith("\n") for d in cut)
    (tmp_path / "a.txt").write_bytes(b"fine\nnot \xff fine")
    assert read(tmp_path)[0] == BadRow(f"{tmp_path / 'a.txt'} line 2", "not valid UTF-8 at byte 10 of the file")


CODE = '''"""The module says what it does, at some length: {long}"""
X = """not a docstring"""

class A:
    """    A class.

        Indented.
    """

    async def f(self):
        """A method."""
        """Not this."""

    if True:
        def g():
            r"""Inside \\an if."""
'''.replace("{long}", "word " * 50)


def test_docstrings_are_those_of_modules_classes_and_functions(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(CODE)
    (tmp_path / "b.py").write_text('"""Too short."""')
    (tmp_path / "c.py").write_text("def f(:\n")
    (tmp_path / "d.py").write_bytes(b"\0")
    doc, short, broken, null = read(tmp_path, format="docstrings")
    assert isinstance(doc, Document)
    parts = doc.text.split("\n\n")
    assert parts[0].startswith("The module says what it does, at some length: word word")
    assert parts[1:] == ["A class.", "Indented.", "A method.", "Inside \\an if."]
    assert (short, broken, null) == (Skipped("short"), Skipped("unparsable"), Skipped("unparsable"))
    code = read(tmp_path, format="python")[0]
    assert isinstance(code, Document)
    assert code.text == CODE


def test_python_files_are_read_in_the_encoding_they_declare(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes("# coding: latin-1\nx = 'é'\n".encode("latin-1"))
    (tmp_path / "b.py").write_bytes(b"x = '\xe9'\n")
    latin, bad = read(tmp_path)
    assert isinstance(latin, Document)
    assert "é" in latin.text
    assert bad == Skipped("unparsable")


def test_code_and_docstrings_of_one_file_fall_on_the_same_side(tmp_path: Path) -> None:
    """If the two formats hashed differently, a held-out docstring could stand in the training code."""
    for i in range(60):
        (tmp_path / f"m{i}.py").write_text(CODE)
    code = {d.id for d in read(tmp_path, format="python", split=(0.0, 0.5))}  # type: ignore[union-attr]
    held_out = {d.id for d in read(tmp_path, format="docstrings", split=(0.5, 1.0))}  # type: ignore[union-attr]
    assert len(code) > 10
    assert len(held_out) > 10
    assert not code & held_out
    assert len(code | held_out) == 60


def expected_sample(sizes: dict[str, int], cap: int, seed: int) -> set[str]:
    taken: set[str] = set()
    for key in sorted(sizes, key=lambda k: sample_position(k, seed)):
        if sum(sizes[k] for k in taken) + sizes[key] > cap:
            break
        taken.add(key)
    return taken


@pytest.mark.parametrize("form", ["jsonl", "parquet", "folder", "text", "docstrings"])
@pytest.mark.parametrize("cap", [100, 900, 10**9])
def test_max_bytes_takes_documents_in_hash_order_up_to_the_cap(tmp_path: Path, form: str, cap: int) -> None:
    if form == "text":
        path = tmp_path
        for i, r in enumerate(ROWS):
            (path / f"{i}.txt").write_text(r["text"], encoding="utf-8")
    elif form == "docstrings":
        path, cap = tmp_path, cap * 10
        for i in range(30):
            (path / f"{i}.py").write_text('"""' + "x" * (200 + i) + '"""')
    else:
        path = stored(tmp_path, form, ROWS)
    settings = {"format": form} if form in ("text", "docstrings") else {}
    sizes = {d.id: d.size for d in read(path, **settings) if isinstance(d, Document)}
    for seed in (0, 1):
        found = {d.id for d in read(path, 200, seed, max_bytes=cap, **settings) if isinstance(d, Document)}
        assert found == expected_sample(sizes, cap, seed)


def test_sampling_within_a_split_stays_in_it(tmp_path: Path) -> None:
    path = stored(tmp_path, "jsonl", ROWS)
    found = read(path, split=(0.2, 0.7), max_bytes=600)
    assert found
    assert all(0.2 <= split_position(d.id) < 0.7 for d in found)  # type: ignore[union-attr]


def test_training_texts_are_spread_over_the_source(tmp_path: Path) -> None:
    """The head of a file sorted by origin would train the vocabulary on one origin."""
    path = jsonl(tmp_path / "a.jsonl", [{"text": f"{i:04d} " + "x" * 95} for i in range(1000)])
    source = resolve(SourceConfig(str(path)))
    numbers = [int(t[:4]) for t in training_texts(source, 20_000, 4096)]
    assert 120 < len(numbers) <= 201
    assert max(numbers) > 900
    assert len(list(training_texts(source, 10**9, 4096))) == 1000
