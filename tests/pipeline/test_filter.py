"""`filter`: which documents are kept, the same in any order of the input, and that `prepare` takes exactly these."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from filtered import Row, by_id, table, words, write

from tokensieve.data.corpus import open_corpus
from tokensieve.data.filter.decontaminate import EvaluationRuns
from tokensieve.data.filter.options import Classifier, Decontaminate, Dedup, Ensemble
from tokensieve.data.filter.table import Tables
from tokensieve.data.read.documents import Document
from tokensieve.data.read.source import SourceConfig
from tokensieve.data.read.sources import resolve
from tokensieve.pipeline import filter as filtering
from tokensieve.pipeline import prepare
from tokensieve.pipeline.configs.filter import FilterConfig
from tokensieve.pipeline.configs.prepare import PrepareConfig
from tokensieve.runs.errors import StaleFolder, UserError
from tokensieve.runs.manifest import read_manifest


def prepared(out: Path, sources: list[SourceConfig], **fields: Any) -> tuple[list[str], dict[str, Any]]:
    """(ids of the documents that a corpus has, in order; its manifest)."""
    config = PrepareConfig(str(out), sources, **{"vocab_size": 280, "length": 16, "workers": 1, **fields})
    prepare.run(config, progress=False)
    open_corpus(out)
    return pq.read_table(out / "documents.parquet")["id"].to_pylist(), read_manifest(out, "corpus")


# ---- decontaminate ----


def shared_runs(text: str, others: Sequence[str], run: int) -> int:
    """By a loop over words."""

    def runs(t: str) -> list[tuple[str, ...]]:
        w = re.findall(r"\w+", t.lower())
        return [tuple(w[i : i + run]) for i in range(len(w) - run + 1)]

    known = {r for other in others for r in runs(other)}
    return sum(r in known for r in runs(text))


def test_decontaminate_is_its_definition(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    evaluation = [
        {"id": f"e{i}", "text": " ".join(words(rng, n)), "source": "gsm"} for i, n in enumerate([40, 13, 12, 60])
    ]
    rows = []
    for i in range(60):
        text = words(rng, 50)
        if i % 3:  # a part of an evaluation text, from 8 words on, written otherwise
            part = evaluation[i % 4]["text"].split()[: 8 + i % 9]
            text[10:10] = [w.upper() + ("," if j % 2 else "") for j, w in enumerate(part)]
        rows.append({"id": f"d{i}", "text": " ".join(text), "source": "web"})
    against = [SourceConfig(write(tmp_path / "eval.jsonl", evaluation))]
    path = write(tmp_path / "web.jsonl", rows)
    found, manifest = table(tmp_path / "out", "decontaminate", path, decontaminate=Decontaminate(against))
    shared = {row["id"]: shared_runs(row["text"], [e["text"] for e in evaluation], 13) for row in rows}
    assert by_id(found, "score") == {key: -n for key, n in shared.items()}
    assert by_id(found) == {key: n == 0 for key, n in shared.items()}
    assert 0 < sum(n > 0 for n in shared.values()) < len(rows)
    hit = {row["id"] for row in rows if shared[row["id"]]}
    assert all(re.fullmatch(r"shares \d+ runs? of 13 words with gsm e\d", r["why"]) for r in found if r["id"] in hit)
    owners = {r["why"].split()[-1] for r in found if r["why"]}
    assert manifest["sets"] == {
        "gsm": {
            "documents": 4,
            "too_short": 1,
            "found": len(owners),
            "found_ids": sorted(owners),
            "training_documents": len(hit),
        }
    }
    listed, _ = table(tmp_path / "listed", "decontaminate", path, decontaminate=Decontaminate(against, action="list"))
    assert all(by_id(listed).values())
    assert by_id(listed, "why") == by_id(found, "why")


def test_a_run_of_two_evaluation_sets_is_told_of_both(tmp_path: Path) -> None:
    """Only the first document that has a run was told of, so that a second set with the same problem looked clean."""
    shared = " ".join(f"w{i}" for i in range(13))
    against = [
        SourceConfig(write(tmp_path / f"{name}.jsonl", [{"id": "1", "text": f"{shared} {name}"}]), name=name)
        for name in ("gsm", "other")
    ]
    rows = [
        {"id": "a", "text": f"before {shared} after"},
        {"id": "b", "text": f"{shared} other"},
        {"id": "c", "text": "x"},
    ]
    found, manifest = table(
        tmp_path / "out", "decontaminate", write(tmp_path / "web.jsonl", rows), decontaminate=Decontaminate(against)
    )
    told = {"documents": 1, "too_short": 0, "found": 1, "found_ids": ["1"], "training_documents": 2}
    assert manifest["sets"] == {"gsm": told, "other": told}
    assert by_id(found, "why")["a"] == "shares 1 run of 13 words with gsm 1 and 1 more"
    assert by_id(found, "score") == {"a": -1, "b": -2, "c": 0}


# ---- the same result in any order ----


def pile(rng: np.random.Generator) -> list[Row]:
    """Documents of two sources with copies, near copies and equal ids; each is one of source, id and text."""
    rows: list[Row] = []
    for i in range(40):
        text = words(rng, 60)
        rows.append({"id": f"{i % 25}", "text": " ".join(text), "source": "ab"[i % 2]})
        if i % 4 == 0:
            text[7] = "other"
            rows.append({"id": f"near{i}", "text": " ".join(text), "source": "ab"[i % 3 % 2]})
        if i % 5 == 0:
            rows.append({"id": f"copy{i}", "text": rows[-1]["text"], "source": "ab"[i % 2]})
    return rows


@pytest.mark.parametrize("kind", ["decontaminate", "exact", "minhash", "local", "classifier"])
def test_the_table_is_the_same_in_any_order(kind: str, tmp_path: Path) -> None:
    """Rows shuffled, cut into other files, formats and units: the same bytes."""
    rng = np.random.default_rng(1)
    rows = pile(rng)
    other = write(tmp_path / "other.jsonl", [{"id": str(i), "text": r["text"]} for i, r in enumerate(rows[::7])])
    fields: dict[str, dict[str, Any]] = {
        "decontaminate": {"decontaminate": Decontaminate([SourceConfig(other)])},
        "exact": {"dedup": Dedup("exact")},
        "minhash": {"dedup": Dedup(similarity=0.6, run=3, hashes=64)},
        "local": {"dedup": Dedup(similarity=0.6, run=3, hashes=64, across="source")},
        "classifier": {"classifier": Classifier([SourceConfig(other)], bits=10), "share": 0.3},
    }
    if kind == "classifier":  # enough of it to train on
        write(tmp_path / "other.jsonl", [{"text": " ".join(words(rng, 30))} for _ in range(30)])
    name = {"exact": "dedup", "minhash": "dedup", "local": "dedup"}.get(kind, kind)
    first = write(tmp_path / "one" / "web.jsonl", rows)
    table(tmp_path / "a", name, first, **fields[kind])
    shuffled = [rows[i] for i in rng.permutation(len(rows))]
    write(tmp_path / "two" / "x.jsonl", shuffled[:20])
    pq.write_table(pa.Table.from_pylist(shuffled[20:]), tmp_path / "y.parquet")
    sources = [SourceConfig(str(tmp_path / "y.parquet")), SourceConfig(str(tmp_path / "two"))]
    _, manifest = table(tmp_path / "b", name, sources=sources, unit_bytes=4000, **fields[kind])
    assert (tmp_path / "a" / "table.parquet").read_bytes() == (tmp_path / "b" / "table.parquet").read_bytes()
    assert 0 < manifest["stats"]["kept"] < manifest["stats"]["documents"] == len(rows)
    assert not (tmp_path / "b" / "parts.tmp").exists()


def test_a_document_read_twice_is_one(tmp_path: Path) -> None:
    """Equal source, id and text in two places: one row, and a corpus has it once, whichever place comes first."""
    one, two, three = ({"id": str(i % 2), "text": f"text {i} " * 5, "source": "s"} for i in range(3))
    for order in ([one, two, three, one], [one, one, three, two]):
        folder = tmp_path / str(order.index(two))
        source = SourceConfig(write(folder / "rows.jsonl", order))
        found, manifest = table(folder / "out", "dedup", source.path, dedup=Dedup("exact"))
        assert [row["copies"] for row in found if row["place"]] == [2]
        assert [row["place"] for row in found if row["place"]] == ["rows.jsonl:1"]
        assert manifest["stats"]["documents"] == 3
        assert manifest["stats"]["repeated"] == 1
        ids, _ = prepared(folder / "corpus", [source], documents=[str(folder / "out")])
        assert sorted(ids) == ["0", "0", "1"]
        assert len(set(pq.read_table(folder / "corpus" / "documents.parquet")["text_hash"].to_pylist())) == 3
    both = [SourceConfig(write(tmp_path / n / "rows.jsonl", [one, two])) for n in ("x", "y")]
    with pytest.raises(UserError, match=r"one id \('.'\), text and place \(rows.jsonl:.\).* names of their own"):
        table(tmp_path / "same", "dedup", sources=both, dedup=Dedup("exact"))


# ---- what prepare takes ----


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 documents, every third of which has a copy, and two tables of them."""
    root = tmp_path_factory.mktemp("filter")
    rng = np.random.default_rng(2)
    rows = [{"id": f"d{i}", "text": " ".join(words(rng, 30)), "source": "s"} for i in range(60)]
    for i in range(0, 60, 3):
        rows[i]["text"] = rows[(i + 1) % 60]["text"]
    write(root / "rows.jsonl", rows)
    table(root / "dedup", "dedup", str(root / "rows.jsonl"), dedup=Dedup("exact"))
    evaluation = [{"id": f"e{i}", "text": rows[i]["text"], "source": "e"} for i in (2, 5)]
    against = [SourceConfig(write(root / "eval.jsonl", evaluation))]
    table(root / "clean", "decontaminate", str(root / "rows.jsonl"), decontaminate=Decontaminate(against))
    return root


def test_prepare_takes_what_all_tables_keep(stand: Path, tmp_path: Path) -> None:
    tables = [str(stand / "dedup"), str(stand / "clean")]
    found = [by_id(pq.read_table(Path(t) / "table.parquet").to_pylist()) for t in tables]
    source = [SourceConfig(str(stand / "rows.jsonl"))]
    ids, manifest = prepared(tmp_path / "corpus", source, documents=tables, unit_bytes=2000)
    assert ids == [f"d{i}" for i in range(60) if all(t[f"d{i}"] for t in found)]
    assert 0 < len(ids) < 60
    assert manifest["stats"]["skipped"] == {"filtered": 60 - len(ids)}
    assert manifest["inputs"]["documents"] == [
        next(f["hash"] for f in read_manifest(t)["files"] if f["file"] == "table.parquet") for t in tables
    ]
    chained, made = table(tmp_path / "chained", "dedup", source[0].path, dedup=Dedup("exact"), documents=tables[1:])
    kept = {i for i, k in found[1].items() if k}
    assert by_id(chained).keys() == kept
    assert made["stats"]["skipped"] == {"filtered": 60 - len(kept)}


def test_tables_and_measures_reach_other_processes(stand: Path, tmp_path: Path) -> None:
    """What workers are sent: opened files and tables of bits do not travel, they are opened and made again."""
    rows = [json.loads(line) for line in (stand / "rows.jsonl").read_text().splitlines()]
    documents = [Document(r["id"], r["source"], "", r["text"], place=f"rows.jsonl:{i}") for i, r in enumerate(rows, 1)]
    tables = Tables.of([str(stand / "dedup")], tmp_path)
    sent = pickle.loads(pickle.dumps(tables))
    assert [sent.times(d) for d in documents] == [tables.times(d) for d in documents]
    assert {tables.times(d) for d in documents} == {0, 1}
    runs = EvaluationRuns([resolve(SourceConfig(str(stand / "eval.jsonl")))], 13, 1 << 20)
    one, other = (made(documents) for made in (runs, pickle.loads(pickle.dumps(runs))))
    assert one["shared"].sum() > 0
    assert one["shared"].tolist() == other["shared"].tolist()
    assert one["owners"].equals(other["owners"])


def test_without_tables_a_corpus_is_the_same_work(stand: Path, tmp_path: Path) -> None:
    """The new fields change no fingerprint; another table is other work."""
    source = [SourceConfig(str(stand / "rows.jsonl"))]
    plain = prepare.work(PrepareConfig("x", source))
    assert "documents" not in json.dumps({k: v for k, v in plain.inputs.items() if v})
    fingerprints = {
        prepare.work(PrepareConfig("x", source, documents=tables)).fingerprint
        for tables in ([], [str(stand / "dedup")], [str(stand / "clean")], [str(stand / "clean"), str(stand / "dedup")])
    }
    assert plain.fingerprint in fingerprints
    assert len(fingerprints) == 4
    prepared(tmp_path / "c", source, documents=[str(stand / "dedup")])
    with pytest.raises(StaleFolder, match="input documents"):
        prepared(tmp_path / "c", source, documents=[str(stand / "clean")])


def test_what_a_table_does_not_have_is_refused(stand: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (stand / "rows.jsonl").read_text().splitlines()]
    rows[17]["text"] += " and more"
    changed = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(
        UserError, match=r"rows.jsonl line 18: the table of .*dedup has no document 'd17' of source 's'"
    ):
        prepared(tmp_path / "c", [SourceConfig(changed)], documents=[str(stand / "dedup")])
    prepared(tmp_path / "d", [SourceConfig(changed)])
    with pytest.raises(UserError, match="holds 'corpus', 'documents' is needed"):
        prepared(tmp_path / "e", [SourceConfig(changed)], documents=[str(tmp_path / "d")])
    tokens = write(tmp_path / "ids.jsonl", [{"input_ids": [1, 2]}])
    with pytest.raises(UserError, match="a document of token ids has no text to filter"):
        table(tmp_path / "t", "dedup", sources=[SourceConfig(tokens, format="tokens")])


def test_a_document_may_be_taken_several_times(tmp_path: Path) -> None:
    """Copies stand apart: next to each other, a model would read the second one off the first."""
    rows = [{"id": f"d{i}", "text": f"text number {i} of some", "label": i % 5 + 1} for i in range(30)]
    source = SourceConfig(write(tmp_path / "rows.jsonl", rows), label="label")
    fields = {"classifier": Classifier([source], bits=12), "repeat": {5: 3, 4: 2}}
    found, _ = table(tmp_path / "out", "classifier", sources=[source], **fields)
    wanted = {row["id"]: {5: 3, 4: 2}.get(round(row["score"]), 1) for row in found}
    assert by_id(found, "times") == wanted
    ids, manifest = prepared(tmp_path / "c", [source], documents=[str(tmp_path / "out")])
    assert {i: ids.count(i) for i in wanted} == wanted
    assert ids[:30] == [f"d{i}" for i in range(30)]
    assert manifest["stats"]["documents"] == sum(wanted.values())


def test_conversations_are_filtered_by_what_they_say(tmp_path: Path) -> None:
    def chat(key: str, text: str) -> Row:
        return {"id": key, "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]}

    source = SourceConfig(
        write(tmp_path / "c.jsonl", [chat("a", "one"), chat("b", "one"), chat("c", "two")]), format="chat"
    )
    found, _ = table(tmp_path / "out", "dedup", sources=[source], dedup=Dedup("exact"))
    assert sorted(by_id(found).values()) == [False, True, True]


# ---- dedup ----


def similarity(one: str, other: str, run: int) -> float:
    sets = []
    for text in (one, other):
        w = text.split()
        sets.append({tuple(w[i : i + run]) for i in range(len(w) - run + 1)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_planted_near_copies_are_found(tmp_path: Path) -> None:
    """Of 120 originals 60 have a near copy of Jaccard similarity above .9, 60 an altered one of below .6."""
    rng = np.random.default_rng(4)
    rows, near, far = [], set(), set()
    for i in range(120):
        text = words(rng, 200)
        rows.append({"id": f"o{i}", "text": " ".join(text), "source": "a"})
        changed = list(text)
        for at in rng.choice(200, 1 if i < 60 else 14, replace=False):
            changed[at] = "changed"
        rows.append({"id": f"c{i}", "text": " ".join(changed), "source": "ab"[i % 2]})
        s = similarity(rows[-2]["text"], rows[-1]["text"], 5)
        assert s > 0.9 or s < 0.65
        (near if s > 0.9 else far).add(i)
    path = write(tmp_path / "rows.jsonl", rows)
    found, manifest = table(tmp_path / "out", "dedup", path)
    dropped = {key for key, keep in by_id(found).items() if not keep}
    pairs = {i for i in range(120) if {f"o{i}", f"c{i}"} & dropped}
    assert len(near & pairs) / len(near) >= 0.99
    assert len(near & pairs) / len(pairs) >= 0.99
    assert manifest["near_copies"] == len(dropped)
    names = {
        key: re.fullmatch(r"near copy \((.*)\) of (.) (\w+)", why) for key, why in by_id(found, "why").items() if why
    }
    assert names.keys() == dropped
    texts = {row["id"]: row["text"] for row in rows}
    for key, match in names.items():  # what is dropped is like the one that is named, which is kept
        assert match
        assert by_id(found)[match[3]]
        assert similarity(texts[key], texts[match[3]], 5) > 0.65
    local, _ = table(tmp_path / "local", "dedup", path, dedup=Dedup(across="source"))
    fallen = {int(key[1:]) for key, keep in by_id(local).items() if not keep}
    assert fallen == {i for i in pairs if i % 2 == 0}


def test_a_chain_of_near_copies_keeps_its_ends(tmp_path: Path) -> None:
    """Each is near the next, the ends are not near each other: one representative for all would drop what is no copy."""
    rng = np.random.default_rng(5)
    text, rows = words(rng, 400), []
    for i in range(12):
        text = list(text)
        text[i * 30 : i * 30 + 6] = words(rng, 6)
        rows.append({"id": f"{i}", "text": " ".join(text)})
    found, _ = table(tmp_path / "out", "dedup", write(tmp_path / "rows.jsonl", rows), dedup=Dedup(hashes=256))
    texts = {row["id"]: row["text"] for row in rows}
    kept = [key for key, keep in by_id(found).items() if keep]
    assert 1 < len(kept) < 12
    for row in found:
        if not row["kept"]:
            assert similarity(texts[row["id"]], texts[row["why"].split()[-1]], 5) > 0.68
            assert row["score"] >= 0.8 - 1e-6


# ---- the verb ----


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "decontaminate"}, "decontaminate.against: name at least one evaluation set"),
        ({"kind": "classifier"}, "classifier.positive: name at least one source"),
        ({"kind": "model"}, "model.model: name a model folder"),
        (
            {"kind": "dedup", "share": 0.5},
            "share: kind dedup has no score to keep by; it is of classifier, ensemble, model",
        ),
        ({"kind": "ensemble", "ensemble": Ensemble(["x"]), "share": 1.5}, "from 0 to 1, not 1.5"),
        ({"kind": "ensemble", "threshold": float("nan")}, "threshold is a score, a finite number, not nan"),
        ({"kind": "ensemble", "threshold": {"de": float("inf")}}, "threshold is a score, a finite number, not inf"),
        ({"kind": "ensemble", "share": 0.5, "threshold": 1.0}, "give one of them"),
        ({"kind": "dedup", "dedup": Dedup(similarity=0.0)}, "dedup.similarity is from 0 to 1"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = SourceConfig(write(tmp_path / "a.jsonl", [{"text": "x"}]))
    with pytest.raises(UserError, match=message):
        filtering.run(FilterConfig(str(tmp_path / "out"), sources=[source], **fields))
    assert not (tmp_path / "out").exists()


def test_a_bad_row_is_named_or_listed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "x y"}, {"txt": "z"}, {"text": " "}])
    with pytest.raises(UserError, match=r"a.jsonl line 2: no column 'text'"):
        table(tmp_path / "out", "dedup", path)
    _, manifest = table(tmp_path / "skipped", "dedup", path, on_bad_row="skip")
    assert (manifest["stats"]["bad_rows"], manifest["stats"]["skipped"]) == (1, {"empty": 1})
    assert json.loads((tmp_path / "skipped" / "bad_rows.jsonl").read_text())["where"].endswith("line 2")


def test_what_is_refused_leaves_no_mark(tmp_path: Path) -> None:
    """A bad row in the second unit left parts and a note, and the same folder was refused to the corrected command."""
    path = write(tmp_path / "a.jsonl", [{"text": "x y"}, {"txt": "z"}])
    with pytest.raises(UserError, match="line 2"):
        table(tmp_path / "out", "dedup", path, unit_bytes=10)
    assert list((tmp_path / "out").iterdir()) == []
    _, manifest = table(tmp_path / "out", "dedup", path, unit_bytes=10, on_bad_row="skip")
    assert manifest["stats"]["bad_rows"] == 1


def test_a_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Units that are there are not measured again; other work in the folder is refused."""
    rng = np.random.default_rng(9)
    path = write(tmp_path / "a.jsonl", [{"id": str(i), "text": " ".join(words(rng, 50))} for i in range(40)])
    whole, _ = table(tmp_path / "whole", "dedup", path, unit_bytes=2000)
    calls = []
    real = filtering.measure_unit

    def killed(setup: Any, unit: Any) -> bool:
        calls.append(unit.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(setup, unit)

    monkeypatch.setattr(filtering, "measure_unit", killed)
    with pytest.raises(KeyboardInterrupt):
        table(tmp_path / "out", "dedup", path, unit_bytes=2000)
    with pytest.raises(StaleFolder, match="unfinished work"):
        table(tmp_path / "out", "dedup", path, unit_bytes=2000, dedup=Dedup("exact"))
    found, _ = table(tmp_path / "out", "dedup", path, unit_bytes=2000)
    assert found == whole
    assert len(calls) == len(set(calls)) + 1  # the third one twice


def test_a_recipe_from_filters_to_a_corpus(tmp_path: Path, tokensieve: Any) -> None:
    rng = np.random.default_rng(10)
    rows = [{"id": str(i), "text": " ".join(words(rng, 40)), "source": "web"} for i in range(50)]
    rows += [{"id": f"again{i}", "text": rows[i]["text"], "source": "web"} for i in range(10)]
    path = write(tmp_path / "web.jsonl", rows)
    evaluation = write(tmp_path / "eval.jsonl", [{"id": "e", "text": rows[20]["text"], "source": "test"}])
    sources = [{"path": path}]
    stages = {
        "clean": {
            "verb": "filter",
            "kind": "decontaminate",
            "sources": sources,
            "decontaminate": {"against": [{"path": evaluation}]},
        },
        "unique": {"verb": "filter", "kind": "dedup", "sources": sources, "documents": ["@clean"]},
        "corpus": {
            "verb": "prepare",
            "sources": sources,
            "documents": ["@clean", "@unique"],
            "vocab_size": 280,
            "length": 32,
        },
    }
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump({"name": "r", "out": str(tmp_path / "run"), "stages": stages}, sort_keys=False))
    plan = tokensieve("run", recipe, "--dry-run")
    assert plan.code == 0, plan.err
    done = tokensieve("run", recipe)
    assert done.code == 0, done.err
    manifest = read_manifest(tmp_path / "run" / "corpus", "corpus")
    assert manifest["stats"]["documents"] == 49
    assert tokensieve("run", recipe).out.count("done already") == 3
    checked = tokensieve("check", tmp_path / "run")
    assert checked.code == 0, checked.err
    alone = tokensieve(
        "filter",
        "--out",
        tmp_path / "run" / "clean",
        "--kind",
        "decontaminate",
        "--sources",
        f"[{{path: {path}}}]",
        "--decontaminate.against",
        f"[{{path: {evaluation}}}]",
    )
    assert alone.code == 0, alone.err
    assert "decontaminate: 59 of 60 documents kept (98.33%)" in alone.out
    assert "test: 1 documents share a run with 1 of its 1; 0 are too short to have one" in alone.out
