"""Text -> token ids: load or train a tokenizer, encode documents, and know how many bytes each token stands for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tokensieve.runs import UserError, file_hash, hash_json, read_json

EOS = "<|endoftext|>"
MIN_VOCAB_SIZE = 257  # 256 bytes and EOS


def tokenizer_folder(path: Path | str) -> Path:
    """The folder with ``tokenizer.json``: ``path`` itself, or ``path/tokenizer`` where ``path`` is a corpus or a run."""
    for folder in (Path(path), Path(path) / "tokenizer"):
        if (folder / "tokenizer.json").is_file():
            return folder
    raise UserError(
        f"tokenizer {path}: no tokenizer.json there or in its folder 'tokenizer' (only fast tokenizers are supported)"
    )


def load_tokenizer(path: Path | str) -> Any:
    """The fast tokenizer saved in a folder (or in its subfolder ``tokenizer``). :class:`UserError` if it has no EOS."""
    from transformers import AutoTokenizer

    folder = tokenizer_folder(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as e:  # transformers raises whatever its parsers raise
        if _brings_code(folder):
            raise UserError(f"tokenizer {folder} brings code of its own (auto_map), which is never run") from None
        raise UserError(f"tokenizer {folder} cannot be loaded: {' '.join(str(e).split())[:300]}") from None
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"tokenizer {folder} is not a fast tokenizer (tokenizers library), which prepare needs")
    if tokenizer.eos_token_id is None:
        raise UserError(f"tokenizer {folder} has no EOS token: set eos_token, documents end with it")
    return tokenizer


def _brings_code(folder: Path) -> bool:
    path = folder / "tokenizer_config.json"
    config = read_json(path) if path.is_file() else {}
    return isinstance(config, dict) and "auto_map" in config


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """A byte-level BPE of at most ``vocab_size`` tokens, EOS (id 0) included. The same texts give the same vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab_size < MIN_VOCAB_SIZE:
        raise UserError(f"vocab_size must be at least {MIN_VOCAB_SIZE} (256 bytes and EOS), not {vocab_size}")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=EOS, clean_up_tokenization_spaces=False)


def vocab_size(tokenizer: Any) -> int:
    """One more than the largest token id: added tokens count, and so do holes between ids."""
    return int(max(len(tokenizer), max(tokenizer.get_vocab().values()) + 1))


def pad_id(tokenizer: Any) -> int:
    """The tokenizer's padding token, else EOS. Padding is found by ``num_tokens``, never by its id."""
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)


def _state(tokenizer: Any) -> dict[str, Any]:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    # Set by whoever called the tokenizer last; neither says anything about the tokens.
    return {**state, "truncation": None, "padding": None}


def tokenizer_hash(tokenizer: Any) -> str:
    """sha256 over the canonical ``tokenizer.json`` and the EOS: equal hashes mean equal token ids for every text."""
    return hash_json({"tokenizer": _state(tokenizer), "eos": tokenizer.eos_token})


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
    byte_level = _is_byte_level(_state(tokenizer))
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

    Special tokens written out in the text ("<|endoftext|>" in a file about tokenizers) are encoded as the text they are:
    a document's only special token is the EOS that packing puts behind it.
    """

    def __init__(self, tokenizer_json: Path | str, eos_id: int, bytes_table: npt.NDArray[np.int64]) -> None:
        from tokenizers import Tokenizer

        self.backend = Tokenizer.from_file(str(tokenizer_json))
        self.backend.no_truncation()
        self.backend.no_padding()
        self.backend.encode_special_tokens = True
        self._path = str(tokenizer_json)
        self.eos_id = eos_id
        self.bytes_table = bytes_table

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickled backend forgets encode_special_tokens.
        return Encoder, (self._path, self.eos_id, self.bytes_table)

    @property
    def vocab_size(self) -> int:
        return len(self.bytes_table)

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """Token ids of each text followed by EOS. An empty text gives EOS alone."""
        found = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [self._with_eos(e.ids) for e in found]

    def encode_from(self, texts: Sequence[str], starts: Sequence[int]) -> list[tuple[npt.NDArray[np.int32], int]]:
        """(ids with EOS, index of the first token that has a character at or after ``start`` in it) of each text."""
        found = self.backend.encode_batch(list(texts), add_special_tokens=False)
        return [(self._with_eos(e.ids), _first_token(e, start)) for e, start in zip(found, starts, strict=True)]

    def _with_eos(self, ids: list[int]) -> npt.NDArray[np.int32]:
        return np.array([*ids, self.eos_id], np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.backend.decode(list(ids), skip_special_tokens=False))

    def num_bytes(self, ids: npt.NDArray[np.int32]) -> int:
        """Bytes that the table gives these tokens; EOS counts 0."""
        return int(self.bytes_table[ids].sum())


def _first_token(encoding: Any, start: int) -> int:
    """Index of the first token that ends after character ``start``; the number of tokens if none does."""
    first = encoding.char_to_token(start)
    if first is None:  # some tokenizers cut the spaces off a token's offsets, so that no token owns a space
        first = next((i for i, (_, end) in enumerate(encoding.offsets) if end > start), len(encoding.ids))
    return int(first)
