"""Fill in the middle: a document's middle behind what stands after it, so that a left-to-right model learns to fill gaps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ....runs.errors import UserError
from ...read.documents import Document, TextPart
from ...tokenizer import Encoder
from .kind import Transform


class Sentinels(NamedTuple):
    prefix: str
    middle: str
    suffix: str


# The tokens of models that were trained so: Qwen2.5-Coder, StarCoder, Code Llama, DeepSeek-Coder.
SENTINELS = (
    Sentinels("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    Sentinels("<fim_prefix>", "<fim_middle>", "<fim_suffix>"),
    Sentinels("\u2581<PRE>", "\u2581<MID>", "\u2581<SUF>"),
    Sentinels("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581end\uff5c>", "<\uff5cfim\u2581hole\uff5c>"),
)


@dataclass(frozen=True)
class FillInTheMiddle:
    """A document's middle behind its prefix and suffix."""

    rate: float = 0.5
    """Share of the documents, from 0 to 1."""
    spm: float = 0.5
    """Share of those in which the suffix comes first (SPM); else the prefix does (PSM)."""
    tokens: tuple[str, str, str] | None = None
    """The control tokens before prefix, middle and suffix; else those of the tokenizer, as Qwen2.5-Coder's, StarCoder's ..."""


def control_tokens(options: FillInTheMiddle) -> Sequence[str]:
    return tuple(options.tokens or SENTINELS[0])


def fill_in_the_middle(options: FillInTheMiddle, encoder: Encoder) -> Transform:
    """prefix middle suffix -> ``PRE prefix SUF suffix MID middle`` (PSM), or ``PRE SUF suffix MID prefix middle`` (SPM).

    Whether a document is changed is a draw at ``rate``; then two cuts are drawn evenly from 0 ... its characters, ends
    included, so that a part may be empty, and SPM at ``spm``. Each part is encoded by itself; without its control tokens, and
    put back in order, the document decodes to its text; of a tokenizer that puts a space before a text only the document's
    beginning has one, as in Code Llama, and one by which a text that is cut is another one (WordPiece) is refused. All tokens
    stay targets. Documents that came as token ids, conversations, and problems with marked solutions stay as they are. A
    document that a row's end cuts loses the connection, which is counted: long ones should be few. Of a repository's files the
    last one is cut.

    Bavarian et al. 2022 (arXiv 2207.14255), section 3 and SPM variant 2 of its appendix D; cuts, order and encoding checked
    against the code that bigcode's Megatron-LM trained StarCoder with.
    """
    for name in ("rate", "spm"):
        if not 0 <= getattr(options, name) <= 1:
            raise UserError(f"fim: {name} is a share, from 0 to 1, not {getattr(options, name)}")
    sentinels = _sentinels(options, encoder)
    _check_joins(encoder)

    def change(document: Document, rng: np.random.Generator) -> Iterable[Document]:
        if document.tokens is not None or document.masked or document.solution:
            return [document]
        if rng.random() >= options.rate:
            return [document]
        *before, whole = document.parts or (TextPart(0, len(document.text)),)
        first, second = sorted(int(at) for at in rng.integers(whole.start, whole.end + 1, 2))
        cut = Cut(whole.start, first, second, whole.end)
        parts = (*before, *_order(cut, sentinels, rng.random() < options.spm))
        return [document._replace(parts=parts)]

    return Transform(documents=change)


class Cut(NamedTuple):
    start: int
    first: int
    second: int
    end: int


def _order(cut: Cut, sentinels: Sentinels, spm: bool) -> Iterator[TextPart]:
    prefix, middle, suffix = (
        TextPart(cut.start, cut.first),
        TextPart(cut.first, cut.second),
        TextPart(cut.second, cut.end),
    )
    before = {name: TextPart(token=token) for name, token in sentinels._asdict().items()}
    if spm:
        yield from (before["prefix"], before["suffix"], suffix, before["middle"], prefix, middle)
    else:
        yield from (before["prefix"], prefix, before["suffix"], suffix, before["middle"], middle)


def _sentinels(options: FillInTheMiddle, encoder: Encoder) -> Sentinels:
    if options.tokens is not None:
        if missing := [t for t in options.tokens if encoder.backend.token_to_id(t) is None]:
            raise UserError(f"fim: the tokenizer has no token {missing[0]!r}")
        return Sentinels(*options.tokens)
    for known in SENTINELS:
        if all(encoder.backend.token_to_id(t) is not None for t in known):
            return known
    raise UserError(
        f"fim: the tokenizer has no tokens for it, as {', '.join(SENTINELS[0])}: name its own (tokens: prefix, middle, suffix)"
    )


_CUT = "if x:\n    return 'n\u00e9 \u597d'  # the sum\n"


def _check_joins(encoder: Encoder) -> None:
    """Raise UserError for a tokenizer by which a text that is cut in two, and joined again, says something else. Characters
    that it does not know are left out: several of them may be one token, or two."""
    text = "".join(c for c in _CUT if not encoder.num_unknown(encoder.encode([c])[0]))
    whole = encoder.decode(encoder.encode_parts(text, [TextPart(0, len(text))])[0].tolist())
    for at in range(1, len(text)):
        cut = encoder.decode(encoder.encode_parts(text, [TextPart(0, at), TextPart(at, len(text))])[0].tolist())
        if cut != whole:
            raise UserError(
                f"fim: by this tokenizer a text that is cut is another one: what is {whole[: at + 4]!r} as one text begins as "
                f"{cut[: at + 4]!r} when it is cut behind {text[:at]!r}"
            )
