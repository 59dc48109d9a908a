"""The nll of a text without its images: what a rule weighs by that asks how much of a token the image tells.

    dataset = dataset.add_column("ablated_nll", tokensieve.ablated_nll(model, dataset))
    tokensieve.objective("cal")                                  nll without the image - the student's nll with it
    tokensieve.objective("prior", reference="ablated_nll")       1 - p without the image

blank     row [ a I I I b c ], pixel values of 0: the mean colour, where a processor normalises
none      row [ a b c ]: placeholders left out, no pixels; any model of the same tokens will do
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..core import IGNORE_INDEX
from ..data.images import PER_IMAGE, PER_TOKEN, PIXELS, ImageInputs
from ..data.rows import Rows
from ..modeling.images import image_inputs
from ..runs.errors import UserError
from .engine import Scorer

Ablation = Literal["blank", "none"]


def ablated_nll(
    model: Any,
    dataset: Any,
    image: Ablation = "blank",
    *,
    image_token_id: int | None = None,
    ignore_columns: Sequence[str] = (),
    batch_rows: int = 8,
    device: str | None = None,
) -> list[npt.NDArray[np.float32]]:
    """``-log p(token | the tokens before it, no image)`` of each row of ``dataset``: a list of float32 [T], nats.

    NaN where there is no target: at a row's first token, at labels of -100, at placeholders. ``image``: blank, pixel values
    of 0 in place of the row's; or none, the text alone without its placeholders, for which ``model`` may be one of text, given
    the placeholders' ``image_token_id``. ``model`` is moved to ``device`` (a GPU, if there is one) and left in eval mode.

    UserError for a data set without images, a model that cannot be relied on (docs/design/proof.md), and, for none, a row
    whose first target follows its image at once: without it nothing stands before that token.
    """
    if image not in get_args(Ablation):
        raise UserError(f"image: {image!r} is none of {', '.join(get_args(Ablation))}")
    takes = image_inputs(model)
    if image_token_id is not None:
        takes = ImageInputs(type(model).__name__, takes.names if takes else (), (image_token_id,))
    if takes is None or (image == "blank" and not takes.names):
        raise UserError(
            f"{type(model).__name__} takes no images: give a vision-language model, or image='none' and image_token_id, what "
            "stands for an image in input_ids"
        )
    if image == "none":
        takes = ImageInputs(takes.model, (), takes.token_ids)  # pixels are not even read
        ignore_columns = (*ignore_columns, *PER_IMAGE, *PER_TOKEN)
    rows = _Ablated(dataset, images=takes, ignore_columns=ignore_columns)
    if image == "blank" and not (rows.images and rows.images.read):
        raise UserError(f"the data set has no column {PIXELS!r}: there is no image to leave out")
    scorer = Scorer(model, device=device, batch_rows=batch_rows)
    try:
        return [values for found in scorer.run(rows) for values in _by_row(rows, found.start, found.nll)]
    finally:
        scorer.seam.close()


def _by_row(rows: _Ablated, start: int, nll_BT: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
    """The numbers of rows from ``start`` on, each as long as its row and at the places of its tokens."""
    made = []
    for index, nll_T in enumerate(nll_BT, start):
        fed_T = rows.fed.pop(index)
        whole_T = np.full(len(fed_T), np.nan, np.float32)
        whole_T[fed_T] = nll_T[: int(fed_T.sum())]
        made.append(whole_T)
    return made


class _Ablated(Rows):
    """Rows whose pixels are 0 or, where the model is not fed any, without their placeholders."""

    def __init__(self, dataset: Any, **options: Any) -> None:
        super().__init__(dataset, **options)
        self.fed: dict[int, npt.NDArray[np.bool_]] = {}
        """Of each row that was read, which of its tokens are fed. bool [T]"""

    def _row(self, row: Mapping[str, Any], index: int) -> dict[str, Tensor]:
        assert self.images is not None
        item = super()._row(row, index)
        if self.images.takes.names:
            self.fed[index] = np.ones(len(item["input_ids"]), np.bool_)
            return {name: torch.zeros_like(v) if name == PIXELS else v for name, v in item.items()}
        self.fed[index] = ~self.images.placeholders(item["input_ids"].numpy())
        text_T = torch.from_numpy(self.fed[index])
        first = int(self.fed[index].argmax())
        if first and int(item["labels"][first]) != IGNORE_INDEX:
            raise UserError(
                f"row {index} begins with an image: without it nothing stands before the token at position {first}, which is a "
                "target; take image='blank', or put -100 there"
            )
        return {name: v[text_T] if v.shape == text_T.shape else v for name, v in item.items()}
