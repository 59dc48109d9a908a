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
