import os
import sysconfig
from pathlib import Path

import pytest
from folders import names, write

from tokensieve.data.read.row_files import columns
from tokensieve.data.read.source import SourceConfig, sample_position, split_position
from tokensieve.data.read.sources import SUFFIXES, identity, resolve
from tokensieve.runs.errors import UserError


def test_a_file_a_folder_and_a_glob_give_the_same_names(tmp_path: Path) -> None:
    """Keys are made of names: a file named singly in one stage and through its folder in another must be one document."""
    write(tmp_path / "d/a.jsonl")
    assert names(tmp_path / "d/a.jsonl") == names(tmp_path / "d") == names(tmp_path / "d/*.jsonl") == ["a.jsonl"]


def test_folders_are_walked_in_name_order_without_hidden_files_and_byte_code(tmp_path: Path) -> None:
    for name in ("b.py", "a/z.py", ".git/c.py", "__pycache__/d.py", ".e.py", "a/notes.txt"):
        write(tmp_path / name)
    assert names(tmp_path, format="python") == ["a/z.py", "b.py"]


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("a.jsonl", "jsonl"),
        ("a.jsonl.gz", "jsonl"),
        ("a.parquet", "parquet"),
        ("a.md", "text"),
        ("a.txt", "text"),
        ("a.py", "python"),
    ],
)
def test_auto_goes_by_suffix(tmp_path: Path, name: str, format: str) -> None:
    write(tmp_path / name)
    assert resolve(SourceConfig(str(tmp_path))).format == resolve(SourceConfig(str(tmp_path / name))).format == format


def test_a_package_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "site/boom/__init__.py", "raise SystemExit('imported')")
    write(tmp_path / "site/boom/sub/mod.py")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert names("package:boom") == ["boom/__init__.py", "boom/sub/mod.py"]


def test_the_standard_library_comes_without_site_packages_and_tests() -> None:
    found = names("package:stdlib", format="docstrings")
    assert "json/decoder.py" in found
    assert not [n for n in found if {"site-packages", "test", "tests"} & set(n.split("/")[:-1])]
    assert os.path.isfile(os.path.join(sysconfig.get_path("stdlib"), found[0]))


def test_disjoint_ranges_give_disjoint_documents_that_add_up() -> None:
    keys = [f"torch/mod{i}.py" for i in range(4000)]
    ranges = [(0.0, 0.5), (0.5, 0.6), (0.6, 1.0)]
    sources = [resolve(SourceConfig(__file__, split=r)) for r in ranges]
    owners = [[s.in_split(k) for s in sources] for k in keys]
    assert all(sum(o) == 1 for o in owners)
    for i, (lo, hi) in enumerate(ranges):
        assert sum(o[i] for o in owners) / len(keys) == pytest.approx(hi - lo, abs=0.03)


def test_a_position_depends_on_the_key_alone_and_the_sample_on_the_seed() -> None:
    """A split hash that changed with the seed or the process (str.__hash__) would mix stages' documents."""
    assert split_position("torch/nn/functional.py") == pytest.approx(0.8459733399816785, abs=1e-15)  # xxh3-64 / 2^64
    assert len({sample_position("a", seed) for seed in range(5)} | {split_position("a")}) == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "nowhere.jsonl"}, "nowhere.jsonl does not exist"),
        ({"path": "{tmp}/*.jsonl"}, "nothing matches"),
        ({"path": "package:no_such_package"}, "no installed package"),
        ({"path": "package:../etc"}, "no installed package"),
        ({"path": "{tmp}/mixed"}, r"several formats \(\.jsonl, \.md\)"),
        ({"path": "{tmp}/mixed", "format": "parquet"}, r"\.parquet.*holds \.jsonl, \.md"),
        (
            {"path": "{tmp}/mixed", "format": "csv"},
            "unknown format 'csv'; there are auto, chat, datasets, docstrings, jsonl",
        ),
        ({"path": "{tmp}/mixed", "format": "datasets"}, "save_to_disk"),
        ({"path": "{tmp}/odd"}, r"no file of a known suffix \(\.xyz\)"),
        ({"path": "{tmp}/mixed/a.md", "split": (0.5, 0.5)}, "split must be"),
        ({"path": "{tmp}/mixed/a.md", "split": (0.5, 1.5)}, "split must be"),
        ({"path": "{tmp}/mixed/a.md", "max_bytes": 0}, "max_bytes must be positive"),
        ({"path": "{tmp}/mixed/a.md", "weight": -1.0}, "weight must be"),
        ({"path": "{tmp}/mixed/a.md", "weight": float("nan")}, "weight must be"),
        ({"path": "{tmp}/mixed/a.md", "problem": "q"}, "go together"),
        (
            {"path": "{tmp}/mixed/a.md", "only": ("novels",)},
            "only chooses rows by their 'source'; text files have none",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(
    tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    for name in ("mixed/a.md", "mixed/b.jsonl", "odd/c.xyz"):
        write(tmp_path / name)
    settings["path"] = str(settings["path"]).format(tmp=tmp_path)
    with pytest.raises(UserError, match=message) as e:
        resolve(SourceConfig(**settings))  # type: ignore[arg-type]
    assert "\n" not in str(e.value)


def test_identity_follows_the_bytes_and_neither_the_folder_nor_the_clock(tmp_path: Path) -> None:
    a, b = write(tmp_path / "one/a.txt", "same size"), write(tmp_path / "two/a.txt", "same size")
    os.utime(b, (0, 0))
    first = identity(resolve(SourceConfig(str(a.parent))))
    assert identity(resolve(SourceConfig(str(b.parent)))) == first
    b.write_text("same_size")
    assert identity(resolve(SourceConfig(str(b.parent)))) != first


def test_settings_decide_the_columns() -> None:
    def needs(**settings: object) -> list[str]:
        return columns(resolve(SourceConfig(__file__, **settings)))  # type: ignore[arg-type]

    assert needs() == ["text"]
    assert needs(text="body") == ["body"]
    assert needs(problem="q", solution="a") == ["q", "a"]
    assert set(SUFFIXES) > {"jsonl", "parquet", "text"}
