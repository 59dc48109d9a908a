"""Transforms of documents at prepare: the same text in another order, seeded by document, with weights at their tokens."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokensieve.data.build.transforms import Transforms
from tokensieve.data.build.transforms.fim import SENTINELS
from tokensieve.data.build.transforms.repository import path_distance
from tokensieve.data.build.units import encode
from tokensieve.data.corpus import Corpus, describe, open_corpus
from tokensieve.data.read.documents import Document
from tokensieve.data.read.source import SourceConfig
from tokensieve.data.tokenizer import Encoder, token_bytes
from tokensieve.data.weight_rules import WeightRule
from tokensieve.pipeline.prepare import PrepareConfig, run
from tokensieve.pipeline.transforms import transforms_of
from tokensieve.runs.errors import UserError

TEXTS = [f"def f{i}(x):\n    return x * {i}  # café 🙂 {'ab' * (i % 5)}\n" for i in range(40)]
PRE, MID, SUF = SENTINELS[0]
TREE = {"one/a.py": "import b\n", "one/deep/c.py": "c = 1\n", "one/deep/d.py": "d = 2\n", "two/e.py": "é = 3\n"}


def prepare(here: Path, name: str, transforms: list[dict[str, Any]], **more: Any) -> Corpus:
    path = here / "code.jsonl"
    path.write_text("".join(json.dumps({"id": f"d{i}", "text": text}) + "\n" for i, text in enumerate(TEXTS)))
    fields = {"length": 64, "vocab_size": 270, "transforms": transforms, "sources": [SourceConfig(str(path))], **more}
    return open_corpus(run(PrepareConfig(str(here / name), **fields), progress=False), "full")


def decoded(corpus: Corpus) -> list[str]:
    tokenizer = corpus.tokenizer()
    documents = corpus.tokens_of(np.arange(corpus.stats["documents"]))
    return [tokenizer.decode(ids).removesuffix(tokenizer.eos_token) for ids in documents]


def rejoined(text: str) -> str:
    """A document put back in order."""
    if (spm := re.fullmatch(f"{re.escape(PRE + SUF)}(.*){re.escape(MID)}(.*)", text, re.S)) is not None:
        return spm[2] + spm[1]
    psm = re.fullmatch(f"{re.escape(PRE)}(.*){re.escape(SUF)}(.*){re.escape(MID)}(.*)", text, re.S)
    return text if psm is None else psm[1] + psm[3] + psm[2]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("transforms")


@pytest.fixture(scope="module")
def half(here: Path) -> Corpus:
    return prepare(here, "half", [{"name": "fim", "rate": 0.5}])


def test_filling_in_the_middle_says_the_same_text(half: Corpus) -> None:
    """A part lost, doubled or in another place would teach a model to fill gaps wrongly, at a loss that looks fine."""
    found = decoded(half)
    assert [rejoined(text) for text in found] == TEXTS
    changed = [text for text in found if text not in TEXTS]
    assert 10 <= len(changed) <= 30
    assert {text.startswith(PRE + SUF) for text in changed} == {True, False}
    [told] = half.stats["transforms"]
    assert (told["name"], told["documents"]) == ("fim", len(changed))
    assert f"fim: {len(changed)} documents changed" in describe(half.manifest)
    assert half.stats["bytes"] == sum(len(text.encode()) for text in TEXTS)
    assert half.stats["token_bytes_exact"]


def test_a_document_s_draw_is_its_own(half: Corpus, here: Path) -> None:
    """Keyed by document: other documents beside it, in another order, change nothing of it; another seed does."""
    encoder = _encoder(half)
    transforms = Transforms(transforms_of([{"name": "fim", "rate": 0.5}]), encoder, 0)
    documents = [Document(f"d{i}", "code", "", text) for i, text in enumerate(TEXTS)]
    forward = {d.id: d.parts for d in transforms.documents(documents)}
    assert {d.id: d.parts for d in transforms.documents(documents[::-2])}.items() <= forward.items()
    other = Transforms(transforms_of([{"name": "fim", "rate": 0.5}]), encoder, 1)
    assert {d.id: d.parts for d in other.documents(documents)} != forward
    twice = list(transforms.documents([documents[0]] * 20))  # a document that a table takes twenty times
    assert len({d.parts for d in twice}) > 5


def test_at_rate_0_nothing_changes(half: Corpus, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = str(half.folder)
    never = prepare(here, "never", [{"name": "fim", "rate": 0.0}], tokenizer=given)
    assert never.content_hash == prepare(here, "plain", [], tokenizer=given).content_hash
    assert "transforms.0 (fim) changed no document" in capsys.readouterr().err
    elsewhere = prepare(here, "elsewhere", [{"name": "fim", "rate": 1.0, "sources": ["prose"]}], tokenizer=given)
    assert elsewhere.content_hash == never.content_hash


def _encoder(corpus: Corpus) -> Encoder:
    tokenizer = corpus.tokenizer()
    return Encoder(corpus.folder / "tokenizer" / "tokenizer.json", corpus.eos_id, token_bytes(tokenizer))


def test_weights_follow_their_characters(half: Corpus) -> None:
    encoder = _encoder(half)
    transforms = Transforms(transforms_of([{"name": "fim", "rate": 1.0}]), encoder, 3)
    documents = [Document(f"d{i}", "code", "", text) for i, text in enumerate(TEXTS)]
    for made in encode(transforms.documents(documents), encoder, [WeightRule(0.5, regex="return|🙂")]):
        assert made.weights is not None
        ids = made.ids.tolist()
        heavy = encoder.decode([t for t, w in zip(ids, made.weights, strict=True) if w == 0.5])
        assert sorted(heavy.replace("🙂", "")) == sorted("return")
        control = {encoder.backend.token_to_id(t) for t in (PRE, MID, SUF)} | {encoder.eos_id}
        assert {w for t, w in zip(ids, made.weights, strict=True) if t in control} == {1.0}


# --- repositories ----------------------------------------------------------------------------------------------------------


def test_files_of_a_repository_are_one_document(here: Path, half: Corpus) -> None:
    for name, text in TREE.items():
        (here / "repos" / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "repos" / name).write_text(text)
    sources = [SourceConfig(str(here / "repos"), name="repos", format="python")]
    corpus = prepare(
        here, "repositories", [{"name": "repository"}, {"name": "fim", "rate": 1.0, "spm": 0.0}], sources=sources
    )
    one, two = decoded(corpus)
    begun = "<|repo_name|>one\n<|file_sep|>a.py\nimport b\n\n<|file_sep|>deep/c.py\nc = 1\n\n<|file_sep|>deep/d.py\n"
    assert one.startswith(begun + PRE)
    assert rejoined(one.removeprefix(begun)) == "d = 2\n"
    assert rejoined(two.removeprefix("<|repo_name|>two\n<|file_sep|>e.py\n")) == "é = 3\n"
    assert corpus.stats["token_bytes_exact"]


def test_nearer_files_stand_nearer(half: Corpus) -> None:
    assert path_distance("one/deep/c.py", "one/deep/d.py") == 2
    assert path_distance("one/a.py", "one/deep/d.py") == 3
    assert path_distance("one/a.py", "one/a.py") == 0
    encoder = _encoder(half)
    tokens = [PRE, SUF]
    found = set()
    for seed in range(12):
        given = transforms_of([{"name": "repository", "order": "distance", "tokens": tokens}])
        documents = [Document(name, "code", "", text) for name, text in TREE.items() if name.startswith("one")]
        [made] = Transforms(given, encoder, seed).documents(documents)
        files = re.findall(r"^\S+\.py$", made.text, re.M)
        steps = [path_distance(f"one/{f}", f"one/{files[-1]}") for f in files]
        assert steps == sorted(steps, reverse=True)
        found.add(files[-1])
    assert found == {"a.py", "deep/c.py", "deep/d.py"}


@pytest.mark.parametrize(
    ("transform", "says"),
    [
        ({"name": "fmi"}, "transforms.0: unknown transform 'fmi', did you mean 'fim'"),
        ({"rate": 0.5}, "transforms.0: name is missing"),
        ({"name": "fim", "rat": 0.5}, "transforms.0: unknown field 'rat', did you mean 'rate'"),
        ({"name": "fim", "rate": 1.5}, "fim: rate is a share, from 0 to 1, not 1.5"),
        ({"name": "fim", "tokens": ["<a>", "<b>", "<c>"]}, "fim: the tokenizer has no token '<a>'"),
        ({"name": "repository"}, r"repository: the tokenizer has no token '<\|repo_name\|>'"),
    ],
)
def test_what_is_no_transform_is_refused(here: Path, half: Corpus, transform: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        prepare(here, "refused", [transform], tokenizer=str(half.folder))


def test_what_a_program_deletes_of_a_file_is_no_target_in_its_repository(half: Corpus) -> None:
    """Joined files lost their programs: deleted text was trained on, in either order, and so were others' characters; and a
    control token that stood first was taken for a BOS."""
    of_half = _encoder(half)
    files = [
        Document(f"one/{name}.py", "s", name, text, program=((2, 6),))
        for name, text in (("a", "xxxxGONEyyyy"[2:]), ("b", "12GONE34"))
    ]
    names = [{"name": "deletions"}, {"name": "repository", "tokens": [PRE, SUF]}, {"name": "fim", "rate": 0.0}]
    for order in (names, [names[1], names[0], names[2]]):
        made = Transforms(transforms_of(order), of_half, 0)
        [joined] = made.documents(files)
        assert [joined.text[lo:hi] for lo, hi in joined.deleted] == ["GONE", "GONE"]
        [found] = encode([joined], of_half, [])
        assert found.labels is not None
        assert found.labels[0] == of_half.backend.token_to_id(PRE)
        assert "GONE" not in of_half.decode([i for i in found.labels.tolist() if i >= 0])
