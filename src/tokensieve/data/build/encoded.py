"""A document as token ids, and which of them are targets of which weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import xxhash

from ..read.documents import NO_TARGET, Document
from ..tokenizer import CONTROL, Encoder
from ..weight_rules import WeightRule, only_source
from .weigh import weigh_characters

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]


@dataclass
class Encoded:
    """A document as token ids."""

    id: str
    source: str
    ids: Int32  # with BOS, where the corpus has one, and EOS
    num_bytes: int
    text_hash: int
    target: int = 0  # index of the solution's first token; 0 for plain text
    labels: Int32 | None = None  # as long as ids; None: all are targets
    weights: Float32 | None = None  # likewise; None: all are 1
    spoke: Sequence[int] = ()  # the rules for weights that spoke of it
    unknown: int = 0  # tokens that stand for text which the vocabulary cannot say, and characters that became none
    chat: bool = False
    exact: bool = True  # whether the table of bytes adds up to its text
    touched: tuple[int, ...] = ()  # the transforms that changed it


@dataclass
class Weighed:
    """A document with the weight of each of its characters and of its EOS, NaN where it is no target; None: all are 1."""

    document: Document
    weights_C: Float32 | None
    spoke: Sequence[int] = field(default_factory=list)


def weighed(document: Document, rules: Sequence[WeightRule]) -> Weighed:
    if not (document.weights or rules or document.masked or document.deleted):
        return Weighed(document, None)
    weights_C = np.full(len(document.text) + 1, np.nan if document.masked else 1.0, np.float32)
    spoke = weigh_characters(document, rules, weights_C)
    for start, end in document.deleted:
        weights_C[start:end] = np.nan
    there = spoke or document.weights or document.masked or document.deleted
    return Weighed(document, weights_C if there else None, spoke)


def of_tokens(ids: Int32, places_T: Int64, weights_C: Float32) -> tuple[Int32 | None, Float32 | None]:
    """(labels, weights) of a document's tokens from its characters'; None where they say nothing.

    A BOS put before it is no target and weighs 1; so do control tokens put between its parts, which are targets.
    """
    put_before = len(places_T) > 1 and places_T[0] == -1  # CONTROL is no BOS: it may stand first
    weights_T = weights_C[places_T]  # the EOS put behind has place -1: the last entry
    weights_T[: int(put_before)] = 1
    weights_T[places_T == CONTROL] = 1
    return _told(ids, weights_T, put_before=put_before)


def _told(ids: Int32, weights_T: Float32, *, put_before: bool) -> tuple[Int32 | None, Float32 | None]:
    none_T = np.isnan(weights_T)
    weights = np.where(none_T, np.float32(0), weights_T) if (weights_T[~none_T] != 1).any() else None
    if not none_T.any():
        return None, weights
    labels = np.where(none_T, np.int32(NO_TARGET), ids)
    labels[: int(put_before)] = NO_TARGET
    return labels, weights


def already_encoded(document: Document, tokens: list[int], encoder: Encoder, rules: Sequence[WeightRule]) -> Encoded:
    """Its text is not known: bytes come from the table, the hash from what the tokens decode to, BOS and EOS left out.

    Of the rules those that name a source alone can speak of it.
    """
    ids = encoder.framed(tokens)
    first = int(ids[0] != tokens[0])  # a BOS was put before it
    text = encoder.decode(ids[int(encoder.bos_id is not None) : -1].tolist()).encode()
    made = Encoded(document.id, document.source, ids, encoder.num_bytes(ids), xxhash.xxh3_64_intdigest(text))
    made.unknown = encoder.num_unknown(ids)
    made.spoke = [i for i, rule in enumerate(rules) if only_source(rule) and rule.source == document.source]
    weights_T = np.ones(len(ids), np.float32)
    if document.token_weights is not None:
        weights_T[first : first + len(tokens)] = document.token_weights
        weights_T[first + len(tokens) :] = document.token_weights[-1]
    for i in made.spoke:
        weights_T[:] = rules[i].weight
    if document.labels is not None:
        given = np.array(document.labels, np.int32)
        weights_T[first : first + len(tokens)][given == NO_TARGET] = np.nan
        weights_T[first + len(tokens) :][[given[-1] == NO_TARGET] * (len(ids) - first - len(tokens))] = np.nan
    made.labels, made.weights = _told(ids, weights_T, put_before=bool(first))
    return made
