"""Rows with images: what a model's processor made of the images of a row, carried beside its tokens.

row     input_ids     [ a I I I I b c ]      I: a placeholder, one for each feature of the image, and never a target
        pixel_values  [n, C, H, W]           of the n images of this row, as the processor gives them for the row alone
batch   pixel_values  (row 0, row 1, ...)    a tensor a row: rows have images of other numbers and sizes
model   pixel_values  [n_0 + n_1 .., C, H, W]   one after the other, as processors give them for a batch
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..runs.errors import UserError
from .row_checks import as_array, as_long, integers

PIXELS = "pixel_values"
PER_IMAGE = (PIXELS, "pixel_attention_mask", "image_sizes", "image_grid_thw")
"""Columns whose first dimension goes over the images (or patches) of a row."""
PER_TOKEN = ("mm_token_type_ids", "token_type_ids")
"""Columns with an entry a token, by which some models know where images stand."""


@dataclass(frozen=True)
class ImageInputs:
    """What a model takes of images."""

    model: str
    """The name of its class."""
    names: tuple[str, ...]
    """Those of PER_IMAGE and PER_TOKEN that its forward has; none: images are not read, and placeholders are no targets."""
    token_ids: tuple[int, ...]
    """The ids of its placeholders."""


class RowImages:
    """The image columns of one data set, read for one model. Raises UserError for columns that do not belong together."""

    def __init__(self, takes: ImageInputs, columns: Collection[str], *, packs: bool) -> None:
        there = [name for name in (*PER_IMAGE, *PER_TOKEN) if name in columns]
        self.takes, self.read = takes, tuple(n for n in there if n in takes.names)
        self.per_image: tuple[int, int] | None = None
        """(placeholders of an image, the row that says so), where all images have as many."""
        if not takes.names or not {*PER_IMAGE} & {*there}:
            self.read = ()
            return
        if unread := [n for n in there if n in PER_IMAGE and n not in takes.names]:
            raise UserError(
                f"column {unread[0]!r}: {takes.model} does not take it: it is of another model's processor, or to be listed "
                "in ignore_columns"
            )
        if missing := [n for n in takes.names if n in (PIXELS, *PER_TOKEN) and n not in there]:
            raise UserError(
                f"the data set has images ({', '.join(n for n in there if n in PER_IMAGE)}), and no {missing[0]!r}, which "
                f"{takes.model} takes: its processor gives it"
            )
        if packs:
            raise UserError(
                "rows with images hold one sample each: columns that divide a row into pieces are not supported"
            )

    def placeholders(self, ids_T: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which tokens stand for an image. bool [T]"""
        return np.isin(ids_T, self.takes.token_ids)

    def of_row(self, row: Mapping[str, Any], ids_T: npt.NDArray[np.int64], index: int) -> dict[str, Tensor]:
        """The image columns of a row, by name; of a row without an image those of PER_IMAGE are empty.

        UserError for values that are no numbers, and where placeholders and images do not go together: a row that was cut
        inside an image would take a part of the next row's.
        """
        if not self.takes.names:
            return {}
        made: dict[str, Tensor] = {}
        for name in self.read:
            if name in PER_TOKEN:
                made[name] = torch.from_numpy(as_long(integers(row[name], name, index), name, len(ids_T), index))
            else:
                made[name] = _of_images(row[name], name, index)
        images = len(made[PIXELS]) if PIXELS in made else 0
        self._check_count(int(self.placeholders(ids_T).sum()), images, index)
        return made

    def _check_count(self, placeholders: int, images: int, index: int) -> None:
        if bool(placeholders) != bool(images):
            what = (
                f"{placeholders} placeholders of images and no {PIXELS}"
                if placeholders
                else f"{PIXELS} and no placeholder"
            )
            raise UserError(f"row {index} has {what}: its text and its images are not of each other")
        if not images or {*self.read} - {PIXELS, *PER_TOKEN}:
            return  # images of several sizes have placeholders of several numbers: only the model knows how many
        each, odd = divmod(placeholders, images)
        self.per_image = self.per_image or (each, index)
        if odd or each != self.per_image[0]:
            first, row = self.per_image
            raise UserError(
                f"row {index} has {placeholders} placeholders for {images} image(s), and row {row} has {first} for each: was "
                "it cut inside an image?"
            )


def _of_images(values: Any, name: str, index: int) -> Tensor:
    """float32, or int64 for whole numbers, with a first dimension over images; empty where there is none."""
    found = as_array([] if values is None else values)
    if not found.size:
        return torch.empty(0)
    if found.dtype.kind not in "iufb" or found.ndim < 2:
        raise UserError(
            f"row {index}: column {name!r} is no array of numbers with a first dimension over the row's images"
        )
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        raise UserError(f"row {index}: column {name!r} has values that are not finite")
    whole = found.dtype.kind != "f" and name != PIXELS
    return torch.from_numpy(np.ascontiguousarray(found, np.int64 if whole else np.float32))


def joined_images(name: str, per_row: Sequence[Tensor]) -> Tensor | None:
    """Those of all rows, one after the other; None where no row has any. UserError for shapes that do not fit together."""
    there = [values for values in per_row if values.numel()]
    if len({values.shape[1:] for values in there}) > 1:
        shapes = sorted({str(list(values.shape[1:])) for values in there})
        raise UserError(
            f"{name}: images of {' and '.join(shapes[:2])} do not fit into one batch: pad them to one shape, or take "
            "batches of one row"
        )
    return torch.cat(there) if there else None


def map_tensors(batch: Mapping[str, Any], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """``change`` of every tensor of a collated batch, those of images row by row."""
    return {k: tuple(map(change, v)) if isinstance(v, tuple) else change(v) for k, v in batch.items()}
