"""Transforms of documents at prepare: the same text in another order, seeded by document, with weights at their tokens."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from byte_tokenizers import byte_fallback
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

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


# --- tokenizers that put a space before a text ------------------------------------------------------------------------------


def of_its_kind(kind: str) -> PreTrainedTokenizerFast:
    """Llama 2's kind, with bytes for what it does not know; and SentencePiece's unigrams as newer libraries write them."""
    control = ["</s>", PRE, MID, SUF]
    if kind == "llama":
        made = byte_fallback().backend_tokenizer
        made.add_special_tokens(control)
    else:
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind)
        made.decoder = decoders.Metaspace(prepend_scheme=kind)
        trainer = trainers.UnigramTrainer(
            vocab_size=120, special_tokens=["<unk>", *control], unk_token="<unk>", show_progress=False
        )
        made.train_from_iterator([t.replace("\n", " ") for t in TEXTS], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("kind", ["llama", "first", "always"])
def test_parts_of_a_document_are_no_texts_of_their_own(kind: str, tmp_path: Path) -> None:
    """Each part began with a space that its document does not have there: a model learned to put one into every gap it
    fills, and the text came back with two more."""
    tokenizer = of_its_kind(kind)
    tokenizer.save_pretrained(tmp_path)
    encoder = Encoder(tmp_path / "tokenizer.json", int(tokenizer.eos_token_id), token_bytes(tokenizer))
    ids_of = {name: encoder.backend.token_to_id(name) for name in (PRE, MID, SUF)}
    transforms = Transforms(transforms_of([{"name": "fim", "rate": 1.0}]), encoder, 0)
    texts = TEXTS if kind == "llama" else [t.replace("\n", " ").strip() for t in TEXTS]
    documents = [Document(f"d{i}", "code", "", text) for i, text in enumerate(texts)]
    plain = encoder.encode(texts)
    seen = set()
    for text, whole, made in zip(texts, plain, encode(transforms.documents(documents), encoder, []), strict=True):
        ids = made.ids.tolist()[:-1]
        pre, mid, suf = (ids.index(ids_of[name]) for name in (PRE, MID, SUF))
        if seen_spm := suf == pre + 1:  # SPM: the prefix stands behind MID, and where it ends the tokens do not say
            back = ids[mid + 1 :] + ids[suf + 1 : mid]
        else:
            back = ids[pre + 1 : suf] + ids[mid + 1 :] + ids[suf + 1 : mid]
        seen.add(seen_spm)
        assert encoder.decode(back) == encoder.decode(whole.tolist()[:-1]) == text
    assert seen == {True, False}
    if kind == "llama":
        [made] = encode(transforms.documents(documents[:1]), encoder, [WeightRule(0.5, regex="return")])
        assert made.weights is not None
        heavy = [t for t, w in zip(made.ids.tolist(), made.weights, strict=True) if w == 0.5]
        assert sorted(encoder.decode(heavy)) == sorted("return")


def test_a_tokenizer_that_cannot_say_the_inside_of_a_word_is_refused(tmp_path: Path) -> None:
    """WordPiece reads the end of a cut word as a word: "ret" and "urn" came back as two."""
    letters = sorted(set("ifx:return#thesum'"))
    vocab = {t: i for i, t in enumerate(["[UNK]", "[SEP]", PRE, MID, SUF, *letters, *(f"##{c}" for c in letters)])}
    made = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    made.add_special_tokens(["[SEP]", PRE, MID, SUF])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="[SEP]", unk_token="[UNK]")
    tokenizer.save_pretrained(tmp_path)
    encoder = Encoder(tmp_path / "tokenizer.json", int(tokenizer.eos_token_id), token_bytes(tokenizer))
    with pytest.raises(UserError, match=r"what is 'if x\W*' as one text begins as 'i f x' when it is cut behind 'i'"):
        Transforms(transforms_of([{"name": "fim"}]), encoder, 0)


@pytest.mark.parametrize("later", ["fim", "repository"])
def test_what_is_cut_is_neither_cut_again_nor_joined(later: str) -> None:
    """A second fim cut the middle of the first, with control tokens inside control tokens; a cut file was left out of its
    repository without a word."""
    with pytest.raises(UserError, match=rf"transforms.1: {later} behind fim \(transforms.0\) of the same documents"):
        transforms_of([{"name": "fim", "sources": ["a", "b"]}, {"name": later, "sources": ["b"]}])
    assert len(transforms_of([{"name": "fim", "sources": ["a"]}, {"name": later, "sources": ["b"]}])) == 2


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
