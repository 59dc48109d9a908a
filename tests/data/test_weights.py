"""Weights of tokens: from a column of the rows and from rules, at the right tokens wherever packing puts them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from byte_tokenizers import TEXTS, byte_fallback, byte_level
from folders import stored

from tokensieve.data.build.units import encode
from tokensieve.data.build.weigh import weigh_characters
from tokensieve.data.corpus import Corpus, describe, open_corpus
from tokensieve.data.read.documents import Document
from tokensieve.data.read.source import SourceConfig
from tokensieve.data.rows import Rows
from tokensieve.data.scored import join_scores
from tokensieve.data.tokenizer import Encoder, token_bytes
from tokensieve.data.weight_rules import WeightRule
from tokensieve.pipeline.prepare import PrepareConfig, run
from tokensieve.runs.errors import UserError

IDS = [70, 71, 72, 73, 74]
N = -100


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One token a byte."""
    here = tmp_path_factory.mktemp("base")
    (here / "a.jsonl").write_text('{"text": "row alpha beta gamma"}\n')
    config = PrepareConfig(str(here / "out"), [SourceConfig(str(here / "a.jsonl"))], vocab_size=257)
    return str(run(config, progress=False))


def prepare(out: Path, tokenizer: str, path: Path, source: dict[str, Any] | None = None, **settings: Any) -> Corpus:
    sources = [SourceConfig(str(path), **(source or {}))]
    config = PrepareConfig(str(out), sources, tokenizer=tokenizer, **{"length": 8, **settings})
    return open_corpus(run(config, progress=False), "full")


def flat(corpus: Corpus, name: str) -> list[Any]:
    return [t for row in corpus.rows for t in row[name][: row["num_tokens"]]]


# --- a column ----------------------------------------------------------------------------------------------------------

TOKEN_ROWS: list[tuple[dict[str, Any], list[float]]] = [
    ({"weight": [1, 0, -0.5, 2.5, 3]}, [1, 0, -0.5, 2.5, 3, 3]),  # the EOS put behind weighs what the last token does
    ({"weight": [1.0, 2.0, 3.0, 4.0, 5.0], "attention_mask": [0, 1, 1, 1, 0]}, [2, 3, 4, 4]),
    ({"weight": -0.25}, [-0.25] * 6),
    ({"weight": [0.0, 0.0, 1.0, 1.0, 0.5], "labels": [N, N, 72, 73, 74]}, [0, 0, 1, 1, 0.5, 0.5]),
]


@pytest.mark.parametrize("form", ["jsonl", "parquet", "folder"])
@pytest.mark.parametrize(("more", "weights"), TOKEN_ROWS)
def test_weights_of_tokens_are_cut_as_their_tokens(
    tmp_path: Path, tokenizer: str, form: str, more: dict[str, Any], weights: list[float]
) -> None:
    path = stored(tmp_path / "rows", form, [{"input_ids": IDS, **more}] * 3)
    corpus = prepare(tmp_path / "out", tokenizer, path, {"format": "tokens"})
    assert flat(corpus, "weight") == weights * 3
    assert all(set(r["weight"][r["num_tokens"] :]) <= {0.0} for r in corpus.rows)
    rows = Rows(join_scores(corpus), ("weight",))
    read = np.concatenate([rows[i]["weight"][:n] for i, n in enumerate(corpus.row_tokens())])
    assert read.tolist() == weights * 3
    assert ("labels" in corpus.rows.column_names) == ("labels" in more)


TEXT_ROWS: list[tuple[Any, list[float]]] = [
    (0.5, [0.5] * 7),
    ([1, 1, 0, 0, -1, 1.5], [1, 1, 0, 0, -1, 1.5, 1.5]),
    ([[0, 2, 0.0], [1, 3, 4.0]], [0, 4, 4, 1, 1, 1, 1]),  # later spans win; the EOS is in none of them
    ([[4.0, 6.0, 0.0]], [1, 1, 1, 1, 0, 0, 0]),
]


@pytest.mark.parametrize("form", ["jsonl", "parquet", "folder"])
@pytest.mark.parametrize(("given", "weights"), TEXT_ROWS)
def test_weights_beside_a_text(tmp_path: Path, tokenizer: str, form: str, given: Any, weights: list[float]) -> None:
    path = stored(tmp_path / "rows", form, [{"text": "abcdef", "weight": given}] * 3)
    assert flat(prepare(tmp_path / "out", tokenizer, path), "weight") == weights * 3


def test_rows_without_weights_beside_rows_with_them(tmp_path: Path, tokenizer: str) -> None:
    """All rows have the column then, over units; without weights every token's is 1, and padding's 0."""
    rows = [{"text": "abcdef"}, {"text": "abc", "weight": 0}, {"text": "abcdef"}]
    corpus = prepare(tmp_path / "out", tokenizer, stored(tmp_path / "rows", "jsonl", rows), unit_bytes=20)
    assert flat(corpus, "weight") == [1.0] * 7 + [0.0] * 4 + [1.0] * 7
    assert corpus.stats["weights"] == {"zero": 4, "negative": 0}
    assert "tokens have weights: 22.2% zero" in describe(corpus.manifest)
    opened: Any = datasets.load_from_disk(str(corpus.folder))
    assert opened["weight"] == corpus.rows["weight"]


def test_a_corpus_without_the_column_is_what_it_was(tmp_path: Path, tokenizer: str) -> None:
    """No column, no other hash: where there is none, where all weights are 1, and where nothing is to be read."""
    bare = prepare(tmp_path / "1", tokenizer, stored(tmp_path / "a", "jsonl", [{"text": "abcdef"}]))
    ones = prepare(tmp_path / "2", tokenizer, stored(tmp_path / "b", "jsonl", [{"text": "abcdef", "weight": [1] * 6}]))
    path = stored(tmp_path / "c", "jsonl", [{"text": "abcdef", "weight": "odd"}])
    unread = prepare(tmp_path / "3", tokenizer, path, {"ignore_columns": ("weight",)})
    other = prepare(tmp_path / "4", tokenizer, stored(tmp_path / "d", "jsonl", [{"text": "abcdef", "weight": 2}]))
    assert bare.content_hash == ones.content_hash == unread.content_hash != other.content_hash
    assert bare.content_hash == "sha256:443a833bff4180ebf326c35bfafad6e5541bba7eda18c1ce3166fc0c5a454bc3"  # as before
    assert bare.manifest["fingerprint"] != other.manifest["fingerprint"]


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"input_ids": IDS, "weight": [1.0, 2.0]}, "column 'weight' has 2 entries for 5 tokens"),
    ({"input_ids": IDS, "weight": [1, None, 1, 1, 1]}, "column 'weight' holds null at token 1, a number is needed"),
    ({"input_ids": IDS, "weight": float("nan")}, "column 'weight' holds nan, a finite number is needed"),
    ({"input_ids": IDS, "weight": "much"}, "column 'weight' must be a number or a list of numbers, this is a string"),
    (
        {"text": "abc", "weight": [1, 2]},
        "column 'weight' has 2 entries for 3 characters: give one a character, or spans",
    ),
    ({"text": "abc", "weight": [[0, 4, 1]]}, "span 0: 0 to 4 are no whole numbers within the text's 3 characters"),
    ({"text": "abc", "weight": [[0, 1, 1], [2, 1, 1]]}, "span 1: 2 to 1 are no whole numbers within"),
    ({"text": "abc", "weight": [[0, 1]]}, r"span 0: \[start, end, weight\] is needed, not \[0, 1\]"),
    ({"text": "abc", "weight": {"a": 1}}, "must be a number or a list, this is an object"),
    ({"text": "abc", "weight": True}, "must be a number or a list, this is a boolean"),
]


@pytest.mark.parametrize(("row", "says"), FAULTS)
def test_weights_that_cannot_be_meant_are_named(tmp_path: Path, tokenizer: str, row: dict[str, Any], says: str) -> None:
    path = stored(tmp_path / "rows", "jsonl", [row])
    with pytest.raises(UserError, match=f"rows.jsonl line 1: .*{says}"):
        prepare(tmp_path / "out", tokenizer, path, {"format": "tokens" if "input_ids" in row else "jsonl"})


# --- rules -------------------------------------------------------------------------------------------------------------

RULES = [
    WeightRule(0.5, tag="think"),
    WeightRule(2.0, regex=r"\d+|self"),
    WeightRule(0.0, tag="think", regex="[αβ]"),
    WeightRule(-1.0, regex="好|😀|e\u0301"),
]
RULED = "4 or 42 self <think>7 αβγ 8</think> is 你好, 世界😀 e\u0301 <think>never closed 3"


def expected(text: str) -> list[float]:
    """What RULES make of each character, and of the EOS, written down as loops."""
    import re

    weights = [1.0] * (len(text) + 1)
    inside = [m.span() for m in re.finditer(r"<think>.*?</think>", text)]
    for a, b in inside:
        weights[a:b] = [0.5] * (b - a)
    for found in re.finditer("self", text):  # byte_level has a token " self"
        weights[found.start() : found.end()] = [2.0] * 4
    for i, c in enumerate(text):
        if c.isdigit():
            weights[i] = 2.0
        if c in "αβ" and any(a <= i < b for a, b in inside):
            weights[i] = 0.0
        if c in "好😀" or text[i : i + 2] == "e\u0301" or text[i - 1 : i + 1] == "e\u0301":
            weights[i] = -1.0
    return weights


def encoder(tokenizer: Any, folder: Path) -> Encoder:
    tokenizer.save_pretrained(str(folder))
    eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else 1
    return Encoder(folder / "tokenizer.json", eos, token_bytes(tokenizer))


@pytest.mark.parametrize("kind", [byte_level, byte_fallback])
def test_a_token_belongs_to_its_first_character_that_is_no_space(tmp_path: Path, kind: Any) -> None:
    """Of a character cut into bytes every token: a weight that only its first token got would teach half a character."""
    tokenizer = kind()
    made = encoder(tokenizer, tmp_path)
    texts = [RULED, *(t for t in TEXTS if t), "x" + RULED.replace(" ", "\u3000") + " 5"]
    documents = [Document("d", "s", "here", text) for text in texts]
    for text, found in zip(texts, encode(documents, made, RULES), strict=True):
        wanted, want = [], expected(text)
        offsets = made.backend.encode(text, add_special_tokens=False).offsets
        for start, end in offsets:
            place = next((i for i in range(start, end) if not text[i].isspace()), min(start, len(text) - 1))
            wanted.append(want[place])
        weights = np.ones(len(found.ids)) if found.weights is None else found.weights
        assert weights.tolist() == [*wanted, want[-1]]
        assert found.ids.tolist() == made.encode([text])[0].tolist()


def test_bytes_and_offsets_give_the_same_places(tmp_path: Path) -> None:
    made = encoder(byte_level(), tmp_path)
    fast = made.encode_placed([t for t in [RULED, *TEXTS] if t], False)
    made.spells = False
    for (ids, places), (same, asked) in zip(
        fast, made.encode_placed([t for t in [RULED, *TEXTS] if t], False), strict=True
    ):
        assert np.array_equal(ids, same)
        assert np.array_equal(places, asked)


def test_rules_come_through_prepare(tmp_path: Path, tokenizer: str) -> None:
    """From a source, from a role of it; a rule that matched nothing is told, and documents no rule speaks of weigh 1."""
    rows = [{"source": "a", "text": "x 12"}, {"source": "b", "text": "x 12"}, {"source": "c", "text": "none"}]
    rules = [WeightRule(0.5, source="a"), WeightRule(3.0, regex=r"\d", source="b"), WeightRule(9.0, role="assistant")]
    corpus = prepare(tmp_path / "out", tokenizer, stored(tmp_path / "r", "jsonl", rows), weights=rules)
    assert flat(corpus, "weight") == [0.5] * 5 + [1, 1, 3, 3, 1] + [1] * 5
    ids = stored(tmp_path / "ids", "jsonl", [{"input_ids": IDS, "source": "a"}, {"input_ids": IDS, "weight": 2}])
    tokens = prepare(tmp_path / "t", tokenizer, ids, {"format": "tokens"}, weights=rules)
    assert flat(tokens, "weight") == [0.5] * 6 + [2.0] * 6


def test_a_problem_and_its_solution_are_roles(
    tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = stored(tmp_path / "rows", "jsonl", [{"q": "6*7", "a": "42"}])
    rules = [WeightRule(0.0, role="problem"), WeightRule(2.0, role="solution"), WeightRule(1.0, tag="thikn")]
    corpus = prepare(tmp_path / "out", tokenizer, path, {"problem": "q", "solution": "a"}, length=64, weights=rules)
    weights = dict(zip(["problem", "between", "solution"], [0.0, 1.0, 2.0], strict=True))
    text = "Problem: 6*7\nSolution: 42"
    wanted = [1.0] * 9 + [weights["problem"]] * 3 + [1.0] * 11 + [weights["solution"]] * 3
    assert len(wanted) == len(text) + 1
    assert flat(corpus, "weight") == wanted
    assert "weights.2 (tag: thikn) matched nothing in any document" in capsys.readouterr().err


def test_a_regular_expression_that_runs_away_is_stopped_by_name() -> None:
    document = Document("d", "s", "rows.jsonl line 7", "a" * 40 + "c")
    rules = [WeightRule(1.0, regex="c"), WeightRule(1.0, regex="(a|a)+b|c")]
    with pytest.raises(UserError, match=r"rows.jsonl line 7: weights.1: .*'\(a\|a\)\+b\|c' ran for more than 0.05 s"):
        weigh_characters(document, rules, np.ones(42, np.float32), seconds=0.05)


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (WeightRule(1.0), "weights.0: a rule needs one of role, regex, tag, source"),
        (WeightRule(1.0, regex="(a"), "weights.0: '\\(a' is no regular expression"),
        (WeightRule(float("inf"), role="user"), "weights.0: weight must be a finite number, not inf"),
        (WeightRule(1.0, tag=""), "weights.0: an empty text selects nothing"),
    ],
)
def test_rules_that_make_no_sense(tmp_path: Path, tokenizer: str, rule: WeightRule, says: str) -> None:
    with pytest.raises(UserError, match=says):
        prepare(tmp_path / "out", tokenizer, tmp_path, weights=[rule])
