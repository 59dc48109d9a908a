"""What of a ``tokenizer.json`` decides the ids of a text, and whether two tokenizers agree in it.

    same ids for every text  <=  same model (vocabulary, merges, its options), normalizer, pre_tokenizer, and the same added
                                 tokens wherever one of them can stand in a text

Left out, because it says nothing about the ids of ordinary text: truncation and padding (whoever called the tokenizer last),
post_processor (special tokens round a text, and where its tokens' offsets end: a corpus says in ``bos_id`` what it put before
a document), ``trim_offsets`` wherever it stands, and how a special token is looked for, since text is encoded as text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..runs.errors import UserError

_RULES = ("normalizer", "pre_tokenizer", "decoder")
_ORDER = ("model", *_RULES)


def state_of(backend: Any) -> dict[str, Any]:
    """The state of a ``tokenizers.Tokenizer`` as its ``tokenizer.json`` says it, without truncation and padding."""
    return {**json.loads(backend.to_str()), "truncation": None, "padding": None}


def file_state(folder: Path) -> dict[str, Any]:
    """The state that ``folder/tokenizer.json`` describes, as the installed library reads it."""
    from tokenizers import Tokenizer

    try:
        return state_of(Tokenizer.from_file(str(folder / "tokenizer.json")))
    except Exception as e:  # tokenizers raises Exception itself
        raise UserError(f"tokenizer {folder} cannot be loaded: {' '.join(str(e).split())[:300]}") from None


def other_rule(file: Mapping[str, Any], loaded: Mapping[str, Any], *, post_processor: bool = False) -> str | None:
    """The first of model, normalizer, pre_tokenizer and decoder (and post_processor) that is not the file's; None: none is.

    A file without a post_processor gets an empty one from transformers, which is the same.
    """
    parts = (*_ORDER, "post_processor") if post_processor and file["post_processor"] is not None else _ORDER
    return next((p for p in parts if _plain(file[p]) != _plain(loaded[p])), None)


def other_added_token(file: Mapping[str, Any], loaded: Mapping[str, Any]) -> str | None:
    """The first token added to ordinary text that is not the file's, by its id or by the flags (lstrip, single_word,
    normalized ...) that decide where it is found in a text; None: none is. Control tokens of either do not count: eos_token
    is one, whatever the file says of it.
    """
    control = {t["content"] for state in (file, loaded) for t in state["added_tokens"] if t["special"]}
    ours, theirs = ({t["content"]: t for t in state["added_tokens"]} for state in (file, loaded))
    return next((t for t in sorted({*ours, *theirs} - control) if ours.get(t) != theirs.get(t)), None)


def tokenizer_difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    """In what ``theirs`` gives a text other ids than ``ours``, as it goes on after "they differ in"; None: in nothing.

    ``theirs``, a model's, may have further tokens where no text comes out as one of them: special added tokens, and entries
    of a BPE's vocabulary that no merge makes. Any other further token would be another id for a text that holds it.
    """
    if wrong := _other_ids(ours, theirs):
        return f"token {min(wrong)!r}"
    mine, model = ours["model"], theirs["model"]
    if mine.get("merges") != model.get("merges"):
        return "their merges"
    for option in sorted({*mine, *model} - {"vocab", "merges"}):
        if (mine.get(option) or None) != (model.get(option) or None):  # "" and false stand for none
            return f"their model's {option} ({mine.get(option)!r} and {model.get(option)!r})"
    for part in _RULES:
        if _plain(ours[part]) != _plain(theirs[part]):
            return f"their {part}"
    if isinstance(mine["vocab"], list) and mine["vocab"] != model["vocab"]:  # Unigram: scores, and what else there is
        return "their vocabulary's scores"
    return None if isinstance(mine["vocab"], list) else _further_token(ours, theirs)


def _other_ids(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Tokens of ours that theirs lacks, has by another id, or finds in text by another rule."""
    known, added = _ids(theirs), {t["content"]: t for t in theirs["added_tokens"]}
    wrong = [token for token, i in _ids(ours).items() if known.get(token) != i]
    return wrong + [t["content"] for t in ours["added_tokens"] if not _found_alike(t, added.get(t["content"]))]


def _found_alike(ours: Mapping[str, Any], theirs: Mapping[str, Any] | None) -> bool:
    if theirs is None:
        return bool(ours["special"])  # there by the id of the vocabulary: in text it is text for both
    return bool(ours["special"] and theirs["special"]) or ours == theirs


def _ids(state: Mapping[str, Any]) -> dict[str, int]:
    vocab = state["model"]["vocab"]
    ids = dict(vocab) if isinstance(vocab, Mapping) else {token: i for i, (token, _) in enumerate(vocab)}
    return {**ids, **{t["content"]: t["id"] for t in state["added_tokens"]}}


def _further_token(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    known, model = _ids(ours), theirs["model"]
    further = [t["content"] for t in theirs["added_tokens"] if t["content"] not in known and not t["special"]]
    further += [t for t in model["vocab"] if t not in known and not _out_of_reach(t, model)]
    further = [t for t in further if not any(a["content"] == t and a["special"] for a in theirs["added_tokens"])]
    return f"token {min(further)!r}" if further else None


def _out_of_reach(token: str, model: Mapping[str, Any]) -> bool:
    """True if a BPE with the merges of ours, which make no such token, cannot come to it: it begins with single characters."""
    whole_words = (
        model.get("ignore_merges") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    )
    is_byte = model.get("byte_fallback") and token.startswith("<0x")
    return model.get("type") == "BPE" and not whole_words and not is_byte and len(token) > 1


def _plain(part: Any) -> Any:
    """Without ``trim_offsets``, which moves offsets and never ids, and with one word for options that are off."""
    if isinstance(part, dict) and "vocab" in part:  # a model: its vocabulary may be large
        return {**{k: v or None for k, v in part.items()}, "vocab": part["vocab"]}
    if isinstance(part, dict):
        return {k: _plain(v) for k, v in part.items() if k != "trim_offsets"}
    return [_plain(p) for p in part] if isinstance(part, list) else part


def without_prefix(state: Mapping[str, Any]) -> dict[str, Any] | None:
    """A state that puts no space before a text, as SentencePiece's kind does (a Prepend, Metaspace's ``prepend_scheme``,
    ByteLevel's ``add_prefix_space``); None where this one puts none."""
    changed = {**state, **{part: _without_prefix(state[part]) for part in ("normalizer", "pre_tokenizer")}}
    return None if changed == dict(state) else changed


def _without_prefix(part: Any) -> Any:
    if part is None or part["type"] == "Prepend":
        return None
    for members in ("normalizers", "pretokenizers"):
        if members in part:
            return {**part, members: [m for m in map(_without_prefix, part[members]) if m is not None]}
    if part["type"] == "Metaspace":
        return {**part, "prepend_scheme": "never"}
    return {**part, "add_prefix_space": False} if part["type"] == "ByteLevel" else part
