"""check: a missing, truncated or changed file is named, and so is a document that stands in two corpora."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tokensieve.pipeline.check import _nearly
from tokensieve.runs.manifest import read_manifest

FOLDERS = {"corpus": "rows-00000.arrow", "scores": "rows-00000.arrow", "rho1": "model/model.safetensors"}


def missing(path: Path) -> str:
    path.unlink()
    return f"{path} is missing"


def truncated(path: Path) -> str:
    path.write_bytes(path.read_bytes()[:-1])
    return f"{path} has {path.stat().st_size} bytes, {path.stat().st_size + 1} were written"


def flipped(path: Path) -> str:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return f"{path} has other bytes than were written"


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("damage", [missing, truncated, flipped])
def test_damage_is_named(name: str, damage: Any, tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    folder = tmp_path / name
    shutil.copytree(getattr(tiny, name), folder)
    whole = tokensieve("check", folder)
    assert whole.code == 0, whole.err
    assert whole.out.startswith(f"{folder}: {read_manifest(folder)['kind']}, whole, ")
    said = damage(folder / FOLDERS[name])
    done = tokensieve("check", tiny.corpus, folder)
    assert (done.code, done.out) == (2, "")
    assert said in done.error


def test_every_file_of_every_kind_is_covered(tiny: Any) -> None:
    """A file that no manifest lists can be damaged unseen. Left out on purpose: clocks and checkpoints."""
    for folder in (tiny.corpus, tiny.scores, tiny.rho1):
        listed = {f["file"] for f in read_manifest(folder)["files"]}
        there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        left_out = {p for p in there if p.startswith("checkpoint-")} | {
            "manifest.json",
            "times.jsonl",
            ".verified.json",
        }
        assert there - left_out == listed


def test_scores_fit_their_corpus(tiny: Any, tokensieve: Any) -> None:
    done = tokensieve("check", tiny.scores, "--corpus", tiny.corpus)
    assert done.out == f"{tiny.scores}: scores, whole, 1 files, fit {tiny.corpus}\n"
    done = tokensieve("check", tiny.scores, "--corpus", tiny.target)
    assert done.code == 2
    assert f"{tiny.scores} was computed from another corpus than {tiny.target}" in done.error


def prepare(tokensieve: Any, tiny: Any, out: Path, rows: list[dict[str, str]]) -> Path:
    text = out.with_suffix(".jsonl")
    text.write_text("".join(json.dumps(r) + "\n" for r in rows))
    done = tokensieve(
        "prepare", "--out", out, "--sources", f"[{{path: {text}}}]", "--tokenizer", tiny.corpus, "--length", 8
    )
    assert done.code == 0, done.err
    return out


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            {"id": "same", "text": "the cat sat  "},
            "share 1 documents by id, with nearly the same text, the first is 'same'",
        ),
        ({"id": "renamed", "text": "the cat sat"}, "share 1 documents by text, the first is 'same'"),
    ],
)
def test_a_document_in_two_corpora_is_named(
    other: dict[str, str], said: str, tiny: Any, tokensieve: Any, tmp_path: Path
) -> None:
    """Training text in the evaluation set under another id makes every method look good."""
    a = prepare(
        tokensieve, tiny, tmp_path / "a", [{"id": "x", "text": "on a mat"}, {"id": "same", "text": "the cat sat"}]
    )
    b = prepare(tokensieve, tiny, tmp_path / "b", [{"id": "y", "text": "and ran"}, other])
    assert tokensieve("check", a, b).code == 0
    done = tokensieve("check", a, tiny.target, b, "--disjoint")
    assert done.code == 2
    assert done.error.startswith(f"tokensieve check: error: {a} and {b} {said}")


def corpus_of(tokensieve: Any, tiny: Any, folder: Path, files: dict[str, list[dict[str, str]]]) -> Path:
    for name, rows in files.items():
        (folder / "text" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "text" / name).write_text("".join(json.dumps(r) + "\n" for r in rows))
    words = ("--sources", f"[{{path: {folder / 'text'}}}]", "--tokenizer", tiny.corpus, "--length", 8)
    done = tokensieve("prepare", "--out", folder / "out", *words)
    assert done.code == 0, done.err
    return folder / "out"


LONG = " ".join(f"the cat sat on mat {i}" for i in range(30))


@pytest.mark.parametrize(
    ("mine", "theirs", "said"),
    [
        # ids that are numbers within a file
        ({"a.jsonl": [{"id": "0", "text": "seven hills"}]}, {"b.jsonl": [{"id": "0", "text": "the cat ran"}]}, None),
        # no ids: file and line, and files of different folders have equal names
        ({"train.jsonl": [{"text": "seven hills"}]}, {"train.jsonl": [{"text": "the cat ran"}]}, None),
        # begin again in each file of one corpus
        (
            {n: [{"id": "0", "text": f"{n} hills"}, {"id": "1", "text": f"{n} cats"}] for n in ("a.jsonl", "b.jsonl")},
            {"c.jsonl": [{"id": "0", "text": "the cat ran"}, {"id": "1", "text": "on a mat"}]},
            None,
        ),
        # texts of one template
        (
            {"a.jsonl": [{"id": "0", "text": "train text 0"}]},
            {"b.jsonl": [{"id": "0", "text": "test text 0"}]},
            None,
        ),
        # the same but for white space and case, or for a part of a long one
        (
            {"a.jsonl": [{"id": "0", "text": "Seven  hill"}]},
            {"b.jsonl": [{"id": "0", "text": "seven hill\n"}]},
            "by id, with",
        ),
        (
            {"a.jsonl": [{"id": "0", "text": LONG}]},
            {"b.jsonl": [{"id": "0", "text": LONG + " and ran"}]},
            "by id, with",
        ),
        # the same under the same name
        ({"a.jsonl": [{"text": "seven hills"}]}, {"a.jsonl": [{"text": "seven hills"}]}, "by text"),
    ],
)
def test_an_id_alone_is_no_document(
    mine: Any, theirs: Any, said: str | None, tiny: Any, tokensieve: Any, tmp_path: Path
) -> None:
    """Ids that begin again in each file ("0", "1", or its line) were taken for equal documents, and corpora refused."""
    a, b = (corpus_of(tokensieve, tiny, tmp_path / n, files) for n, files in (("one", mine), ("two", theirs)))
    done = tokensieve("check", a, b, "--disjoint")
    assert (done.code == 0) == (said is None), done.err
    if said is None:
        assert "disjoint: no document stands in two of 2 corpora" in done.out
    else:
        assert f"{a} and {b} share 1 documents {said}" in done.error


PROSE = "thecatsatonamatwhiledogsranoverhillsandriversflowtoseaundermoonlight" * 3


@pytest.mark.parametrize(
    ("one", "other", "tokens", "same"),
    [
        ("seven hills", "seven hills", 3, True),
        ("seven hills", "seven hill", 3, False),  # short: all of it must be there
        (PROSE, PROSE[: len(PROSE) * 3 // 4], 80, True),
        (PROSE, PROSE + "é" * 40, 80, True),
        (PROSE, PROSE[::-1], 80, False),
        (PROSE, PROSE[:40] + PROSE[::-1], 80, False),
    ],
)
def test_texts_are_compared_whatever_tokenised_them(one: str, other: str, tokens: int, same: bool) -> None:
    """Corpora of two tokenizers were held against each other by ids of documents alone."""
    assert _nearly(one, tokens, other, tokens + 9) == same == _nearly(other, tokens + 9, one, tokens)


@pytest.mark.parametrize(
    ("files", "repeats"),
    [
        ({"a.jsonl": ["x", "y"]}, None),
        (
            {"a.jsonl": ["x", "y", "x"]},
            "1 of its 3 documents have the text of an earlier one, the first is that of 'a.",
        ),
        ({"a.jsonl": ["y", "x"], "copy.jsonl": ["y", "x"]}, "2 of its 4 documents"),
        ({"a.jsonl": ["x"] * 4}, "3 of its 4 documents"),
    ],
)
def test_documents_that_stand_twice_in_one_corpus_are_told(
    files: dict[str, list[str]], repeats: str | None, tiny: Any, tokensieve: Any, tmp_path: Path
) -> None:
    """``check --disjoint`` compares corpora and could not see it."""
    folder = corpus_of(tokensieve, tiny, tmp_path, {n: [{"text": t} for t in texts] for n, texts in files.items()})
    done = tokensieve("check", folder)
    assert done.code == 0
    assert (repeats is None) == ("have the text of an earlier one" not in done.out)
    assert (repeats or "") in done.out


def test_disjoint_corpora(tiny: Any, tokensieve: Any) -> None:
    done = tokensieve("check", tiny.corpus, tiny.scores, tiny.target, "--disjoint")
    assert done.code == 0, done.err
    said = done.out.splitlines()[-2:]
    assert said[0] == "disjoint: no document stands in two of 2 corpora"
    assert said[1].endswith("tokens that stand in another corpus too: none")
    assert "disjoint: name at least two corpora" in tokensieve("check", tiny.corpus, tiny.base, "--disjoint").error
    assert "share 12 documents" in tokensieve("check", tiny.target, tiny.isolated, "--disjoint").error


def test_a_run_whose_stage_was_exchanged(tiny: Any, tokensieve: Any, tmp_path: Path) -> None:
    """Every file is whole, but the stage is not the work that the run's manifest speaks of."""
    recipe = {"name": "one", "stages": {"corpus": {"verb": "prepare", "sources": [{"path": str(tiny.text / "target.jsonl")}],
                                                   "vocab_size": 257, "length": 8}}}  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    assert tokensieve("run", tmp_path / "recipe.yaml", "--out", tmp_path / "run").code == 0
    assert tokensieve("check", tmp_path / "run").code == 0
    shutil.rmtree(tmp_path / "run" / "corpus")
    shutil.copytree(tiny.corpus, tmp_path / "run" / "corpus")
    done = tokensieve("check", tmp_path / "run")
    assert done.code == 2
    assert f"{tmp_path}/run/corpus is other work than {tmp_path}/run/manifest.json lists" in done.error
    shutil.rmtree(tmp_path / "run" / "corpus")
    assert f"{tmp_path}/run/corpus does not exist" in tokensieve("check", tmp_path / "run").error


def test_nothing_to_check(tokensieve: Any, tmp_path: Path) -> None:
    assert "folders: name at least one folder" in tokensieve("check", "--folders", "[]").error
    assert "has no manifest.json" in tokensieve("check", tmp_path).error
