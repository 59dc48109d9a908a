"""Which rows a model is proved on, what is changed in them, and what of them is fed by itself.

row 0, 2 ...  several pieces, none long     [ a a a a|b b b|c c c c ]  -> [ a a x x|x x x|c c c c ]   before, changed, later
row 1, 3 ...  the longest piece             [ d d d d d d d d d d d ]  as it is
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..core import IGNORE_INDEX
from ..data.rows import Rows

RowItem = dict[str, Tensor]

# Rows that are looked at, spread over the data set: reading them takes some ten milliseconds.
CANDIDATE_ROWS = 128
ENOUGH_TOKENS = 8  # tokens of a piece that show more than noise


def choose_rows(rows: Rows, count: int) -> list[RowItem]:
    """Up to ``count`` rows with a target: short ones of several pieces (or short ones) and the longest in turn; one: both.

    Of CANDIDATE_ROWS rows over the whole set; of all of them, one by one, where none of these has a target.
    """
    spread = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), max(CANDIDATE_ROWS, count))).astype(int)).tolist()
    items: list[RowItem] = [item for item in rows.__getitems__(spread) if has_target(item)]
    if not items and len(spread) < len(rows):
        items = [found for i in range(len(rows)) if has_target(found := rows[i])][:count]
    if count == 1 or len(items) < 2:
        return [max(items, key=lambda item: (_second(item), longest(item)))] if items else []
    sized = sorted(((pieces(item)[1], item) for item in items), key=lambda it: max(it[0]))
    half = min(count, len(sized)) // 2
    long, rest = sized[len(sized) - half :][::-1], sized[: len(sized) - half]
    rest.sort(key=lambda it: (len(it[0]) < 2, max(it[0]) < ENOUGH_TOKENS, max(it[0])))
    short = rest[: min(count, len(sized)) - half]
    return [(short, long)[i % 2][i // 2][1] for i in range(len(short) + len(long))]


def _second(item: RowItem) -> int:
    """Tokens of the second longest piece, up to what shows enough."""
    return min(ENOUGH_TOKENS, sorted([0, *pieces(item)[1]])[-2])


def has_target(item: RowItem) -> bool:
    return bool((item["labels"][1:] != IGNORE_INDEX).any())


def real_tokens(item: RowItem) -> int:
    """Tokens up to the last label: behind it there is padding, or nothing that anything is computed of."""
    labelled = (item["labels"] != IGNORE_INDEX).nonzero()
    return int(labelled[-1]) + 1 if len(labelled) else 0


def pieces(item: RowItem) -> tuple[list[int], list[int]]:
    """(starts, lengths) of what the positions keep apart, up to the last label; without positions one piece."""
    count = real_tokens(item)
    starts = [0]
    if "position_ids" in item:
        step = item["position_ids"][:count].diff()
        starts += ((step != 1).nonzero().squeeze(-1) + 1).tolist()
    return starts, np.diff([*starts, count]).tolist()


def longest(item: RowItem) -> int:
    return max(pieces(item)[1])


@dataclass(frozen=True)
class Changes:
    """Where tokens are changed and where they must not matter: bool [B, T], all false where a row has nothing of the kind."""

    changed: Tensor
    before: Tensor
    """Before the change: a causal model cannot tell."""
    later: Tensor
    """In pieces after those that are changed."""
    still: Tensor
    """Rows without a change."""
    through: Tensor
    """Unchanged tokens amid the change, in a piece with it: what it does to those that may see it."""
    nearest: Tensor
    """The two of ``before`` and of ``later`` that are next to the change."""

    @staticmethod
    def of(items: Sequence[RowItem], length: int) -> Changes:
        """Every other row is changed, from the middle of its first piece to the end of its middle one."""
        masks = {name: torch.zeros(len(items), length, dtype=torch.bool) for name in Changes.__dataclass_fields__}
        for row, item in enumerate(items):
            (starts, lengths), end = pieces(item), real_tokens(item)
            if row % 2:
                masks["still"][row, :end] = True
                continue
            stop = starts[(len(starts) + 1) // 2] if len(starts) > 1 else end
            first = (lengths[0] + 1) // 2 if (lengths[0] + 1) // 2 < stop else 0
            masks["changed"][row, first:stop] = True
            masks["before"][row, :first] = True
            masks["later"][row, stop:end] = True
            masks["nearest"][row, max(0, first - 2) : first] = True
            masks["nearest"][row, stop : min(stop + 2, end)] = True
            parts = [(max(first, s), min(stop, s + n)) for s, n in zip(starts, lengths, strict=True)]
            a, b = max(parts, key=lambda part: part[1] - part[0])
            if b - a >= ENOUGH_TOKENS:
                amid = slice(a + (b - a) // 2, a + (b - a) * 3 // 4)
                masks["through"][row, amid], masks["changed"][row, amid] = True, False
        for row, item in enumerate(items):  # what a mask hides has no number worth a comparison
            if "attention_mask" in item:
                seen_T = torch.nn.functional.pad(item["attention_mask"] != 0, (0, length - len(item["attention_mask"])))
                for name in ("before", "later", "still", "through"):
                    masks[name][row] &= seen_T
        return Changes(**masks)

    def applied(self, ids_BT: Tensor, vocab_size: int, kept: Sequence[int] = ()) -> Tensor:
        """Each changed token becomes another one of the batch: ids that a model knows, and no two equal ones.

        ``kept``: ids that stay and that nothing becomes: placeholders of images, which must be as many as these have features.
        """
        held = torch.tensor(kept, dtype=ids_BT.dtype, device=ids_BT.device)
        known = ids_BT.unique()
        known = known[~torch.isin(known, held)]
        place_BT = torch.searchsorted(known, ids_BT)
        changed_BT = self.changed.to(ids_BT.device) & ~torch.isin(ids_BT, held)
        other_BT = known[(place_BT + 1) % len(known)] if len(known) > 1 else (ids_BT + 1) % vocab_size
        return torch.where(changed_BT, other_BT, ids_BT)


def alone(items: Sequence[RowItem]) -> list[tuple[RowItem, int, int]]:
    """(item, its row, where it begins there): every other row, or one piece of each, the second longest. All of one length.

    Nothing for a single row that is one piece: that is alone as it is.
    """
    if "position_ids" not in items[0]:
        return [(items[row], row, 0) for row in range(0, len(items), 2)] if len(items) > 1 else []
    cut = []
    for row in range(0, len(items), 2):
        by_length = sorted(zip(*pieces(items[row]), strict=True), key=lambda piece: -piece[1])
        start, length = by_length[1] if len(by_length) > 1 and by_length[1][1] >= ENOUGH_TOKENS // 2 else by_length[0]
        cut.append((row, start, length))
    length = min(length for _, _, length in cut)
    names = ("input_ids", "labels", "position_ids", "attention_mask")
    return [
        ({k: items[row][k][start : start + length] for k in names if k in items[row]}, row, start)
        for row, start, _ in cut
    ]
