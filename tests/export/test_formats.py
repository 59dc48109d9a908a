"""Each format by its bytes: read by a reader of this test's own, shifted as its trainer shifts, and held against a loop.

What can go wrong is a weight one place beside its token: the loss is then plausible, and every selection a random one.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import corpora
import numpy as np
import pytest
from export_readers import READERS, Term, indexed
from exports import RATIO, config, flat, made_scores

from tokensieve.data.corpus import open_corpus
from tokensieve.data.weight_rules import WeightRule
from tokensieve.export import FORMATS, selection
from tokensieve.pipeline import export
from tokensieve.runs.errors import UserError
from tokensieve.runs.manifest import check_files, read_manifest

CORPORA = ("plain", "isolated", "weights", "positive")
SELECTIONS = [name for name, found in FORMATS.items() if found.holds == "selection"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """name -> (corpus of several shards, made-up scores of it): plain, isolated documents, with weights of two kinds."""
    root = tmp_path_factory.mktemp("export")
    text = corpora.write_text(root / "text")
    rules = {
        "plain": {},
        "isolated": {"isolate_documents": True},
        "weights": {
            "weights": [WeightRule(2.5, regex="[0-9]+"), WeightRule(-0.5, regex="noise"), WeightRule(0, regex="the")]
        },
        "positive": {
            "weights": [WeightRule(2.5, regex="[0-9]+"), WeightRule(0.25, regex="noise"), WeightRule(0, regex="the")]
        },
    }
    found = {}
    for name, fields in rules.items():
        folder = corpora.corpus(root / name, text, **fields)
        found[name] = (folder, made_scores(root / f"{name}-scores", folder))
    return found


def expected(corpus: Path, scores: Path | None) -> list[list[Term]]:
    """The definition: of each row's targets the RATIO of lowest ref_nll, ties to the earlier; without scores all of them.

    Of a corpus with weights those of weight 0 are not ranked, and the others' are multiplied.
    """
    opened = open_corpus(corpus)
    values = np.load(scores.with_suffix(".npy")) if scores else None
    rows = []
    for number, row in enumerate(opened.rows):
        apart = set(row["doc_starts"]) if opened.isolate_documents else {0}
        weight = row.get("weight", [1.0] * opened.length)
        places = [t for t in range(1, row["num_tokens"]) if t not in apart and weight[t] != 0]
        if values is not None and places:
            k = max(1, math.floor(RATIO * len(places) + 0.5))
            places = sorted(sorted(places, key=lambda t, n=number: (values[n][t], t))[:k])
        ids = row["input_ids"]
        rows.append([(ids[t - 1], ids[t], float(np.float32(weight[t]))) for t in places])
    return rows


def nll_sum(terms: list[Term]) -> float:
    """sum(weight * nll) in float64 under a table of logits by the last id: what a wrong place would change."""
    logits = np.random.default_rng(7).normal(size=(300, 300))
    total = 0.0
    for context, target, weight in terms:
        total += weight * (math.log(sum(math.exp(v) for v in logits[context])) - logits[context][target])
    return total


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", CORPORA)
def test_what_its_trainer_sums_up_is_the_definition(made: Any, tmp_path: Path, name: str, kind: str) -> None:
    corpus, scores = made[kind]
    if kind in ("weights", "positive") and (
        name in SELECTIONS or (name in ("swift", "megatron") and kind == "weights")
    ):
        holds = "which tokens are trained and no more" if name in SELECTIONS else "weights from 0 on"
        with pytest.raises(
            UserError, match=rf"to: {name} says {holds}, but the token at position \d+ of row \d+ weighs"
        ):
            export.run(config(tmp_path / "out", corpus, name, scores))
        assert list((tmp_path / "out").iterdir()) == []
        return
    out = export.run(config(tmp_path / "out", corpus, name, scores))
    want, found = flat(expected(corpus, scores)), flat(READERS[name](out, corpora.LENGTH))
    assert found == want
    assert nll_sum(found) == pytest.approx(nll_sum(want), rel=1e-13)
    manifest = read_manifest(out, "export")
    check_files(out, manifest)
    told = manifest["exported"]
    opened = open_corpus(corpus)
    assert (told["rows"], told["tokens"]) == (opened.num_rows, opened.stats["tokens"])
    assert told["tokens_trained"] == len(want)
    assert told["weight"] == pytest.approx(math.fsum(w for *_, w in want))
    assert told["absolute_weight"] == pytest.approx(math.fsum(abs(w) for *_, w in want))
    assert manifest["holds"] == FORMATS[name].holds


@pytest.mark.parametrize("name", ["jsonl", "llama_factory", "megatron", "mds"])
def test_rows_apart_and_rows_together(made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A block of one row gives the bytes that a block of all gives: no format may lean on where blocks end."""
    corpus, scores = made["plain"]
    whole = export.run(config(tmp_path / "whole", corpus, name, scores))
    monkeypatch.setattr(selection, "_BLOCK_TOKENS", 1)
    apart = export.run(config(tmp_path / "apart", corpus, name, scores))
    files = [p for p in sorted(whole.rglob("*")) if p.is_file() and p.suffix in (".jsonl", ".bin", ".idx", ".mds")]
    assert files or name == "llama_factory"
    for path in files:
        assert path.read_bytes() == (apart / path.relative_to(whole)).read_bytes(), path.name
    assert list(READERS[name](whole, corpora.LENGTH)) == list(READERS[name](apart, corpora.LENGTH))


def test_a_row_is_a_sample_and_an_isolated_piece_is_one(made: Any, tmp_path: Path) -> None:
    """Where contexts are pieces, a trainer that is given rows would let a document see the one before it."""
    for kind in ("plain", "isolated"):
        corpus, _ = made[kind]
        out = export.run(config(tmp_path / kind, corpus, "jsonl"))
        found = [len(row) for row in READERS["jsonl"](out, corpora.LENGTH)]
        contexts = [len(ids) - 1 for ids in open_corpus(corpus).contexts()]
        assert found == [n for n in contexts if n > 0]
    assert "attention_mask" in (tmp_path / "plain" / "train-00000.jsonl").read_text()


def test_mds_shards_end_before_their_limit(made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokensieve.export import mds

    monkeypatch.setattr(mds, "SIZE_LIMIT", 2000)
    corpus, _ = made["plain"]
    out = export.run(config(tmp_path / "mds", corpus, "mds"))
    shards = sorted(out.glob("shard.*.mds"))
    assert len(shards) > 2
    assert max(p.stat().st_size for p in shards) <= 2000
    assert flat(READERS["mds"](out, corpora.LENGTH)) == flat(expected(corpus, None))


def test_datatrove_index_is_where_documents_end(made: Any, tmp_path: Path) -> None:
    corpus, _ = made["plain"]
    out = export.run(config(tmp_path / "ds", corpus, "datatrove"))
    opened = open_corpus(corpus)
    row = 0
    for path in sorted(out.glob("*.ds")):
        found = np.fromfile(f"{path}.index", "<u8").tolist()
        want = []
        for number in range(path.stat().st_size // 2 // opened.length):
            told = opened.rows[row]
            ends = {*told["doc_starts"][1:], told["num_tokens"], opened.length}
            want += [number * opened.length + end for end in sorted(ends)]
            row += 1
        assert found == want
    assert row == opened.num_rows


def test_a_large_vocabulary_takes_wider_ids(made: Any, tmp_path: Path) -> None:
    """65,500 is Megatron's own border, 65,536 that of two bytes."""
    from dataclasses import replace

    from tokensieve.export import megatron, olmo

    corpus, _ = made["plain"]
    opened = open_corpus(corpus)
    made_of = export.shape_of(opened)
    for size, bytes_each, code in ((65_499, 2, 8), (65_500, 2, 4), (65_536, 2, 4), (65_537, 4, 4)):
        out = tmp_path / str(size)
        out.mkdir()
        shape = replace(made_of, vocab_size=size)
        rows = selection.StaticSelection(_clm(), _dataset(corpus))
        olmo.write_olmo(out, rows.blocks([opened.num_rows]), shape)
        assert (out / "tokens-00000.npy").stat().st_size == bytes_each * opened.num_rows * opened.length
        megatron.write_megatron(out, rows.blocks([opened.num_rows]), shape)
        assert (out / "tokens.idx").read_bytes()[17] == code
        assert indexed(out / "tokens")[0][0] == tuple(opened.rows[0]["input_ids"])


def _clm() -> Any:
    from tokensieve.core import objective

    return objective("clm")


def _dataset(corpus: Path) -> Any:
    from tokensieve.data.scored import load_scored

    return load_scored(corpus)
