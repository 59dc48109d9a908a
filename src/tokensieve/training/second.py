"""Second targets of a training step: from the batch's columns, a teacher beside the student, or a table of similar tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from ..core import IGNORE_INDEX, Objective
from ..core.backends import OWN
from ..core.objective import SecondTarget
from ..core.targets import SparseTargets, similar_entries
from ..data.rows import next_entries
from ..modeling.probe import broken_property
from ..modeling.seam import HeadSeam, base_model, likeliest_entries
from ..runs.errors import UserError

Autocast = Callable[[], AbstractContextManager[Any]]


class SecondTargets:
    """``of(inputs, share)``: the second targets of a micro-batch, aligned by predicting position.

    ``teacher`` is frozen, put into eval mode and onto ``device``, whole on every rank; ``context`` is what its forward runs
    in. ``embeddings`` [V, D] are those of similar tokens; a copy of what they say is made here, so that training does not
    move it. Raises UserError for a teacher that is missing, or is another model's by its vocabulary.
    """

    def __init__(
        self,
        wanted: SecondTarget,
        student: Any,
        teacher: Any,
        embeddings: Tensor | None,
        device: Any,
        context: Autocast,
    ) -> None:
        self.wanted, self.context = wanted, context
        self.seam: HeadSeam | None = None
        self.teacher: Any = None
        if wanted.origin == "teacher":
            if teacher is None:
                raise UserError("the objective distils from a teacher: SelectiveTrainer(..., teacher=model)")
            _check_vocabulary("the teacher", _head_size(base_model(teacher)), student)
            self.teacher = teacher.requires_grad_(False).eval().to(device)
            self.seam = HeadSeam(self.teacher)
        elif wanted.origin == "similar":
            table_VD = base_model(student).get_input_embeddings().weight if embeddings is None else embeddings
            _check_vocabulary("the table of embeddings", len(table_VD), student)
            self.similar = similar_entries(table_VD.to(device), wanted.top_k, wanted.temperature)

    def broken(self, rows: Any, count: int, device: torch.device) -> str | None:
        """A sentence on what the method takes for granted and the teacher does not hold, fed with ``count`` of the rows."""
        if self.seam is None:
            return None

        def call(**inputs: Any) -> Any:
            with self.context():
                return self.teacher(**inputs)

        told = broken_property(self.seam, rows, count, call, device, labels=False)
        return told and f"the teacher: {told}"

    @torch.no_grad()
    def of(self, inputs: Mapping[str, Tensor], share: float) -> SparseTargets:
        """Entries and probabilities of each token of ``inputs``, which are on the device."""
        if self.wanted.origin == "similar":
            y_BT = inputs["targets"].masked_fill(inputs["targets"] == IGNORE_INDEX, 0)
            return SparseTargets(self.similar.ids[y_BT], self.similar.probs[y_BT], share, rest=False)
        if self.wanted.origin == "teacher":
            ids, log_probs = self._of_teacher(inputs)
        else:
            ids, log_probs = (next_entries(inputs[name]) for name in self.wanted.columns)
        if self.wanted.renormalised:
            log_probs = log_probs.masked_fill(ids < 0, -torch.inf).log_softmax(-1)
            log_probs = log_probs.nan_to_num(nan=-torch.inf)  # of a token without any entry
        return SparseTargets(ids, log_probs.exp(), share, rest=not self.wanted.renormalised, divergence=True)

    def _of_teacher(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        assert self.seam is not None
        with self.context():
            return likeliest_entries(self.teacher, self.seam, inputs, self.wanted.top_k)


def _check_vocabulary(what: str, size: int, student: Any) -> None:
    """Entries of one vocabulary mean nothing in another, and a longer one has entries that the other lacks."""
    if size != (own := _head_size(base_model(student))):
        raise UserError(f"{what} has a vocabulary of {size}, the student one of {own}: they must be the same")


def _head_size(model: Any) -> int:
    return int(model.get_output_embeddings().weight.shape[0])


def check_second(objective: Objective, backend: str, teacher: Any) -> None:
    """Refuse a teacher that nothing asks, and another library's backward, which knows one target a token."""
    origin = None if objective.second is None else objective.second.origin
    if teacher is not None and origin != "teacher":
        raise UserError(
            f"a teacher is given, but objective {objective.name!r} asks none: give distill the option teacher"
        )
    if origin is not None and backend != OWN:
        raise UserError(
            f"head: backend {backend!r} knows one target a token: objective {objective.name!r} needs {OWN!r}"
        )
