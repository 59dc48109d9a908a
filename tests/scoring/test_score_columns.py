"""What ``score`` writes beside nll and entropy: ranks, the likeliest entries, less context, and numbers from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import corpora
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokensieve import cli
from tokensieve.core import objective
from tokensieve.data.aligned import AlignedFile
from tokensieve.data.corpus import open_corpus
from tokensieve.data.rows import Rows
from tokensieve.data.scored import load_scored
from tokensieve.pipeline import score
from tokensieve.runs.errors import UserError

K = 3


class Made(NamedTuple):
    corpus: Path
    model: Path
    plain: Path
    """Scores of the default columns."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("columns")
    corpus = corpora.corpus(folder / "corpus", corpora.write_text(folder / "text", num_files=3))
    model = corpora.model_folder(folder / "model")
    plain = score.ScoreConfig(out=str(folder / "plain"), model=str(model), corpus=str(corpus), device="cpu")
    return Made(corpus, model, score.run(plain))


def config(made: Made, out: Path, **fields: Any) -> score.ScoreConfig:
    given = {"model": "" if "from_file" in fields else str(made.model), "device": "cpu", **fields}
    return score.ScoreConfig(out=str(out), corpus=str(made.corpus), **given)


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return found


def test_ranks_and_the_likeliest_entries_stand_beside_their_tokens(made: Made, tmp_path: Path) -> None:
    """A rank of 3,001 is 3,000 in float16, and an entry's id is none of its numbers: each has a type of its own."""
    out = score.run(config(made, tmp_path / "s", columns=["ref_nll", "ref_rank"], top_k=K))
    assert manifest(out)["columns"] == ["ref_nll", "ref_rank", "topk_ids", "topk_logp"]
    assert manifest(out)["types"] == {"ref_rank": "float32", "topk_ids": ["int32", K], "topk_logp": ["float32", K]}
    assert "types" not in manifest(made.plain)
    joined = load_scored(made.corpus, out)
    wanted = load_scored(made.corpus, made.plain)["ref_nll"][:]
    assert np.array_equal(np.array(joined["ref_nll"][:]), np.array(wanted), equal_nan=True)
    types = [joined.features[name].feature.feature.dtype for name in ("topk_ids", "topk_logp")]
    assert types == ["int32", "float32"]
    seen = 0
    for row in joined.with_format("numpy"):
        assert row["topk_ids"].shape == row["topk_logp"].shape == (len(row["input_ids"]), K)
        for t, (token, nll, rank) in enumerate(zip(row["input_ids"], row["ref_nll"], row["ref_rank"], strict=True)):
            ids, logp = row["topk_ids"][t].tolist(), row["topk_logp"][t]
            if np.isnan(nll):
                assert np.isnan(rank)
                assert ids == [-1] * K
                assert np.isnan(logp).all()
                continue
            assert (np.diff(logp) <= 0).all()
            assert (token in ids) == (rank < K)
            if token in ids:
                assert logp[ids.index(token)] == pytest.approx(-float(nll), rel=1e-3, abs=1e-3)
                seen += 1
    assert seen
    # An objective that reads none of them is not stopped by what stands beside its column, and one can read the rank.
    rows = Rows(joined, scores=("ref_rank",))
    assert rows[0]["ref_rank"][1] == joined[0]["ref_rank"][1]


def test_less_context_under_a_name_of_its_own(made: Made, tmp_path: Path) -> None:
    """Ablated numbers that are called ref_nll pass for a reference's anywhere."""
    with pytest.raises(UserError, match="'ref_nll' is the name of what stands there with all of its context"):
        score.run(config(made, tmp_path / "x", context={"last": 2}))
    out = score.run(config(made, tmp_path / "short", columns={"short_nll": "nll"}, context={"last": 2}))
    both = load_scored(made.corpus, out, made.plain)
    short, long = (np.array(both[name][:], dtype=np.float32) for name in ("short_nll", "ref_nll"))
    assert np.array_equal(np.isnan(short), np.isnan(long))
    np.testing.assert_allclose(short[:, 1:3], long[:, 1:3], rtol=1e-3)  # no token has more than two before it there
    assert (np.abs(short - long)[:, 4:][~np.isnan(short[:, 4:])] > 1e-2).mean() > 0.5
    assert manifest(out)["context"] == {"last": 2}
    assert manifest(out)["flops"] > 2 * manifest(made.plain)["flops"]
    assert set(objective("long_context", form="longce", long="ref_nll").needs) == {"short_nll", "ref_nll"}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"top_k": -1}, "top_k is -1, it must be between 0 and 1024"),
        ({"top_k": 301}, "top_k is 301, and the vocabulary of .* smaller"),
        ({"columns": {"topk_ids": "nll"}}, "'topk_ids' is the name of something else"),
        ({"columns": {"a": "nll"}, "context": {"last": 0}}, "context: last is 0"),
        ({"columns": {"a": "nll"}, "context": {"first": 2}}, "context: unknown field 'first'"),
        ({"columns": {"a": "nll"}, "context": {"without": "problem"}}, "no document of .* has a problem"),
        ({"model": ""}, "model: a reference model, or from_file: .* is needed, neither is given"),
        ({"from_file": "x.npy", "model": "m"}, "not both"),
        ({"from_file": "x.npy", "top_k": 2}, "top_k: a file's numbers are there already"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(made: Made, tmp_path: Path, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        score.run(config(made, tmp_path / "x", **fields))


# --- numbers from a file --------------------------------------------------------------------------------------------------


def numbers(made: Made) -> tuple[np.ndarray, np.ndarray]:
    """(a float32 for every place of the corpus, tokens of each row)."""
    corpus = open_corpus(made.corpus)
    values = np.random.default_rng(0).normal(size=(corpus.num_rows, corpus.length)).astype(np.float32)
    return values, corpus.row_tokens()


def note(path: Path, made: Made) -> Path:
    Path(f"{path}.json").write_text(json.dumps({"corpus_hash": open_corpus(made.corpus).content_hash}))
    return path


def written(kind: str, path: Path, made: Made) -> Path:
    """The same numbers in each of the forms that are taken."""
    values, counts = numbers(made)
    flat = np.concatenate([v[:n] for v, n in zip(values, counts, strict=True)])
    told = {"corpus_hash": open_corpus(made.corpus).content_hash}
    if kind in ("rows.npy", "flat.npy"):
        np.save(path / kind, values if kind == "rows.npy" else flat)
        return note(path / kind, made)
    lists = [v[:n].tolist() for v, n in zip(values, counts, strict=True)]
    columns: dict[str, Any] = {"influence": flat if kind == "flat.parquet" else lists}
    if kind == "ids.parquet":  # of a tool that knows nothing of hashes
        columns["input_ids"] = [
            ids[:n] for ids, n in zip(open_corpus(made.corpus).rows["input_ids"], counts, strict=True)
        ]
        told = {}
    pq.write_table(pa.table(columns).replace_schema_metadata(told), path / kind)
    return path / kind


@pytest.mark.parametrize("kind", ["rows.npy", "flat.npy", "rows.parquet", "flat.parquet", "ids.parquet"])
def test_numbers_from_a_file_stand_beside_their_tokens(made: Made, tmp_path: Path, kind: str) -> None:
    path = written(kind, tmp_path, made)
    words = ["--out", str(tmp_path / "s"), "--corpus", str(made.corpus), "--from", str(path), "--columns", "influence"]
    assert cli.main(["score", *words, "--dtype", "float32"]) == 0
    joined, (values, _) = load_scored(made.corpus, tmp_path / "s"), numbers(made)
    target = ~np.isnan(np.array(load_scored(made.corpus, made.plain)["ref_nll"][:]))
    found = np.array(joined["influence"][:], np.float32)
    assert np.array_equal(found, np.where(target, values, np.float32("nan")), equal_nan=True)
    assert manifest(tmp_path / "s")["flops"] is None
    assert objective("influence").needs == {"influence"}


def test_a_columns_name_in_the_file_may_be_another(made: Made, tmp_path: Path) -> None:
    """What is done is done, by the file's bytes wherever it lies; another file's numbers are other work."""
    path = written("rows.parquet", tmp_path, made)
    out = score.run(config(made, tmp_path / "s", from_file=str(path), columns={"w": "influence"}))
    assert load_scored(made.corpus, out).column_names[-1] == "w"
    before, moved = (out / "manifest.json").read_bytes(), path.rename(tmp_path / "moved.parquet")
    score.run(config(made, tmp_path / "s", from_file=str(moved), columns={"w": "influence"}))
    assert (out / "manifest.json").read_bytes() == before
    other = written("flat.parquet", tmp_path, made)
    with pytest.raises(UserError, match="input file"):
        score.run(config(made, tmp_path / "s", from_file=str(other), columns={"w": "influence"}))


def test_files_that_do_not_fit_are_refused_by_name(made: Made, tmp_path: Path) -> None:
    values, _ = numbers(made)
    np.save(tmp_path / "a.npy", values)

    def refused(says: str, name: str = "a.npy", **fields: Any) -> None:
        with pytest.raises(UserError, match=says):
            score.run(config(made, tmp_path / "x", from_file=str(tmp_path / name), **{"columns": ["w"], **fields}))

    refused("a.npy does not say whose numbers they are: write .*corpus_hash.* into .*a.npy.json")
    (tmp_path / "a.npy.json").write_text('{"corpus_hash": "xxh3:1"}')
    refused("a.npy was made for another corpus: its corpus_hash is xxh3:1")
    (tmp_path / "a.npy.json").write_text("{}")
    refused("a.npy.json has no 'corpus_hash'")
    note(tmp_path / "a.npy", made)
    refused("columns: .* holds one column, and 2 are named", columns=["v", "w"])
    for name, broken, says in (
        ("b.npy", values[:-1], "w has .* numbers, .* are needed"),
        ("c.npy", values.astype(str), "numbers are needed"),
        ("d.npy", np.array([{}]), "cannot be read"),
    ):
        np.save(tmp_path / name, broken)
        note(tmp_path / name, made)
        refused(says, name)
    (tmp_path / "e.parquet").write_bytes(b"PAR1")
    refused("e.parquet cannot be read", "e.parquet")
    refused("f.npy does not exist", "f.npy")
    (tmp_path / "g.csv").write_text("1")
    refused("is no .npy and no .parquet file", "g.csv")
    path = written("rows.parquet", tmp_path, made)
    refused("has no column 'w', only influence", path.name)
    pq.write_table(pa.table({"w": [[1.0]] * len(values)}).replace_schema_metadata(pq.read_schema(path).metadata), path)
    refused(r"row 0 of 'w' has 1 numbers for \d+ tokens", path.name)
    pq.write_table(pa.table({"w": [v.tolist() for v in values], "input_ids": [[1, 2]] * len(values)}), path)
    refused("input_ids of row 0 are not those of", path.name)


def test_a_file_is_looked_at_some_rows_at_a_time(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard of 8M tokens was made into model inputs as one batch: 300 MB, whatever the batch of a model."""
    values, _ = numbers(made)
    np.save(tmp_path / "a.npy", values)
    path = str(note(tmp_path / "a.npy", made))
    whole = score.run(config(made, tmp_path / "whole", from_file=path, columns=["w"]))
    looked: list[int] = []
    read = AlignedFile.read

    def counted(self: AlignedFile, name: str, start: int, stop: int) -> np.ndarray:
        looked.append(stop - start)
        return read(self, name, start, stop)

    monkeypatch.setattr(AlignedFile, "read", counted)
    monkeypatch.setattr(score, "_FILE_TOKENS", 2 * values.shape[1])
    parts = score.run(config(made, tmp_path / "parts", from_file=path, columns=["w"]))
    assert max(looked) == 2
    assert sum(looked) == len(values) > 2
    for name in (shard["file"] for shard in manifest(whole)["shards"]):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.nan, "w is NaN at row 1, position 2, which is a target"),
        (np.inf, "w is infinite at row 1, position 2, which is a target"),
        (1e-9, "w is 1e-09 at row 1, position 2, which float16 cannot hold: set dtype: float32"),
        (1e6, r"w is 1e\+06 at row 1, position 2, which float16 cannot hold"),
    ],
)
def test_numbers_that_would_be_lost_are_refused(made: Made, tmp_path: Path, value: float, says: str) -> None:
    """Attribution scores of 1e-9 are 0 in float16: a weight of 0 on every token, and no word of it."""
    values, _ = numbers(made)
    values[1, 2] = value
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(UserError, match=says):
        score.run(config(made, tmp_path / "x", from_file=str(note(tmp_path / "a.npy", made)), columns=["w"]))
