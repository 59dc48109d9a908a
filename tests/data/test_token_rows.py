"""Tokenised rows: padding is left out, labels say what counts, and what nothing reads is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from folders import stored

from tokensieve.data.corpus import Corpus, open_corpus
from tokensieve.data.read.documents import BadRow, Document, Skipped
from tokensieve.data.read.source import SourceConfig
from tokensieve.data.read.sources import identity, resolve
from tokensieve.data.read.token_rows import tokens_document
from tokensieve.data.rows import Rows, check_targets
from tokensieve.data.scored import join_scores
from tokensieve.pipeline.prepare import PrepareConfig, run
from tokensieve.runs.errors import UserError

IDS = [70, 71, 72, 73, 74]
N = -100


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    here = tmp_path_factory.mktemp("base")
    (here / "a.jsonl").write_text('{"text": "row alpha beta gamma"}\n')
    return str(
        run(PrepareConfig(str(here / "out"), [SourceConfig(str(here / "a.jsonl"))], vocab_size=260), progress=False)
    )


def prepare(out: Path, tokenizer: str, *paths: Path, **settings: Any) -> Corpus:
    taken = {"length": 8, **settings}
    ignore = taken.pop("ignore_columns", ())
    sources = [SourceConfig(str(p), format="tokens", ignore_columns=ignore) for p in paths]
    return open_corpus(run(PrepareConfig(str(out), sources, tokenizer=tokenizer, **taken), progress=False), "full")


def flat(corpus: Corpus, name: str) -> list[int]:
    return [t for row in corpus.rows for t in row[name][: row["num_tokens"]]]


def items(dataset: Any) -> list[Any]:
    rows = Rows(dataset)
    return [rows[i] for i in range(len(rows))]


ROWS: list[tuple[dict[str, Any], list[int], list[int]]] = [
    # the last token is a target, and so is the EOS behind it
    ({"labels": [N, N, 72, 73, 74]}, [*IDS, 0], [N, N, 72, 73, 74, 0]),
    ({"labels": [70, 71, N, N, N]}, [*IDS, 0], [70, 71, N, N, N, N]),
    ({"labels": IDS, "attention_mask": [1, 1, 1, 0, 0]}, [70, 71, 72, 0], [70, 71, 72, 0]),
    ({"labels": [N, N, N, 73, N], "attention_mask": [0, 0, 1, 1, 1]}, [72, 73, 74, 0], [N, 73, N, N]),
    (
        {"labels": [N, 71, N, N, N], "attention_mask": [True, True, False, True, True]},
        [70, 71, 73, 74, 0],
        [N, 71, N, N, N],
    ),
    ({"labels": [N, N, N, N, 74], "completion_mask": [0, 0, 0, 1, 1]}, [*IDS, 0], [N, N, N, N, 74, 0]),
]


@pytest.mark.parametrize("form", ["jsonl", "parquet", "folder"])
@pytest.mark.parametrize(("more", "ids", "labels"), ROWS)
def test_labels_and_masks_come_into_the_corpus(
    tmp_path: Path, tokenizer: str, form: str, more: dict[str, Any], ids: list[int], labels: list[int]
) -> None:
    """Both were dropped without a word: prompt and padding became targets, 24 of a row instead of 5."""
    path = stored(tmp_path / "rows", form, [{"input_ids": IDS, **more}] * 5)
    corpus = prepare(tmp_path / "out", tokenizer, path)
    assert flat(corpus, "input_ids") == ids * 5
    if N not in labels:
        assert "labels" not in corpus.rows.column_names
        return
    assert flat(corpus, "labels") == labels * 5
    assert corpus.stats["no_targets"] == 5 * labels.count(N)
    assert all(set(r["labels"][r["num_tokens"] :]) <= {N} for r in corpus.rows)
    found = np.concatenate(
        [np.asarray(r["labels"])[:n] for r, n in zip(items(corpus.rows), corpus.rows["num_tokens"], strict=True)]
    )
    assert found.tolist() == labels * 5
    check_targets(corpus.rows, "corpus")


def test_an_eos_that_is_there_keeps_its_label(tmp_path: Path, tokenizer: str) -> None:
    rows = [{"input_ids": [70, 71, 0], "labels": [N, 71, N]}, {"input_ids": [70, 71, 0], "labels": [N, 71, 0]}]
    corpus = prepare(tmp_path / "out", tokenizer, stored(tmp_path / "rows", "jsonl", rows))
    assert flat(corpus, "input_ids") == [70, 71, 0] * 2
    assert flat(corpus, "labels") == [N, 71, N, N, 71, 0]


@pytest.mark.parametrize("isolate", [False, True])
def test_rows_without_labels_beside_rows_with_them(tmp_path: Path, tokenizer: str, isolate: bool) -> None:
    """All rows have the column then, over units and sources; without labels every token is a target."""
    plain = stored(tmp_path / "plain", "jsonl", [{"input_ids": IDS}] * 6)
    marked = stored(tmp_path / "marked", "jsonl", [{"input_ids": IDS}, {"input_ids": IDS, "labels": [N] * 4 + [74]}])
    corpus = prepare(tmp_path / "out", tokenizer, plain, marked, isolate_documents=isolate, unit_bytes=60)
    assert flat(corpus, "labels") == [*IDS, 0] * 7 + [N] * 4 + [74, 0]
    assert items(join_scores(corpus))[0]["labels"][0] == (N if isolate else IDS[0])
    same = prepare(tmp_path / "same", tokenizer, plain, stored(tmp_path / "m", "jsonl", [{"input_ids": IDS}] * 2))
    other = prepare(tmp_path / "other", tokenizer, plain, marked)
    assert same.rows["input_ids"] == other.rows["input_ids"]
    assert same.content_hash != other.content_hash  # it decides what is trained on
    opened = datasets.load_from_disk(str(corpus.folder))
    assert opened["labels"] == corpus.rows["labels"]  # type: ignore[index]


def test_labels_that_say_nothing_leave_the_corpus_as_it_was(tmp_path: Path, tokenizer: str) -> None:
    """As ``run_clm`` writes them: labels are the ids, masks are ones."""
    bare = prepare(tmp_path / "1", tokenizer, stored(tmp_path / "a", "jsonl", [{"input_ids": IDS}]))
    row = {"input_ids": IDS, "labels": IDS, "attention_mask": [1] * 5, "position_ids": [0, 1, 2, 3, 4]}
    said = prepare(tmp_path / "2", tokenizer, stored(tmp_path / "b", "jsonl", [row]))
    assert said.content_hash == bare.content_hash
    ignored = [{"input_ids": IDS, "labels": "odd", "attention_mask": [0] * 5, "loss_mask": [0] * 5}]
    path = stored(tmp_path / "c", "jsonl", ignored)
    names = ("labels", "attention_mask", "loss_mask")
    assert prepare(tmp_path / "3", tokenizer, path, ignore_columns=names).content_hash == bare.content_hash


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"labels": [N, 71, 72]}, "column 'labels' has 3 entries for 5 tokens"),
    ({"labels": [*IDS, N]}, "column 'labels' has 6 entries for 5 tokens"),
    ({"labels": None}, "column 'labels' must be a list of integers, this is null"),
    ({"labels": [N, None, 72, 73, 74]}, "column 'labels' must be a list of integers, this is a list with null in it"),
    (
        {"labels": [N, 71.0, 72, 73, 74]},
        "column 'labels' must be a list of integers, this is a list with a number in it",
    ),
    ({"labels": [N, -1, 72, 73, 74]}, "column 'labels' holds -1 at token 1, which is 71"),
    ({"labels": [N, 99, 72, 73, 74]}, "column 'labels' holds 99 at token 1, which is 71"),
    ({"labels": [71, 72, 73, 74, N]}, "these look shifted by one"),
    ({"attention_mask": [1, 1, 0]}, "column 'attention_mask' has 3 entries for 5 tokens"),
    (
        {"attention_mask": [1, 1, 2, 2, 2]},
        "column 'attention_mask' holds 2 at token 2, it must be 0 or 1: if it numbers",
    ),
    ({"attention_mask": "11111"}, "column 'attention_mask' must be a list of integers, this is a string"),
    ({"loss_mask": [0, 0, 1, 1, 1]}, "column 'loss_mask' has an entry for each token and is not read"),
    ({"completion_mask": [0, 0, 1, 1, 1], "labels": [N, 71, N, N, N]}, "column 'completion_mask' has an entry"),
    ({"weights": [0.5] * 5}, "column 'weights' has an entry for each token"),
    ({"position_ids": [0, 1, 0, 1, 2]}, "column 'position_ids' does not count from 0 to the row's end"),
    ({"segment_ids": [1, 1, 1, 2, 2]}, "column 'segment_ids' numbers several documents"),
    ({"seq_lengths": [2, 3]}, "column 'seq_lengths' adds up to the row's 5 tokens"),
    ({"cu_seqlens": [0, 2, 5]}, "column 'cu_seqlens' rises from 0 to the row's 5 tokens"),
    ({"doc_starts": [0], "num_tokens": 4}, "column 'doc_starts' says where documents start in the row"),
]


@pytest.mark.parametrize("form", ["jsonl", "parquet", "folder"])
@pytest.mark.parametrize(("more", "reason"), FAULTS)
def test_what_cannot_be_meant_is_named_by_row_and_column(
    tmp_path: Path, form: str, more: dict[str, Any], reason: str
) -> None:
    from tokensieve.data.read.readers import blocks, documents

    if form != "jsonl" and more == {"labels": [N, 71.0, 72, 73, 74]}:
        more = {"labels": [float(t) for t in more["labels"]]}
    path = stored(tmp_path / "rows", form, [{"input_ids": IDS, **more}])
    source = resolve(SourceConfig(str(path), format="tokens"))
    [found] = [item for block in blocks(source, 1000) for item in documents(source, block)]
    assert isinstance(found, BadRow), found
    assert found.where == f"{path} {'line' if form == 'jsonl' else 'row'} 1"
    assert reason in found.reason
    ignoring = resolve(SourceConfig(str(path), format="tokens", ignore_columns=tuple(more)))
    [found] = [item for block in blocks(ignoring, 1000) for item in documents(ignoring, block)]
    assert isinstance(found, Document)
    assert (found.tokens, found.labels) == (IDS, None)


@pytest.mark.parametrize(
    "more",
    [
        {"id": "x", "n": 5, "name": "five", "score": 0.5, "meta": {"a": [1, 2, 3, 4, 5]}},
        {"tokens": ["a", "b", "c", "d", "e"]},
        {"roles": ["user", "user", "user", "user", "user"]},
        {"special_tokens_mask": [0, 0, 0, 0, 1], "offset_mapping": [[0, 1]] * 5, "token_type_ids": [0] * 5},
        {"position_ids": [0, 1, 2, 3, 4], "seq_lengths": [5], "cu_seqlens": [0, 5], "document_ids": [7] * 5},
        {"embedding": [1, 2, 3]},
    ],
)
def test_metadata_passes(more: dict[str, Any]) -> None:
    found = tokens_document({"input_ids": IDS, **more}, "k", "s", "w", ())
    assert found == Document("k", "s", "w", tokens=IDS)


def test_positions_count_without_padding_at_the_left() -> None:
    row = {"input_ids": IDS, "attention_mask": [0, 0, 1, 1, 1], "position_ids": [1, 1, 0, 1, 2]}
    assert tokens_document(row, "k", "s", "w", ()) == Document("k", "s", "w", tokens=IDS[2:])
    assert tokens_document({**row, "attention_mask": [0] * 5}, "k", "s", "w", ()) == Skipped("empty")


@pytest.mark.parametrize("form", ["jsonl", "parquet", "folder"])
@pytest.mark.parametrize("column", ["labels", "attention_mask", "other"])
def test_only_a_source_with_such_columns_is_other_work(
    tmp_path: Path, form: str, column: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stored(tmp_path / "rows", form, [{"input_ids": IDS, column: IDS if column == "labels" else [1]}])
    source = resolve(SourceConfig(str(path), format="tokens"))
    ignoring = resolve(SourceConfig(str(path), format="tokens", ignore_columns=(column,)))
    assert (identity(source) != identity(ignoring)) == (column != "other")


def test_a_source_of_two_containers_is_refused(tmp_path: Path) -> None:
    """The second was read as the first: Parquet was "not valid JSON"."""
    stored(tmp_path / "a", "jsonl", [{"input_ids": IDS}])
    stored(tmp_path / "b", "parquet", [{"input_ids": IDS}])
    with pytest.raises(UserError, match="JSON lines and Parquet in one source"):
        resolve(SourceConfig(str(tmp_path), format="tokens"))
