"""Parameters that stay as they are, by patterns of their names."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from ..runs.errors import UserError


def freeze(model: Any, patterns: Sequence[str]) -> Any:
    """``model`` itself, each parameter that one of the patterns matches without a gradient.

    A pattern is a parameter's whole name, with ``*`` for anything (``model.embed_tokens.*``, ``*.layers.0.*``), as the shell
    has it. Tied weights are one parameter of two names, and either of them freezes it. UserError for a pattern that matches
    nothing, and where nothing would be left to train.
    """
    named = list(model.named_parameters(remove_duplicate=False))
    for pattern in patterns:
        mine = [parameter for name, parameter in named if fnmatchcase(name, pattern)]
        if not mine:
            names = [name for name, _ in named]
            near = difflib.get_close_matches(pattern, names, 1) or names[:1]
            raise UserError(
                f"freeze: no parameter's name matches {pattern!r}; there is {near[0]!r}, and * stands for anything"
            )
        for parameter in mine:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for _, parameter in named):
        raise UserError("freeze: all parameters are frozen, nothing is left to train")
    return model
