"""Each file once, whatever names lead to it; links are followed, and what cannot be read is told."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from folders import names, write

from tokensieve.data.read.files import once, walk
from tokensieve.data.read.source import SourceConfig
from tokensieve.data.read.sources import identity, read_twice, resolve
from tokensieve.runs.errors import UserError

FILES = ("data/a.jsonl", "data/x/b.jsonl", "data/y/z/c.jsonl")


@pytest.mark.parametrize(
    "pattern", ["data", "data/**", "data/**/*", "data/**/*.jsonl", "data/**/**", "**/data/**", "d*/**"]
)
def test_a_pattern_gives_each_file_once(tmp_path: Path, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``**`` names folders and the files in them: each document came once for each folder above it, 90 for 30."""
    for name in FILES:
        write(tmp_path / name)
    write(tmp_path / "data/.hidden/d.jsonl")
    monkeypatch.chdir(tmp_path)
    found = resolve(SourceConfig(pattern)).files
    assert sorted(f.path for f in found) == sorted(FILES)
    assert len(set(names(tmp_path / pattern))) == 3


@pytest.mark.parametrize("folder", ["data [v1]", "a*b", "what?", "[ab]"])
@pytest.mark.parametrize("pattern", ["{}", "{}/*.jsonl", "{}/**", "{}/**/*.jsonl"])
def test_a_folder_may_be_called_like_a_pattern(tmp_path: Path, folder: str, pattern: str) -> None:
    """``data [v1]/*.jsonl`` matched nothing, or what lay in another folder."""
    write(tmp_path / folder / "a.jsonl")
    write(tmp_path / folder / "x" / "b.jsonl")
    write(tmp_path / "axb" / "c.jsonl")
    found = resolve(SourceConfig(str(tmp_path / pattern.format(folder)))).files
    wanted = ["a.jsonl"] if pattern == "{}/*.jsonl" else ["a.jsonl", "x/b.jsonl"]
    assert [str(Path(f.path).relative_to(tmp_path / folder)) for f in found] == wanted


@pytest.mark.parametrize(
    ("link", "to", "expected"),
    [
        ("data/more", "elsewhere", ["a.jsonl", "more/e.jsonl"]),  # a folder elsewhere
        ("data/more", "data", ["a.jsonl"]),  # a loop
        ("data/x/up", "data", ["a.jsonl", "x/b.jsonl"]),  # a loop from below
        ("data/A", "data/x", ["a.jsonl", "x/b.jsonl"]),  # a second name, earlier in name order
        ("data/z.jsonl", "data/a.jsonl", ["a.jsonl"]),  # a second name of a file
        ("data/A.jsonl", "data/a.jsonl", ["a.jsonl"]),  # and an earlier one
        ("data/z.jsonl", "elsewhere/e.jsonl", ["a.jsonl", "z.jsonl"]),
        ("data/more", "elsewhere/.hidden", ["a.jsonl", "more/f.jsonl"]),  # hidden by its own name, not by the link's
        ("elsewhere/back", "data", ["a.jsonl"]),  # not below data
    ],
)
@pytest.mark.parametrize("pattern", ["data", "data/**", "data/**/*.jsonl"])
def test_links_are_followed_once(tmp_path: Path, link: str, to: str, expected: list[str], pattern: str) -> None:
    """What lay behind a linked folder was left out without a word; a file of two names was read twice."""
    write(tmp_path / "data/a.jsonl")
    if "/x" in link + to:
        write(tmp_path / "data/x/b.jsonl")
    write(tmp_path / "elsewhere/e.jsonl")
    write(tmp_path / "elsewhere/.hidden/f.jsonl")
    (tmp_path / link).symlink_to(tmp_path / to)
    assert names(tmp_path / pattern) == expected


def test_many_loops_end(tmp_path: Path) -> None:
    """``glob`` follows a loop forty times, and two of them two to the power of forty times."""
    write(tmp_path / "data/a.jsonl")
    for name in ("one", "two", "three"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "data")
    assert names(tmp_path / "data/**/*.jsonl") == names(tmp_path / "data") == ["a.jsonl"]


def test_text_and_code_behind_links_and_a_datasets_folder(tmp_path: Path) -> None:
    import datasets

    write(tmp_path / "elsewhere/e.py")
    write(tmp_path / "code/a.py")
    (tmp_path / "code/more").symlink_to(tmp_path / "elsewhere")
    assert names(tmp_path / "code", format="docstrings") == ["a.py", "more/e.py"]
    datasets.Dataset.from_list([{"text": "one"}]).save_to_disk(str(tmp_path / "set"))
    assert {"state.json", "dataset_info.json"} < set(names(tmp_path / "set"))
    (tmp_path / "again").symlink_to(tmp_path / "set")
    assert identity(resolve(SourceConfig(str(tmp_path / "again")))) == identity(
        resolve(SourceConfig(str(tmp_path / "set")))
    )


def gone(folder: Path) -> str:
    (folder / "b.jsonl").symlink_to(folder / "nowhere")
    return "b.jsonl is a link that leads to no file"


def loop(folder: Path) -> str:
    (folder / "b.jsonl").symlink_to(folder / "b.jsonl")
    return "b.jsonl is a link that leads to no file"


@pytest.mark.parametrize("damage", [gone, loop])
@pytest.mark.parametrize("pattern", ["data", "data/*.jsonl", "data/**"])
def test_a_link_to_nothing_is_told(tmp_path: Path, damage: Callable[[Path], str], pattern: str) -> None:
    write(tmp_path / "data/a.jsonl")
    said = damage(tmp_path / "data")
    with pytest.raises(UserError, match=said):
        names(tmp_path / pattern)


def test_a_folder_that_cannot_be_listed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without permission was empty, as far as one could see."""
    write(tmp_path / "data/x/a.jsonl")
    scan = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("x"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"data/x cannot be listed: Permission denied"):
        list(walk(tmp_path / "data", [tmp_path / "data"], ()))


def test_of_two_names_the_one_without_a_link_stays(tmp_path: Path) -> None:
    write(tmp_path / "real/b.jsonl")
    (tmp_path / "A").symlink_to(tmp_path / "real")
    files = list(walk(tmp_path, [tmp_path / "A", tmp_path / "real"], ()))
    assert [f.name for f in files] == ["A/b.jsonl", "real/b.jsonl"]
    assert [f.name for f in once(tmp_path, iter(files))] == ["real/b.jsonl"]


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"path": "data/a.jsonl"}, True),
        ({"path": "data/*"}, True),
        ({"path": "link.jsonl"}, True),
        ({"path": "data", "split": (0.5, 1.0)}, True),
        ({"path": "data", "text": "body"}, False),
        ({"path": "data", "problem": "q", "solution": "a"}, False),
        ({"path": "elsewhere"}, False),
    ],
)
def test_two_sources_of_one_file_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: dict[str, object], told: bool
) -> None:
    """It may be meant (a part that shall count twice), so it is no error; splits that are disjoint share no document."""
    for name in (*FILES, "elsewhere/e.jsonl"):
        write(tmp_path / name)
    (tmp_path / "link.jsonl").symlink_to(tmp_path / FILES[0])
    monkeypatch.chdir(tmp_path)
    one = SourceConfig("data", split=(0.0, 0.6))
    sources = [resolve(s) for s in (one, SourceConfig(**other))]  # type: ignore[arg-type]
    found = read_twice(sources)
    assert len(found) == told
    if told:
        assert found[0].startswith(f"sources 0 (data) and 1 ({other['path']}) both read ")
    disjoint = [resolve(SourceConfig("data", split=s)) for s in ((0.0, 0.6), (0.6, 1.0))]
    assert read_twice(disjoint) == []
    apart = [resolve(SourceConfig("data", only=(kind,))) for kind in ("novels", "code", "code/*")]
    assert read_twice(apart[:2]) == []  # of a pattern nobody knows
    assert [len(read_twice([apart[0], o])) for o in (sources[0], apart[0], apart[2])] == [1, 1, 1]
