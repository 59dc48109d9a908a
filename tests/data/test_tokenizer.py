import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tokensieve.data import tokenizer as tok
from tokensieve.runs.errors import UserError

TEXT = ["the cat sat on the mat. ", "ein Bär, ça va? 你好 🙂", "def f(x):\n    return x + 1\n"] * 20


@pytest.fixture(scope="module")
def trained() -> Any:
    return tok.train_tokenizer(TEXT, 290)


@pytest.fixture(scope="module")
def encoder(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> tok.Encoder:
    folder = tmp_path_factory.mktemp("tokenizer")
    trained.save_pretrained(str(folder))
    return tok.Encoder(folder / "tokenizer.json", trained.eos_token_id, tok.token_bytes(trained))


def metaspace(prepend: bool) -> Any:
    """A SentencePiece-like vocabulary with byte fallback, as Llama 2 and Gemma have."""
    characters = ["▁", *"abcdefghij", "▁a", "bc"]
    vocab = {t: i for i, t in enumerate(["<s>", "</s>", *[f"<0x{b:02X}>" for b in range(256)], *characters])}
    bpe = Tokenizer(models.BPE(vocab, [("▁", "a"), ("b", "c")], byte_fallback=True))
    bpe.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")] if prepend else [normalizers.Replace(" ", "▁")]
    )
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_bytes_of_byte_level_tokens_add_up_for_every_text(trained: Any, encoder: tok.Encoder, text: str) -> None:
    [ids] = encoder.encode([text])
    assert encoder.num_bytes(ids) == len(text.encode())
    assert ids[-1] == trained.eos_token_id
    assert encoder.decode(ids[:-1].tolist()) == text


def test_bytes_of_sentencepiece_like_tokens(tmp_path: Path) -> None:
    for prepend, extra in ((False, 0), (True, 1)):
        tokenizer = metaspace(prepend)
        tokenizer.save_pretrained(str(tmp_path))
        encoder = tok.Encoder(tmp_path / "tokenizer.json", tokenizer.eos_token_id, tok.token_bytes(tokenizer))
        for text in ("a bc", "abc é 🙂 a", "  a"):
            assert encoder.num_bytes(encoder.encode([text])[0]) == len(text.encode()) + extra


def test_special_tokens_have_no_bytes_and_other_added_ones_their_utf8(trained: Any) -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(trained.backend_tokenizer.to_str()), eos_token=tok.EOS
    )
    tokenizer.add_tokens(["<é>"])
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    table = tok.token_bytes(tokenizer)
    assert len(table) == len(tokenizer) == tok.vocab_size(tokenizer)
    assert table[tokenizer.convert_tokens_to_ids("<é>")] == 4
    assert table[tokenizer.pad_token_id] == table[tokenizer.eos_token_id] == 0
    assert tok.pad_id(tokenizer) == tokenizer.pad_token_id
    assert tok.pad_id(trained) == trained.eos_token_id


def test_an_eos_written_in_the_text_is_text(trained: Any, encoder: tok.Encoder) -> None:
    """Source files about tokenizers hold "<|endoftext|>"; as a token it would end the document in its middle."""
    text = f"print({tok.EOS!r})"
    for ids in (
        encoder.encode([text])[0],
        encoder.encode_from([text], [3])[0][0],
        pickle.loads(pickle.dumps(encoder)).encode([text])[0],
    ):
        assert (ids == trained.eos_token_id).sum() == 1
        assert encoder.num_bytes(ids) == len(text)


def test_a_saved_truncation_does_not_cut_documents(trained: Any, tmp_path: Path) -> None:
    """tokenizer.json keeps the truncation and padding of whoever called the tokenizer last."""
    backend = Tokenizer.from_str(trained.backend_tokenizer.to_str())
    backend.enable_truncation(4)
    backend.enable_padding(length=64, pad_id=0, pad_token=tok.EOS)
    backend.save(str(tmp_path / "tokenizer.json"))
    encoder = tok.Encoder(tmp_path / "tokenizer.json", 0, tok.token_bytes(trained))
    assert encoder.num_bytes(encoder.encode(["a long enough text"])[0]) == len("a long enough text")
    truncated = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=tok.EOS)
    assert tok.tokenizer_hash(truncated) == tok.tokenizer_hash(trained)


@given(st.text("ab é🙂\n\t", min_size=1), st.text("ab é🙂\n\t", min_size=1))
def test_the_solution_starts_at_its_first_character(encoder: tok.Encoder, before: str, after: str) -> None:
    """Oracle: bytes counted off the table. Tokens before the start end at or before it, the one at it goes past it."""
    [(ids, first)] = encoder.encode_from([before + after], [len(before)])
    ends = np.cumsum(encoder.bytes_table[ids[:-1]])
    assert first == int(np.argmax(ends > len(before.encode())))


@pytest.mark.parametrize("solution", ["4", " 4", "\n\nx", "é", "   "])
def test_a_solution_of_spaces_starts_in_its_place_when_offsets_are_trimmed(
    trained: Any, tmp_path: Path, solution: str
) -> None:
    """With trim_offsets (Llama 3) no token owns a space, and asking for the token of that character gives None."""
    backend = Tokenizer.from_str(trained.backend_tokenizer.to_str())
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(":", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    encoder = tok.Encoder(tmp_path / "tokenizer.json", 0, tok.token_bytes(trained))
    [(ids, first)] = encoder.encode_from(["What:" + solution], [5])
    assert encoder.decode(ids[first:-1].tolist()) == solution


def test_hash_survives_saving_and_follows_the_vocabulary(trained: Any, tmp_path: Path) -> None:
    trained.save_pretrained(str(tmp_path / "corpus/tokenizer"))
    once = tok.load_tokenizer(tmp_path / "corpus")  # a corpus stands for its tokenizer
    once.save_pretrained(str(tmp_path / "twice"))
    twice = tok.load_tokenizer(tmp_path / "twice")
    assert tok.tokenizer_hash(once) == tok.tokenizer_hash(twice) == tok.tokenizer_hash(trained)
    assert tok.tokenizer_hash(tok.train_tokenizer(TEXT, 289)) != tok.tokenizer_hash(trained)
    assert tok.tokenizer_identity(tmp_path / "corpus") == tok.tokenizer_identity(tmp_path / "corpus/tokenizer")


def test_training_gives_the_same_vocabulary_in_another_process_with_threads(trained: Any) -> None:
    """Counting words in a randomly seeded hash map, or on several threads, must not show in the merges."""
    code = f"from tokensieve.data.tokenizer import *; print(tokenizer_hash(train_tokenizer({TEXT!r}, 290)))"
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "TOKENIZERS_PARALLELISM": "true",
        "PYTHONHASHSEED": "7",
    }
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == tok.tokenizer_hash(trained)


def test_what_cannot_be_used_is_refused(trained: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        tok.load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be loaded"):
        tok.load_tokenizer(tmp_path)
    plain = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=plain).save_pretrained(str(tmp_path / "no_eos"))
    with pytest.raises(UserError, match="has no EOS token"):
        tok.load_tokenizer(tmp_path / "no_eos")
    with pytest.raises(UserError, match="at least 257"):
        tok.train_tokenizer(TEXT, 256)
