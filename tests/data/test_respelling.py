"""StochasTok, RefineX's deletions and TIPA at prepare: text stays, rate 0 is the identity, equal seeds are equal corpora."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from byte_tokenizers import TEXTS, byte_fallback, byte_level
from tokenizers import Tokenizer, decoders, models

from tokensieve.data.build.transforms.stochastok import TokenSplits, split_tokens
from tokensieve.data.build.transforms.tipa import reversed_characters, spellable
from tokensieve.data.corpus import Corpus, open_corpus
from tokensieve.data.read.programs import BadProgram, deleted_spans
from tokensieve.data.read.source import SourceConfig
from tokensieve.data.tokenizer import Encoder
from tokensieve.pipeline.prepare import PrepareConfig, run
from tokensieve.runs.errors import UserError

N = -100
ROWS = [
    {"id": "a", "text": "Home | About\nThe strawberry self returns, the self returns\nClick here",
     "program": "remove_lines(1, 1)\nremove_lines(3, 3)"},
    {"id": "b", "text": "def return the x self 你好 return the self", "program": "remove_str(1, '你好 ')"},
    {"id": "c", "text": "the the the return", "program": None},
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Merges of a few words; no document is in one token."""
    here = tmp_path_factory.mktemp("base")
    (here / "a.jsonl").write_text(json.dumps({"text": "the strawberry self returns, the self returns " * 3}) + "\n")
    config = PrepareConfig(str(here / "out"), [SourceConfig(str(here / "a.jsonl"))], vocab_size=300)
    return str(run(config, progress=False))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def prepare(out: Path, tokenizer: str, path: Path, *transforms: dict[str, Any], **settings: Any) -> Corpus:
    column = "program" if any(t["name"] == "deletions" for t in transforms) else None
    config = PrepareConfig(
        str(out),
        [SourceConfig(str(path), program=column)],
        tokenizer=tokenizer,
        transforms=list(transforms),
        **{"length": 256, **settings},
    )
    return open_corpus(run(config, progress=False), "full")


def flat(corpus: Corpus, name: str = "input_ids") -> list[Any]:
    return [t for row in corpus.rows for t in row[name][: row["num_tokens"]]]


def decoded(corpus: Corpus) -> str:
    return str(Tokenizer.from_file(str(corpus.folder / "tokenizer" / "tokenizer.json")).decode(flat(corpus), False))


# --- StochasTok -----------------------------------------------------------------------------------------------------------


def drawn(
    ids: list[int], rate: float, table: dict[int, list[tuple[int, int]]], rng: np.random.Generator
) -> tuple[int, ...]:
    """As the authors' code does it: a list, copied at each split."""
    for _ in range(int(len(ids) * rate)):
        at = int(rng.integers(len(ids)))
        if ids[at] in table:
            pair = table[ids[at]][int(rng.integers(len(table[ids[at]])))]
            ids = [*ids[:at], *pair, *ids[at + 1 :]]
    return tuple(ids)


def test_splits_are_drawn_as_the_authors_draw_them() -> None:
    """Frequencies of all results over 6,000 draws; what was split once is split again."""
    table = {7: [(1, 6), (5, 3)], 6: [(2, 3)], 5: [(1, 2)], 4: []}
    table = {k: v for k, v in table.items() if v}
    ours, theirs = Counter[tuple[int, ...]](), Counter[tuple[int, ...]]()
    rng, source = np.random.default_rng(0), random.Random(0)
    for _ in range(6_000):
        split, origin = split_tokens([7, 4, 7], 1.0, lambda t: table.get(t, ()), source)
        assert origin == sorted(origin)
        ours[tuple(split)] += 1
        theirs[drawn([7, 4, 7], 1.0, table, rng)] += 1
    assert set(ours) == set(theirs)
    for result, count in theirs.items():
        assert abs(ours[result] - count) < 5 * (2 * count) ** 0.5 + 5, result
    assert (1, 2, 3, 4, 5, 3) in ours


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_split_tokens_decode_to_the_same_text(make: Any) -> None:
    """Whatever the kind of vocabulary: no `<0xE4>` was split into letters, no control token touched."""
    made = make()
    pairs = TokenSplits(made.backend_tokenizer)
    for text in TEXTS:
        ids = made.backend_tokenizer.encode(text, add_special_tokens=False).ids
        for seed in range(5):
            split, origin = split_tokens(ids, 1.0, pairs, random.Random(seed))
            assert made.backend_tokenizer.decode(split, False) == made.backend_tokenizer.decode(ids, False)
            assert Counter(origin).keys() == set(range(len(ids)))
        assert split_tokens(ids, 0.0, pairs, random.Random(0)) == (ids, list(range(len(ids))))
    assert any(pairs(i) for i in range(len(made))) == (make is byte_level)  # the other has single characters only


def test_a_vocabulary_that_would_read_otherwise_is_refused() -> None:
    """WordPiece's decoder puts a space between two tokens that are no "##" parts."""
    wordpiece = Tokenizer(models.WordPiece({"[UNK]": 0, "un": 1, "##do": 2, "undo": 3, "do": 4}))
    wordpiece.decoder = decoders.WordPiece()
    with pytest.raises(UserError, match="stochastok: by this tokenizer's decoder \\(WordPiece\\)"):
        TokenSplits(wordpiece)


def test_a_corpus_of_split_tokens(tmp_path: Path, tokenizer: str, rows: Path) -> None:
    """More tokens of the same text; weights and targets stay with their characters; the same by any cut into units."""
    plain = prepare(tmp_path / "plain", tokenizer, rows)
    split = prepare(tmp_path / "split", tokenizer, rows, {"name": "stochastok", "rate": 0.5})
    assert decoded(split) == decoded(plain)
    assert len(flat(split)) > len(flat(plain))
    assert split.manifest["stats"]["bytes"] == plain.manifest["stats"]["bytes"]
    assert split.manifest["stats"]["transforms"] == [{"name": "stochastok", "documents": 3, "cut": 0}]
    units = prepare(tmp_path / "units", tokenizer, rows, {"name": "stochastok", "rate": 0.5}, unit_bytes=1)
    assert flat(units) == flat(split)
    other = prepare(tmp_path / "seed", tokenizer, rows, {"name": "stochastok", "rate": 0.5}, seed=1)
    assert flat(other) != flat(split)

    rules = [{"name": "deletions"}, {"name": "stochastok", "rate": 0.7}]
    masked, both = prepare(tmp_path / "m", tokenizer, rows, rules[0]), prepare(tmp_path / "b", tokenizer, rows, *rules)
    backend = Tokenizer.from_file(str(both.folder / "tokenizer" / "tokenizer.json"))
    said = [
        backend.decode([t for t, u in zip(flat(c), flat(c, "labels"), strict=True) if u != N], False)
        for c in (masked, both)
    ]
    assert said[0] == said[1]


# --- deletions ------------------------------------------------------------------------------------------------------------

TEXT = "Home | Products\nx *&x turns *&x out\nads\naaa b\n"


@pytest.mark.parametrize(
    ("program", "kept"),
    [
        ("keep_all()", TEXT),
        ("", TEXT),
        ("remove_lines(1, 1)", "x *&x turns *&x out\nads\naaa b\n"),
        ("remove_lines(2, 3)", "Home | Products\naaa b\n"),
        ("remove_lines(4, 5)", "Home | Products\nx *&x turns *&x out\nads\n"),
        ('remove_str(2, "*&x")', TEXT),  # twice: skipped
        ("remove_str(4, 'aa')", TEXT),  # twice, overlapping
        ("remove_str(2, 'turns ')\nremove_lines(3, 3)", "Home | Products\nx *&x *&x out\naaa b\n"),
        ("remove_str(3, 'not there')", TEXT),
    ],
)
def test_programs_delete_what_the_paper_says(program: str, kept: str) -> None:
    gone = {i for start, end in deleted_spans(TEXT, program) for i in range(start, end)}
    assert "".join(c for i, c in enumerate(TEXT) if i not in gone) == kept


@pytest.mark.parametrize(
    "program",
    ["remove_lines(0, 1)", "remove_lines(2, 1)", "remove_lines(1, 6)", "remove_str(1, 2)", "remove_lines(1)",
     "remove_lines(True, True)", "__import__('os')", "remove_str(line=1, text='x')", "x = 1", "remove_lines(1, 1", "\0"],
)  # fmt: skip
def test_what_is_no_program_is_told(program: str) -> None:
    with pytest.raises(BadProgram):
        deleted_spans(TEXT, program)


def test_deleted_text_is_read_and_not_trained(tmp_path: Path, tokenizer: str, rows: Path) -> None:
    """Token ids as without; targets say what RefineX would have kept, whatever rules say of the rest."""
    plain = prepare(tmp_path / "plain", tokenizer, rows)
    masked = prepare(tmp_path / "out", tokenizer, rows, {"name": "deletions"})
    assert flat(masked) == flat(plain)
    backend = Tokenizer.from_file(str(masked.folder / "tokenizer" / "tokenizer.json"))
    targets = [t for t, u in zip(flat(masked), flat(masked, "labels"), strict=True) if u != N]
    assert "labels" not in plain.rows.column_names
    assert backend.decode(targets, False).split("<|endoftext|>")[0] == "The strawberry self returns, the self returns\n"
    assert "你好" not in backend.decode(targets, False)
    assert masked.manifest["stats"]["transforms"][0]["documents"] == 2
    never = prepare(tmp_path / "never", tokenizer, rows, {"name": "deletions", "rate": 0.0})
    assert never.content_hash == plain.content_hash


# --- TIPA -----------------------------------------------------------------------------------------------------------------


def test_characters_are_spelled_as_the_authors_spell_them(tokenizer: str) -> None:
    """The example of their page; parts of characters, spaces and control tokens are left out."""
    assert reversed_characters("你好") == '{"2": "好", "1": "你"}'
    assert reversed_characters('a"') == '{"2": "\\"", "1": "a"}'
    encoder = Encoder(Path(tokenizer) / "tokenizer" / "tokenizer.json", 0, np.zeros(300, np.int64))
    pieces = spellable([0, *encoder.encode(["the  strawberry 好 the"])[0].tolist()], encoder)
    assert "the" in pieces
    assert all(p.strip() == p and p and "\ufffd" not in p and "<|" not in p for p in pieces)
    assert len(set(pieces)) == len(pieces)


def test_documents_that_spell(tmp_path: Path, tokenizer: str, rows: Path) -> None:
    """Every document as it was, and behind it one whose targets are the characters alone."""
    plain = prepare(tmp_path / "plain", tokenizer, rows)
    corpus = prepare(tmp_path / "out", tokenizer, rows, {"name": "tipa", "rate": 1.0, "tokens": 2}, length=512)
    documents, before = decoded(corpus).split("<|endoftext|>")[:-1], decoded(plain).split("<|endoftext|>")[:-1]
    assert documents[::2] == before
    backend = Tokenizer.from_file(str(corpus.folder / "tokenizer" / "tokenizer.json"))
    for text, row in zip(documents[1::2], ROWS, strict=True):
        lines = text.splitlines()
        assert len(lines) == 2
        for line in lines:
            token, _, told = line.partition(" = ")
            assert token in str(row["text"])
            assert "".join(json.loads(told).values()) == token[::-1]
    targets = backend.decode([t for t, u in zip(flat(corpus), flat(corpus, "labels"), strict=True) if u != N], False)
    spelled = targets.split("<|endoftext|>")[1]
    assert spelled.split() == "".join(line.partition(" = ")[2] + "\n" for line in documents[1].splitlines()).split()
    never = prepare(tmp_path / "never", tokenizer, rows, {"name": "tipa", "rate": 0.0})
    assert never.content_hash == plain.content_hash


# --- what is refused, and what stays ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("transforms", "source", "said"),
    [
        ([{"name": "stochastok", "rate": 1.5}], {}, "stochastok: rate is a share, from 0 to 1, not 1.5"),
        ([{"name": "tipa", "tokens": 0}], {}, "tipa: tokens must be at least 1"),
        ([{"name": "deletions"}], {}, "transforms.0: deletions are by programs: name their column"),
        ([], {"program": "program"}, "sources.0.program: nothing heeds it"),
        ([{"name": "deletions"}], {"program": "program", "format": "tokens"}, "only rows with one column of text"),
        ([{"name": "deletions"}], {"program": "progam"}, "line 1: program: column 'progam' is not there"),
        ([{"name": "deletions"}], {"program": "id"}, "line 1: program: column 'id': 'a' is none of remove_lines"),
    ],
)
def test_what_is_refused(
    tmp_path: Path, tokenizer: str, rows: Path, transforms: list[dict[str, Any]], source: dict[str, Any], said: str
) -> None:
    config = PrepareConfig(
        str(tmp_path / "out"), [SourceConfig(str(rows), **source)], tokenizer=tokenizer, transforms=transforms
    )
    with pytest.raises(UserError) as told:
        run(config, progress=False)
    assert said in str(told.value)
