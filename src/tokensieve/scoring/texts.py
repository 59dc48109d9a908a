"""Mean nll of whole texts under a model: texts are tokenised as documents of a corpus are, and read in pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core import IGNORE_INDEX
from ..data.bos import expected
from ..data.rows import Rows, collate, is_target
from ..data.tokenizer import Encoder, load_tokenizer, token_bytes, tokenizer_folder
from ..modeling.folder import model_folder
from ..modeling.load import check_length, check_vocabulary, load_causal_lm, quiet_loading
from .engine import BATCH_TOKENS, Scorer, statistics

_PROVED_ROWS = 8


class TextScorer:
    """``mean_nll(texts)``: nats a token of each text, float64; every token but a piece's first is a target, EOS included.

    A piece is up to ``length`` tokens, the model's BOS first where it expects one; of a text longer than ``max_tokens`` (0: no
    limit) the rest is not read. Pieces see nothing of each other. What the method relies on is proved on the first texts.
    """

    def __init__(
        self,
        folder: str,
        *,
        length: int,
        max_tokens: int,
        batch_tokens: int,
        dtype: str = "float32",
        device: str | None = None,
    ) -> None:
        quiet_loading()
        self.length, self.max_tokens, self.batch_tokens = length, max_tokens, batch_tokens
        tokenizer_of = tokenizer_folder(model_folder(folder))
        tokenizer = load_tokenizer(tokenizer_of)
        model = load_causal_lm(folder, dtype=dtype)
        check_length(model.config, length, folder)
        self.encoder = Encoder(
            Path(tokenizer_of) / "tokenizer.json", int(tokenizer.eos_token_id), token_bytes(tokenizer)
        )
        check_vocabulary(model, self.encoder.vocab_size, folder)
        bos = expected(folder)
        self.bos = [] if bos is None or bos.id is None else [bos.id]
        self.scorer = Scorer(model, device=device)
        self.tokens = 0
        """Read so far."""
        self._proved = False

    @property
    def model(self) -> Any:
        return self.scorer.model

    def pieces(self, texts: Sequence[str]) -> tuple[list[list[int]], list[int]]:
        """(token ids of each piece, the text that each is of). A piece of one token has no target, and is left out."""
        made, of, step = list[list[int]](), list[int](), self.length - len(self.bos)
        for i, ids in enumerate(self.encoder.encode(texts)):
            read = ids[: self.max_tokens or None].tolist()
            for start in range(0, len(read), step):
                piece = self.bos + read[start : start + step]
                if len(piece) > 1:
                    made.append(piece)
                    of.append(i)
        return made, of

    def mean_nll(self, texts: Sequence[str]) -> np.ndarray:
        """[len(texts)], NaN for a text without targets. UserError for an nll that is not finite."""
        pieces, of = self.pieces(texts)
        self.tokens += sum(map(len, pieces))
        self._prove(pieces)
        sums, counts = np.zeros(len(texts)), np.zeros(len(texts))
        for some in self._batches(pieces):
            batch = collate([self._item(pieces[i]) for i in some])
            found = statistics(0, self.scorer.fed(batch), batch["targets"], self.model)
            target_BT = is_target(batch["targets"])
            np.add.at(sums, [of[i] for i in some], np.where(target_BT, found.nll, 0).sum(1, np.float64))
            np.add.at(counts, [of[i] for i in some], target_BT.sum(1))
        return np.asarray(np.divide(sums, counts, out=np.full(len(texts), np.nan), where=counts > 0))

    def _item(self, piece: list[int]) -> dict[str, Tensor]:
        ids = torch.tensor(piece)
        labels = ids.clone()
        labels[: max(1, len(self.bos))] = IGNORE_INDEX
        return {"input_ids": ids, "labels": labels}

    def _batches(self, pieces: Sequence[list[int]]) -> Iterator[list[int]]:
        """Pieces of like lengths together, each with its padding at most ``batch_tokens``: a text's number does not depend on
        its neighbours but for rounding."""
        batch: list[int] = []
        for i in sorted(range(len(pieces)), key=lambda i: (-len(pieces[i]), pieces[i])):
            if batch and (len(batch) + 1) * len(pieces[batch[0]]) > self.batch_tokens:
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _prove(self, pieces: Sequence[list[int]]) -> None:
        if self._proved or not pieces:
            return
        from datasets import Dataset

        rows = Rows(Dataset.from_dict({"input_ids": sorted(pieces, key=len)[-_PROVED_ROWS:]}))
        self.scorer.prove(rows, len(rows))
        self._proved = True


def nll_of_pieces(
    scorer: Scorer, pieces: Sequence[Sequence[int]], batch_tokens: int = BATCH_TOKENS
) -> list[np.ndarray]:
    """Of each piece, the nll in nats of its tokens given those before them in it: float64 [T], NaN for the first.

    Pieces see nothing of each other. UserError for an nll that is not finite, and for what the model does not hold of what the
    method takes for granted, which is proved on the longest of these pieces.
    """
    from datasets import Dataset

    found = [np.full(len(piece), np.nan) for piece in pieces]
    order = sorted(range(len(pieces)), key=lambda i: -len(pieces[i]))
    if not any(len(piece) > 1 for piece in pieces):
        return found
    some = [list(pieces[i]) for i in order[:_PROVED_ROWS]]
    scorer.prove(Rows(Dataset.from_dict({"input_ids": some})), len(some))
    while order:
        count = max(1, batch_tokens // max(1, len(pieces[order[0]])))
        now, order = order[:count], order[count:]
        batch = collate([_all_targets(pieces[i]) for i in now])
        nll = statistics(0, scorer.fed(batch), batch["targets"], scorer.model).nll
        for i, nll_T in zip(now, nll, strict=True):
            found[i][1:] = nll_T[1 : len(pieces[i])]
    return found


def _all_targets(piece: Sequence[int]) -> dict[str, Tensor]:
    ids = torch.tensor(list(piece))
    return {"input_ids": ids, "labels": ids.clone()}
