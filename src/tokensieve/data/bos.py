"""BOS: whether a tokenizer begins every text with a token, and which one. Cheap: the tokenizers library only, mostly.

Where a corpus has one, it begins each document, is never a target and has no bytes; its manifest's ``bos_id`` says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..runs.errors import UserError
from ..runs.files import read_json
from ..runs.manifest import is_done, read_manifest
from .tokenizer import load_tokenizer, tokenizer_folder

Mode = Literal["auto", "always", "never"]
_EMPTY = {
    "version": "1.0",
    "added_tokens": [],
    "model": {"type": "BPE", "vocab": {}, "merges": []},
}  # a tokenizer of no token


class Bos(NamedTuple):
    """The token that begins each document, and who says so."""

    id: int
    token: str
    why: str


def bos_of(path: Path | str, mode: Mode = "auto") -> Bos | None:
    """The BOS that documents begin with. ``auto``: the one token that the tokenizer puts before a text, if it does.

    :class:`UserError` for ``always`` where the tokenizer has no bos_token, and for ``auto`` where it puts several before.
    """
    if mode == "never":
        return None
    folder = tokenizer_folder(path)
    if mode == "always":
        return _named(folder, "as the field bos says")
    before = _template(folder)
    if len(before) > 1:
        raise UserError(
            f"tokenizer {folder} begins every text with {' '.join(t for _, t in before)}: only one token can begin a "
            "document, set bos to always (its bos_token) or never"
        )
    if before:
        return Bos(*before[0], "as the tokenizer's template says")
    return _named(folder, "as add_bos_token in tokenizer_config.json says") if _add_bos_token(folder) else None


def _named(folder: Path, why: str) -> Bos | None:
    tokenizer = load_tokenizer(folder)
    if tokenizer.bos_token_id is not None:
        return Bos(int(tokenizer.bos_token_id), str(tokenizer.bos_token), why)
    if why.startswith("as the field"):
        raise UserError(
            f"bos: always needs a BOS, and tokenizer {folder} has none: set bos_token in tokenizer_config.json"
        )
    return None


def _template(folder: Path) -> list[tuple[int, str]]:
    """(id, token) of what stands before a text with ``add_special_tokens=True``."""
    from tokenizers import Tokenizer

    try:
        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as e:  # tokenizers raises Exception itself
        raise UserError(f"tokenizer {folder} cannot be loaded: {' '.join(str(e).split())[:300]}") from None
    backend.no_truncation()
    backend.no_padding()
    for text in ("a", *sorted(backend.get_vocab(with_added_tokens=False))[:100]):
        found = backend.encode(text)
        if 0 in found.special_tokens_mask:  # else this text has no token in this vocabulary
            before = found.special_tokens_mask.index(0)
            return list(zip(found.ids[:before], found.tokens[:before], strict=True))
    return []


def _add_bos_token(folder: Path) -> bool:
    path = folder / "tokenizer_config.json"
    config = read_json(path) if path.is_file() else {}
    return isinstance(config, Mapping) and config.get("add_bos_token") is True


def set_template(tokenizer: Any, bos: Bos) -> None:
    """Let the tokenizer itself begin a text as the corpus's documents do, so that models trained on it say so too.

    What else its post_processor does stays, but for another template: two of them would put two tokens before a text.
    """
    from tokenizers import Tokenizer

    backend = tokenizer.backend_tokenizer
    if backend.encode("").ids[:1] == [bos.id]:
        return
    old = json.loads(backend.to_str())["post_processor"]
    # As its JSON: the constructor's notation has no place for a token with a space or a colon in it, or named "$A".
    state = {"type": "Sequence", "processors": [*_without_templates(old), _template_state(bos)]}
    made = Tokenizer.from_str(json.dumps({**_EMPTY, "post_processor": state}))
    backend.post_processor = made.post_processor


def _without_templates(processor: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The parts of a post_processor that put no token into a text."""
    if processor is None or processor["type"] in ("TemplateProcessing", "BertProcessing", "RobertaProcessing"):
        return []
    if processor["type"] == "Sequence":
        return [kept for part in processor["processors"] for kept in _without_templates(part)]
    return [processor]


def _template_state(bos: Bos) -> dict[str, Any]:
    """BOS before a text, and before each of a pair."""

    def begun(name: str, type_id: int) -> list[dict[str, Any]]:
        return [
            {"SpecialToken": {"id": bos.token, "type_id": type_id}},
            {"Sequence": {"id": name, "type_id": type_id}},
        ]

    tokens = {bos.token: {"id": bos.token, "ids": [bos.id], "tokens": [bos.token]}}
    pair = [*begun("A", 0), *begun("B", 1)]
    return {"type": "TemplateProcessing", "single": begun("A", 0), "pair": pair, "special_tokens": tokens}


def bos_words(bos_id: int | None) -> str:
    """How documents begin, in a sentence after "with"."""
    return "no BOS" if bos_id is None else f"BOS (id {bos_id})"


class Expected(NamedTuple):
    """How a model's texts begin: the id of BOS, or None; and whether a run of ours says so, or the model's tokenizer."""

    id: int | None
    trained: bool


def expected(model: Path | str) -> Expected | None:
    """What `train` wrote expects what its corpus had, and so does what `init` made of it; a model from elsewhere what its
    tokenizer puts before a text.

    None: nobody knows (no tokenizer, or several tokens before a text).
    """
    for folder in (Path(model), Path(model).parent):
        if not is_done(folder):
            continue
        manifest = read_manifest(folder)
        if manifest["kind"] == "model" or (manifest["kind"] == "start" and "bos_id" in manifest):
            return Expected(manifest.get("bos_id"), True)  # in a run of an early version: none
    try:
        found = bos_of(model if (Path(model) / "tokenizer.json").is_file() else Path(model) / "model")
    except UserError:
        return None
    return Expected(found.id if found else None, False)


def disagreement(model: Path | str, bos_id: int | None, corpus: Path | str) -> str | None:
    """A sentence where a model expects its texts to begin otherwise than the documents of a corpus do; None: it does not."""
    wants = expected(model)
    if wants is None or wants.id == bos_id:
        return None
    so = "its numbers may mean nothing there" if bos_id is None else "it was not made for that"
    return f"{model} begins texts with {bos_words(wants.id)}, the documents of {corpus} begin with {bos_words(bos_id)}: {so}"
