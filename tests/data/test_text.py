"""Tokens as text: joined they are the text, and every character is whole."""

from __future__ import annotations

import numpy as np
import pytest
from byte_tokenizers import TEXTS, byte_fallback, byte_level
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tokensieve.data.text import token_pieces


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_pieces_join_to_the_text(make, text: str) -> None:
    """Tokens decoded one by one show U+FFFD for half a character, and lose the spaces before words."""
    tokenizer = make()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = token_pieces(tokenizer, np.array(ids, dtype=np.int32))
    assert len(pieces) == len(ids)
    assert "".join(pieces) == tokenizer.decode(ids) == text


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_a_split_character_is_the_first_tokens(make) -> None:
    tokenizer = make()
    ids = [i for text in ("a", "😀", "é") for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
    ids = [i for i in ids if tokenizer.convert_ids_to_tokens(i) != "▁"]
    assert len(ids) == 7
    assert token_pieces(tokenizer, ids) == ["a", "😀", "", "", "", "é", ""]


def test_a_row_cut_within_a_character() -> None:
    """Packed rows begin and end anywhere: the halves are U+FFFD and do not swallow their neighbours."""
    tokenizer = byte_level()
    first, last = (tokenizer(c, add_special_tokens=False)["input_ids"] for c in ("😀", "é"))
    pieces = token_pieces(tokenizer, [first[-1], *last, last[0]])
    assert pieces == ["\ufffd", "é", "", "\ufffd"]


@given(st.lists(st.integers(0, 299), max_size=12))
def test_any_ids_join_to_their_decoding(ids: list[int]) -> None:
    tokenizer = byte_level_once()
    assert "".join(token_pieces(tokenizer, ids)) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def byte_level_once(made: list[PreTrainedTokenizerFast] = []) -> PreTrainedTokenizerFast:  # noqa: B006
    made or made.append(byte_level())
    return made[0]


def bytes_of(tokenizer: PreTrainedTokenizerFast, values: bytes) -> list[int]:
    from tokenizers import pre_tokenizers

    vocab = tokenizer.get_vocab()
    if "<0x00>" in vocab:
        return [vocab[f"<0x{v:02X}>"] for v in values]
    # Byte-level vocabularies write the bytes that are no visible character in order, from U+0100.
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [v for v in range(256) if v not in visible]
    assert {chr(v) for v in visible} | {chr(256 + k) for k in range(len(hidden))} == {
        *pre_tokenizers.ByteLevel.alphabet()
    }
    return [vocab[chr(v if v in visible else 256 + hidden.index(v))] for v in values]


GARBAGE = [b"\xff", b"\x80", b"\xe4", b"\xe4\xbd", b"\xf0\x9f\x98", "\ufffd".encode(), "😀".encode(), b"\x80\xe4"]


@pytest.mark.parametrize("values", GARBAGE)
@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_bytes_that_never_form_a_character_cost_what_text_does(make, values: bytes, monkeypatch) -> None:
    """The window grew with every token whose bytes stayed open: 3,000 of them were decoded 3,000 times."""
    from tokensieve.data import text

    tokenizer, decoded = make(), [0]
    plain = text.decode

    def counted(tokenizer, ids):
        decoded[0] += len(ids)
        return plain(tokenizer, ids)

    monkeypatch.setattr(text, "decode", counted)
    ids = bytes_of(tokenizer, b"a" + values * (600 // len(values)) + b"b")
    pieces = token_pieces(tokenizer, ids)
    assert "".join(pieces) == plain(tokenizer, ids)
    assert decoded[0] <= 12 * len(ids)


MADE = {make: make() for make in (byte_level, byte_fallback)}


@pytest.mark.parametrize("make", MADE)
@given(parts=st.lists(st.sampled_from([*GARBAGE, b"a", b" ", "é".encode(), "你".encode()]), max_size=12))
def test_any_bytes_join_to_their_decoding(make, parts: list[bytes]) -> None:
    """One byte that is no UTF-8 makes U+FFFD of every character in its run of byte tokens, which were finished before."""
    tokenizer = MADE[make]
    ids = bytes_of(tokenizer, b"".join(parts))
    pieces = token_pieces(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert len(pieces) == len(ids)
