"""What becomes of text that a tokenizer has no tokens for, of control tokens written out, and of folders of other rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tokensieve.data.corpus import Corpus, describe, open_corpus
from tokensieve.data.read.source import SourceConfig
from tokensieve.data.tokenizer import EOS, train_tokenizer
from tokensieve.pipeline import prepare
from tokensieve.pipeline.prepare import PARTS
from tokensieve.runs.errors import UserError
from tokensieve.runs.manifest import read_manifest


def save(folder: Path, backend: Tokenizer, **config: Any) -> Path:
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def word_level() -> tuple[Tokenizer, dict[str, Any]]:
    made = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "a": 2, "b": 3}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made, {"eos_token": "</s>", "unk_token": "<unk>"}


def unigram() -> tuple[Tokenizer, dict[str, Any]]:
    made = Tokenizer(models.Unigram([("<unk>", 0.0), ("</s>", 0.0), ("a", -1.0), ("b", -1.0)], 0))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made, {"eos_token": "</s>", "unk_token": "<unk>"}


def unknown_is_eos() -> tuple[Tokenizer, dict[str, Any]]:
    """Its EOS stands behind every document, and is what unknown words come out as."""
    made = Tokenizer(models.WordLevel({"</s>": 0, "a": 1, "b": 2}, unk_token="</s>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made, {"eos_token": "</s>", "unk_token": "</s>"}


def byte_fallback() -> tuple[Tokenizer, dict[str, Any]]:
    vocab = ["<unk>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "b"]
    made = Tokenizer(models.BPE({t: i for i, t in enumerate(vocab)}, [], byte_fallback=True, unk_token="<unk>"))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return made, {"eos_token": "</s>", "unk_token": "<unk>"}


def byte_level() -> tuple[Tokenizer, dict[str, Any]]:
    return train_tokenizer(["a b"], 257).backend_tokenizer, {"eos_token": EOS, "unk_token": EOS}


def left_out() -> tuple[Tokenizer, dict[str, Any]]:
    """A BPE of characters without an unknown token: what it does not know, it leaves out without a word."""
    made = Tokenizer(models.BPE({"</s>": 0, "a": 1, "b": 2}, []))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made, {"eos_token": "</s>"}


def bytes_missing() -> tuple[Tokenizer, dict[str, Any]]:
    """Byte-level in name: trained without the alphabet, it knows the bytes that it saw."""
    made = Tokenizer(models.BPE({"</s>": 0, "a": 1, "b": 2, "Ġ": 3}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return made, {"eos_token": "</s>"}


# name -> (tokenizer, unknown tokens of "a b ? a" and "b ü b")
UNKNOWN: dict[str, tuple[Any, int]] = {
    "word level": (word_level, 2),
    "unigram": (unigram, 2),
    "EOS stands for unknown words": (unknown_is_eos, 2),
    "characters left out": (left_out, 2),
    "bytes left out": (bytes_missing, 2),
    "byte fallback": (byte_fallback, 0),
    "byte level, EOS named as the unknown token": (byte_level, 0),
}


def corpus_of(out: Path, tokenizer: Path, texts: list[str], **fields: Any) -> Corpus:
    path = out.parent / "t.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    given = {"length": 16, "workers": 1, **fields}
    return open_corpus(
        prepare.run(prepare.PrepareConfig(str(out), [SourceConfig(str(path))], str(tokenizer), **given), progress=False)
    )


@pytest.mark.parametrize("name", UNKNOWN)
def test_the_share_of_unknown_tokens_is_told_and_bounded(tmp_path: Path, name: str) -> None:
    """Text that a vocabulary cannot say became a row of <unk>, and a corpus of it passed for any other."""
    make, unknown = UNKNOWN[name]
    tokenizer, texts = save(tmp_path / "T", *make()[:1], **make()[1]), ["a b ? a", "b ü b"]
    if unknown:
        with pytest.raises(
            UserError, match=r"unknown to the tokenizer: 2 of \d+ tokens \(\d+\.\d\d%\), more than max_unk"
        ):
            corpus_of(tmp_path / "C", tokenizer, texts)
        parts = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "C" / PARTS).iterdir() if p.is_file()}
        assert "0000-000000.json" in parts  # nothing is done twice
        corpus = corpus_of(tmp_path / "C", tokenizer, texts, max_unknown=0.5)
    else:
        corpus = corpus_of(tmp_path / "C", tokenizer, texts)
    assert corpus.stats["unknown"] == unknown
    assert corpus.stats["unknown_share"] == pytest.approx(unknown / corpus.stats["tokens"])
    assert ("unknown to the tokenizer" in describe(corpus.manifest)) is bool(unknown)


def test_a_bound_that_is_no_share_is_refused(tmp_path: Path) -> None:
    tokenizer = save(tmp_path / "T", byte_level()[0], **byte_level()[1])
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(UserError, match="max_unknown is a share of the tokens, from 0 to 1"):
            corpus_of(tmp_path / "C", tokenizer, ["a"], max_unknown=wrong)


@pytest.mark.parametrize("special", ["<|im_end|>", EOS, "<bos>"])
def test_control_tokens_in_text_are_text_unless_asked_for(tmp_path: Path, special: str) -> None:
    backend = train_tokenizer(["a b"], 257).backend_tokenizer
    backend.add_special_tokens([AddedToken("<|im_end|>"), AddedToken("<bos>")])
    tokenizer = save(tmp_path / "T", backend, eos_token=EOS, bos_token="<bos>")
    texts = [f"a{special}b", f"{special}a", f"a{special}"]
    plain, parsed = (
        corpus_of(tmp_path / str(flag), tokenizer, texts, parse_special_tokens=flag, bos="always", length=128)
        for flag in (False, True)
    )
    bos, eos, found = (backend.token_to_id(t) for t in ("<bos>", EOS, special))
    a, b = (backend.token_to_id(c) for c in "ab")
    [row], [other] = plain.rows, parsed.rows
    assert row["num_tokens"] == len("".join(texts).encode()) + 2 * len(texts)
    # A document that says its own BOS or EOS has it once.
    begins = [bos, a] if special == "<bos>" else [bos, found, a]
    ends = [a, eos] if special == EOS else [a, found, eos]
    assert other["input_ids"][: other["num_tokens"]] == [bos, a, found, b, eos, *begins, eos, bos, *ends]


def test_a_corpus_made_by_a_classs_rules_is_other_work(tmp_path: Path) -> None:
    """Early versions tokenised by the class that tokenizer_config.json names: what they left is not taken for the file's."""
    backend = train_tokenizer(["a b 12 34"] * 3, 270).backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer = save(tmp_path / "T", backend, eos_token=EOS, tokenizer_class="GPT2Tokenizer")
    corpus = corpus_of(tmp_path / "C", tokenizer, ["a 12"])
    config = prepare.PrepareConfig(
        str(tmp_path / "C"), [SourceConfig(str(tmp_path / "t.jsonl"))], str(tokenizer), length=16
    )
    assert prepare.work(config).changes(read_manifest(corpus.folder)) == []
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # as GPT2Tokenizer laid it over the file
    backend.save(str(tmp_path / "C" / "tokenizer" / "tokenizer.json"))
    assert prepare.work(config).changes(read_manifest(corpus.folder)) == ["input tokenizer_rules"]
    # An unfinished one is begun again, with the file's rules, and comes out as the same work as any.
    (tmp_path / "C" / "manifest.json").unlink()
    (tmp_path / "C" / PARTS).mkdir()
    (tmp_path / "C" / PARTS / "plan.json").write_text(json.dumps({"fingerprint": prepare.work(config).fingerprint}))
    prepare.run(config, progress=False)
    assert prepare.work(config).changes(read_manifest(corpus.folder)) == []
    assert open_corpus(corpus.folder).content_hash == corpus.content_hash
