"""A model's tables for another tokenizer: rows of tokens that both know as they are, new ones from the pieces of the old.

    token in both                     its row
    BOS, EOS, padding and the like    the row of the old token of that part
    new token                         input: mean of the rows of its old pieces; head: the same, or the first piece's

The mean and the first piece are EEVE's (arXiv 2402.14714, section 3.2, by memory and by a public port of its initialisation).
Tokenizers that write alike (both bytes, or both marks for spaces) have a token in common if both write it so; of others the
old one's pieces of its text are taken, with the space that it begins with.
PersianMind (arXiv 2401.06466) adds tokens of a language to Llama's vocabulary in the same way.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..runs.errors import UserError
from .rebuilt import rebuilt

HeadRow = Literal["mean", "first"]
_ROLES = ("unk_token", "pad_token", "bos_token", "eos_token")  # of a token with several parts the last one counts


@dataclass(frozen=True)
class NewRows:
    """Of each id of the new tokenizer the old ids that its row is made of; none: the mean of all rows."""

    pieces: Sequence[Sequence[int]]
    kept: int
    """Tokens that both tokenizers have, or that take the part of one."""

    @property
    def unknown(self) -> int:
        """Tokens of which the old tokenizer knows no piece."""
        return sum(not p for p in self.pieces)


def new_rows(old: Any, new: Any) -> NewRows:
    """Which old rows each row for the ``new`` tokenizer is made of; both are fast tokenizers of transformers."""
    known = old.get_vocab()
    pieces: list[list[int]] = [[] for _ in range(max(new.get_vocab().values()) + 1)]
    same_script = _decoder(old) == _decoder(new)
    parts = {getattr(new, r): getattr(old, r) for r in _ROLES if getattr(new, r) and getattr(old, r)}
    kept = 0
    for token, i in new.get_vocab().items():
        special = token in parts or i in new.backend_tokenizer.get_added_tokens_decoder()
        if (there := parts.get(token, token)) in known and (same_script or special):
            pieces[i] = [known[there]]
            kept += 1
        else:
            pieces[i] = _pieces(old, new, token, i, same_script)
            kept += (
                not same_script
                and len(pieces[i]) == 1
                and _text(old, old.convert_ids_to_tokens(pieces[i])[0]) == _text(new, token)
            )
    return NewRows(pieces, kept)


def _decoder(tokenizer: Any) -> str:
    """How tokens are written: as bytes, with marks for spaces ..."""
    return json.dumps(json.loads(tokenizer.backend_tokenizer.to_str())["decoder"], sort_keys=True, ensure_ascii=False)


def _pieces(old: Any, new: Any, token: str, i: int, same_script: bool) -> list[int]:
    """Old ids of a new token. Written alike, the token itself is cut, which serves halves of characters too; else its text."""
    unknown = old.unk_token_id
    if i in new.backend_tokenizer.get_added_tokens_decoder():
        found = old(new.decode([i]), add_special_tokens=False)["input_ids"]
    elif same_script:
        found = [t.id for t in old.backend_tokenizer.model.tokenize(token)]
    else:
        found = _cut(old, _text(new, token))
    return [p for p in found if p != unknown]


def _cut(tokenizer: Any, text: bytes) -> list[int]:
    """Ids of what stands amid a text: no mark of a beginning is put before it, which would make it another token."""
    if _is_byte_level(tokenizer):
        spelled = "".join(_alphabet()[b] for b in text)
        return [t.id for t in tokenizer.backend_tokenizer.model.tokenize(spelled)]
    try:
        there = text.decode()
    except UnicodeDecodeError:  # half of a character: of a vocabulary with bytes these
        known = tokenizer.get_vocab()
        return [known[f"<0x{b:02X}>"] for b in text if f"<0x{b:02X}>" in known]
    if "\u2581" in _decoder(tokenizer):
        return [t.id for t in tokenizer.backend_tokenizer.model.tokenize(there.replace(" ", "\u2581"))]
    return list(tokenizer(there, add_special_tokens=False)["input_ids"])


def _text(tokenizer: Any, token: str) -> bytes:
    """The bytes of a text that a token stands for, its spaces among them."""
    if _is_byte_level(tokenizer):
        back = {c: b for b, c in _alphabet().items()}
        return bytes(back[c] for c in token) if all(c in back for c in token) else token.encode()
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode("utf-8", "surrogatepass")


def _is_byte_level(tokenizer: Any) -> bool:
    return '"ByteLevel"' in _decoder(tokenizer)


@functools.cache
def _alphabet() -> dict[int, str]:
    """byte -> the character that byte-level vocabularies write for it: printable ones as they are, others from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {**{b: chr(b) for b in printable}, **{b: chr(256 + i) for i, b in enumerate(others)}}


def rows_of_pieces(table_VD: Tensor, pieces: Sequence[Sequence[int]], how: HeadRow) -> Tensor:
    """[V', D]: of each entry the mean (or the first) of its pieces' rows; of none the mean of all rows. Means in float64."""
    mean_D = table_VD.double().mean(0)
    made = torch.empty(len(pieces), table_VD.shape[1], dtype=table_VD.dtype)
    for i, p in enumerate(pieces):
        if len(p) == 1 or (p and how == "first"):
            made[i] = table_VD[p[0]]  # to the last bit
        else:
            made[i] = (table_VD[list(p)].double().mean(0) if p else mean_D).to(table_VD.dtype)
    return made


@torch.no_grad()
def with_vocabulary(model: Any, old: Any, new: Any, head: HeadRow) -> tuple[Any, NewRows]:
    """(the model with tables for ``new``, what its rows were made of). A tied head has the rows of the input."""
    rows = new_rows(old, new)
    table, output = model.get_input_embeddings(), model.get_output_embeddings()
    if max(known := max(max(p, default=0) for p in rows.pieces), 0) >= len(table.weight):
        raise UserError(f"vocab: the model has {len(table.weight)} rows, its tokenizer a token {known}")
    config, weights = copy.deepcopy(model.config), dict(model.state_dict())
    text = config.get_text_config()
    text.vocab_size = len(rows.pieces)
    for role in ("bos", "eos", "pad"):
        setattr(text, f"{role}_token_id", getattr(new, f"{role}_token_id"))
    tied = table.weight is output.weight
    for name, weight in model.state_dict().items():
        if weight.data_ptr() == table.weight.data_ptr() and weight.shape == table.weight.shape:
            weights[name] = rows_of_pieces(weight, rows.pieces, "mean")
        elif not tied and weight.data_ptr() == output.weight.data_ptr():
            weights[name] = rows_of_pieces(weight, rows.pieces, head)
        elif output.bias is not None and weight.data_ptr() == output.bias.data_ptr():
            weights[name] = rows_of_pieces(weight[:, None], rows.pieces, head)[:, 0]
    return rebuilt(config, weights, model, "given another vocabulary"), rows
