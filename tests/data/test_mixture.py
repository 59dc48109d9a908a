"""Mixtures of sources, epochs and replay: counted against loops, the same from any number of processes, or refused."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokensieve.data.build.mixture import Pool, allot, read_over, replayed, replayed_of, shares_of
from tokensieve.data.corpus import Corpus, describe, open_corpus
from tokensieve.data.read.source import SourceConfig
from tokensieve.data.replay import ReplaySource
from tokensieve.pipeline.prepare import PrepareConfig, run
from tokensieve.runs.errors import UserError

LENGTH = 16


def write(path: Path, documents: int, seed: int) -> str:
    rng = random.Random(seed)
    rows = [{"text": f"{path.stem} " + " ".join(rng.choices("abcde", k=rng.randint(1, 30)))} for _ in range(documents)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sources large and small, and an earlier corpus of two sources."""
    here = tmp_path_factory.mktemp("texts")
    for seed, (name, documents) in enumerate({"large": 60, "small": 9, "web": 40, "books": 20}.items()):
        write(here / f"{name}.jsonl", documents, seed)
    sources = [SourceConfig(str(here / f"{name}.jsonl"), name=name) for name in ("web", "books")]
    run(PrepareConfig(str(here / "earlier"), sources, vocab_size=257, length=LENGTH, unit_bytes=300), progress=False)
    return here


def prepare(texts: Path, out: Path, large: dict[str, Any], small: dict[str, Any], **more: Any) -> Corpus:
    sources = [SourceConfig(str(texts / f"{n}.jsonl"), **s) for n, s in (("large", large), ("small", small))]
    fields = {"tokenizer": str(texts / "earlier"), "length": LENGTH, "unit_bytes": 300, **more}
    return open_corpus(run(PrepareConfig(str(out), sources, **fields), progress=False), "full")


def rows_of(corpus: Corpus) -> Counter[tuple[int, ...]]:
    """Rows by their tokens, and how often each stands there."""
    return Counter(tuple(row["input_ids"][: row["num_tokens"]]) for row in corpus.rows)


# --- shares and counts, against loops ------------------------------------------------------------------------------------


def rounded(values: list[float], total: int) -> list[int]:
    """Largest remainders, one row at a time to whoever lacks most."""
    found = [int(v // 1) for v in values]
    while sum(found) < total:
        lacks = [v - n for v, n in zip(values, found, strict=True)]
        found[lacks.index(max(lacks))] += 1
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=6), st.sampled_from([0.5, 1.0, 2.0, 5.0]), st.integers(1, 500)
)
def test_a_temperature_shares_out_by_size(sizes: list[int], temperature: float, total: int) -> None:
    """The exponent upside down (size^T) would give a small source less instead of more."""
    pools = [Pool("x", n, 1000) for n in sizes]
    shares = shares_of(pools, [None] * len(sizes), temperature)
    powers = [n ** (1 / temperature) for n in sizes]
    assert shares == pytest.approx([p / sum(powers) for p in powers], rel=1e-12)
    found = allot(pools, shares, total)
    assert sum(found) == total
    for n, power in zip(found, powers, strict=True):
        assert abs(n - total * power / sum(powers)) < 1 + 1e-9
    if temperature == 1 and total == sum(sizes):
        assert found == sizes


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.lists(st.floats(0.01, 0.3), min_size=1, max_size=3))
def test_replay_has_its_share_of_all_rows(new: int, shares: list[float]) -> None:
    """A share of the new rows instead of all would be 5.3 % for 5 %."""
    replay, pools = [ReplaySource("x", s) for s in shares], [Pool("x", 10**6) for _ in shares]
    taken = replayed(replay, pools, new)
    total = round(new / (1 - sum(shares)))
    assert abs(sum(taken) + new - total) <= 1
    assert taken == rounded([s / sum(shares) * sum(taken) for s in shares], sum(taken))
    for n, share in zip(taken, shares, strict=True):
        assert abs(n - share * (new + sum(taken))) < 2
    assert sum(replayed_of(replay, new)) == int(sum(shares) * new + 0.5)


def test_passes_take_every_row_before_any_again() -> None:
    for wanted in (0, 3, 7, 10, 18):
        counts = Counter(int(i) for chosen in read_over(7, wanted, [0, 1]) for i in chosen)
        assert sum(counts.values()) == wanted
        assert set(counts.values()) <= {wanted // 7, wanted // 7 + 1}
    some, more = ({int(i) for chosen in read_over(7, n, [0, 1]) for i in chosen} for n in (3, 5))
    assert some < more
    assert [c.tolist() for c in read_over(50, 9, [0, 1])] != [c.tolist() for c in read_over(50, 9, [1, 1])]


# --- corpora ---------------------------------------------------------------------------------------------------------------


def test_a_source_is_read_as_often_as_it_says(texts: Path, tmp_path: Path) -> None:
    once = prepare(texts, tmp_path / "once", {"name": "large"}, {"name": "small"})
    often = prepare(texts, tmp_path / "often", {"name": "large", "epochs": 0.5}, {"name": "small", "epochs": 2.25})
    assert "mixture" not in once.manifest
    there = {part["source"]: part for part in often.manifest["mixture"]}
    for name, epochs in (("large", 0.5), ("small", 2.25)):
        index = once.sources.index(name)
        mine = Counter({ids: n for ids, n in rows_of(once).items() if _row_source(once, ids) == index})
        read = Counter({ids: n for ids, n in rows_of(often).items() if ids in mine})
        size, found = sum(mine.values()), sum(read.values())
        assert found == there[name]["rows"] == int(epochs * size + 0.5)
        assert there[name]["available"] == size
        assert {read[ids] / n for ids, n in mine.items()} <= {int(epochs), int(epochs) + 1}
    assert sum(p["realised"] for p in there.values()) == pytest.approx(1)
    assert "mixture: small" in describe(often.manifest)
    documents = often.documents()
    assert documents["doc_id"].to_pylist() == list(range(len(documents)))


def _row_source(corpus: Corpus, ids: tuple[int, ...]) -> int:
    return next(int(r["doc_sources"][0]) for r in corpus.rows if tuple(r["input_ids"][: r["num_tokens"]]) == ids)


def test_rows_of_an_earlier_corpus_stand_beside_the_new_ones(texts: Path, tmp_path: Path) -> None:
    """Whole rows with their documents and sources; only those of the source that was asked for."""
    earlier = open_corpus(texts / "earlier")
    replay = [ReplaySource(str(texts / "earlier"), 0.25, sources=["web"])]
    plain = prepare(texts, tmp_path / "plain", {"name": "large"}, {"name": "small"})
    mixed = prepare(texts, tmp_path / "mixed", {"name": "large"}, {"name": "small"}, replay=replay)
    old = rows_of(mixed) - rows_of(plain)
    assert rows_of(mixed) - old == rows_of(plain)
    total = round(plain.num_rows / 0.75)
    assert sum(old.values()) == total - plain.num_rows
    assert mixed.num_rows == total
    assert old - rows_of(earlier) == Counter()
    assert set(mixed.sources) == {"large", "small", "web"}
    hashes = dict(zip(earlier.documents()["id"].to_pylist(), earlier.documents()["text_hash"].to_pylist(), strict=True))
    named = {d["id"]: d for d in mixed.documents().to_pylist() if d["source"] == mixed.sources.index("web")}
    assert named
    assert all(hashes[key] == d["text_hash"] for key, d in named.items())
    web = mixed.sources.index("web")
    assert all(len(set(row["doc_sources"])) == 1 for row in mixed.rows)
    assert old == Counter(
        tuple(row["input_ids"][: row["num_tokens"]]) for row in mixed.rows if row["doc_sources"][0] == web
    )
    stats = mixed.stats["by_source"]
    assert stats["web"]["tokens"] == sum(len(ids) * n for ids, n in old.items())
    assert mixed.manifest["mixture"][-1] == {
        "source": "replay of earlier", "available": len([r for r in earlier.rows if r["doc_sources"][0] == 0]), "epochs": 1.0,
        "share": 0.25, "rows": sum(old.values()), "realised": sum(old.values()) / total,
        "times_read": sum(old.values()) / len([r for r in earlier.rows if r["doc_sources"][0] == 0]),
    }  # fmt: skip


@pytest.mark.usefixtures("warm_pools")
def test_a_cap_that_is_not_reached_asks_for_no_more_old_rows(texts: Path, tmp_path: Path) -> None:
    """Refused once: a tenth of a max_rows far above what the text gives, of an earlier corpus that has enough for it."""
    made = prepare(
        texts, tmp_path / "capped", {}, {}, max_rows=10**6, replay=[ReplaySource(str(texts / "earlier"), 0.1)]
    )
    old = made.manifest["mixture"][-1]["rows"]
    assert abs(old - made.num_rows / 10) <= 1


def test_a_mixture_does_not_depend_on_the_number_of_processes(texts: Path, tmp_path: Path) -> None:
    more: dict[str, Any] = {"temperature": 3.0, "max_rows": 60, "replay": [ReplaySource(str(texts / "earlier"), 0.2)]}
    more["transforms"] = [{"name": "fim", "rate": 0.5, "tokens": ["a", "b", "c"]}]
    one, two, other = (
        prepare(texts, tmp_path / name, {}, {"epochs": 4}, workers=workers, seed=seed, **more)
        for name, workers, seed in (("one", 1, 0), ("two", 2, 0), ("other", 1, 1))
    )
    assert one.content_hash == two.content_hash
    assert one.content_hash != other.content_hash
    assert one.manifest["mixture"] == two.manifest["mixture"]
    sizes = [part["available"] for part in one.manifest["mixture"][:2]]
    powers = [n ** (1 / 3) for n in sizes]
    assert [p["rows"] for p in one.manifest["mixture"]] == [*rounded([48 * p / sum(powers) for p in powers], 48), 12]
    assert one.num_rows == 60
    assert np.isclose(sum(p["share"] for p in one.manifest["mixture"]), 1)


@pytest.mark.parametrize(
    ("small", "more", "says"),
    [
        (
            {"weight": 1.0, "epochs": 2},
            {"max_rows": 300},
            r"small.jsonl has \d+ rows, \d+ in 2 epochs, its share of 50.00% needs",
        ),
        ({"weight": 1.0}, {"temperature": 2.0, "max_rows": 10}, "give one of them"),
        ({"weight": 1.0}, {"replay": [0.5, 0.5], "max_rows": 10}, "nothing new would be left"),
        (
            {"weight": 1.0, "epochs": 30},
            {"replay": [0.9], "max_rows": 2000},
            r"a share of 90.00% of 2000 rows needs 1800",
        ),
        (
            {"weight": 1.0},
            {"replay": [0.1], "length": 8, "max_rows": 10},
            "another length than this corpus \\(16, not 8\\)",
        ),
        ({"weight": 1.0, "epochs": 0.0}, {"max_rows": 10}, "epochs must be above 0"),
    ],
)
def test_what_cannot_be_mixed_is_refused(
    texts: Path, tmp_path: Path, small: dict[str, Any], more: dict[str, Any], says: str
) -> None:
    if "replay" in more:
        more = {**more, "replay": [ReplaySource(str(texts / "earlier"), share) for share in more["replay"]]}
    with pytest.raises(UserError, match=says):
        prepare(texts, tmp_path / "out", {"weight": 1.0}, small, **more)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_one_corpus_is_replayed_once(texts: Path, tmp_path: Path) -> None:
    """Named twice it was drawn from twice: rows came again that `epochs` says come once. Sources that differ share none."""
    old = str(texts / "earlier")
    for sources in (None, ["web", "books"]):
        twice = [ReplaySource(old, 0.2), ReplaySource(old, 0.1, sources=sources)]
        with pytest.raises(UserError, match=r"replay.1: the same rows as replay.0, of .*earlier: name it once"):
            prepare(texts, tmp_path / "out", {}, {}, replay=twice)
    parts = [ReplaySource(old, 0.1, sources=[name]) for name in ("web", "books")]
    made = prepare(texts, tmp_path / "apart", {}, {}, replay=parts)
    assert {"web", "books"} < set(made.sources)
    taken = Counter(
        {ids: n for ids, n in rows_of(made).items() if made.sources[_row_source(made, ids)] in ("web", "books")}
    )
    assert taken
    assert taken - rows_of(open_corpus(old)) == Counter()


def test_a_mixture_that_was_refused_is_changed_without_reading_again(texts: Path, tmp_path: Path) -> None:
    """Each try at weights read and encoded all text anew."""
    with pytest.raises(UserError, match="needs"):
        prepare(texts, tmp_path / "out", {"weight": 1.0}, {"weight": 1.0}, max_rows=200)
    parts = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out" / "parts.tmp").glob("*.arrow")}
    assert parts
    for source in texts.glob("*.jsonl"):
        source.touch()
    seen: dict[str, int] = {}
    import tokensieve.pipeline.prepare as module

    real = module.results

    def watched(units: Any, setup: Any, workers: int) -> Any:
        for unit, counts in real(units, setup, workers):
            seen[unit.name] = (setup.parts / f"{unit.name}.rows.arrow").stat().st_mtime_ns
            yield unit, counts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "results", watched)
        made = prepare(texts, tmp_path / "out", {"weight": 1.0}, {"weight": 1.0, "epochs": 30}, max_rows=200)
    assert made.num_rows == 200
    assert {f"{name}.rows.arrow": when for name, when in seen.items()}.items() <= parts.items()
