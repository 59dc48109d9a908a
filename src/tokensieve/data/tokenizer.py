"""Text -> token ids: load or train a tokenizer, encode documents, and know how many bytes each token stands for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..runs.errors import UserError
from ..runs.files import file_hash, hash_json, read_json
from .places import by_bytes, by_characters
from .read.documents import TextPart
from .tokenizer_state import file_state, other_added_token, other_rule, state_of, without_prefix

EOS = "<|endoftext|>"
MIN_VOCAB_SIZE = 257  # 256 bytes and EOS
CONTROL = -2  # the place of a control token that stands between two parts of a text
_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def tokenizer_folder(path: Path | str) -> Path:
    """The folder with ``tokenizer.json``: ``path`` itself, or ``path/tokenizer`` where ``path`` is a corpus or a run."""
    for folder in (Path(path), Path(path) / "tokenizer"):
        if (folder / "tokenizer.json").is_file():
            return folder
    raise UserError(
        f"tokenizer {path}: no tokenizer.json there or in its folder 'tokenizer' (only fast tokenizers are supported)"
    )


def load_tokenizer(path: Path | str) -> Any:
    """The fast tokenizer saved in a folder (or in its subfolder ``tokenizer``). :class:`UserError` if it has no EOS.

    What tokenises is ``tokenizer.json``, whatever class ``tokenizer_config.json`` or a model's type names: AutoTokenizer
    would lay that class's own pre-tokenizer over it, and give a text other ids than the file does.
    """
    from transformers import PreTrainedTokenizerFast

    folder = tokenizer_folder(path)
    if _brings_code(folder):
        raise UserError(f"tokenizer {folder} brings code of its own (auto_map), which is never run")
    file = file_state(folder)
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder), **_LOCAL)
        if tokenizer.eos_token_id is None and (names := _class_defaults(folder, tokenizer)):
            tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder), **names, **_LOCAL)
    except Exception as e:  # transformers raises whatever its parsers raise
        raise UserError(f"tokenizer {folder} cannot be loaded: {' '.join(str(e).split())[:300]}") from None
    if part := other_rule(file, state_of(tokenizer.backend_tokenizer), post_processor=True):
        raise UserError(f"tokenizer {folder}: transformers puts another {part} in the place of tokenizer.json's")
    if (token := other_added_token(file, state_of(tokenizer.backend_tokenizer))) is not None:
        raise UserError(
            f"tokenizer {folder}: tokenizer_config.json gives the added token {token!r} another id or other flags than "
            "tokenizer.json, or adds it, and transformers takes that: make the two say the same"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(f"tokenizer {folder} has no EOS token: set eos_token, documents end with it")
    return tokenizer


def _brings_code(folder: Path) -> bool:
    """Whether a class that transformers does not have tokenises: what it makes of tokenizer.json, nobody here knows."""
    path = folder / "tokenizer_config.json"
    config = read_json(path) if path.is_file() else {}
    if not isinstance(config, dict) or "auto_map" not in config:
        return False
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    name = str(config.get("tokenizer_class"))
    return tokenizer_class_from_name(name) is None and tokenizer_class_from_name(name.removesuffix("Fast")) is None


def _class_defaults(folder: Path, tokenizer: Any) -> dict[str, str]:
    """Special tokens that the files leave to the tokenizer's class, as GPT-2's do, and that ``tokenizer.json`` has."""
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(str(folder), **_LOCAL)
    except Exception:  # without one, the sentence about EOS stands
        return {}
    known = tokenizer.get_vocab()
    return {k: str(v) for k, v in found.special_tokens_map.items() if isinstance(v, str) and v in known}


def auto_override(folder: Path) -> str | None:
    """The part of a saved tokenizer.json that transformers' AutoTokenizer would replace; None: it gives the same ids.

    Some types of model (qwen2) have their class's rules laid over any file, whatever ``tokenizer_class`` says.
    """
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(str(folder), **_LOCAL)
    except Exception:  # whatever a class raises for a file that is not as it would write one
        return "class"
    return other_rule(file_state(folder), state_of(found.backend_tokenizer))


def train_tokenizer(texts: Iterable[str], vocab_size: int, control: Sequence[str] = ()) -> Any:
    """A byte-level BPE of at most ``vocab_size`` tokens, EOS (id 0) and ``control`` tokens (ids from 1) included.

    The same texts give the same vocabulary.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab_size < (least := MIN_VOCAB_SIZE + len(control)):
        more = f", {len(control)} control tokens" if control else ""
        raise UserError(f"vocab_size must be at least {least} (256 bytes{more} and EOS), not {vocab_size}")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[EOS, *control], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=EOS, clean_up_tokenization_spaces=False)


def vocab_size(tokenizer: Any) -> int:
    """One more than the largest token id: added tokens count, and so do holes between ids."""
    return int(max(len(tokenizer), max(tokenizer.get_vocab().values()) + 1))


def pad_id(tokenizer: Any) -> int:
    """The tokenizer's padding token, else EOS. Padding is found by ``num_tokens``, never by its id."""
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)


def tokenizer_hash(tokenizer: Any) -> str:
    """sha256 over the canonical ``tokenizer.json`` and the EOS: equal hashes mean equal token ids for every text."""
    return hash_json({"tokenizer": state_of(tokenizer.backend_tokenizer), "eos": tokenizer.eos_token})


def tokenizer_identity(path: Path | str) -> str:
    """Identity of a saved tokenizer as an input, without loading it: a hash of the files that decide token ids."""
    folder = tokenizer_folder(path)
    names = [n for n in ("tokenizer.json", "tokenizer_config.json") if (folder / n).is_file()]
    return hash_json({n: file_hash(folder / n) for n in names})


def token_bytes(tokenizer: Any) -> npt.NDArray[np.int64]:
    """UTF-8 bytes that each token stands for, ``[vocab_size]``; special tokens and unused ids: 0.

    Byte-level vocabularies write one character a byte. SentencePiece-like ones write a space as one special character and
    a lone byte as ``<0xAB>``; where their normaliser adds or drops characters, the table is approximate.
    """
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    byte_level = _is_byte_level(state_of(tokenizer.backend_tokenizer))
    alphabet = _byte_alphabet()
    table = np.zeros(vocab_size(tokenizer), np.int64)
    for token, i in tokenizer.get_vocab().items():
        if i in added:
            table[i] = 0 if added[i].special else len(added[i].content.encode())
        elif byte_level and alphabet.issuperset(token):
            table[i] = len(token)
        else:
            table[i] = _piece_bytes(token)
    table[sorted(set(tokenizer.all_special_ids))] = 0
    return table


def _is_byte_level(part: Any) -> bool:
    """True if a ByteLevel pre-tokenizer or decoder stands anywhere in a ``tokenizer.json``."""
    parts = [part.get("pre_tokenizer"), part.get("decoder")]
    return '"ByteLevel"' in json.dumps(parts)


def _byte_alphabet() -> frozenset[str]:
    from tokenizers import pre_tokenizers

    return frozenset(pre_tokenizers.ByteLevel.alphabet())


def _piece_bytes(token: str) -> int:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return 1
    return len(token.replace("\u2581", " ").encode("utf-8", "surrogatepass"))


class Encoder:
    """Encodes documents in batches. Needs the ``tokenizers`` library only, so that a worker starts in a tenth of a second.

    Special tokens written out in the text ("<|endoftext|>" in a file about tokenizers) are encoded as the text they are,
    unless ``parse_special_tokens``: a document's only special tokens are its BOS (``bos_id``; None: it has none) and EOS.
    """

    def __init__(
        self,
        tokenizer_json: Path | str,
        eos_id: int,
        bytes_table: npt.NDArray[np.int64],
        bos_id: int | None = None,
        parse_special_tokens: bool = False,
    ) -> None:
        from tokenizers import Tokenizer

        self.backend = Tokenizer.from_file(str(tokenizer_json))
        self.backend.no_truncation()
        self.backend.no_padding()
        self.backend.encode_special_tokens = not parse_special_tokens
        self._made_of = (str(tokenizer_json), eos_id, bytes_table, bos_id, parse_special_tokens)
        self.eos_id, self.bos_id, self.parses = eos_id, bos_id, parse_special_tokens
        self.bytes_table = bytes_table
        state = state_of(self.backend)
        self.unknown_id = _unknown_id(self.backend, state["model"])
        self.drops = self.unknown_id is None and _can_drop(state)
        self.spells = _is_byte_level(state) and state["normalizer"] is None  # its tokens are the bytes of the text

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickled backend forgets encode_special_tokens.
        return Encoder, self._made_of

    @property
    def vocab_size(self) -> int:
        return len(self.bytes_table)

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """Token ids of each text, BOS before and EOS after. An empty text gives these alone."""
        found = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [self.framed(e.ids, self.parses) for e in found]

    def encode_from(self, texts: Sequence[str], starts: Sequence[int]) -> list[tuple[npt.NDArray[np.int32], int]]:
        """(ids as :meth:`encode` gives them, index of the first token that has a character at or after ``start``) of each."""
        found = self.backend.encode_batch(list(texts), add_special_tokens=False)
        pairs = zip(found, starts, strict=True)
        return [(self.framed(e.ids, self.parses), len(self._before(e.ids)) + _first_token(e, at)) for e, at in pairs]

    def encode_placed(
        self, texts: Sequence[str], parses: bool
    ) -> list[tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]]:
        """(ids as :meth:`encode` gives them, the character at which each stands: ``places.py``; -1 of a BOS or EOS put around).

        ``parses``: whether control tokens written out are taken as such in these texts. Where the bytes of the tokens add up to
        the text, the places follow from them; else the tokenizer is asked, which takes longer.
        """
        was, self.backend.encode_special_tokens = self.backend.encode_special_tokens, not parses
        try:
            found = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
            return [self._placed(text, e.ids, parses) for text, e in zip(texts, found, strict=True)]
        finally:
            self.backend.encode_special_tokens = was

    def _placed(
        self, text: str, ids: Sequence[int], parses: bool
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        return self._framed_places(ids, self._places(text, ids, self.backend), parses)

    def encode_parts(self, text: str, parts: Sequence[TextPart]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """(ids, places) as :meth:`encode_placed` gives them, of a text whose parts are encoded each by itself, in the order
        given; the place of a control token between them is ``CONTROL``. The vocabulary has all of these.

        A tokenizer that puts a space before a text puts it before the part that begins this one, and before no other: in the
        order of the text and without control tokens, the ids decode to it.
        """
        found: dict[TextPart, list[int]] = {}
        for backend, begins in ((self.backend, True), (self._inside, False)):
            some = [p for p in parts if not p.token and (p.start == 0) == begins]
            encoded = backend.encode_batch_fast([text[p.start : p.end] for p in some], add_special_tokens=False)
            found |= {part: each.ids for part, each in zip(some, encoded, strict=True)}
        ids: list[int] = []
        places: list[npt.NDArray[np.int64]] = []
        for part in parts:
            if part.token:
                control = self.backend.token_to_id(part.token)
                assert control is not None  # looked up when the transform was made
                ids.append(control)
                places.append(np.array([CONTROL], np.int64))
            else:
                ids += (mine := found[part])
                backend = self._inside if part.start else self.backend
                places.append(self._places(text[part.start : part.end], mine, backend) + part.start)
        return self._framed_places(ids, np.concatenate(places), self.parses)

    @cached_property
    def _inside(self) -> Any:
        """The tokenizer of a part before which there is text."""
        if (state := without_prefix(state_of(self.backend))) is None:
            return self.backend
        from tokenizers import Tokenizer

        made = Tokenizer.from_str(json.dumps(state))
        made.encode_special_tokens = not self.parses
        return made

    def _framed_places(
        self, ids: Sequence[int], places: npt.NDArray[np.int64], parses: bool
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        framed, before = self.framed(ids, parses), len(self._before(ids))
        return framed, np.pad(places, (before, len(framed) - before - len(ids)), constant_values=-1)

    def _places(self, text: str, ids: Sequence[int], backend: Any) -> npt.NDArray[np.int64]:
        """The character of the text at which each of its tokens stands, of the ``backend`` that made them."""
        sizes = self._spelled[np.asarray(ids, np.int64)]
        if self.spells and int(sizes.sum()) == len(text.encode()):
            return by_bytes(text, sizes)
        offsets = backend.encode(text, add_special_tokens=False).offsets
        starts, ends = np.array(offsets, np.int64).reshape(-1, 2).T
        return by_characters(text, starts, ends)

    @cached_property
    def _spelled(self) -> npt.NDArray[np.int64]:
        """Bytes that each token stands for in a text, those of control tokens too. [vocab_size]"""
        table = self.bytes_table.copy()
        for i, token in self.backend.get_added_tokens_decoder().items():
            table[i] = len(token.content.encode())
        return table

    def framed(self, ids: Sequence[int], ends: bool = True) -> npt.NDArray[np.int32]:
        """``ids`` with BOS before, unless it stands there, and EOS after, unless it stands there and ``ends`` allows it."""
        framed = [*self._before(ids), *ids]
        begun = self.bos_id is not None and len(framed) == 1  # a lone BOS, which may have the id of EOS, ends nothing
        after = [] if ends and framed[-1:] == [self.eos_id] and not begun else [self.eos_id]
        return np.array([*framed, *after], np.int32)

    def _before(self, ids: Sequence[int]) -> list[int]:
        return [] if self.bos_id is None or list(ids[:1]) == [self.bos_id] else [self.bos_id]

    def num_unknown(self, ids: npt.NDArray[np.int32]) -> int:
        """How many of a document's tokens stand for text that the vocabulary cannot say; its BOS and EOS do not."""
        inner = ids[int(self.bos_id is not None) : -1]
        return 0 if self.unknown_id is None else int((inner == self.unknown_id).sum())

    def num_lost(self, text: str) -> int:
        """Characters of a text, spaces apart, that become no token at all: a BPE with no unknown token leaves out what it
        does not know. Encodes again, but only where that can be."""
        if not self.drops:
            return 0
        covered: npt.NDArray[np.bool_] = np.zeros(len(text), bool)
        for start, end in self.backend.encode(text, add_special_tokens=False).offsets:
            covered[start:end] = True
        return sum(not char.isspace() for char, there in zip(text, covered, strict=True) if not there)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.backend.decode(list(ids), skip_special_tokens=False))

    def num_bytes(self, ids: npt.NDArray[np.int32]) -> int:
        """Bytes that the table gives a document's tokens; its BOS and EOS count 0."""
        return int(self.bytes_table[ids[int(self.bos_id is not None) :]].sum())

    def num_spelled(self, ids: npt.NDArray[np.int32]) -> int:
        """Bytes that tokens stand for in a text that has its control tokens written out."""
        return int(self._spelled[ids].sum())


def _can_drop(state: dict[str, Any]) -> bool:
    """True if a BPE without an unknown token lacks some byte or, where it takes characters, may lack some character."""
    model = state["model"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        return False
    return not _is_byte_level({"pre_tokenizer": state["pre_tokenizer"]}) or not _byte_alphabet() <= {*model["vocab"]}


def _unknown_id(backend: Any, model: dict[str, Any]) -> int | None:
    """The token that the model gives for what it does not know; None where it has none, as byte-level ones.

    Not transformers' ``unk_token``, which no text comes out as: GPT-2's is its EOS.
    """
    if model.get("unk_id") is not None:  # Unigram's
        return int(model["unk_id"])
    token = model.get("unk_token")
    return None if token is None else backend.token_to_id(token)


def _first_token(encoding: Any, start: int) -> int:
    """Index of the first token that ends after character ``start``; the number of tokens if none does."""
    first = encoding.char_to_token(start)
    if first is None:  # some tokenizers cut the spaces off a token's offsets, so that no token owns a space
        first = next((i for i, (_, end) in enumerate(encoding.offsets) if end > start), len(encoding.ids))
    return int(first)
