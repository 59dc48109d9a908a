"""Tables and coloured tokens: aligned, wrapped, and deaf to what corpus text would tell the terminal."""

from __future__ import annotations

import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tokensieve.report.terminal import ANSI as ANSI_STYLES
from tokensieve.report.terminal import colour_tokens, paint_tokens, table, token_pieces, visible

ANSI = re.compile(r"\x1b\[[0-9;]*m")
TEXTS = [
    "def f(x):\n    return x  # naïve 你好, 世界 😀 e\u0301",
    "👩‍👩‍👧 שלום",
    "\ufffd genuine \ufffd",
    "你",
    "",
]


def columns_of(text: str) -> int:
    return sum(
        0 if unicodedata.category(c) in ("Mn", "Me") else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text
    )


def byte_level() -> PreTrainedTokenizerFast:
    """256 bytes and a few merges: every non-ASCII character is several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<eos>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(["def return the x self 你好"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def byte_fallback() -> PreTrainedTokenizerFast:
    """The Llama 2 kind: a space is part of the word's token, its decoder drops the first one, unknown bytes are tokens."""
    vocab = ["<unk>", "<s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *map(chr, range(33, 127)), "好"]
    tokenizer = Tokenizer(models.BPE({v: i for i, v in enumerate(vocab)}, [], byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")


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


def test_colours() -> None:
    text = colour_tokens(["a", " b", " c", " d"], [True, True, False, True], [True, True, True, False])
    legend, line = text.split("\n")
    assert ANSI.sub("", legend) == "kept / dropped, share kept 67 % of 3 tokens"
    assert line == "\x1b[1;32ma b\x1b[0m\x1b[2m c\x1b[0m d"


def test_without_colour_kept_text_stands_in_brackets() -> None:
    text = colour_tokens(["a", " b", " c", " d"], [True, True, False, True], [True] * 4, color=False)
    assert text.split("\n") == ["[kept] / dropped, share kept 75 % of 4 tokens", "[a b] c[ d]"]
    assert "\x1b" not in text


def test_no_valid_token_is_no_share() -> None:
    assert colour_tokens([], [], [], color=False) == "[kept] / dropped, no valid token"
    assert "no valid token" in colour_tokens(["a"], [True], [False], color=False)


def test_lengths_must_agree() -> None:
    for pieces, keep, valid in ((["a"], [], []), ([], [True], [True]), (["a"], [True], [])):
        with pytest.raises(ValueError, match=r"argument|pieces"):
            colour_tokens(pieces, keep, valid)


@given(
    st.lists(st.tuples(st.text(st.characters(exclude_categories=()), max_size=12), st.booleans(), st.booleans())),
    st.integers(20, 60),
    st.booleans(),
)
def test_corpus_text_cannot_drive_the_terminal(tokens: list[tuple[str, bool, bool]], width: int, color: bool) -> None:
    """Whatever the text: no control or format character but our own colours, each closed on its line, no line too wide."""
    pieces, keep, valid = ([t[i] for t in tokens] for i in range(3))
    text = colour_tokens(pieces, keep, valid, width=width, color=color)
    for line in text.split("\n")[1:]:
        bare = ANSI.sub("", line) if color else line
        assert not [c for c in bare if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")]
        assert columns_of(bare) <= width
        codes = ANSI.findall(line)
        assert codes[1::2] == ["\x1b[0m"] * (len(codes) // 2)
        assert "\x1b[0m" not in codes[::2]
        assert len(codes) % 2 == 0
    text.encode()


@given(
    st.lists(st.tuples(st.text(max_size=6), st.sampled_from(sorted(ANSI_STYLES)))), st.integers(20, 50), st.booleans()
)
def test_lines_of_any_styles_fit(tokens: list[tuple[str, str]], width: int, color: bool) -> None:
    """Runs of two kinds of brackets side by side take four columns, not two. Nothing of the text is lost."""
    pieces, styles = [t[0] for t in tokens], [t[1] for t in tokens]
    lines = paint_tokens(pieces, styles, width=width, color=color)
    bare = [ANSI.sub("", line) for line in lines]
    assert all(columns_of(line) <= width for line in bare)
    if color:
        kept = "".join(map(visible, "".join(pieces))).replace(" ", "")
        assert "".join(bare).replace(" ", "") == kept


@pytest.mark.parametrize(
    ("evil", "shown"),
    [
        ("\x1b]0;title\x07", "␛]0;title␇"),
        ("\x1b[2J", "␛[2J"),
        ("\r", "␍"),
        ("\x7f", "␡"),
        ("\x9b31m", "<U+009B>31m"),
        ("\u202eabc", "<U+202E>abc"),
        ("\u2066", "<U+2066>"),
        ("\u2028", "<U+2028>"),
        ("\ud800", "<U+D800>"),
    ],
)
def test_controls_are_shown_as_symbols(evil: str, shown: str) -> None:
    """An escape sequence in a crawled page could retitle the window, clear it, or hide text; a lone surrogate stops print."""
    assert colour_tokens([evil], [False], [True], color=False).split("\n")[1] == shown
    assert shown in table([{"a": evil}], ["a"])


def test_lines_break_at_spaces_and_newlines() -> None:
    words = [" lorem"] * 8
    text = colour_tokens(["x = 1\n", *words], [False] * 9, [True] * 9, width=20, color=False)
    assert text.split("\n")[1:] == ["x = 1↵", " lorem lorem lorem", "lorem lorem lorem", "lorem lorem"]


def test_wide_characters_take_two_columns() -> None:
    """Counting characters instead of columns doubles the width of a Chinese text."""
    text = colour_tokens(["你" * 25], [True], [True], width=20)
    assert [ANSI.sub("", line) for line in text.split("\n")[1:]] == ["你" * 10, "你" * 10, "你" * 5]
    bracketed = colour_tokens(["你" * 25], [True], [True], width=20, color=False)
    assert bracketed.split("\n")[1:] == [f"[{'你' * 9}]", f"[{'你' * 9}]", f"[{'你' * 7}]"]


def test_a_wide_character_after_a_long_word_keeps_the_width() -> None:
    """Moving a word to the next line together with the wide character that did not fit made a line of width + 1."""
    text = colour_tokens(["x " + "a" * 18 + "你" * 2], [False], [True], width=20, color=False)
    assert text.split("\n")[1:] == ["x", "a" * 18 + "你", "你"]
    text = colour_tokens(["x " + "a" * 18 + "\u202e" * 2], [False], [True], width=20, color=False)
    assert text.split("\n")[1:] == ["x", "a" * 18, "<U+202E><U+202E>"]


def test_what_does_not_fit_is_counted() -> None:
    text = colour_tokens(["a\n"] * 7, [True] * 7, [True] * 7, lines=3, color=False)
    assert text.split("\n")[1:] == ["[a↵]"] * 3 + ["... 4 more tokens"]
    exact = colour_tokens(["a\n"] * 3, [True] * 3, [True] * 3, lines=3, color=False)
    assert exact.split("\n")[1:] == ["[a↵]"] * 3


def test_table_aligns() -> None:
    rows = [
        {"arm": "clm", "nll": 5.4951, "tokens": 1234567, "flops": 2.5e15},
        {"arm": "世界", "nll": None, "tokens": 12},
    ]
    assert table(rows, ["arm", "nll", "tokens", "flops"]).split("\n") == [
        "arm     nll     tokens      flops",
        "----  -----  ---------  ---------",
        "clm   5.495  1,234,567  2.500e+15",
        "世界      -         12          -",
    ]


def test_table_markdown_and_headings() -> None:
    rows = [{"arm": "a|b", "x": np.float32(0.5)}, {"arm": "c\\\n", "x": np.int64(3)}]
    assert table(rows, {"arm": "Arm", "x": "nll"}, markdown=True).split("\n") == [
        "| Arm  |   nll |",
        "| ---- | ----: |",
        "| a\\|b | 0.500 |",
        "| c\\\\↵ |     3 |",
    ]


def test_table_of_nothing() -> None:
    assert table([], ["a", "bc"]) == "a  bc\n-  --"
    assert table([{"a": True, "b": float("nan")}], ["a", "b"]).split("\n")[2] == "yes  nan"
