"""A folder's tokenizer.json is what tokenises, and two tokenizers are the same only if they give every text the same ids."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tokensieve.data import tokenizer as tok
from tokensieve.data.tokenizer_state import tokenizer_difference
from tokensieve.modeling.load import check_tokenizer
from tokensieve.runs.errors import UserError

TEXT = "In 1990 there were 4556 cats,  i\u0308 ﬁ x1y22"
DIGITS = {
    "type": "Sequence",
    "pretokenizers": [
        {
            "type": "Split",
            "pattern": {"Regex": r"\p{N}{1,3}| ?\p{L}+|[^\p{L}\p{N}]"},
            "behavior": "Isolated",
            "invert": False,
        },
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ],
}
State = dict[str, Any]


@pytest.fixture(scope="module")
def state() -> State:
    texts = ["in 1990 there were 4556 cats", "In 22 x1y there 1990 4556 were"] * 9
    made: State = json.loads(tok.train_tokenizer(texts, 330).backend_tokenizer.to_str())
    return {**made, "pre_tokenizer": DIGITS}


def folder_of(path: Path, state: State, config: dict[str, Any], model_type: str | None = None) -> Path:
    path.mkdir()
    (path / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    if model_type is not None:
        (path / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
    return path


def ids_of_file(path: Path) -> list[int]:
    found: list[int] = Tokenizer.from_file(str(path / "tokenizer.json")).encode(TEXT, add_special_tokens=False).ids
    return found


@pytest.mark.parametrize(
    ("name", "model_type"),
    [
        ("GPT2Tokenizer", None),
        ("GPT2Tokenizer", "gpt2"),
        ("Qwen2Tokenizer", None),
        ("Qwen2TokenizerFast", "qwen3"),
        (None, "qwen2"),
        ("TokenizersBackend", "qwen2"),
        ("LlamaTokenizerFast", "llama"),
        ("GemmaTokenizer", "gemma2"),
        ("GPTNeoXTokenizer", "gpt_neox"),
    ],
)
def test_tokenizer_json_tokenises(state: State, tmp_path: Path, name: str | None, model_type: str | None) -> None:
    """AutoTokenizer laid the class's pre-tokenizer over the file: twice or half as many tokens, and no word of it."""
    config = {"eos_token": tok.EOS, **({"tokenizer_class": name} if name else {})}
    source = folder_of(tmp_path / "source", state, config, model_type)
    loaded = tok.load_tokenizer(source)
    assert loaded(TEXT, add_special_tokens=False)["input_ids"] == ids_of_file(source)
    loaded.save_pretrained(str(tmp_path / "saved"))
    if model_type is not None:  # as `train` writes it: AutoTokenizer is told another class than the model's
        (tmp_path / "saved" / "config.json").write_text(json.dumps({"model_type": model_type}))
    again = tok.load_tokenizer(tmp_path / "saved")
    assert again(TEXT, add_special_tokens=False)["input_ids"] == ids_of_file(source) == ids_of_file(tmp_path / "saved")
    assert tok.tokenizer_hash(again) == tok.tokenizer_hash(loaded)
    auto = AutoTokenizer.from_pretrained(str(tmp_path / "saved"))(TEXT, add_special_tokens=False)["input_ids"]
    assert (auto == ids_of_file(source)) is (tok.auto_override(tmp_path / "saved") is None) is (model_type != "qwen2")


def test_settings_beside_the_file_are_kept(state: State, tmp_path: Path) -> None:
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "pad_token": "cat",
        "model_max_length": 77,
        "chat_template": "{{ messages }}",
        "padding_side": "left",
    }
    source = folder_of(tmp_path / "source", state, config)
    (source / "special_tokens_map.json").write_text(json.dumps({"eos_token": tok.EOS, "bos_token": tok.EOS}))
    for _ in range(2):
        loaded = tok.load_tokenizer(source)
        assert (loaded.eos_token, loaded.bos_token, loaded.pad_token, loaded.model_max_length) == (
            tok.EOS,
            tok.EOS,
            "cat",
            77,
        )
        assert (loaded.chat_template, loaded.padding_side) == ("{{ messages }}", "left")
        loaded.save_pretrained(str(source := tmp_path / "saved"))


@pytest.mark.parametrize("model_type", ["gpt2", "qwen2"])
def test_special_tokens_that_only_the_class_names(state: State, tmp_path: Path, model_type: str) -> None:
    """GPT-2's own folder names no EOS: its class does. Its rules stay those of the file."""
    loaded = tok.load_tokenizer(folder_of(tmp_path / "source", state, {"model_max_length": 1024}, model_type))
    assert loaded.eos_token == tok.EOS
    assert loaded(TEXT, add_special_tokens=False)["input_ids"] == ids_of_file(tmp_path / "source")


@pytest.mark.parametrize(
    ("part", "rule"),
    [
        ("normalizer", normalizers.Lowercase()),
        ("pre_tokenizer", pre_tokenizers.Whitespace()),
        ("decoder", decoders.Fuse()),
    ],
)
def test_rules_that_transformers_replaces_all_the_same_are_refused(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, rule: Any
) -> None:
    """It mends the regex of some vocabularies as they are loaded; whatever it will mend, ids are the file's or none."""
    monkeypatch.setattr(
        PreTrainedTokenizerFast, "update_post_processor", lambda self: setattr(self._tokenizer, part, rule)
    )
    folder = folder_of(tmp_path / "source", {**state, "post_processor": None}, {"eos_token": tok.EOS})
    with pytest.raises(UserError, match=rf"puts another {part} in the place of tokenizer\.json's"):
        tok.load_tokenizer(folder)


# ---- two tokenizers ----


def other(state: State, **parts: Any) -> State:
    return json.loads(json.dumps({**state, **parts}))  # type: ignore[no-any-return]


def with_model(**fields: Any) -> Callable[[State], State]:
    return lambda s: other(s, model={**s["model"], **fields})


def with_added(content: str, special: bool, id: int = 330) -> Callable[[State], State]:
    token = {"id": id, "content": content, "special": special, "normalized": False}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    return lambda s: other(s, added_tokens=[*s["added_tokens"], {**token, **flags}])


def exchanged(s: State) -> State:
    vocab = dict(s["model"]["vocab"])
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    return with_model(vocab=vocab)(s)


ANOTHER: dict[str, tuple[Callable[[State], State], str]] = {
    "two ids exchanged": (exchanged, "token 'a'"),
    "merges in another order": (lambda s: with_model(merges=s["model"]["merges"][::-1])(s), "their merges"),
    "a merge less": (lambda s: with_model(merges=s["model"]["merges"][:-1])(s), "their merges"),
    "words taken whole": (with_model(ignore_merges=True), "their model's ignore_merges"),
    "dropout": (with_model(dropout=0.1), "their model's dropout"),
    "a normalizer": (lambda s: other(s, normalizer={"type": "NFKC"}), "their normalizer"),
    "another normalizer": (lambda s: other(s, normalizer={"type": "Lowercase"}), "their normalizer"),
    "a pre_tokenizer": (lambda s: other(s, pre_tokenizer=DIGITS["pretokenizers"][1]), "their pre_tokenizer"),
    "a space before a text": (
        lambda s: other(s, pre_tokenizer={**DIGITS["pretokenizers"][1], "add_prefix_space": True}),  # type: ignore[index]
        "their pre_tokenizer",
    ),
    "a decoder": (lambda s: other(s, decoder={"type": "Fuse"}), "their decoder"),
    "a further token that is text": (with_added("cats", special=False), "token 'cats'"),
    "a further character": (lambda s: with_model(vocab={**s["model"]["vocab"], "界": 330})(s), "token '界'"),
    "EOS found in text": (
        lambda s: other(s, added_tokens=[{**s["added_tokens"][0], "special": False}]),
        "token '<|endoftext|>'",
    ),
}
THE_SAME: dict[str, Callable[[State], State]] = {
    "itself": lambda s: s,
    "further special tokens": with_added("<|im_end|>", special=True),
    "a vocabulary padded": lambda s: with_model(vocab={**s["model"]["vocab"], "<unused_0>": 330})(s),
    "truncation": lambda s: other(
        s, truncation={"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    ),
    "no post_processor": lambda s: other(s, post_processor=None),
    "offsets": lambda s: json.loads(json.dumps(s).replace('"trim_offsets": true', '"trim_offsets": false')),
    "options that are off, written otherwise": with_model(continuing_subword_prefix="", dropout=None),
}


def read(state: State) -> State:
    found: State = json.loads(Tokenizer.from_str(json.dumps(state)).to_str())
    return found


@pytest.mark.parametrize("name", ANOTHER)
def test_another_tokenizer_is_refused_by_what_differs(state: State, tmp_path: Path, name: str) -> None:
    """Only vocabularies were compared: the same tokens with other merges or another pre-tokenizer went for the same."""
    change, says = ANOTHER[name]
    assert (tokenizer_difference(read(state), read(change(state))) or "").startswith(says)
    ours = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token=tok.EOS)
    if name == "EOS found in text":  # transformers makes the EOS it is told special, in a folder too
        return
    model = folder_of(tmp_path / "model", change(state), {"eos_token": tok.EOS}, "llama")
    with pytest.raises(UserError, match=f"model was trained with another tokenizer than CORPUS: they differ in {says}"):
        check_tokenizer(model, ours, "CORPUS")


@pytest.mark.parametrize("name", THE_SAME)
def test_what_gives_every_text_the_same_ids_is_the_same(state: State, tmp_path: Path, name: str) -> None:
    theirs = THE_SAME[name](state)
    assert tokenizer_difference(read(state), read(theirs)) is None
    ours = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token=tok.EOS)
    check_tokenizer(folder_of(tmp_path / "model", theirs, {"eos_token": tok.EOS}, "qwen2"), ours, "CORPUS")
    ids = [Tokenizer.from_str(json.dumps({**s, "truncation": None})).encode(TEXT).ids for s in (state, theirs)]
    assert ids[0] == ids[1]


def test_a_unigram_is_its_scores_too() -> None:
    vocab = [("<unk>", 0.0), ("a", -1.0), ("b", -1.0), ("ab", -1.5)]
    states = [json.loads(Tokenizer(models.Unigram([*vocab[:3], ("ab", p)], 0)).to_str()) for p in (-1.5, -3.0)]
    assert tokenizer_difference(states[0], states[0]) is None
    assert tokenizer_difference(*states) == "their vocabulary's scores"
    longer = json.loads(Tokenizer(models.Unigram([*vocab, ("ba", -1.0)], 0)).to_str())
    assert tokenizer_difference(states[0], longer) == "their vocabulary's scores"


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word", "normalized", "content"])
def test_an_added_token_of_other_flags_is_refused(tmp_path: Path, flag: str) -> None:
    """``added_tokens_decoder`` in tokenizer_config.json took the place of tokenizer.json's flags: one token became two."""
    from tokenizers import AddedToken

    made = tok.train_tokenizer(["the cat sat on a mat"], 270).backend_tokenizer
    made.add_tokens([AddedToken("WORLD", normalized=False)])
    made.save(str(tmp_path / "tokenizer.json"))
    token = next(t for t in json.loads(made.to_str())["added_tokens"] if t["content"] == "WORLD")
    told = {k: v for k, v in token.items() if k != "id"}
    config = {"eos_token": "<|endoftext|>", "added_tokens_decoder": {str(token["id"]): told}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert tok.load_tokenizer(tmp_path)("WORLD").input_ids == [token["id"]]
    told[flag] = "EARTH" if flag == "content" else not told[flag]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"the added token '{told['content']}' another id or other flags"):
        tok.load_tokenizer(tmp_path)
