"""The strings of a page: joined they are the text, whole characters, nothing in them that a page would obey."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from byte_tokenizers import TEXTS, byte_fallback, byte_level
from hypothesis import given
from hypothesis import strategies as st

from tokensieve.report.pieces import PieceTable, shown_text

TOKENIZERS = {"byte_level": byte_level(), "byte_fallback": byte_fallback()}


def shown(kind: str, text: str) -> list[str]:
    tokenizer, table = TOKENIZERS[kind], PieceTable()
    ids = np.array(tokenizer(text, add_special_tokens=False)["input_ids"], np.int64)
    return [table.strings[i] for i in table.encode(tokenizer, ids)]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_joined_they_are_the_text(kind: str, text: str) -> None:
    assert "".join(shown(kind, text)) == shown_text(text)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_any_text(text: str) -> None:
    assert "".join(shown("byte_level", text)) == shown_text(text)


def test_a_character_is_its_first_tokens() -> None:
    assert [p for p in shown("byte_level", "a😀é") if p] == ["a", "😀", "é"]


def test_equal_strings_are_stored_once() -> None:
    tokenizer, table = TOKENIZERS["byte_level"], PieceTable()
    ids = np.array(tokenizer("the self the self the self", add_special_tokens=False)["input_ids"], np.int64)
    first = table.encode(tokenizer, ids)
    assert len(set(table.strings)) == len(table.strings) < len(ids) + 1
    assert np.array_equal(table.encode(tokenizer, ids), first)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_nothing_to_obey_is_left(text: str) -> None:
    left = {unicodedata.category(c) for c in shown_text(text) if c not in "\n\t\u200c\u200d"}
    assert not left & {"Cc", "Cf", "Co", "Cn", "Zl", "Zp"}
