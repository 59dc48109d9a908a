import dataclasses
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tokensieve.data.corpus import Corpus, open_corpus
from tokensieve.data.read.source import SourceConfig
from tokensieve.pipeline.prepare import PARTS, PrepareConfig, run
from tokensieve.runs.errors import UserError
from tokensieve.runs.manifest import is_done, read_manifest

WORDS = ["alpha", "beta", "gamma", "δέλτα", "x = 1\n", "é", "🙂"]


def write_rows(path: Path, n: int, seed: int = 0, **more: Any) -> Path:
    rng = random.Random(seed)
    rows = [{"text": " ".join(rng.choices(WORDS, k=rng.randint(1, 60))), **more} for _ in range(n)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A corpus whose tokenizer the other tests take."""
    here = tmp_path_factory.mktemp("base")
    source = SourceConfig(str(write_rows(here / "a.jsonl", 30)))
    return str(run(PrepareConfig(str(here / "out"), [source], vocab_size=290), progress=False))


def prepare(out: Path, tokenizer: str, *sources: SourceConfig, **settings: Any) -> Corpus:
    settings = {"length": 32, **settings}
    return open_corpus(
        run(PrepareConfig(str(out), list(sources), tokenizer=tokenizer, **settings), progress=False), "full"
    )


def content(folder: Path) -> dict[str, Any]:
    """Everything in a folder."""
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    manifest = json.loads(files.pop("manifest.json"))
    return {**files, "manifest": manifest}


def texts(corpus: Corpus) -> list[str]:
    """The documents as text, from the rows alone."""
    ids = [t for row in corpus.rows for t in row["input_ids"][: row["num_tokens"]]]
    return str(corpus.tokenizer().decode(ids)).split("<|endoftext|>")[:-1]


def test_rows_hold_the_documents_in_order_and_nothing_else(tmp_path: Path, tokenizer: str) -> None:
    path = write_rows(tmp_path / "a.jsonl", 50)
    corpus = prepare(tmp_path / "out", tokenizer, SourceConfig(str(path)), unit_bytes=2000)
    assert texts(corpus) == [json.loads(line)["text"] for line in path.read_text().splitlines()]
    assert corpus.stats["token_bytes_exact"]
    assert not (tmp_path / "out" / PARTS).exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pattern_that_takes_nothing_is_told(tmp_path: Path, tokenizer: str, workers: int, capsys: Any) -> None:
    """A misspelt source in ``only`` left its rows out, and nothing but a count of skipped ones said so."""
    paths = [write_rows(tmp_path / f"{name}.jsonl", 40, source=name) for name in ("novels", "wiki")]
    only = SourceConfig(str(tmp_path / "*.jsonl"), only=("novels", "wki", "n*"))
    corpus = prepare(tmp_path / "out", tokenizer, only, SourceConfig(str(paths[1])), unit_bytes=1000, workers=workers)
    told = [line.partition("only: ")[2] for line in capsys.readouterr().err.splitlines() if "only: " in line]
    assert told == ["'wki' took no document", "'n*' took no document"]
    assert corpus.stats["skipped"] == {"other source": 40}


@pytest.mark.parametrize("isolate", [False, True])
def test_isolated_documents_are_marked_not_repacked(tmp_path: Path, tokenizer: str, isolate: bool) -> None:
    path = write_rows(tmp_path / "a.jsonl", 50)
    corpus = prepare(tmp_path / "out", tokenizer, SourceConfig(str(path)), isolate_documents=isolate)
    assert corpus.isolate_documents is isolate
    assert len(texts(corpus)) == 50
    for row in corpus.rows:
        starts = row["doc_starts"]
        assert starts[0] == 0
        assert [s - 1 for s in starts[1:]] == [
            i for i, t in enumerate(row["input_ids"][: row["num_tokens"] - 1]) if t == corpus.eos_id
        ]
        assert row["doc_targets"] == starts


def test_solutions_are_marked_to_the_token(tmp_path: Path, tokenizer: str) -> None:
    rows = [{"problem": f"é {i}+1 = ?" * (i % 7), "solution": f"{i + 1}🙂" * (1 + i % 9)} for i in range(1, 60)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    source = SourceConfig(str(tmp_path / "a.jsonl"), problem="problem", solution="solution")
    corpus = prepare(tmp_path / "out", tokenizer, source, length=16)
    before: dict[int, list[int]] = {}
    after: dict[int, list[int]] = {}
    for row in corpus.rows:
        ends = [*row["doc_starts"][1:], row["num_tokens"]]
        for doc, start, target, end in zip(row["doc_ids"], row["doc_starts"], row["doc_targets"], ends, strict=True):
            assert start <= target <= end
            assert not (after.get(doc) and target > start)  # once a solution has begun, it goes on
            before.setdefault(doc, []).extend(row["input_ids"][start:target])
            after.setdefault(doc, []).extend(row["input_ids"][target:end])
    decode = corpus.tokenizer().decode
    kept = [r for r in rows if r["problem"]]
    assert len(kept) == len(after) == corpus.stats["documents"]
    for doc, row in enumerate(kept):
        head, tail = f"Problem: {row['problem']}\nSolution: ", f"{row['solution']}<|endoftext|>"
        assert decode(before[doc] + after[doc]) == head + tail
        assert decode(after[doc]).lstrip(" ") == tail
        assert len(decode(before[doc])) in (
            len(head),
            len(head) - 1,
        )  # " 4" may be one token: it belongs to the solution


@pytest.mark.usefixtures("warm_pools")
def test_the_corpus_does_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    """Row order, document numbers and the trained vocabulary must not follow the order in which processes finish."""
    paths = [write_rows(tmp_path / f"{n}.jsonl", 80, seed, source=n) for seed, n in enumerate("ab")]
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(paths[1].read_bytes()))
    sources = [
        SourceConfig(str(paths[0]), weight=1.0, max_bytes=9000),
        SourceConfig(str(tmp_path / "b.jsonl.gz"), weight=2.0),
        SourceConfig(str(tmp_path / "many"), weight=1.0),
    ]
    (tmp_path / "many").mkdir()
    for i in range(30):
        write_rows(tmp_path / f"many/{i:02d}.jsonl", 3, i, source="many")
    config = PrepareConfig("", sources, vocab_size=300, length=32, max_rows=90, unit_bytes=700, shard_tokens=500)
    found = []
    for workers in (1, 3):
        out = tmp_path / f"out{workers}"
        run(dataclasses.replace(config, out=str(out), workers=workers), progress=False)
        found.append(content(out))
    assert found[0] == found[1]


def wait_for(what: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


def group_is_gone(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path, tokenizer: str) -> None:
    """Finished units are kept, the result is that of a run never killed, and the killed run's processes don't linger."""
    path = write_rows(tmp_path / "a.jsonl", 900)
    config = PrepareConfig(
        str(tmp_path / "killed"), [SourceConfig(str(path))], tokenizer=tokenizer, length=32, unit_bytes=6000, workers=2
    )
    code = (
        "import sys, json\nfrom tokensieve.data.read.source import SourceConfig\n"
        "from tokensieve.pipeline.prepare import PrepareConfig, run\n"
        "if __name__ == '__main__':\n    c = json.loads(sys.argv[1])\n"
        "    c['sources'] = [SourceConfig(**s) for s in c['sources']]\n    run(PrepareConfig(**c), progress=False)\n"
    )
    (tmp_path / "main.py").write_text(code)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    argv = [sys.executable, str(tmp_path / "main.py"), json.dumps(dataclasses.asdict(config))]
    with open(tmp_path / "stderr", "w") as errors:
        process = subprocess.Popen(argv, env=env, start_new_session=True, stderr=errors)
    parts = tmp_path / "killed" / PARTS
    wait_for(lambda: len(list(parts.glob("0000-*.json"))) >= 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: group_is_gone(process.pid))
    assert not is_done(tmp_path / "killed")
    done = sorted(parts.glob("0000-*.json"))
    assert 3 <= len(done) < 55
    counts = json.loads(done[1].read_text())
    done[1].write_text(json.dumps({**counts, "skipped": {"left by the killed run": 1}}))
    resumed = prepare(tmp_path / "killed", tokenizer, *config.sources, unit_bytes=6000)
    assert resumed.stats["skipped"] == {"left by the killed run": 1}  # that unit was not done again
    whole = prepare(tmp_path / "whole", tokenizer, *config.sources, unit_bytes=6000)
    assert resumed.content_hash == whole.content_hash
    assert resumed.documents().equals(whole.documents())


def test_parts_of_other_work_are_not_taken_up(tmp_path: Path, tokenizer: str) -> None:
    path = write_rows(tmp_path / "a.jsonl", 30)
    bad = SourceConfig(str(write_rows(tmp_path / "b.jsonl", 3)), text="body")
    with pytest.raises(UserError, match="no column 'body'"):
        prepare(tmp_path / "out", tokenizer, SourceConfig(str(path)), bad)
    assert list((tmp_path / "out" / PARTS).glob("0000-*.json"))
    corpus = prepare(tmp_path / "out", tokenizer, SourceConfig(str(path)), length=16)
    assert corpus.length == 16
    assert len(texts(corpus)) == 30


def test_done_work_is_skipped_and_other_work_refused(tmp_path: Path, tokenizer: str) -> None:
    path = write_rows(tmp_path / "a.jsonl", 30)
    source = SourceConfig(str(path))
    prepare(tmp_path / "out", tokenizer, source)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("[!.]*")}
    prepare(tmp_path / "out", tokenizer, source, workers=2)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("[!.]*")} == before
    with pytest.raises(UserError, match=r"done, but from other inputs \(length \d+ -> 64\)"):
        prepare(tmp_path / "out", tokenizer, source, length=64)
    write_rows(path, 31)
    with pytest.raises(UserError, match=r"other inputs \(input source 0\)"):
        prepare(tmp_path / "out", tokenizer, source)


@pytest.mark.parametrize("name", ["tokenizer", "state.json", "rows-00000.arrow"])
def test_a_folder_of_something_else_is_not_written_into(tmp_path: Path, tokenizer: str, name: str) -> None:
    """`--out` of a model folder would have lost its tokenizer."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / name).write_text("precious")
    with pytest.raises(UserError, match=f"holds {name}, which an unfinished prepare did not write"):
        prepare(tmp_path / "model", tokenizer, SourceConfig(str(write_rows(tmp_path / "a.jsonl", 3))))
    assert (tmp_path / "model" / name).read_text() == "precious"


def rows_of(corpus: Corpus) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in corpus.rows:
        [name] = {corpus.sources[s] for s in row["doc_sources"]}
        found[name] = found.get(name, 0) + 1
    return found


def test_weights_share_out_the_rows_exactly(tmp_path: Path, tokenizer: str) -> None:
    paths = [write_rows(tmp_path / f"{n}.jsonl", 60, seed) for seed, n in enumerate("abc")]

    def mix(out: str, weights: tuple[float, ...], max_rows: int, seed: int = 0) -> Corpus:
        sources = [SourceConfig(str(p), weight=w) for p, w in zip(paths, weights, strict=True)]
        return prepare(tmp_path / out, tokenizer, *sources, max_rows=max_rows, seed=seed, unit_bytes=1000)

    assert rows_of(mix("1", (0.8, 0.2, 0.0), 50)) == {"a": 40, "b": 10}
    thirds = mix("2", (1, 1, 1), 50)
    assert sorted(rows_of(thirds).values()) == [16, 17, 17]
    assert mix("3", (1, 1, 1), 50, seed=1).content_hash != thirds.content_hash
    with pytest.raises(
        UserError, match=r"source .*b\.jsonl has \d+ rows, its share of 99.98% needs 9998 of 10000 rows"
    ):
        mix("4", (1, 9998, 1), 10000)


def test_chosen_rows_bring_their_documents_renumbered(tmp_path: Path, tokenizer: str) -> None:
    source = SourceConfig(str(write_rows(tmp_path / "a.jsonl", 200)))
    whole, some = (prepare(tmp_path / str(n), tokenizer, source, max_rows=n, unit_bytes=2000) for n in (10**6, 30))
    assert some.num_rows == 30
    assert whole.stats["documents"] == 200
    ids, all_ids = (c.documents()["id"].to_pylist() for c in (some, whole))
    seen = [d for row in some.rows for d in row["doc_ids"]]
    assert sorted(set(seen)) == list(range(len(ids))) == some.documents()["doc_id"].to_pylist()
    assert seen == sorted(seen)
    rows = {tuple(r["input_ids"]): [all_ids[d] for d in r["doc_ids"]] for r in whole.rows}
    assert [[ids[d] for d in r["doc_ids"]] for r in some.rows] == [rows[tuple(r["input_ids"])] for r in some.rows]
    assert some.stats["tokens"] == sum(r["num_tokens"] for r in some.rows)
    assert sum(t["tokens"] for t in some.stats["by_source"].values()) == some.stats["tokens"]
    assert some.stats["bytes_per_token"] == pytest.approx(whole.stats["bytes_per_token"], rel=0.1)


def test_bad_rows_are_errors_or_counted_and_listed(tmp_path: Path, tokenizer: str) -> None:
    lines = write_rows(tmp_path / "a.jsonl", 300).read_text().splitlines()
    lines[6] = "{"
    lines[100:250] = ['{"text": 1}'] * 150
    lines[270] = '{"text": "  "}'
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    source = SourceConfig(str(tmp_path / "a.jsonl"))
    with pytest.raises(UserError, match=r"a\.jsonl line 7: not valid JSON"):
        prepare(tmp_path / "out", tokenizer, source, unit_bytes=1000)
    corpus = prepare(tmp_path / "out", tokenizer, source, on_bad_row="skip", unit_bytes=1000)
    assert (corpus.stats["bad_rows"], corpus.stats["documents"], corpus.stats["skipped"]) == (151, 148, {"empty": 1})
    listed = [json.loads(line) for line in (tmp_path / "out/bad_rows.jsonl").read_text().splitlines()]
    assert len(listed) == 100
    assert listed[0]["where"] == f"{tmp_path / 'a.jsonl'} line 7"
    assert listed[1] == {
        "where": f"{tmp_path / 'a.jsonl'} line 101",
        "reason": "column 'text' must be a string, this is a number",
    }


@pytest.mark.usefixtures("warm_pools")
def test_an_error_in_a_process_arrives_as_the_same_sentence(tmp_path: Path, tokenizer: str) -> None:
    path = write_rows(tmp_path / "a.jsonl", 50)
    path.write_text(path.read_text() + "[1]\n")
    with pytest.raises(UserError, match=r"a\.jsonl line 51: a row must be an object, this is a list"):
        prepare(tmp_path / "out", tokenizer, SourceConfig(str(path)), unit_bytes=1000, workers=2)


def test_tokenised_input_gets_its_eos_and_is_checked(tmp_path: Path, tokenizer: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"input_ids": [70, 71]}\n{"input_ids": [72, 0]}\n')
    source = SourceConfig(str(path), format="tokens")
    corpus = prepare(tmp_path / "out", tokenizer, source)
    assert corpus.eos_id == 0
    assert corpus.rows[0]["input_ids"][: corpus.rows[0]["num_tokens"]] == [70, 71, 0, 72, 0]
    assert corpus.stats["bytes"] == 3
    with pytest.raises(UserError, match="needs the tokenizer its ids come from"):
        run(PrepareConfig(str(tmp_path / "none"), [source]), progress=False)
    path.write_text('{"input_ids": [1, 2]}\n{"input_ids": [3, 300]}\n')
    with pytest.raises(UserError, match=r"a\.jsonl line 2: token id 300 is outside the vocabulary of 290"):
        prepare(tmp_path / "out2", tokenizer, source)


def test_stages_of_one_package_share_no_document(tmp_path: Path, tokenizer: str) -> None:
    code = SourceConfig("package:stdlib", format="python", split=(0.0, 0.5), max_bytes=200_000)
    prose = SourceConfig("package:stdlib", format="docstrings", split=(0.5, 1.0), max_bytes=100_000)
    found = [prepare(tmp_path / s.format, tokenizer, s) for s in (code, prose)]
    ids = [set(c.documents()["id"].to_pylist()) for c in found]
    assert all(ids)
    assert not ids[0] & ids[1]
    assert found[0].sources == ["stdlib"]
    assert all(0 < c.stats["bytes"] <= s.max_bytes for c, s in zip(found, (code, prose), strict=True) if s.max_bytes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sources": []}, "at least one source"),
        ({"length": 1}, "length must be at least 2"),
        ({"length": 0}, "length must be at least 1"),
        ({"max_rows": 0}, "max_rows must be at least 1"),
        ({"workers": -1}, "workers must be at least 0"),
        ({"on_bad_row": "ignore"}, "on_bad_row must be 'error' or 'skip'"),
        ({"weights": [1.0, None]}, "either all sources have a weight or none"),
        ({"weights": [1.0, 1.0]}, "need max_rows"),
        ({"weights": [0.0, 0.0], "max_rows": 5}, "needs a weight above 0"),
        ({"tokenizer": "/nowhere"}, r"/nowhere: no tokenizer\.json"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_anything_is_written(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    path = write_rows(tmp_path / "a.jsonl", 3)
    weights = settings.pop("weights", [None])
    settings = {"sources": [SourceConfig(str(path), weight=w) for w in weights], **settings}
    with pytest.raises(UserError, match=message):
        run(PrepareConfig(str(tmp_path / "out"), **settings), progress=False)
    assert not (tmp_path / "out").exists()


def test_no_document_at_all_is_an_error(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(UserError, match=r"no document found in .*a\.jsonl \(1 left out as empty"):
        prepare(tmp_path / "out", tokenizer, SourceConfig(str(tmp_path / "a.jsonl")))
    assert not is_done(tmp_path / "out")


def test_the_manifest_says_what_the_corpus_is(tmp_path: Path, tokenizer: str) -> None:
    corpus = prepare(tmp_path / "out", tokenizer, SourceConfig(str(write_rows(tmp_path / "a.jsonl", 3)), name="mine"))
    manifest = read_manifest(tmp_path / "out", "corpus")
    assert set(manifest["inputs"]) == {"source 0", "tokenizer"}
    assert manifest["tokenizer_hash"] == read_manifest(tokenizer, "corpus")["tokenizer_hash"]
    assert manifest["sources"] == ["mine"]
    listed = {f["file"] for f in manifest["files"]}
    there = {p.relative_to(corpus.folder).as_posix() for p in corpus.folder.rglob("*") if p.is_file()}
    assert listed == there - {"manifest.json", ".verified.json"}  # the second is written once the files are old enough
